"""Fetching a file or a tree, over breaks of the link to its end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gpuctl.remote.channels import Channels
from gpuctl.remote.connection import Progress, Transferred
from gpuctl.remote.transfer.crew import carried_out
from gpuctl.remote.transfer.pace import Meter, Pace
from gpuctl.remote.transfer.planning import MAX_STREAMS
from gpuctl.remote.transfer.pull import Pull

if TYPE_CHECKING:
    from paramiko import SFTPClient

    from gpuctl.remote.transfer.sftp import Sftp


def download(
    channels: Channels,
    source: str,
    target: Path,
    *,
    progress: Progress | None = None,
    checksum: bool = False,
    rate: float | None = None,
    streams: int = MAX_STREAMS,
    machine: str | None = None,
    sftp: Callable[[], SFTPClient] | None = None,
) -> Transferred:
    """Fetch a file or a tree; see `gpuctl.remote.connection.Connection.get`.

    The machine is not trusted: nothing lands outside ``target``, and links that could lead out of
    it are left out and named in the answer.

    Args:
        channels: the way to the machine.
        source: absolute or relative to the login's folder.
        target: a folder, or where one file goes (into it, when it is a folder).
        progress: called with bytes done and bytes in all.
        checksum: compare content, not size and time of change.
        rate: bytes a second at most, all streams together.
        streams: at most so many.
        machine: its name, for what goes wrong.
        sftp: opens a plain SFTP session, for a machine without python3 (content is not compared
            then, and there is one stream).

    Raises:
        UsageError: it cannot be written here.
        NoPython: the machine has no python3, and there is no ``sftp``.
        RemoteError: it cannot be read there, or the link broke again and again.
    """
    meter, pace = Meter(progress), Pace(rate)

    def attempt() -> Transferred:
        return Pull(
            channels,
            source,
            target,
            meter=meter.restarted(),
            pace=pace,
            checksum=checksum,
            streams=streams,
            machine=machine,
        ).run()

    def plain(transfer: Sftp) -> Transferred:
        return transfer.pull(source, target)

    return carried_out(attempt, plain, meter=meter, pace=pace, machine=machine, sftp=sftp)
