"""Not asking EC2 more often than it allows: a token bucket for each action in each region.

Sizes and rates as documented in late 2026 in the EC2 developer guide, "Request throttling for the
Amazon EC2 API". Accounts are given other ones on request; the SDK slows down when it is told to.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from providers.base import Clock

_SHARE = 0.9  # of a bucket's size: EC2 counts arrivals, we count departures


@dataclass(frozen=True, slots=True)
class Bucket:
    """So many requests at once, and so many more a second."""

    size: float
    refill: float


_READS, _CHANGES = Bucket(100, 20), Bucket(50, 5)
_OWN: Mapping[str, Bucket] = {
    "RunInstances": Bucket(5, 2),
    "StartInstances": Bucket(5, 2),
    "TerminateInstances": Bucket(100, 5),
}


def bucket_of(action: str) -> Bucket:
    """Return how often an action may be asked for in one region."""
    reads = action.startswith(("Describe", "Get", "List", "Search"))
    return _OWN.get(action) or (_READS if reads else _CHANGES)


class Pace:
    """When the next request of an action may leave. Safe to share between threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._left: dict[tuple[str, str], tuple[float, float]] = {}  # tokens, and when that was

    def wait(self, region: str, action: str) -> None:
        """Wait until a request may leave, and count it."""
        pause = self._reserved((region, action), bucket_of(action))
        if pause > 0:
            self._clock.sleep(pause)

    def _reserved(self, which: tuple[str, str], bucket: Bucket) -> float:
        size = max(bucket.size * _SHARE, 1)
        with self._lock:
            now = self._clock.monotonic()
            left, then = self._left.get(which, (size, now))
            left = min(size, left + (now - then) * bucket.refill) - 1
            self._left[which] = (left, now)
        return -left / bucket.refill
