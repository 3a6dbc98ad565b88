"""Everything that can cost money on every account, and what is to become of it.

`judge` is the whole policy and asks nobody; everything else is asking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from gpuctl.errors import GpuctlError
from gpuctl.fleet.access import end_command
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.deadlines import by_this_clock
from gpuctl.fleet.keeper import Keeper, alive, keeper_from
from gpuctl.ledger import MachineRow
from gpuctl.names import parse_machine_name
from providers.base import Machine, Provider, ProviderError, State

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with one machine, and why."""

    destroy: bool
    why: str


@dataclass(frozen=True, slots=True)
class Seen:
    """One machine of an account, with what our ledger says of it."""

    machine: Machine
    row: MachineRow | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Trouble:
    """A provider or machine that could not be asked or ended."""

    provider: str
    kind: str
    message: str
    machine: str | None = None
    next: str | None = None


def is_ours(machine: Machine, owner: str) -> bool:
    """Whether we made it: name prefix *and* ownership mark must match (promise 6)."""
    name = parse_machine_name(machine.name)
    mark = machine.mark
    return (
        name is not None
        and mark is not None
        and mark.managed_by == "gpuctl"
        and mark.owner == owner
        and name.owner == owner[:6]
    )


def judge(
    machine: Machine,
    row: MachineRow | None,
    owner: str,
    now: datetime,
    keeper_lives: Callable[[Keeper], bool | None],
) -> Verdict:
    """Decide about one machine of an account.

    Args:
        row: what our ledger says of it.
        keeper_lives: whether a keeper lives; None when nobody here can know.
    """
    mark = machine.mark
    if row is not None and row.borrowed:
        return Verdict(False, f"Terraform's: `{end_command(row)}` ends it")
    if mark is None or parse_machine_name(machine.name) is None:
        return Verdict(False, "not made by gpuctl")
    if mark.managed_by != "gpuctl":
        return Verdict(False, f"managed by {mark.managed_by}")
    if now >= mark.end:
        return Verdict(True, "past its hard end")
    if not is_ours(machine, owner):
        return Verdict(False, f"belongs to owner {mark.owner}")
    if row is None or row.closed:
        return Verdict(True, "ours, but no ledger row claims it")
    if row.destroy_asked_at is not None:
        return Verdict(True, "its end was asked for and never confirmed")
    if now >= row.lease_until and not row.detached:
        return Verdict(True, "its lease has run out")
    keeper = keeper_from(row.keeper)
    if keeper is not None and not row.detached and keeper_lives(keeper) is False:
        return Verdict(True, f"its keeper ({keeper.role}, pid {keeper.pid}) is dead")
    return Verdict(False, "its lease runs")


def survey(
    fleet: Fleet, *, asked: Sequence[str] | None = None
) -> tuple[list[Seen], list[Trouble], set[str]]:
    """Ask every provider that matters for everything that can cost money, and judge it.

    Returns what was seen, what could not be asked, and which providers did answer.
    """
    names = list(asked) if asked is not None else fleet.asked_providers()
    rows = fleet.ledger.machines(borrowed=True)
    named = {row.name: by_this_clock(row, fleet.clock) for row in rows}
    # Whoever lent us a machine may have marked it in a way of their own, or not at all.
    borrowed = {(row.provider, row.provider_id): row for row in rows if _is_borrowed(row)}
    seen: list[Seen] = []
    answered: set[str] = set()
    listed, errors = list_each(fleet, names)
    for name, machines in listed.items():
        answered.add(name)
        for machine in machines:
            if machine.state is State.GONE:
                continue
            row = borrowed.get((name, machine.provider_id)) or named.get(machine.name)
            verdict = judge(machine, row, fleet.home.owner, fleet.clock.now(), alive)
            seen.append(Seen(machine, row, verdict))
    return seen, errors, answered


def ask_each(
    fleet: Fleet, names: Sequence[str], question: Callable[[Provider], _T]
) -> tuple[dict[str, _T], list[Trouble]]:
    """Ask providers the same at once; return what they said, and who did not answer."""
    said: dict[str, _T] = {}
    errors: list[Trouble] = []
    if not names:
        return said, errors
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        futures = {name: pool.submit(_asked, fleet, name, question) for name in names}
    for name, future in futures.items():
        try:
            said[name] = future.result()
        except ProviderError as error:
            errors.append(Trouble(name, error.kind, str(error)))
        except GpuctlError as error:
            errors.append(Trouble(name, error.kind, error.message))
    return said, errors


def _asked(fleet: Fleet, name: str, question: Callable[[Provider], _T]) -> _T:
    return question(fleet.provider(name))


def list_each(
    fleet: Fleet, names: Sequence[str]
) -> tuple[dict[str, Sequence[Machine]], list[Trouble]]:
    """Ask providers for their machines; see `ask_each`."""
    return ask_each(fleet, names, lambda provider: provider.list())


def _is_borrowed(row: MachineRow) -> bool:
    return row.borrowed and not row.closed
