"""A TCP relay on 127.0.0.1 that behaves like a bad network: far, narrow, frozen or cut.

Each direction of each connection has a thread that reads, and one that writes what it read when
its time has come: half a round trip later, and not faster than the bandwidth allows. What is
under way is bounded, so that a sender feels a narrow link as on a real one.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import threading
import time
from types import TracebackType
from typing import Self

_CHUNK = 256 << 10
_CHUNK_SECONDS = 0.002  # no chunk takes a narrow link longer than that
_LEAST_QUEUE = 256 << 10  # bytes that a network holds besides what is in flight


class Relay:
    """Relays to a port of 127.0.0.1; a context manager.

    Args:
        target: the port behind it.
        round_trip: seconds, half of it each way.
        bandwidth: bytes a second each way, shared by all connections; None for no limit.
        cut_after: break every connection after so many bytes (both ways together, all
            connections together); once, then it works again.
        address: where it listens: an address of this computer, and a port (0 for any).
    """

    def __init__(
        self,
        target: int,
        *,
        round_trip: float = 0.0,
        bandwidth: float | None = None,
        cut_after: int | None = None,
        address: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.round_trip = round_trip
        self.bandwidth = bandwidth
        self.cut_after = cut_after
        self.moved = 0  # bytes, both ways
        self.connections = 0  # ever accepted
        self.refusing = False  # hang up on new connections at once
        self._target = target
        self._lock = threading.Lock()
        self._running = threading.Event()  # cleared while frozen
        self._running.set()
        self._stopped = False
        self._sockets: set[socket.socket] = set()
        self._free_at = [0.0, 0.0]  # when the line is free again: there, back
        self._listener = socket.create_server(address)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def freeze(self) -> None:
        """Deliver nothing from now on; nobody is told."""
        self._running.clear()

    def thaw(self) -> None:
        """Deliver again, beginning with what was held."""
        self._running.set()

    def cut(self) -> None:
        """Break every connection there is now."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            with contextlib.suppress(OSError):  # broken already
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self) -> None:
        """Stop for good."""
        self._stopped = True
        self._running.set()
        with contextlib.suppress(OSError):  # wakes accept()
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    # ------------------------------------------------------------------ inside

    def _accept(self) -> None:
        while not self._stopped:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            try:
                if self.refusing:
                    raise OSError
                far = socket.create_connection(("127.0.0.1", self._target), 10)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets |= {near, far}
            _Pipe(self, near, far, 0).start()
            _Pipe(self, far, near, 1).start()

    def due(self, size: int, direction: int) -> float:
        """When bytes that came now are to be delivered."""
        now = time.monotonic()
        with self._lock:
            self.moved += size
            if self.bandwidth:
                begin = max(now, self._free_at[direction])
                self._free_at[direction] = now = begin + size / self.bandwidth
            if self.cut_after is not None and self.moved >= self.cut_after:
                self.cut_after = None
                threading.Thread(target=self.cut, daemon=True).start()
        return now + self.round_trip / 2

    @property
    def chunk(self) -> int:
        """Bytes that are moved at once."""
        return min(_CHUNK, int((self.bandwidth or 1e9) * _CHUNK_SECONDS) + 1024)

    @property
    def capacity(self) -> int:
        """Bytes that one direction of a connection holds at once."""
        in_flight = (self.bandwidth or 1e9) * self.round_trip
        return _LEAST_QUEUE + int(in_flight)

    def wait_until(self, moment: float) -> None:
        """Wait for a moment, and until it is not frozen."""
        while (left := moment - time.monotonic()) > 0:
            threading.Event().wait(left)
        self._running.wait()


class _Pipe:
    """One direction of one connection."""

    def __init__(
        self, relay: Relay, source: socket.socket, target: socket.socket, direction: int
    ) -> None:
        self._relay = relay
        self._source = source
        self._target = target
        self._direction = direction
        self._held = 0
        self._queue: collections.deque[tuple[float, bytes]] = collections.deque()
        self._changed = threading.Condition()

    def start(self) -> None:
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        data = b"x"
        while data:
            try:
                data = self._source.recv(self._relay.chunk)
            except OSError:
                data = b""
            due = self._relay.due(len(data), self._direction)
            with self._changed:
                self._queue.append((due, data))
                self._held += len(data)
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._held <= self._relay.capacity)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._queue))
                due, data = self._queue.popleft()
            self._relay.wait_until(due)
            try:
                if data:
                    self._target.sendall(data)
                else:
                    self._target.shutdown(socket.SHUT_WR)
            except OSError:
                data = b""  # cut; the reader is let go below
            with self._changed:
                self._held = self._held - len(data) if data else 0
                self._changed.notify_all()
            if not data:
                return
