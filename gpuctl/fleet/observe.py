"""What the clouds say of the machines that the ledger holds open."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from gpuctl.errors import GpuctlError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.reap import Trouble
from gpuctl.ledger import MachineRow
from providers.base import Machine, ProviderError, State

NOT_LISTED = "not listed"


def observe(fleet: Fleet) -> list[Trouble]:
    """Ask every provider with open machines for its list; note in the ledger what changed.

    Nothing is closed: one look at which a machine is absent proves nothing. Returns who could
    not be asked.
    """
    rows = fleet.ledger.machines(open_only=True)
    asked = sorted({row.provider for row in rows})
    errors: list[Trouble] = []
    if not asked:
        return errors
    with ThreadPoolExecutor(max_workers=len(asked)) as pool:
        futures = {name: pool.submit(_listed, fleet, name) for name in asked}
    for name, future in futures.items():
        try:
            machines = future.result()
        except ProviderError as error:
            errors.append(Trouble(name, error.kind, str(error)))
            continue
        except GpuctlError as error:
            errors.append(Trouble(name, error.kind, error.message))
            continue
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


def _listed(fleet: Fleet, name: str) -> Sequence[Machine]:
    return fleet.provider(name).list()


def _note(fleet: Fleet, row: MachineRow, machines: Sequence[Machine]) -> None:
    state, status = observed(row, machines)
    if state != row.state:
        fleet.ledger.record("observed", machine=row.name, state=str(state), status=status)
