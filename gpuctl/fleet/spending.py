"""What was spent, by run and by provider, and who says so. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from gpuctl.ledger import MachineRow

_NOT_BILLED = ("computed", "never created", "nothing was rented", "price unknown")


@dataclass(frozen=True, slots=True)
class Spending:
    """Money in USD, split by who says so."""

    name: str  # a provider, a run, or "" for machines without one
    billed: Decimal  # the provider's own figure
    computed: Decimal  # hours times price per hour: what runs still, and providers that do not tell
    machines: int

    @property
    def total(self) -> Decimal:
        """All of it."""
        return self.billed + self.computed


def by_provider(rows: Sequence[MachineRow], now: datetime) -> list[Spending]:
    """Return what each provider cost, dearest first."""
    return _grouped(lambda row: row.provider, rows, now)


def by_run(rows: Sequence[MachineRow], now: datetime) -> list[Spending]:
    """Return what each run cost, dearest first; machines without one are under ""."""
    return _grouped(lambda row: row.run or "", rows, now)


def altogether(rows: Sequence[MachineRow], now: datetime) -> Spending:
    """Return what all of them cost."""
    return _sum("", rows, now)


def is_billed(row: MachineRow) -> bool:
    """Whether the provider itself gave the figure."""
    return row.cost_source is not None and not row.cost_source.startswith(_NOT_BILLED)


def day_start(now: datetime) -> datetime:
    """Return the first moment of the day, in UTC like ``now``."""
    return now.replace(hour=0, minute=0, second=0, microsecond=0)


def month_start(now: datetime) -> datetime:
    """Return the first moment of the month, in UTC like ``now``."""
    return now.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _grouped(
    name_of: Callable[[MachineRow], str], rows: Sequence[MachineRow], now: datetime
) -> list[Spending]:
    groups: dict[str, list[MachineRow]] = {}
    for row in rows:
        groups.setdefault(name_of(row), []).append(row)
    found = [_sum(name, members, now) for name, members in groups.items()]
    return sorted(found, key=lambda one: (-one.total, one.name))


def _sum(name: str, rows: Sequence[MachineRow], now: datetime) -> Spending:
    billed = sum((row.cost_so_far(now) for row in rows if is_billed(row)), Decimal(0))
    computed = sum((row.cost_so_far(now) for row in rows if not is_billed(row)), Decimal(0))
    return Spending(name, billed, computed, len(rows))
