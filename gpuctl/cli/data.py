"""`upload` and `download`: files to a machine and back."""

from __future__ import annotations

from pathlib import Path

import click

from gpuctl.cli.machines import living
from gpuctl.cli.opening import opened
from gpuctl.cli.options import example, json_option
from gpuctl.cli.output import emit
from gpuctl.cli.terminal import Terminal, line
from gpuctl.quantities import format_bytes
from gpuctl.remote.connection import Transferred


@click.command(
    epilog=example("gpuctl upload demo ./data work/data", "gpuctl upload demo train.py work/")
)
@click.argument("machine")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.argument("target", metavar="DST")
@json_option
def upload(machine: str, source: Path, target: str, as_json: bool) -> None:
    """Send a file or a folder to a machine; only what differs is sent.

    A folder's contents land in DST, without what .gitignore and .gpuctlignore name. A file lands
    in DST under its own name when DST ends with / or is a folder. A relative DST starts at the
    machine's home.
    """
    from gpuctl.fleet.ready import reopen

    with Terminal() as terminal, opened(terminal.say) as fleet:
        row = living(fleet, machine)
        connection = reopen(fleet, row).connection
        try:
            moved = connection.put(
                source,
                target,
                progress=lambda done, total: terminal.progress(str(source), done, total),
            )
        finally:
            connection.close()
    _tell(row.name, str(source), target, moved, as_json)


@click.command(
    epilog=example("gpuctl download demo work/out ./out", "gpuctl download demo work/model.pt .")
)
@click.argument("machine")
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@json_option
def download(machine: str, source: str, target: Path, as_json: bool) -> None:
    """Fetch a file or a folder from a machine; only what differs is fetched.

    Nothing lands outside DST, whatever the machine says.
    """
    from gpuctl.fleet.ready import reopen

    with Terminal() as terminal, opened(terminal.say) as fleet:
        row = living(fleet, machine)
        connection = reopen(fleet, row).connection
        try:
            moved = connection.get(
                source, target, progress=lambda done, total: terminal.progress(source, done, total)
            )
        finally:
            connection.close()
    _tell(row.name, source, str(target), moved, as_json)


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
            }
        )
        return
    skipped = f", {moved.skipped} unchanged" if moved.skipped else ""
    line(f"{source} -> {target}: {moved.files} files, {format_bytes(moved.bytes)}{skipped}")
