"""Not asking Vast.ai more often than it allows, together with every other process of this home.

Each endpoint has its own least distance between two calls with one key. When a call may leave is
written into a small file of the endpoint, under a lock, so that a watchdog and a run do not
push each other over the limit.
"""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from providers.base import Clock, RateLimited

_SLACK_SECONDS = 0.1  # the server measures arrivals, we measure departures
_LONGEST_SECONDS = 300.0  # a reservation further ahead is from a clock that was wrong


@dataclass(frozen=True, slots=True)
class Limit:
    """So many calls in so many seconds."""

    calls: int
    seconds: float


LIMITS: Mapping[str, Limit] = {
    "create": Limit(1, 4.5),
    "show": Limit(1, 2.0),
    "list": Limit(1, 1.0),
    "destroy": Limit(1, 3.0),
    "label": Limit(1, 1.0),
    "attach": Limit(1, 1.0),
    "add-key": Limit(1, 1.0),
    "keys": Limit(1, 1.0),
    "charges": Limit(1, 1.0),
    "user": Limit(1, 1.0),
    "search": Limit(10, 60.0),
}
"""As documented; what is documented nowhere (attach, keys, user) gets a second."""


class Pace:
    """When the next call may leave.

    Args:
        folder: where the processes of this home meet.
        clock: for the time, and for waiting.
        factor: times the documented distances; 0 does not wait.
    """

    def __init__(self, folder: Path, clock: Clock, factor: float = 1.0) -> None:
        self._folder = folder
        self._clock = clock
        self._factor = factor
        self._own: dict[str, list[float]] = {}
        self._lock = threading.Lock()

    def wait(self, what: str, *, at_most: float = _LONGEST_SECONDS) -> None:
        """Wait until a call of this kind may leave.

        Raises:
            RateLimited: that would take longer than ``at_most`` seconds.
        """
        if not self._factor:
            return
        limit = LIMITS[what]
        began = self._clock.now().timestamp()
        while True:
            with self._meeting(what) as past:
                now = self._clock.now().timestamp()
                free = _next(past, limit, self._factor, now)
                if free <= now:
                    past.append(now)  # when it really leaves: a sleep may have been a long one
                    del past[: -limit.calls]
                    return
            if free - began > at_most:
                raise RateLimited(
                    f"Vast.ai allows {limit.calls} such calls ({what}) in {limit.seconds:g} s, "
                    f"and they are used up; the next one may leave in {free - now:.0f} s.",
                    free - now,
                )
            self._clock.sleep(free - now)

    def back_off(self, what: str, seconds: float) -> None:
        """Let no call of this kind leave for so long: the server said that it was too early."""
        limit = LIMITS[what]
        with self._meeting(what) as past:
            free = self._clock.now().timestamp() + seconds
            past[:] = [free - limit.seconds * self._factor - _SLACK_SECONDS] * limit.calls

    @contextlib.contextmanager
    def _meeting(self, what: str) -> Iterator[list[float]]:
        """The last departures, shared with other processes as long as the disk lets us."""
        with self._lock:
            own = self._own.setdefault(what, [])
            with contextlib.ExitStack() as stack:
                try:
                    self._folder.mkdir(parents=True, exist_ok=True)
                    file = stack.enter_context((self._folder / f"{what}.pace").open("a+"))
                    fcntl.flock(file, fcntl.LOCK_EX)
                    file.seek(0)
                    own[:] = _read(file.read()) or own
                except OSError:
                    # A full disk must not keep anybody from ending a machine: this process alone
                    # keeps the pace then, and a 429 is waited out.
                    yield own
                    return
                yield own
                with contextlib.suppress(OSError):  # the same
                    file.truncate(0)
                    file.write("\n".join(f"{at:.3f}" for at in own))
                    file.flush()


def _next(past: Sequence[float], limit: Limit, factor: float, now: float) -> float:
    """The moment when the next call may leave."""
    if len(past) < limit.calls:
        return now
    slot = past[-limit.calls] + limit.seconds * factor + _SLACK_SECONDS
    return now if slot - now > _LONGEST_SECONDS + limit.seconds else max(now, slot)


def _read(text: str) -> list[float]:
    try:
        return [float(line) for line in text.split()]
    except ValueError:
        return []  # half written when a computer went down; the own memory has to do
