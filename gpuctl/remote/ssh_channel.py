"""A command on an SSH connection: its windows, its output, its end.

Takes the place of `paramiko.Channel`, which answers every request only after a round trip, copies
output twice and forgets which signal ended a command. The transport calls the ``on_*`` methods
from its own thread; everything else is called by those who use the command.
"""

from __future__ import annotations

import signal
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

WINDOW = 2 << 20  # bytes that may be under way to us, as OpenSSH's own
PACKET = 128 << 10  # the largest packet we take; OpenSSH's limit is 256 KiB
_STDERR_KEPT, _SMALL = 8192, 4096
_GOOD_PIECE, _GOOD_SECONDS = 256 << 10, 0.1  # what is worth sending, and waiting for its room


class Broken(Exception):
    """The link under a channel is gone; the message says how."""


class Refused(Exception):
    """The machine would not open a channel, or not start the command."""


class Link(Protocol):
    """What a channel needs of the transport that carries it."""

    def send_payload(self, payload: bytes) -> None:
        """Send one SSH message. Raises Broken."""

    def send_data(self, channel: int, data: memoryview, packet: int) -> None:
        """Send data of a channel. Raises Broken."""

    def forget(self, number: int) -> None:
        """Nothing more comes for the channel that we gave this number."""

    def how_it_broke(self) -> str:
        """Why the link is gone, in words."""


@dataclass(slots=True)
class _Output:
    """stdout as it came, not yet read."""

    chunks: deque[bytes | bytearray | memoryview] = field(default_factory=deque)
    size: int = 0

    def add(self, data: bytes | memoryview) -> None:
        """Keep a chunk. Small ones are gathered: a window of single bytes must not cost more."""
        self.size += len(data)
        if len(data) > _SMALL:
            self.chunks.append(data)
            return
        last = self.chunks[-1] if self.chunks else None
        if isinstance(last, bytearray) and len(last) < _SMALL * 8:
            last += data
        else:
            self.chunks.append(bytearray(data))

    def take(self, size: int) -> bytes:
        """At most ``size`` bytes."""
        taken: list[bytes | bytearray | memoryview] = []
        wanted = size
        while self.chunks and wanted:
            chunk = self.chunks.popleft()
            if len(chunk) > wanted:
                self.chunks.appendleft(memoryview(chunk)[wanted:])
                chunk = memoryview(chunk)[:wanted]
            taken.append(chunk)
            wanted -= len(chunk)
        self.size -= size - wanted
        return b"".join(taken)


class CommandChannel:
    """One SSH session channel.

    Args:
        link: what carries it.
        number: ours for it.
        stderr_kept: bytes of the end of stderr that are kept.
    """

    def __init__(self, link: Link, number: int, *, stderr_kept: int = _STDERR_KEPT) -> None:
        self.number = number
        self.stderr_total = 0
        self.ended_at: float | None = None  # time.monotonic() when its exit code was there
        self._link = link
        self._stderr_kept = stderr_kept
        self._changed = threading.Condition()
        self._remote: int | None = None
        self._refusal: str | None = None
        self._broken: str | None = None
        self._out_window = self._full_window = 0  # now, and the most it ever was
        self._wanted = 1  # room in the window that is worth waking a writer for
        self._out_packet = 0
        self._in_window, self._grant = WINDOW, WINDOW // 8  # what the peer may still send
        self._credit = 0  # read by us and not yet given back to the peer
        self._output = _Output()
        self._stderr = bytearray()
        self._exit_code: int | None = None
        self._eof = self._closed = self._eof_sent = self._close_sent = False

    # ------------------------------------------------------------------ opening

    def opening(self) -> bytes:
        """The message that asks for it."""
        head = b"\x5a" + _string(b"session")
        return head + struct.pack(">III", self.number, WINDOW, PACKET)

    def wait_open(self, deadline: float) -> None:
        """Wait until the machine has agreed.

        Raises:
            Refused: it did not.
            Broken: the link is gone.
            TimeoutError: no answer by ``deadline`` (of time.monotonic()).
        """
        with self._changed:
            self._wait(lambda: self._remote is not None, deadline)

    def execute(self, command: bytes, *, stderr_kept: int = _STDERR_KEPT) -> None:
        """Start the command; does not wait for the answer. Raises Broken."""
        self._stderr_kept = stderr_kept
        self._send(b"\x62", _string(b"exec") + b"\x01" + _string(command))

    def widen(self, window: int) -> None:
        """Let this many bytes be under way to us, for long fast links. Raises Broken."""
        with self._changed:
            more = window - WINDOW
            self._in_window += more
            self._grant = window // 8
        self._send(b"\x5d", struct.pack(">I", more))

    # ------------------------------------------------------------------ reading

    def read(self, size: int, deadline: float) -> bytes:
        """Return 1 to ``size`` bytes of its stdout; b"" at the end.

        Raises:
            Refused: the machine would not start it.
            Broken: the link is gone, and so is all that was left to read.
            TimeoutError: nothing came by ``deadline``.
        """
        with self._changed:
            self._wait(lambda: self._output.size or self._eof or self._closed, deadline)
            data = self._output.take(size)
        self._return_credit(len(data))
        return data

    def wait(self, seconds: float, *, writable: bool = False, ended: bool = True) -> None:
        """Wait at most so long until there is something to read.

        Args:
            seconds: how long.
            writable: also until there is room to write.
            ended: also until its exit code is there.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._output.size
                    or self._eof
                    or self._over
                    or (ended and self._exit_code is not None)
                    or (writable and self._out_window)
                ),
                seconds,
            )

    @property
    def readable(self) -> bool:
        """Whether `read` returns at once."""
        with self._changed:
            return bool(self._output.size) or self._eof or self._over

    @property
    def at_end(self) -> bool:
        """Whether all of its output was read and nothing more can come."""
        with self._changed:
            return not self._output.size and (self._eof or self._closed)

    @property
    def room(self) -> int:
        """Bytes that can be written at once."""
        with self._changed:
            return self._out_window

    def stderr(self) -> bytes:
        """The end of what it wrote to stderr so far."""
        with self._changed:
            return bytes(self._stderr)

    # ------------------------------------------------------------------ writing

    def write(self, data: memoryview, idle: float) -> None:
        """Send all of it to the command's stdin.

        Raises:
            Refused: the machine would not start it.
            Broken: the link is gone, or the command has closed its stdin.
            TimeoutError: it took nothing for ``idle`` seconds.
        """
        while data:
            with self._changed:
                self._wait_for_room(len(data), idle)
                if self._over or self._eof_sent:
                    raise Broken("the command does not take input any more")
                size = min(len(data), self._out_window)
                self._out_window -= size
                remote, packet = self._remote, self._out_packet
            assert remote is not None
            self._link.send_data(remote, data[:size], packet)
            data = data[size:]

    def _wait_for_room(self, size: int, idle: float) -> None:
        """Wait until a good piece of the data can go: many small ones cost more than they gain."""
        good = min(size, self._full_window // 4, _GOOD_PIECE)
        if self._out_window < good:
            self._wanted = good
            self._changed.wait_for(lambda: self._out_window >= good or self._over, _GOOD_SECONDS)
            self._wanted = 1
        self._wait(lambda: self._out_window or self._over, time.monotonic() + idle)

    def close_write(self) -> None:
        """Say that nothing more comes. Raises Broken."""
        with self._changed:
            wanted = not (self._eof_sent or self._over)
            self._eof_sent = self._eof_sent or wanted
        if wanted:
            self._send(b"\x60", b"")

    # ------------------------------------------------------------------ ending

    @property
    def exit_code(self) -> int | None:
        """Its exit code once it is there; 128 + n when signal n ended it."""
        with self._changed:
            return self._exit_code

    def wait_exit(self, deadline: float) -> int:
        """Return its exit code.

        Raises:
            Refused: the machine would not start it.
            Broken: the link, or the channel, ended without one.
            TimeoutError: it did not end by ``deadline``.
        """
        with self._changed:
            self._wait(lambda: self._exit_code is not None or self._closed, deadline)
            if self._exit_code is not None:
                return self._exit_code
        raise Broken("the command ended without an exit code")

    def close(self) -> None:
        """Let go of it; what it started lives on."""
        with self._changed:
            wanted = self._remote is not None and not self._close_sent and self._broken is None
            self._close_sent = True  # an answer that is still to come is closed then
            self._output = _Output()
            self._changed.notify_all()
        if wanted:
            with suppress(Broken):  # closed with the link
                self._send(b"\x61", b"")

    # ------------------------------------------------------------------ from the transport

    def _set_remote_channel(self, number: int, window: int, packet: int) -> None:
        with self._changed:
            self._remote, self._out_window, self._out_packet = number, window, packet
            self._changed.notify_all()
            late = self._close_sent
        if late:
            self._send(b"\x61", b"")

    def _unlink(self) -> None:
        self.on_broken(self._link.how_it_broke())

    def on_refused(self, reason: str) -> None:
        """It was not opened, or the command was not started."""
        with self._changed:
            self._refusal = self._refusal or reason
            self._changed.notify_all()

    def on_broken(self, how: str) -> None:
        """The link is gone."""
        with self._changed:
            if not self._closed:
                self._broken = self._broken or how
            self._changed.notify_all()

    def on_data(self, data: bytes | memoryview) -> bool:
        """Take stdout. False when the peer sent more than it was allowed."""
        with self._changed:
            self._in_window -= len(data)
            if self._close_sent:  # nobody reads it
                self._in_window += len(data)
                return True
            self._output.add(data)
            self._changed.notify_all()
            return self._in_window >= 0

    def on_stderr(self, data: bytes) -> bool:
        """Take stderr. False when the peer sent more than it was allowed."""
        with self._changed:
            self._in_window -= len(data)
            allowed = self._in_window >= 0
            self.stderr_total += len(data)
            self._stderr += data
            del self._stderr[: max(0, len(self._stderr) - self._stderr_kept)]
            self._changed.notify_all()
        self._return_credit(len(data))
        return allowed

    def on_window(self, more: int) -> None:
        """The command takes more."""
        with self._changed:
            self._out_window += more
            self._full_window = max(self._full_window, self._out_window)
            if self._out_window >= self._wanted:
                self._changed.notify_all()

    def on_exit(self, code: int) -> None:
        """It ended."""
        with self._changed:
            self._exit_code = code
            self.ended_at = time.monotonic()
            self._changed.notify_all()

    def on_eof(self) -> None:
        """No more output comes."""
        with self._changed:
            self._eof = True
            self._changed.notify_all()

    def on_close(self) -> None:
        """The machine let go of it."""
        with self._changed:
            answer = not self._close_sent
            self._closed = self._eof = self._close_sent = True
            self._changed.notify_all()
        if answer:
            self._send(b"\x61", b"")
        self._link.forget(self.number)

    # ------------------------------------------------------------------ inside

    @property
    def _over(self) -> bool:
        return self._closed or self._broken is not None or self._refusal is not None

    def _wait(self, true: Callable[[], object], deadline: float) -> None:
        """Wait while holding the lock; output that is there is read before a break is told."""
        self._changed.wait_for(
            lambda: true() or self._over or self._close_sent,
            max(0.0, deadline - time.monotonic()),
        )
        if true():
            return
        if self._refusal is not None:
            raise Refused(self._refusal)
        if self._broken is not None:
            raise Broken(self._broken)
        if self._close_sent:
            raise Broken("it was closed")
        raise TimeoutError

    def _return_credit(self, size: int) -> None:
        with self._changed:
            self._credit += size
            if self._credit < self._grant or self._eof or self._over or self._close_sent:
                return
            more, self._credit = self._credit, 0
            self._in_window += more
        self._send(b"\x5d", struct.pack(">I", more))

    def _send(self, kind: bytes, content: bytes) -> None:
        if self._remote is None:
            raise Broken("it was never opened")
        self._link.send_payload(kind + struct.pack(">I", self._remote) + content)


def signal_code(name: str) -> int:
    """Return 128 + n for an SSH signal name ("KILL"); 255 for one that this system has not."""
    number = next((one for one in signal.Signals if one.name == f"SIG{name}"), None)
    return 128 + number if number is not None else 255


def _string(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content
