"""A cap on what all machines together may cost, a day and a month (UTC).

``GPUCTL_MAX_SPEND_DAY`` and ``GPUCTL_MAX_SPEND_MONTH``, in USD. What runs already is not ended by
it: each machine has a lease, a hard end and its run's own caps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation

from gpuctl.errors import CapReached, UsageError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.spending import day_start, month_start
from gpuctl.quantities import format_money

DAY, MONTH = "GPUCTL_MAX_SPEND_DAY", "GPUCTL_MAX_SPEND_MONTH"
_WARN_FROM = Decimal("0.8")


@dataclass(frozen=True, slots=True)
class SpendCap:
    """One cap, and how much of it is used. USD."""

    setting: str
    most: Decimal
    spent: Decimal
    until: str  # "today" or "this month"

    def refuses(self, price_hour: Decimal) -> bool:
        """Whether too little is left for one hour of a machine; nothing is too little for free."""
        return price_hour > 0 and self.spent + price_hour > self.most

    @property
    def is_near(self) -> bool:
        """Whether most of it is used."""
        return self.spent >= self.most * _WARN_FROM


def check_spending(fleet: Fleet, price_hour: Decimal) -> None:
    """Refuse a machine that the caps leave no hour for; warn when a cap is near.

    Raises:
        CapReached: nothing more is rented for now.
        UsageError: a cap is not a number.
    """
    for cap in spend_caps(fleet):
        if cap.refuses(price_hour):
            raise CapReached(
                f"{cap.setting} is {format_money(cap.most)}; {format_money(cap.spent)} were spent "
                f"{cap.until}, which leaves too little for an hour at {format_money(price_hour)}",
                next=f"`gpuctl cost` shows what cost it. Raise {cap.setting}, or wait.",
            )
        if cap.is_near:
            fleet.say(
                f"{format_money(cap.spent)} of {format_money(cap.most)} ({cap.setting}) are spent "
                f"{cap.until}"
            )


def spend_caps(fleet: Fleet) -> list[SpendCap]:
    """Return the caps that are set.

    Raises:
        UsageError: one is not a number.
    """
    now = fleet.clock.now()
    spans: list[tuple[str, datetime, str]] = [
        (DAY, day_start(now), "today"),
        (MONTH, month_start(now), "this month"),
    ]
    return [
        SpendCap(setting, most, fleet.ledger.spend_since(start), until)
        for setting, start, until in spans
        if (most := _read(fleet.environ, setting)) is not None
    ]


def _read(environ: Mapping[str, str], setting: str) -> Decimal | None:
    text = environ.get(setting, "").strip()
    if not text:
        return None
    try:
        most = Decimal(text)
    except InvalidOperation:
        most = Decimal(-1)
    if not most.is_finite() or most < 0:
        raise UsageError(f"{setting} is {text!r}; it must be USD, such as 25 or 12.50")
    return most
