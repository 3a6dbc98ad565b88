"""`upload` and `download`: files to a machine and back, from here or from S3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gpuctl.cli.machines import living
from gpuctl.cli.opening import opened
from gpuctl.cli.options import example, json_option
from gpuctl.cli.output import emit
from gpuctl.cli.terminal import Terminal, line
from gpuctl.errors import UsageError
from gpuctl.quantities import format_bytes, parse_gb
from gpuctl.remote.connection import Transferred
from gpuctl.store.bucket import is_address, parse_address

if TYPE_CHECKING:
    from gpuctl.buckets import Trip

Command = TypeVar("Command", bound=Callable[..., Any])


def _bytes_a_second(
    _context: click.Context, _param: click.Parameter, value: str | None
) -> float | None:
    if value is None:
        return None
    text = value.strip().removesuffix("/s")
    try:
        rate = 0.0 if text.replace(".", "").isdigit() else parse_gb(text) * 1e9
    except ValueError:
        rate = 0.0
    if rate < 1:
        raise click.BadParameter(f"expected a size a second with its unit, such as 20MB: {value!r}")
    return rate


def _how(command: Command) -> Command:
    """Add what all transfers can be told."""
    for option in (
        click.option(
            "--limit",
            "rate",
            metavar="RATE",
            callback=_bytes_a_second,
            help="At most so much a second, such as 20MB.",
        ),
        click.option(
            "--checksum",
            is_flag=True,
            help="Compare content, not size and time of change.",
        ),
    ):
        command = option(command)
    return command


@click.command(
    epilog=example(
        "gpuctl upload demo ./data work/data",
        "gpuctl upload demo train.py work/",
        "gpuctl upload demo s3://bucket/tokens/ work/data --limit 50MB",
    )
)
@click.argument("machine")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@_how
@json_option
def upload(
    machine: str, source: str, target: str, checksum: bool, rate: float | None, as_json: bool
) -> None:
    """Send a file or a folder to a machine; only what differs is sent.

    A folder's contents land in DST, without what .gitignore and .gpuctlignore name. A file lands
    in DST under its own name when DST ends with / or is a folder. A relative DST starts at the
    machine's home.

    SRC may be s3://bucket/key or s3://bucket/prefix/: it goes straight from the bucket to the
    machine, or through this computer where the machine cannot reach the bucket. Your keys stay
    here.
    """
    if is_address(target):
        raise UsageError(
            "DST is a path on the machine, and SRC what is sent to it",
            next=f"`gpuctl download {machine} PATH {target}` sends a machine's files to S3.",
        )
    address = parse_address(source) if is_address(source) else None
    with _trip(machine, source, checksum, rate) as (name, trip):
        if address is not None:
            from gpuctl.buckets import bring

            moved = bring(trip, address, target)
        else:
            moved = trip.connection.put(
                Path(source), target, progress=trip.progress, checksum=checksum, rate=rate
            )
    _tell(name, source if address else str(Path(source)), target, moved, as_json)


@click.command(
    epilog=example(
        "gpuctl download demo work/out ./out",
        "gpuctl download demo work/model.pt .",
        "gpuctl download demo work/out s3://bucket/results/",
    )
)
@click.argument("machine")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@_how
@json_option
def download(
    machine: str, source: str, target: str, checksum: bool, rate: float | None, as_json: bool
) -> None:
    """Fetch a file or a folder from a machine; only what differs is fetched.

    Nothing lands outside DST, whatever the machine says.

    DST may be s3://bucket/prefix/: it goes straight from the machine to the bucket, or through
    this computer where the machine cannot reach the bucket. Your keys stay here.
    """
    if is_address(source):
        raise UsageError(
            "SRC is a path on the machine, and DST where it goes",
            next=f"`gpuctl upload {machine} {source} PATH` brings a bucket's files to a machine.",
        )
    address = parse_address(target) if is_address(target) else None
    with _trip(machine, source, checksum, rate) as (name, trip):
        if address is not None:
            from gpuctl.buckets import send

            moved = send(trip, source, address)
        else:
            moved = trip.connection.get(
                source, Path(target), progress=trip.progress, checksum=checksum, rate=rate
            )
    _tell(name, source, target if address else str(Path(target)), moved, as_json)


@contextmanager
def _trip(
    machine: str, what: str, checksum: bool, rate: float | None
) -> Iterator[tuple[str, Trip]]:
    """Open a machine for one transfer; yields its name too."""
    from gpuctl.buckets import Trip
    from gpuctl.fleet.ready import reopen

    with Terminal() as terminal, opened(terminal.say) as fleet:
        row = living(fleet, machine)
        connection = reopen(fleet, row).connection
        try:
            yield (
                row.name,
                Trip(
                    connection,
                    fleet.environ,
                    fleet.home.path / "scratch",
                    say=terminal.say,
                    progress=lambda done, total: terminal.progress(what, done, total),
                    checksum=checksum,
                    rate=rate,
                    machine=row.name,
                ),
            )
        finally:
            connection.close()


def _tell(machine: str, source: str, target: str, moved: Transferred, as_json: bool) -> None:
    if as_json:
        emit(
            {
                "machine": machine,
                "source": source,
                "target": target,
                "files": moved.files,
                "bytes": moved.bytes,
                "skipped": moved.skipped,
                "left_out": list(moved.left_out),
            }
        )
        return
    skipped = f", {moved.skipped} unchanged" if moved.skipped else ""
    line(f"{source} -> {target}: {moved.files} files, {format_bytes(moved.bytes)}{skipped}")
    for one in moved.left_out:
        line(f"  left out: {one}")
