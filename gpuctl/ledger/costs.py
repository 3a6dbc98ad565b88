"""What a machine costs between two moments. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal

_MICROSECONDS_AN_HOUR = Decimal(3_600_000_000)
_CENT_OF_A_CENT = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Price:
    """What a machine costs from a moment on."""

    since: datetime | None  # None: from its beginning
    per_hour: Decimal  # USD


def rounded(amount: Decimal) -> Decimal:
    """Round to a millionth of a dollar: sums of many short machines stay exact to the cent."""
    return amount.quantize(_CENT_OF_A_CENT, ROUND_HALF_UP)


def cost_between(prices: Sequence[Price], start: datetime, end: datetime) -> Decimal:
    """Return the cost in USD from ``start`` to ``end``; zero when the end is not after it.

    Args:
        prices: in the order in which they hold, the first from the beginning.
    """
    total = Decimal(0)
    for index, price in enumerate(prices):
        begins = start if price.since is None else max(price.since, start)
        following = prices[index + 1].since if index + 1 < len(prices) else None
        ends = end if following is None else min(following, end)
        if ends > begins:
            total += price.per_hour * _microseconds(begins, ends)
    return total / _MICROSECONDS_AN_HOUR


def billed_until(start: datetime, end: datetime, step_seconds: float | None) -> datetime:
    """Return up to when a machine is billed: ``end``, or the end of the step that it began.

    Args:
        step_seconds: what a part of costs what all of it does; None: it is billed by the second.
    """
    if step_seconds is None or end <= start:
        return end
    step = timedelta(seconds=step_seconds)
    return start + -(-(end - start) // step) * step


def share(amount: Decimal, start: datetime, end: datetime, since: datetime) -> Decimal:
    """Return the part of an amount, spread evenly over start to end, that falls after a moment."""
    if since <= start:
        return amount
    if since >= end:
        return Decimal(0)
    return amount * _microseconds(since, end) / _microseconds(start, end)


def _microseconds(start: datetime, end: datetime) -> Decimal:
    span = end - start
    return Decimal((span.days * 86400 + span.seconds) * 1_000_000 + span.microseconds)
