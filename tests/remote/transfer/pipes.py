"""Channels to a far side that is a process on this computer, with faults on demand."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from gpuctl.errors import RemoteError

IDLE_SECONDS = 20.0

FULL_DISK = """
import os, errno
_real, _left = os.pwrite, [{room}]
def _pwrite(handle, data, offset):
    _left[0] -= len(data)
    if _left[0] < 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return _real(handle, data, offset)
os.pwrite = _pwrite
"""
READ_ONLY = """
import errno, os
def _makedirs(path, **_):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
os.makedirs = _makedirs
"""
DEAF = """
import sys, time
sys.stdin.buffer.read(100_000)
time.sleep(3600)
"""


class Fuse:
    """Cuts every channel once so many bytes went through, both ways together; then holds."""

    def __init__(self, after: int) -> None:
        self._left = after
        self._lock = threading.Lock()
        self.blown = False

    def spend(self, size: int) -> int:
        """How many of these bytes still pass."""
        with self._lock:
            passing = max(0, min(size, self._left))
            self._left -= size
            self.blown = self.blown or passing < size
            return passing


class PipeChannel:
    """Implements `gpuctl.remote.channels.ByteChannel`."""

    def __init__(
        self, argv: Sequence[str], cwd: Path, fuse: Fuse | None, idle: float = IDLE_SECONDS
    ) -> None:
        self._fuse, self._idle = fuse, idle
        self._process = subprocess.Popen(
            list(argv),
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdin
        assert self._process.stdout
        assert self._process.stderr
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._closed = False
        os.set_blocking(self._in, False)

    def read(self, size: int) -> bytes:
        ready, _, _ = select.select([self._out], [], [], self._idle)
        if not ready:
            raise RemoteError("nothing came")
        data = os.read(self._out, size)
        self._spend(len(data))
        return data

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            passing = self._spend(min(len(view), 65536), cut=False)
            _, ready, _ = select.select([], [self._in], [], self._idle)
            if not ready:
                raise RemoteError("it reads no more")
            try:
                view = view[os.write(self._in, view[:passing]) :]
            except (BrokenPipeError, ValueError) as error:
                raise RemoteError("the command reads no more") from error
            except BlockingIOError:
                continue
            if self._fuse and self._fuse.blown:
                self._cut()

    def _spend(self, size: int, *, cut: bool = True) -> int:
        if self._fuse is None:
            return size
        passing = self._fuse.spend(size)
        if self._fuse.blown and cut:
            self._cut()
        return passing

    def _cut(self) -> None:
        self.close()
        raise RemoteError("the link was cut")

    def close_write(self) -> None:
        if self._process.stdin and not self._closed:
            self._process.stdin.close()

    def exit_code(self, timeout: float) -> int:
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise RemoteError("it does not end") from error
        return code if code >= 0 else 128 - code

    def stderr_tail(self) -> bytes:
        assert self._process.stderr
        return self._process.stderr.read()[-4096:]

    def close(self) -> None:
        """As a link that goes away: the far side sees the end of its stdin, sooner or later."""
        if not self._closed:
            self._closed = True
            self._process.kill()


class PipeChannels:
    """Implements `gpuctl.remote.channels.Channels`.

    Args:
        cwd: the login's folder.
        round_trip: what to claim; more streams are used on a far link.
        fuses: for each attempt the fuse that its channels share; none left = no faults.
        prelude: Python that the far side runs first.
        python: what stands for python3.
        idle: seconds without a byte after which a channel gives up.
    """

    def __init__(
        self,
        cwd: Path,
        *,
        round_trip: float = 0.0,
        fuses: Sequence[Fuse] = (),
        prelude: str = "",
        python: str = sys.executable,
        idle: float = IDLE_SECONDS,
    ) -> None:
        self._cwd, self._round_trip, self._fuses = cwd, round_trip, list(fuses)
        self._prelude, self._python, self._idle = prelude, python, idle
        self.opened: list[bool] = []

    def open(self, argv: Sequence[str], *, own_link: bool = False) -> PipeChannel:
        self.opened.append(own_link)
        if not own_link and self._fuses and self._fuses[0].blown:
            self._fuses.pop(0)
        argv = [self._python, "-I", "-S", "-c", f"{self._prelude}\n{argv[-1]}"]
        fuse = self._fuses[0] if self._fuses else None
        return PipeChannel(argv, self._cwd, fuse, self._idle)

    @property
    def round_trip(self) -> float:
        return self._round_trip
