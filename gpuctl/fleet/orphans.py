"""What machines that are gone have left behind, and nobody sweeps any more.

A teardown sweeps after its own machines. What shows up later (a disk that was still detaching), or
was left by a gpuctl whose ledger is elsewhere, is an orphan: `audit` counts it, `reap` removes it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime

from gpuctl.fleet.context import Fleet
from gpuctl.fleet.survey import Trouble, ask_each, list_each
from gpuctl.ledger import MachineRow
from gpuctl.names import parse_machine_name
from providers.base import Leftover, ProviderError, State


def whose_leftover(one: Leftover, owner: str) -> str:
    """Say whose a leftover is: "ours", "other", or who manages it. Pure.

    One without a mark is told by its name alone; that is enough to list it, not to remove it.
    """
    if one.mark is not None and one.mark.managed_by != "gpuctl":
        return one.mark.managed_by
    name = parse_machine_name(one.name)
    marked = one.mark is None or one.mark.owner == owner
    return "ours" if marked and name is not None and name.owner == owner[:6] else "other"


def orphans(
    left: Sequence[Leftover],
    machines: Collection[str],
    rows: Mapping[str, MachineRow],
    owner: str,
) -> list[Leftover]:
    """Return what may be removed: ours by name and mark, of a machine that neither lives nor has
    an open row, for then somebody is at work on it. Pure.

    Args:
        machines: names of those that live.
        rows: of the ledger, by name.
    """
    return [
        one
        for one in left
        if one.mark is not None
        and whose_leftover(one, owner) == "ours"
        and one.name not in machines
        and ((row := rows.get(one.name)) is None or row.closed)
    ]


def find_orphans(
    fleet: Fleet, providers: Collection[str], ended_by: datetime | None = None
) -> tuple[dict[str, list[Leftover]], list[Trouble]]:
    """Return the orphans by provider, and who could not be asked.

    Args:
        ended_by: only those whose machine's hard end was before that.
    """
    # Leftovers first: a machine that ends in between is then still among the living.
    left, errors = ask_each(fleet, sorted(providers), lambda provider: provider.leftovers())
    listed, silent = list_each(fleet, sorted(name for name, some in left.items() if some))
    rows = {row.name: row for row in fleet.ledger.machines(borrowed=True)}
    found: dict[str, list[Leftover]] = {}
    for name, machines in listed.items():
        living = {machine.name for machine in machines if machine.state is not State.GONE}
        found[name] = [
            one
            for one in orphans(left[name], living, rows, fleet.home.owner)
            if ended_by is None or (one.mark is not None and one.mark.end <= ended_by)
        ]
    return found, errors + silent


def sweep_orphans(
    fleet: Fleet, providers: Collection[str], ended_by: datetime | None = None
) -> tuple[list[Leftover], list[Trouble]]:
    """Remove the orphans; return them, and what could not be asked or removed.

    They are looked for twice, a settling period apart: a machine that somebody with the same owner
    is just making may show its parts before itself.

    Args:
        ended_by: as `find_orphans`.
    """
    found, errors = find_orphans(fleet, providers, ended_by)
    names = [name for name, some in found.items() if some]
    if not names:
        return [], errors
    fleet.clock.sleep(max(fleet.provider(name).capabilities.settle_seconds for name in names))
    again, more = find_orphans(fleet, names, ended_by)
    errors += more
    removed: list[Leftover] = []
    for name, some in again.items():
        before = {one.id for one in found[name]}
        for one in (one for one in some if one.id in before):
            errors += _removed(fleet, one, removed)
    return removed, errors


def _removed(fleet: Fleet, one: Leftover, removed: list[Leftover]) -> list[Trouble]:
    try:
        fleet.provider(one.provider).remove(one)
    except ProviderError as error:
        told = f"{one.kind} {one.id} of {one.name} was not removed and may bill: {error}"
        return [Trouble(one.provider, error.kind, told, one.name)]
    removed.append(one)
    return []
