"""Asking a bucket before a machine is rented for what is in it, or goes into it."""

from __future__ import annotations

from collections.abc import Mapping

from gpuctl.buckets.naming import items_below
from gpuctl.errors import UsageError
from gpuctl.store.bucket import Address, Bucket

_LOOK = 1000  # objects: what one request lists


def check_source(address: Address, environ: Mapping[str, str]) -> None:
    """See that there is something at an address, and that it can be listed.

    Raises:
        UsageError: there is nothing.
        StoreError: the bucket does not answer, or holds keys that can be no files' names.
        NoCredentials: the key is wrong, or has no right to list.
    """
    bucket = Bucket(address.bucket, environ)
    if items_below(address, bucket.listing(address.folder, most=_LOOK)):
        return
    if address.key and not address.key.endswith("/") and bucket.look(address.key) is not None:
        return
    raise UsageError(
        f"There is nothing at {address}",
        next="Correct the address; a prefix ends at a '/' of the keys.",
    )


def check_target(address: Address, environ: Mapping[str, str]) -> None:
    """See that an address can be listed and written; nothing stays there.

    Raises:
        StoreError: the bucket does not answer.
        NoCredentials: the key is wrong, or has no right to list or to put.
    """
    bucket = Bucket(address.bucket, environ)
    for _ in bucket.listing(address.folder, most=1):
        break
    bucket.check_writing(f"{address.folder}.gpuctl-probe")
