"""What Hetzner charges: every started hour, never more than the monthly price, off or not."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_CEILING, Decimal

_HOUR = 3600


@dataclass
class Meter:
    """One thing that bills, in the account's currency, net."""

    begin: datetime
    hour: Decimal
    month: Decimal
    end: datetime | None = None
    surcharge: Decimal = Decimal(0)  # of the price: 0.2 with backups

    def charged(self, now: datetime) -> Decimal:
        """What it has cost until then. The cap is per calendar month."""
        end = min(self.end or now, now)
        total, start = Decimal(0), self.begin
        while start < end:
            month_ends = _next_month(start)
            stop = min(end, month_ends)
            hours = Decimal(str((stop - start).total_seconds() / _HOUR))
            hours = hours.to_integral_value(ROUND_CEILING)
            total += min(hours * self.hour, self.month)
            start = stop
        return total * (1 + self.surcharge)


def _next_month(moment: datetime) -> datetime:
    first = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    if first.month == 12:
        return first.replace(year=first.year + 1, month=1)
    return first.replace(month=first.month + 1)
