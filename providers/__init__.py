"""Clouds and computers that machines come from; one file or folder each, none knows another.

Nothing in this package imports from ``gpuctl``.
"""
