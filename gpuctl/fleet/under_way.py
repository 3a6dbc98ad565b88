"""Whether a machine may still appear that its cloud does not show."""

from __future__ import annotations

from gpuctl.errors import LedgerError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.deadlines import by_this_clock
from gpuctl.ledger import Event, MachineRow
from providers.base import ABSENT, Capabilities

CREATE_SECONDS = 75.0
"""No provider's create call waits longer than this for its answer, connecting included."""


def seconds_under_way(fleet: Fleet, row: MachineRow, provider: Capabilities) -> float:
    """Return for how many seconds a machine that nobody has seen yet may still appear.

    Until then it proves nothing that its cloud does not show it:

    - A process that is killed in the middle of its create call leaves a request behind that the
      cloud may be working on. A call that came back, whatever it said, is over.
    - Some clouds deny for a while what they have made (`Capabilities.shown_seconds`).

    On this computer a create ends with its process, and what is made is there.
    """
    if row.closed or row.ready_at is not None or provider.kind == "local":
        return 0.0
    if row.in_doubt:
        return provider.shown_seconds  # its call is over, and nobody noted since when
    if row.provider_id is not None and (not provider.shown_seconds or _was_shown(fleet, row)):
        return 0.0
    # When it was made only the cloud's clock tells, and that is not ours; when it was meant, ours.
    meant = by_this_clock(row, fleet.clock).intended_at
    limit = CREATE_SECONDS + provider.shown_seconds
    return min(max(limit - (fleet.clock.now() - meant).total_seconds(), 0.0), limit)


def said_under_way(row: MachineRow, seconds: float) -> str:
    """Return what to tell somebody who has to wait for that."""
    return f"{row.name}: {row.provider} may not show it yet; looking for {seconds:.0f} s more"


def _was_shown(fleet: Fleet, row: MachineRow) -> bool:
    try:
        return any(map(_shows, fleet.ledger.events(machine=row.name)))
    except LedgerError:
        return False  # nobody knows; to wait errs on the safe side


def _shows(event: Event) -> bool:
    """Whether its cloud knew a machine when this happened."""
    if event.kind == "destroy_accepted":
        return bool(event.facts["answer"] != ABSENT)
    return event.kind in ("adopted", "interrupted")
