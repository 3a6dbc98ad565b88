"""Caps on money and time. Pure: numbers in, a moment out.

A cap is a cap: the job is stopped early enough that the last sync, the download and the
teardown fit under it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

_HOUR = Decimal(3600)
_WIND_DOWN = timedelta(seconds=60)
_WIND_DOWN_SHARE = 0.1  # of the time there is, when that is less


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
        """Whether nothing is left."""
        return self.seconds is not None and self.seconds <= 0

    @property
    def job_seconds(self) -> float | None:
        """Return how long the job itself may take, the wind-down left aside."""
        if self.seconds is None:
            return None
        return max(self.seconds - wind_down(self.seconds), 0)


def wind_down(seconds: float) -> float:
    """Return how much of an allowance the end needs: a minute, a tenth of short ones."""
    return min(_WIND_DOWN.total_seconds(), seconds * _WIND_DOWN_SHARE)


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
