"""Whether a machine may still appear that its cloud does not show."""

from __future__ import annotations

from gpuctl.fleet.deadlines import by_this_clock
from gpuctl.ledger import MachineRow
from providers.base import Capabilities, Clock

CREATE_SECONDS = 75.0
"""No provider's create call waits longer than this for its answer, connecting included."""


def seconds_under_way(row: MachineRow, provider: Capabilities, clock: Clock) -> float:
    """Return for how many seconds a machine that nobody has seen yet may still appear.

    Until then it proves nothing that its cloud does not show it:

    - A process that is killed in the middle of its create call leaves a request behind that the
      cloud may be working on. A call that came back, whatever it said, is over.
    - Some clouds deny for a while what they have made (`Capabilities.shown_seconds`).

    On this computer a create ends with its process, and what is made is there.
    """
    if row.closed or row.ready_at is not None or provider.kind == "local":
        return 0.0
    if row.in_doubt or (row.provider_id is not None and not provider.shown_seconds):
        return provider.shown_seconds
    # When it was made only the cloud's clock tells, and that is not ours; when it was meant, ours.
    since = (clock.now() - by_this_clock(row, clock).intended_at).total_seconds()
    limit = CREATE_SECONDS + provider.shown_seconds
    return min(max(limit - since, 0.0), limit)


def said_under_way(row: MachineRow, seconds: float) -> str:
    """Return what to tell somebody who has to wait for that."""
    return (
        f"{row.name}: {row.provider} may not show it yet; looking for it for {seconds:.0f} s more"
    )
