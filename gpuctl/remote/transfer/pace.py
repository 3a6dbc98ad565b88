"""How fast a transfer may go, how fast it goes, and how long it will take."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from gpuctl.remote.connection import Progress

_WINDOW_SECONDS = 5.0


class Pace:
    """A bandwidth limit that all streams of a transfer share.

    Args:
        rate: bytes a second at most; None for no limit.
    """

    def __init__(
        self,
        rate: float | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate is not None and rate <= 0:
            raise ValueError("a bandwidth limit is above 0")
        self._rate, self._clock, self._sleep = rate, clock, sleep
        self._lock = threading.Lock()
        self._free_at = 0.0

    def wait(self, size: int) -> None:
        """Wait until ``size`` more bytes may go."""
        if self._rate is None:
            return
        with self._lock:
            now = self._clock()
            start = max(now, self._free_at)
            self._free_at = start + size / self._rate
        if start > now:
            self._sleep(start - now)


class Meter:
    """Counts what is done, and tells rate and time left from the last seconds.

    Args:
        progress: called with (bytes done, bytes in all), by one thread at a time.
    """

    def __init__(
        self, progress: Progress | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._progress, self._clock = progress, clock
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, int]] = deque()
        self.done = self.total = 0
        self.moved = 0  # over all attempts

    def restarted(self) -> Meter:
        """Count a new attempt, which plans anew; `moved` goes on."""
        with self._lock:
            self.done = self.total = 0
            self._recent.clear()
        return self

    def expect(self, size: int) -> None:
        """So many bytes more belong to it."""
        with self._lock:
            self.total += size

    def add(self, size: int) -> None:
        """So many bytes more are there."""
        with self._lock:
            self.done += size
            self.moved += size
            now = self._clock()
            self._recent.append((now, self.done))
            while len(self._recent) > 2 and self._recent[0][0] < now - _WINDOW_SECONDS:
                self._recent.popleft()
            if self._progress:
                self._progress(min(self.done, self.total), self.total)

    @property
    def left(self) -> int:
        """Bytes that are still to come."""
        return max(0, self.total - self.done)

    @property
    def rate(self) -> float | None:
        """Bytes a second lately; None before there is anything to tell from."""
        with self._lock:
            if len(self._recent) < 2 or self._recent[-1][0] <= self._recent[0][0]:
                return None
            (first, before), (last, after) = self._recent[0], self._recent[-1]
            return (after - before) / (last - first)

    @property
    def seconds_left(self) -> float | None:
        """How long the rest takes at that rate; None while unknown."""
        rate = self.rate
        return None if not rate else self.left / rate
