"""A run's data from buckets, and its outputs to them."""

from __future__ import annotations

from pathlib import PurePosixPath

from gpuctl.buckets import NothingThere, Trip, bring, key_of_output, send, send_from_here
from gpuctl.buckets.trip import passing_through
from gpuctl.remote.connection import Connection, Progress, Transferred
from gpuctl.run.work import Live, Work, scratch
from gpuctl.spec import Output
from gpuctl.store import Manifest
from gpuctl.store.bucket import parse_address


def bring_data(
    work: Work, connection: Connection, source: str, target: str, progress: Progress
) -> None:
    """Bring one thing of ``data`` from its bucket to the machine.

    Raises:
        UsageError: there is nothing (any more).
        StoreError, NoCredentials: the bucket cannot be read.
        RemoteError: the machine cannot be reached, or not be written to.
    """
    brought = bring(_trip(work, connection, progress), parse_address(source), target)
    work.report.step(f"{source}: {brought.files} files, {brought.bytes / 1e6:.1f} MB")
    _warn(work, source, brought)


def output_from_machine(work: Work, live: Live, output: Output, path: str) -> int | None:
    """Send an output from its machine to its bucket.

    Returns the bytes that were sent; None when the machine does not have it.

    Args:
        path: where it is on the machine.

    Raises:
        StoreError, NoCredentials: the bucket does not take it.
        RemoteError: the machine cannot be reached, or not be read.
    """
    trip = _trip(work, live.connection, _progress(work, output.source), live.machine)
    try:
        sent = send(trip, path, parse_address(output.target), file_key=key_of_output)
    except NothingThere:
        return None
    _warn(work, output.source, sent)
    return sent.bytes


def output_from_store(work: Work, found: Manifest, output: Output) -> int:
    """Send an output from the run's store to its bucket, through this computer.

    Raises:
        StoreError, NoCredentials: the store does not give it, or the bucket does not take it.
    """
    with passing_through(scratch(work)) as folder:
        place = folder / "it"
        work.store.fetch(found, place)
        sent = send_from_here(
            place,
            parse_address(output.target),
            environ=work.fleet.environ,
            name=PurePosixPath(output.source).name,
            file_key=key_of_output,
            progress=_progress(work, output.source),
        )
    _warn(work, output.source, sent)
    return found.bytes


def _trip(
    work: Work, connection: Connection, progress: Progress, machine: str | None = None
) -> Trip:
    return Trip(
        connection,
        work.fleet.environ,
        scratch(work),
        say=work.report.step,
        progress=progress,
        machine=machine,
    )


def _progress(work: Work, what: str) -> Progress:
    return lambda done, total: work.report.progress(what, done, total)


def _warn(work: Work, what: str, moved: Transferred) -> None:
    for one in moved.left_out:
        work.report.warn(f"{what}: left out {one}")
