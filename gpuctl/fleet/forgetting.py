"""Taking a machine off the open books without proof: on a person's word, which is kept."""

from __future__ import annotations

from gpuctl.errors import MayStillBill, UsageError
from gpuctl.fleet.access import end_command
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.presence import look
from gpuctl.ledger import MachineRow
from providers.base import ProviderError


def forget(fleet: Fleet, row: MachineRow, *, by: str, why: str) -> MachineRow:
    """Close a row on somebody's word.

    The provider is asked once more: what it says is there cannot be forgotten.

    Args:
        by: who says so.
        why: in their words.

    Raises:
        UsageError: the row is closed already.
        MayStillBill: the provider says that the machine is there.
    """
    if row.closed:
        raise UsageError(f"{row.name} is closed already ({row.closed_by})", machine=row.name)
    try:
        seen = look(fleet.provider(row.provider), row.name, row.provider_id, fleet.clock).machine
    except (ProviderError, UsageError) as error:
        fleet.say(f"{row.provider} cannot be asked ({error}); your word is taken")
        seen = None
    if seen is not None:
        ends = end_command(row) if row.borrowed else f"gpuctl terminate {row.name}"
        raise MayStillBill(
            f"{row.provider} says that {row.name} is there ({seen.status})",
            machine=row.name,
            next=f"`{ends}` ends it.",
        )
    fleet.ledger.record("forgotten", machine=row.name, by=by, why=why)
    return fleet.ledger.machine(row.name) or row
