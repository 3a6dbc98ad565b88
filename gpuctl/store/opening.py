"""Opening a store: from what train.yaml says to something that can be written and read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gpuctl.errors import StoreError
from gpuctl.store.folder import FolderObjects
from gpuctl.store.store import Store
from providers.base import Clock

if TYPE_CHECKING:
    from gpuctl.store.s3 import S3Objects

_RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def open_store(
    location: str, run_id: str, *, environ: Mapping[str, str], clock: Clock | None = None
) -> Store:
    """Open the store of one run; nothing is written and nobody is asked yet.

    Args:
        location: ``s3://bucket/prefix``, or the absolute path of a folder.
        run_id: as `gpuctl.names.new_run_id` makes it.
        environ: the settings; S3 takes the AWS SDK's own from it.
        clock: for tests.

    Raises:
        StoreError: the location or the settings are malformed.
    """
    if not _RUN_ID.fullmatch(run_id):
        raise StoreError(f"{run_id!r} is not the id of a run", next="`gpuctl runs` lists them.")
    if location.startswith("s3://"):
        return Store(s3_objects(location, run_id, environ), run_id, clock=clock)
    if "://" in location or not Path(location).is_absolute():
        raise StoreError(
            f"{location!r} is not a store",
            next="Write s3://bucket/prefix, or the absolute path of a folder.",
        )
    return Store(FolderObjects(Path(location), run_id), run_id, clock=clock)


def s3_objects(location: str, run_id: str, environ: Mapping[str, str]) -> S3Objects:
    """Return what lies in S3 beneath a store, as `open_store` does for ``s3://`` locations."""
    bucket, _, prefix = location.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/")
    if not _BUCKET.fullmatch(bucket):
        raise StoreError(f"{location!r} has no valid bucket name", next="Write s3://bucket/prefix.")
    parts = prefix.split("/") if prefix else []
    if not prefix.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise StoreError(
            f"The prefix in {location!r} has an empty part, dots or control characters",
            next="Write s3://bucket/prefix with plain names.",
        )
    # boto3 is imported behind these two, and only when a store is in S3.
    from gpuctl.store.s3 import S3Objects
    from gpuctl.store.s3_client import make_client

    return S3Objects(
        make_client(environ), bucket, prefix, run_id, ca_bundle=environ.get("AWS_CA_BUNDLE") or None
    )
