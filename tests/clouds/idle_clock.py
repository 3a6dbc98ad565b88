"""A clock for many threads, on which waiting takes no time.

`HandClock` adds up what threads sleep side by side. Here they sleep at the same time: when every
thread waits, the clock jumps to the moment at which the first of them wakes up. What is computed
or asked of an emulated cloud takes no time at all, so what passes is what pacing asks for.
"""

from __future__ import annotations

import heapq
import itertools
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from types import FrameType, TracebackType
from typing import Self

_LOOK_SECONDS = 0.0005
_LOOKS = 2  # in a row that find every thread waiting
_STUCK_SECONDS = 60.0  # so long a thread that works may keep the others asleep
_WAITS = {  # file: functions in which a thread waits for others
    "threading.py": {"wait", "join", "_wait_for_tstate_lock"},
    "thread.py": {"_worker"},
    "selectors.py": {"select", "_select"},
}
_READS = ("socket.py", "readinto")
_SERVES = ("socketserver.py", "process_request_thread")


class IdleClock:
    """A context manager; its time stands still outside.

    Threads that were there before it was made do not count, but for the one that made it.
    """

    def __init__(self, start: datetime) -> None:
        self._start = start
        self._passed = 0.0
        self._sleepers: list[tuple[float, int, threading.Event]] = []
        self._order = itertools.count()
        self._waking = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._others = set(threading.enumerate()) - {threading.current_thread()}
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed.set()

    # ------------------------------------------------------------------ as a clock

    def now(self) -> datetime:
        return (self._start + timedelta(seconds=self._passed)).astimezone(UTC)

    def monotonic(self) -> float:
        return self._passed

    def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            return
        over = threading.Event()
        with self._lock:
            heapq.heappush(self._sleepers, (self._passed + seconds, next(self._order), over))
        over.wait()
        with self._lock:
            self._waking -= 1

    def pass_time(self, seconds: float) -> None:
        """Let time pass without waiting for anybody."""
        self._passed += seconds

    # ------------------------------------------------------------------ time passes

    def _run(self) -> None:
        idle, moved = 0, time.monotonic()
        while not self._closed.wait(_LOOK_SECONDS):
            idle = idle + 1 if self._all_wait() else 0
            moved = moved if self._sleepers else time.monotonic()
            if idle >= _LOOKS or time.monotonic() - moved > _STUCK_SECONDS:
                self._wake_next()
                idle, moved = 0, time.monotonic()

    def _wake_next(self) -> None:
        with self._lock:
            if not self._sleepers:
                return
            self._passed = max(self._passed, self._sleepers[0][0])
            while self._sleepers and self._sleepers[0][0] <= self._passed:
                heapq.heappop(self._sleepers)[2].set()
                self._waking += 1

    def _all_wait(self) -> bool:
        with self._lock:
            if self._waking or not self._sleepers:
                return False
        frames = sys._current_frames()
        ours = set(threading.enumerate()) - self._others - {self._thread}
        return all(_waits(frames.get(one.ident or 0)) for one in ours)


def _waits(frame: FrameType | None) -> bool:
    if frame is None:
        return False  # it is just being started: whoever starts it waits for that
    file, function = _place(frame)
    if function in _WAITS.get(file, ()):
        return True
    # A server's thread between two requests; a client that reads is being answered.
    return (file, function) == _READS and _is_inside(frame, _SERVES)


def _is_inside(frame: FrameType | None, place: tuple[str, str]) -> bool:
    while frame is not None:
        if _place(frame) == place:
            return True
        frame = frame.f_back
    return False


def _place(frame: FrameType) -> tuple[str, str]:
    code = frame.f_code
    return code.co_filename.rpartition("/")[2], code.co_name
