"""A command whose stdin and stdout are the connection: a jump host, a provider's own proxy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from gpuctl.printable import printable

_STDERR_KEPT = 4096
_GRACE_SECONDS = 1.0  # from the polite signal to the other one
_LAST_WORDS_SECONDS = 0.5


class ProxyFailed(Exception):
    """A proxy command gave no connection; the text says why."""


class ProxyLink(socket.socket):
    """Our end of a proxy command; closing it ends the command with all that it started.

    Args:
        proxy: argv. It runs in a session of its own, so that Ctrl-C does not reach it and it
            asks nothing on our terminal.

    Raises:
        ProxyFailed: there is no such program.
    """

    def __init__(self, proxy: Sequence[str]) -> None:
        ours, theirs = socket.socketpair()
        super().__init__(fileno=ours.detach())
        self._ending = threading.Lock()
        self._ended = False
        self._stderr = bytearray()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    proxy,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                super().close()
                why = getattr(error, "strerror", None) or error
                raise ProxyFailed(f"{proxy[0]} cannot be started: {why}") from error
        assert self._process.stderr is not None
        self._listening = threading.Thread(
            target=self._listen, args=(self._process.stderr,), name="proxy", daemon=True
        )
        self._listening.start()

    def wait_for_peer(self, seconds: float) -> None:
        """Wait until the far end has said something.

        Raises:
            ProxyFailed: it did not within so many seconds, or the command ended.
        """
        self.settimeout(seconds)
        try:
            there = self.recv(1, socket.MSG_PEEK)
        except TimeoutError as error:
            raise ProxyFailed(f"nothing came through it within {seconds:g} s") from error
        except OSError as error:
            raise ProxyFailed(error.strerror or str(error)) from error
        if not there:
            raise ProxyFailed("it ended")
        self.settimeout(None)

    def last_words(self) -> str:
        """The last line that the command wrote to stderr, made printable; may be empty."""
        self._listening.join(_LAST_WORDS_SECONDS)
        lines = printable(bytes(self._stderr).decode(errors="replace")).strip().splitlines()
        return lines[-1].strip()[:200] if lines else ""

    def close(self) -> None:
        """Close it, and end the command. May be called again."""
        super().close()
        with self._ending:
            if self._ended:
                return
            self._ended = True
            self._signal(signal.SIGTERM)
            self._listening.join(_GRACE_SECONDS)
            # Before the wait: until then nobody else can get this number.
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nobody left, or only a zombie
            os.killpg(self._process.pid, number)

    def _listen(self, stderr: IO[bytes]) -> None:
        with stderr:
            while chunk := os.read(stderr.fileno(), _STDERR_KEPT):
                self._stderr += chunk
                del self._stderr[:-_STDERR_KEPT]
