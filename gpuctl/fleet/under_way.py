"""Whether a create call may still take effect although nobody waits for its answer any more."""

from __future__ import annotations

from datetime import datetime

from gpuctl.ledger import MachineRow
from providers.base import Capabilities

CREATE_SECONDS = 75.0
"""No provider's create call waits longer than this for its answer, connecting included."""


def seconds_under_way(row: MachineRow, provider: Capabilities, now: datetime) -> float:
    """Return for how many seconds the create of a machine may still be on its way. Pure.

    A process that is killed in the middle of its create call leaves a request behind that the
    cloud may be working on: until it is surely over, not being listed proves nothing. A call that
    came back, whatever it said, is over; on this computer it ends with its process.
    """
    heard = row.provider_id is not None or row.in_doubt or row.closed
    if heard or provider.kind == "local":
        return 0.0
    since = (now - row.intended_at).total_seconds()
    # A clock that was set back tells nothing; waiting for it would take as long as it jumped.
    return CREATE_SECONDS - since if 0 <= since < CREATE_SECONDS else 0.0
