"""Commands on a machine as pipes of bytes: what transfers are built on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class ByteChannel(Protocol):
    """A running command's stdin and stdout as bytes.

    One thread may read while another writes.
    """

    def read(self, size: int) -> bytes:
        """Return 1 to ``size`` bytes as soon as there are any; ``b""`` at the end.

        Raises:
            RemoteError: the link broke, or nothing came within the idle deadline.
        """

    def write(self, data: bytes | memoryview) -> None:
        """Send all of it.

        Raises:
            RemoteError: the link broke, the command does not read any more, or nothing could be
                sent within the idle deadline.
        """

    def close_write(self) -> None:
        """Say that nothing more comes. Raises RemoteError when the link broke."""

    def exit_code(self, timeout: float) -> int:
        """Return the command's exit code, 128 + n when signal n ended it.

        Raises:
            RemoteError: it did not end within ``timeout`` seconds, or the link broke before.
        """

    def stderr_tail(self) -> bytes:
        """The last kilobytes of what it wrote to stderr so far."""

    def close(self) -> None:
        """Let go; a link of its own ends with it. May be called again."""


class Channels(Protocol):
    """What opens byte channels to one machine."""

    def open(self, argv: Sequence[str], *, own_link: bool = False) -> ByteChannel:
        """Start a command.

        Args:
            argv: what to run.
            own_link: on a TCP connection of its own, for parallel streams: one channel moves at
                most its window per round trip.

        Raises:
            RemoteError: the machine cannot be reached.
        """

    @property
    def round_trip(self) -> float:
        """Seconds to the machine and back, measured."""
