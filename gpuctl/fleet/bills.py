"""Asking providers what they charged for machines that have ended.

Most know it only later: when a machine is proven gone, its cost is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from gpuctl.errors import GpuctlError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.spending import is_billed
from gpuctl.fleet.survey import Trouble
from gpuctl.ledger import MachineRow
from providers.base import Billed, ProviderError

_ASKED_FOR = timedelta(days=30)
_SLACK = timedelta(minutes=3)  # a row's end is when it was first seen gone


def is_open(row: MachineRow, now: datetime) -> bool:
    """Whether a provider may know by now what a machine cost. Pure."""
    return (
        row.closed_by == "gone"
        and row.provider_id is not None
        and row.ended_at is not None
        and now - row.ended_at < _ASKED_FOR
        and not is_billed(row)
    )


def covers(billed: Billed, row: MachineRow) -> bool:
    """Whether a bill is for all of a machine's time, and not just for the part known so far."""
    return row.ended_at is not None and billed.through >= row.ended_at - _SLACK


def settle_bills(fleet: Fleet, rows: Sequence[MachineRow]) -> list[Trouble]:
    """Ask for every cost that is only computed; note what is told. Returns who did not answer.

    A provider that fails once is not asked for its other machines.
    """
    troubles: dict[str, Trouble] = {}
    now = fleet.clock.now()
    for row in rows:
        if row.provider in troubles or not is_open(row, now):
            continue
        try:
            billed = fleet.provider(row.provider).billed(str(row.provider_id))
        except ProviderError as error:
            troubles[row.provider] = Trouble(row.provider, error.kind, str(error))
        except GpuctlError as error:
            troubles[row.provider] = Trouble(row.provider, error.kind, error.message)
        else:
            if billed is not None and covers(billed, row):
                _note(fleet, row, billed)
    return list(troubles.values())


def _note(fleet: Fleet, row: MachineRow, billed: Billed) -> None:
    fleet.ledger.record(
        "gone",
        machine=row.name,
        confirmed_by=list(row.confirmed_by),
        cost_usd=billed.amount,
        cost_source=billed.source,
        ended_at=row.ended_at,
    )
