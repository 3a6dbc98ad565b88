"""Leases: how long a machine may live without being renewed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

from gpuctl.errors import GpuctlError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.deadlines import by_this_clock, ticks
from gpuctl.fleet.keeper import Keeper, this_process
from gpuctl.ledger import MachineRow

RUN_LEASE_SECONDS = 600.0
PROVISION_LEASE_SECONDS = 7200.0
SHORTEST_LEASE_SECONDS = 5.0
_RENEW_EVERY_SECONDS = 60.0
_SYNC_GRACE_SECONDS = 60.0
_NAP_SECONDS = 5.0  # a computer that wakes up notices within so long what is due


def renew_every(lease_seconds: float) -> float:
    """Return how often a lease is renewed: each minute, and thrice within a short one."""
    return min(_RENEW_EVERY_SECONDS, lease_seconds / 3)


def sync_grace(lease_seconds: float) -> float:
    """Return how long after its lease a machine may still sync: a minute, less for short leases."""
    return min(_SYNC_GRACE_SECONDS, lease_seconds)


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
    row = by_this_clock(row, fleet.clock)
    now = fleet.clock.now()
    until = lease_end(now, seconds, row.hard_end)
    left = max((until - now).total_seconds(), 0)
    marks = ticks(left, (row.hard_end - now).total_seconds(), fleet.clock)
    if on_machine is not None:
        on_machine(left)
    fleet.ledger.record("renewed", machine=row.name, lease_until=until, ticks=marks)
    return until


def keep(fleet: Fleet, row: MachineRow, keeper: Keeper | None = None, *, detached: bool) -> None:
    """Note who looks after a machine from now on."""
    keeper = keeper or this_process("controller")
    fleet.ledger.record("kept", machine=row.name, keeper=keeper.facts(), detached=detached)


class Renewal:
    """Renews one machine's lease in the background for as long as this process looks after it."""

    def __init__(self, fleet: Fleet, name: str, seconds: float) -> None:
        self._fleet = fleet
        self._name = name
        self._seconds = seconds
        self._on_machine: Callable[[float], object] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew_on, name=f"lease {name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def arm(self, on_machine: Callable[[float], object]) -> None:
        """From now on renew the agent's own timer too."""
        self._on_machine = on_machine

    def stop(self, *, wait_seconds: float = 30) -> None:
        """Renew no more; returns when a renewal that is under way has ended.

        Args:
            wait_seconds: how long it may take; only the first call waits.
        """
        if not self._over.is_set() and self._thread.is_alive():
            self._over.set()
            self._thread.join(timeout=wait_seconds)
        self._over.set()

    def _waited_out(self, seconds: float) -> bool:
        """Let seconds pass, those of a computer's sleep included; whether it is over."""
        clock = self._fleet.clock
        due = clock.monotonic() + seconds
        while (left := due - clock.monotonic()) > 0:
            if self._over.wait(min(left, _NAP_SECONDS)):
                return True
        return self._over.is_set()

    def _renew_on(self) -> None:
        pause = renew_every(self._seconds)
        while not self._waited_out(pause):
            try:
                row = self._fleet.ledger.machine(self._name)
                if row is None or row.closed or row.destroy_asked_at is not None:
                    return
                renew(self._fleet, row, self._seconds, on_machine=self._on_machine)
                pause = renew_every(self._seconds)
            except GpuctlError as error:
                # The lease runs on; when it cannot be renewed in time the machine ends.
                self._fleet.say(f"{self._name}: the lease could not be renewed: {error.message}")
                pause = min(renew_every(self._seconds), 5.0)
