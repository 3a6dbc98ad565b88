"""Uploads that a killed gpuctl left unfinished in a bucket: they bill, so they are given up."""

from __future__ import annotations

from gpuctl.fleet.context import Fleet
from gpuctl.fleet.survey import Trouble
from gpuctl.store.unfinished import Unfinished, give_up_all, unfinished
from providers.base import Leftover


def give_up_uploads(fleet: Fleet) -> list[Trouble]:
    """Give up every upload of this home whose process is dead; return what is still there."""
    if not unfinished(fleet.environ):
        return []

    def give_up(one: Unfinished) -> None:
        from gpuctl.store.bucket import Bucket

        Bucket(one.bucket, fleet.environ).give_up_unfinished(one)

    failed = give_up_all(fleet.environ, give_up)
    return [
        Trouble(
            "s3",
            error.kind,
            f"an unfinished upload of {address} bills until it is aborted: {error.message}",
            next=error.next,
        )
        for address, error in failed.items()
    ]


def uploads_left(fleet: Fleet) -> list[Leftover]:
    """Return the uploads of this home whose process is dead."""
    return [
        Leftover("s3", "multipart-upload", str(one), "", None) for one in unfinished(fleet.environ)
    ]
