"""The run controller, a file a phase: prepare, launch, follow, recover, finish."""
