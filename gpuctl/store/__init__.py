"""Where checkpoints and outputs live: a folder or an S3 bucket. Start at `open_store`."""

from gpuctl.store.answers import BlobSource, Newest, PassedOver, Problem, Pruned
from gpuctl.store.ending import Ending
from gpuctl.store.manifest import Blob, CorruptManifest, Manifest, NewerFormat, parse_manifest
from gpuctl.store.opening import open_store
from gpuctl.store.restore import CorruptEntry, Fetched
from gpuctl.store.store import Store

__all__ = [
    "Blob",
    "BlobSource",
    "CorruptEntry",
    "CorruptManifest",
    "Ending",
    "Fetched",
    "Manifest",
    "NewerFormat",
    "Newest",
    "PassedOver",
    "Problem",
    "Pruned",
    "Store",
    "open_store",
    "parse_manifest",
]
