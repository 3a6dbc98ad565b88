"""Leases and hard ends by a clock that nobody can set.

The wall clock of a computer jumps: somebody sets it, a time server corrects it. So the ledger
keeps, beside each moment, the same moment in seconds since this computer's boot, sleep included.
As long as it has not been booted again, that is what counts here; elsewhere, and after a boot,
the wall clock is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from gpuctl.fleet.keeper import NO_BOOT, boot_id
from gpuctl.ledger import MachineRow
from providers.base import Clock


def ticks(lease_left: float, hard_left: float, clock: Clock) -> Mapping[str, object]:
    """Describe when a lease and a hard end are, for the ledger.

    Args:
        lease_left, hard_left: seconds from now.
    """
    now = clock.monotonic()
    return {"boot": boot_id(), "lease_until": now + lease_left, "hard_end": now + hard_left}


def by_this_clock(row: MachineRow, clock: Clock) -> MachineRow:
    """Return a row whose lease, hard end and intent are as far from now as they truly are.

    The moments in it are those of the wall clock as it goes now, however it went before.
    """
    kept = row.ticks
    boot = boot_id()
    if kept is None or boot == NO_BOOT or kept.get("boot") != boot:
        return row
    now, passed = clock.now(), clock.monotonic()
    hard_end = _moment(now, float(kept["hard_end"]) - passed, row.hard_end)
    return replace(
        row,
        lease_until=_moment(now, float(kept["lease_until"]) - passed, row.lease_until),
        hard_end=hard_end,
        intended_at=row.intended_at + (hard_end - row.hard_end),
    )


def hard_seconds(row: MachineRow, clock: Clock) -> float:
    """Return the seconds until a machine's hard end, whatever the wall clock was set to."""
    return (by_this_clock(row, clock).hard_end - clock.now()).total_seconds()


def _moment(now: datetime, left: float, written: datetime) -> datetime:
    moved = now + timedelta(seconds=left)
    # Two readings of two clocks are never the same instant; what did not jump stays as written.
    return written if abs((moved - written).total_seconds()) < _SAME_SECONDS else moved


_SAME_SECONDS = 1.0
