"""gpuctl: rent the cheapest GPU that finishes the job, and leave nothing billing."""

__version__ = "0.1.0"
