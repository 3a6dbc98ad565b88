"""What a connection to a machine can do, whatever carries it.

`gpuctl.remote.local` reaches machines that are a folder on this computer; SSH comes beside it.
A connection that breaks raises `RemoteError`; a command that fails does not: it has an exit
code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); the second is 0 while unknown."""


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has ended."""

    exit_code: int  # 128 + n when signal n ended it
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True)
class Transferred:
    """What a transfer moved."""

    files: int
    bytes: int
    skipped: int  # already there and unchanged
    left_out: tuple[str, ...] = ()  # what was not taken, as "path: why"


class RemoteProcess(Protocol):
    """A command that is running on the machine."""

    def lines(self) -> Iterator[bytes]:
        """Lines of its stdout as they come, without the newline, until it ends."""

    def send(self, data: bytes) -> None:
        """Write to its stdin."""

    def close_stdin(self) -> None:
        """Say that nothing more comes."""

    def wait(self, timeout: float) -> int:
        """Its exit code; raises RemoteError when it does not end in time."""

    def kill(self) -> None:
        """End it, and let `lines` end."""


class Connection(Protocol):
    """A way into one machine."""

    @property
    def home(self) -> str:
        """The absolute path of the folder on the machine that is ours to use."""

    def run(self, command: Sequence[str] | str, *, stdin: bytes = b"", timeout: float) -> Completed:
        """Run a command to its end. A str goes through the machine's shell.

        Raises:
            RemoteError: no answer, or not within ``timeout`` seconds (the command is killed).
        """

    def open(self, command: Sequence[str]) -> RemoteProcess:
        """Start a command and talk to it."""

    def put(
        self,
        source: Path,
        target: str,
        *,
        progress: Progress | None = None,
        checksum: bool = False,
        rate: float | None = None,
    ) -> Transferred:
        """Send a file or a tree.

        A tree honours .gitignore and .gpuctlignore, and its contents land in ``target``.
        A file lands in ``target`` under its own name when ``target`` ends with ``/`` or is a
        folder there, else as ``target``. Only what differs is sent; each file appears by rename.

        Args:
            source: a file or a folder here.
            target: absolute, or relative to `home`.
            progress: called while it goes on.
            checksum: compare content, not size and time of change.
            rate: bytes a second at most; no limit by default.
        """

    def get(
        self,
        source: str,
        target: Path,
        *,
        progress: Progress | None = None,
        checksum: bool = False,
        rate: float | None = None,
    ) -> Transferred:
        """Fetch a file or a tree; the machine is not trusted: nothing lands outside ``target``.

        Links that could lead out of it are left out, and named in the answer. See `put`.
        """

    def write(self, path: str, content: bytes, *, mode: int = 0o600) -> None:
        """Write a small file on the machine, whole or not at all."""

    def interactive(self, command: Sequence[str]) -> int:
        """Give the caller's terminal to a command there (a login shell when empty)."""

    def close(self) -> None:
        """Let go. What was started and detached there lives on."""
