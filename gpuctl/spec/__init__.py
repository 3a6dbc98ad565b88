"""train.yaml: what it may say, how it is read, and what is said when it is wrong."""

from gpuctl.spec.loading import load_spec
from gpuctl.spec.model import (
    Budget,
    Checkpoints,
    Data,
    OnInterruption,
    Output,
    Preflight,
    Resources,
    RunSpec,
    missing_secrets,
)
from gpuctl.spec.paths import is_s3
from gpuctl.spec.schema import json_schema

__all__ = [
    "Budget",
    "Checkpoints",
    "Data",
    "OnInterruption",
    "Output",
    "Preflight",
    "Resources",
    "RunSpec",
    "is_s3",
    "json_schema",
    "load_spec",
    "missing_secrets",
]
