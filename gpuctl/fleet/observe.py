"""What the clouds say of the machines that the ledger holds open."""

from __future__ import annotations

from collections.abc import Sequence

from gpuctl.fleet.context import Fleet
from gpuctl.fleet.survey import Trouble, list_each
from gpuctl.ledger import MachineRow
from providers.base import Machine, State

NOT_LISTED = "not listed"


def observe(fleet: Fleet) -> list[Trouble]:
    """Ask every provider with open machines for its list; note in the ledger what changed.

    Nothing is closed: one look at which a machine is absent proves nothing. Returns who could
    not be asked.
    """
    rows = [
        row
        for row in fleet.ledger.machines(open_only=True, borrowed=True)
        # Terraform has its own credentials: here there may be none.
        if not row.borrowed or fleet.provider(row.provider).configured()
    ]
    asked = sorted({row.provider for row in rows})
    listed, errors = list_each(fleet, asked)
    for name, machines in listed.items():
        for row in rows:
            if row.provider == name:
                _note(fleet, row, machines)
    return errors


def observed(row: MachineRow, machines: Sequence[Machine]) -> tuple[State, str]:
    """Return the state of one machine by its provider's list. Pure."""
    for machine in machines:
        if machine.name == row.name or machine.provider_id == row.provider_id:
            return machine.state, machine.status
    return State.UNKNOWN, NOT_LISTED


def _note(fleet: Fleet, row: MachineRow, machines: Sequence[Machine]) -> None:
    state, status = observed(row, machines)
    if state != row.state:
        fleet.ledger.record("observed", machine=row.name, state=str(state), status=status)
