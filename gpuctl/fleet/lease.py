"""Leases: how long a machine may live without being renewed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, this_process
from gpuctl.ledger import MachineRow

RUN_LEASE_SECONDS = 600.0
PROVISION_LEASE_SECONDS = 7200.0
SHORTEST_LEASE_SECONDS = 5.0
_RENEW_EVERY_SECONDS = 60.0


def renew_every(lease_seconds: float) -> float:
    """Return how often a lease is renewed: each minute, and thrice within a short one."""
    return min(_RENEW_EVERY_SECONDS, lease_seconds / 3)


def lease_end(now: datetime, seconds: float, hard_end: datetime) -> datetime:
    """Return until when a lease renewed now lasts: never past the hard end."""
    return min(now + timedelta(seconds=seconds), hard_end)


def renew(
    fleet: Fleet,
    row: MachineRow,
    seconds: float,
    *,
    on_machine: Callable[[float], object] | None = None,
) -> datetime:
    """Renew one machine's lease, on the machine first and then in the ledger.

    That order errs on the safe side: when the machine cannot be told, nothing is promised.

    Args:
        on_machine: renews the agent's own timer; takes seconds, raises when it cannot.
    """
    until = lease_end(fleet.clock.now(), seconds, row.hard_end)
    if on_machine is not None:
        on_machine(max((until - fleet.clock.now()).total_seconds(), 0))
    fleet.ledger.record("renewed", machine=row.name, lease_until=until)
    return until


def keep(fleet: Fleet, row: MachineRow, keeper: Keeper | None = None, *, detached: bool) -> None:
    """Note who looks after a machine from now on."""
    keeper = keeper or this_process("controller")
    fleet.ledger.record("kept", machine=row.name, keeper=keeper.facts(), detached=detached)
