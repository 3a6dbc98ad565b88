"""Caps on money and time. Pure: numbers in, a moment out.

A cap is a cap: the job is stopped early enough that the last sync, the download and the
teardown fit under it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

_HOUR = Decimal(3600)
_WIND_DOWN_MOST_SECONDS = 60.0
_WIND_DOWN_LEAST_SECONDS = 10.0  # a job's last words, its sync, the download and the teardown
_WIND_DOWN_SHARE = 0.1  # of the time there is
_WIND_DOWN_LARGEST_SHARE = 0.5
TERM_GRACE_SECONDS = 30.0
_SYNC_MOST_SECONDS = 600.0
_SYNC_SHARE = 0.1
_LEAST_JOB_SECONDS = 1.0  # for less than that no machine is rented


@dataclass(frozen=True, slots=True)
class Caps:
    """What a run may use in all. ``None`` is no cap."""

    max_cost: Decimal | None
    max_duration: timedelta | None
    deadline: datetime | None


@dataclass(frozen=True, slots=True)
class Used:
    """What a run has used up to now, over all attempts."""

    cost: Decimal
    duration: timedelta


@dataclass(frozen=True, slots=True)
class Allowance:
    """How long the next attempt may take, until its machine is gone; and which cap says so."""

    seconds: float | None
    cap: str | None

    @property
    def spent(self) -> bool:
        """Whether too little is left for a job to do anything."""
        return self.job_seconds is not None and self.job_seconds < _LEAST_JOB_SECONDS

    @property
    def job_seconds(self) -> float | None:
        """Return how long the job itself may take, the wind-down left aside."""
        if self.seconds is None:
            return None
        return max(self.seconds - wind_down(self.seconds), 0)

    @property
    def sync_seconds(self) -> float:
        """Return how long the machine may wait for a store that does not take what it is sent."""
        if self.seconds is None:
            return _SYNC_MOST_SECONDS
        return min(_SYNC_MOST_SECONDS, self.seconds * _SYNC_SHARE)

    @property
    def term_grace_seconds(self) -> float:
        """Return how long the job may take to end after a SIGTERM: a third of the wind-down.

        Its last sync may take as long again, and the rest is for the download and the teardown.
        """
        if self.seconds is None:
            return TERM_GRACE_SECONDS
        return min(TERM_GRACE_SECONDS, wind_down(self.seconds) / 3)


def wind_down(seconds: float) -> float:
    """Return how much of an allowance is kept for the end.

    A tenth of it, at least ten seconds and at most a minute; never more than half.
    """
    wanted = max(seconds * _WIND_DOWN_SHARE, _WIND_DOWN_LEAST_SECONDS)
    return min(wanted, _WIND_DOWN_MOST_SECONDS, seconds * _WIND_DOWN_LARGEST_SHARE)


def allowance(caps: Caps, used: Used, price_hour: Decimal, now: datetime) -> Allowance:
    """Return what is left for a machine at this price. Never negative."""
    limits: list[tuple[float, str]] = []
    if caps.max_duration is not None:
        limits.append(((caps.max_duration - used.duration).total_seconds(), "max_duration"))
    if caps.max_cost is not None and price_hour > 0:
        limits.append((float((caps.max_cost - used.cost) / price_hour * _HOUR), "max_cost"))
    if caps.deadline is not None:
        limits.append(((caps.deadline - now).total_seconds(), "deadline"))
    if not limits:
        return Allowance(None, None)
    seconds, cap = min(limits)
    return Allowance(max(seconds, 0.0), cap)
