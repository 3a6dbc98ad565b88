"""Reaching a machine: connections, commands, files."""
