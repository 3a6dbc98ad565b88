"""Sending a file or a tree, over breaks of the link to its end."""

from __future__ import annotations

import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from gpuctl.errors import UsageError
from gpuctl.remote.channels import Channels
from gpuctl.remote.connection import Progress, Transferred
from gpuctl.remote.selection import File, Selection, select
from gpuctl.remote.transfer.crew import carried_out
from gpuctl.remote.transfer.pace import Meter, Pace
from gpuctl.remote.transfer.planning import MAX_STREAMS
from gpuctl.remote.transfer.push import Push

if TYPE_CHECKING:
    from paramiko import SFTPClient

    from gpuctl.remote.transfer.sftp import Sftp


def upload(
    channels: Channels,
    source: Path,
    target: str,
    *,
    progress: Progress | None = None,
    checksum: bool = False,
    rate: float | None = None,
    streams: int = MAX_STREAMS,
    machine: str | None = None,
    sftp: Callable[[], SFTPClient] | None = None,
) -> Transferred:
    """Send a file or a tree; see `gpuctl.remote.connection.Connection.put`.

    Args:
        channels: the way to the machine.
        source: a file or a folder; a folder honours .gitignore and .gpuctlignore.
        target: where to, absolute or relative to the login's folder.
        progress: called with bytes done and bytes in all.
        checksum: compare content, not size and time of change.
        rate: bytes a second at most, all streams together.
        streams: at most so many.
        machine: its name, for what goes wrong.
        sftp: opens a plain SFTP session, for a machine without python3 (content is not compared
            then, and there is one stream).

    Raises:
        UsageError: the source cannot be read.
        NoPython: the machine has no python3, and there is no ``sftp``.
        RemoteError: it cannot be written there, or the link broke again and again.
    """
    selecting, name = selected(source)
    meter, pace = Meter(progress), Pace(rate)

    def attempt() -> Transferred:
        return Push(
            channels,
            source,
            selecting,
            target,
            meter=meter.restarted(),
            pace=pace,
            name=name,
            checksum=checksum,
            streams=streams,
            machine=machine,
        ).run()

    def plain(transfer: Sftp) -> Transferred:
        return transfer.push(source, selecting(), target, name=name)

    return carried_out(attempt, plain, meter=meter, pace=pace, machine=machine, sftp=sftp)


def selected(source: Path) -> tuple[Callable[[], Selection], str | None]:
    """What tells what of ``source`` is sent, and its name when it is one file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        state = source.stat()
    except OSError as error:
        raise UsageError(
            f"{source} cannot be read: {error.strerror}", next="Correct the path."
        ) from error
    if stat.S_ISDIR(state.st_mode):
        return cache(lambda: select(source)), None
    if not stat.S_ISREG(state.st_mode):
        raise UsageError(f"{source} is neither a file nor a folder", next="Correct the path.")
    file = File("", state.st_size, state.st_mtime_ns, stat.S_IMODE(state.st_mode))
    return lambda: Selection([file], [], []), source.name
