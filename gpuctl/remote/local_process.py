"""A command on a local machine that is talked to while it runs."""

from __future__ import annotations

import os
import select
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import IO

from gpuctl.errors import RemoteError
from providers.processes import StillAlive, end_tree

_LOOK_SECONDS = 0.1
_QUIET_SECONDS = 0.5  # how long what a dead command left behind may hold its output open
_CHUNK = 1 << 16
_LINE_LIMIT = 16 << 20
_STDERR_KEPT = 8192


class LocalProcess:
    """Implements `gpuctl.remote.connection.RemoteProcess`.

    One thread may read `lines` while others send, wait or kill.
    """

    def __init__(self, process: subprocess.Popen[bytes], *, machine: str | None) -> None:
        self._process = process
        self._machine = machine
        self._killed = False
        self._stderr: deque[bytes] = deque()
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._collector.start()

    def lines(self) -> Iterator[bytes]:
        """Lines of its stdout as they come, until it ends.

        Raises:
            RemoteError: a line is longer than 16 MiB.
        """
        pending = b""
        for chunk in self._chunks():
            *whole, pending = (pending + chunk).split(b"\n")
            yield from whole
            if len(pending) > _LINE_LIMIT:
                self.kill()
                raise self._error(f"sent a line of more than {_LINE_LIMIT >> 20} MiB")
        if pending:
            yield pending

    def send(self, data: bytes) -> None:
        """Write to its stdin.

        Raises:
            RemoteError: it does not read any more.
        """
        stdin = _pipe(self._process.stdin)
        try:
            stdin.write(data)
            stdin.flush()
        except (OSError, ValueError) as error:
            raise self._error("does not take input any more") from error

    def close_stdin(self) -> None:
        """Say that nothing more comes."""
        with suppress(OSError):  # it has ended, so nothing comes anyway
            _pipe(self._process.stdin).close()

    def wait(self, timeout: float) -> int:
        """Return its exit code.

        Raises:
            RemoteError: it does not end in time.
        """
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise self._error(f"did not end within {timeout:g} s") from error
        return exit_code(status)

    def kill(self) -> None:
        """End it with all that it started and that did not detach itself.

        Raises:
            RemoteError: it does not die.
        """
        self._killed = True
        self.close_stdin()
        if self._process.poll() is None:
            try:
                end_tree(self._process.pid)
            except StillAlive as error:
                raise self._error(f"cannot be ended: {error}") from error
            self._process.wait()

    @property
    def stderr_tail(self) -> str:
        """The end of what it wrote to stderr."""
        return b"".join(self._stderr)[-_STDERR_KEPT:].decode(errors="replace").strip()

    def _chunks(self) -> Iterator[bytes]:
        stdout = _pipe(self._process.stdout).fileno()
        ended_at: float | None = None
        while not self._killed:
            if select.select([stdout], [], [], _LOOK_SECONDS)[0]:
                chunk = os.read(stdout, _CHUNK)
                if not chunk:
                    return
                yield chunk
                ended_at = None
            elif self._process.poll() is not None:
                ended_at = ended_at or time.monotonic()
                if time.monotonic() - ended_at > _QUIET_SECONDS:
                    return

    def _collect(self) -> None:
        stderr = _pipe(self._process.stderr)
        kept = 0
        while chunk := os.read(stderr.fileno(), _CHUNK):
            self._stderr.append(chunk)
            kept += len(chunk)
            while kept - len(self._stderr[0]) > _STDERR_KEPT:
                kept -= len(self._stderr.popleft())

    def _error(self, what: str) -> RemoteError:
        said = f"; it said: {self.stderr_tail}" if self.stderr_tail else ""
        argv = self._process.args
        name = argv[-1] if isinstance(argv, list) else argv
        return RemoteError(
            f"The command ({name!s}) on the machine {what}{said}", machine=self._machine
        )


def exit_code(status: int) -> int:
    """Return 128 + n for a command that signal n ended."""
    return 128 - status if status < 0 else status


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("started without pipes")
    return stream
