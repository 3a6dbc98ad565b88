"""Destroying what is ours and has no living keeper, also without our ledger.

`judge` is the whole policy and asks nobody; everything else is asking and doing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from gpuctl.errors import GpuctlError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, alive, keeper_from
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.release import release_all
from gpuctl.ledger import MachineRow
from gpuctl.names import parse_machine_name
from providers.base import Machine, ProviderError, State


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


@dataclass(frozen=True, slots=True)
class Reaped:
    """What a reap did."""

    receipts: tuple[Receipt, ...]
    would_reap: tuple[Seen, ...]  # with dry_run
    kept: tuple[Seen, ...]
    errors: tuple[Trouble, ...]


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
    rows = {row.name: row for row in fleet.ledger.machines()}
    seen: list[Seen] = []
    answered: set[str] = set()
    listed, errors = list_each(fleet, names)
    for name, machines in listed.items():
        answered.add(name)
        for machine in machines:
            if machine.state is State.GONE:
                continue
            row = rows.get(machine.name)
            verdict = judge(machine, row, fleet.home.owner, fleet.clock.now(), alive)
            seen.append(Seen(machine, row, verdict))
    return seen, errors, answered


def reap(fleet: Fleet, *, dry_run: bool = False) -> Reaped:
    """Destroy what `judge` condemns, and close ledger rows whose machines are gone."""
    seen, errors, answered = survey(fleet)
    doomed = [one for one in seen if one.verdict.destroy]
    kept = tuple(one for one in seen if not one.verdict.destroy)
    if dry_run:
        return Reaped((), tuple(doomed), kept, tuple(errors))
    rows = [_claimed(fleet, one) for one in doomed]
    rows += _vanished(fleet, seen, answered)
    receipts, failures = release_all(fleet, rows, why="reaped")
    errors += [
        Trouble(_provider_of(rows, e.machine), e.kind, e.message, e.machine, e.next)
        for e in failures
    ]
    return Reaped(tuple(receipts), (), kept, tuple(errors))


def list_each(
    fleet: Fleet, names: Sequence[str]
) -> tuple[dict[str, Sequence[Machine]], list[Trouble]]:
    """Ask providers for their machines at once; return what they said, and who did not answer."""
    listed: dict[str, Sequence[Machine]] = {}
    errors: list[Trouble] = []
    if not names:
        return listed, errors
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        futures = {name: pool.submit(_listed, fleet, name) for name in names}
    for name, future in futures.items():
        try:
            listed[name] = future.result()
        except ProviderError as error:
            errors.append(Trouble(name, error.kind, str(error)))
        except GpuctlError as error:
            errors.append(Trouble(name, error.kind, error.message))
    return listed, errors


def _listed(fleet: Fleet, name: str) -> Sequence[Machine]:
    return fleet.provider(name).list()


def _claimed(fleet: Fleet, one: Seen) -> MachineRow:
    """Return the ledger row of a machine, made now when there was none."""
    machine, mark = one.machine, one.machine.mark
    if one.row is not None and not one.row.closed:
        return one.row
    assert mark is not None  # `judge` condemns marked machines only
    fleet.ledger.record(
        "adopted",
        machine=machine.name,
        provider=machine.provider,
        provider_id=machine.provider_id,
        gpu=machine.gpu,
        gpu_count=machine.gpu_count,
        spot=machine.spot,
        price_hour=machine.price_hour,
        region=machine.region,
        created_at=machine.created_at or fleet.clock.now(),
        access=None,
        owner=mark.owner,
        hard_end=mark.end,
        run=mark.run,
    )
    row = fleet.ledger.machine(machine.name)
    assert row is not None
    return row


def _vanished(fleet: Fleet, seen: Sequence[Seen], answered: set[str]) -> list[MachineRow]:
    """Open rows without a living keeper whose machine the provider no longer lists."""
    there = {one.machine.name for one in seen}
    return [
        row
        for row in fleet.ledger.machines(open_only=True)
        if row.provider in answered and row.name not in there and _forsaken(row)
    ]


def _forsaken(row: MachineRow) -> bool:
    keeper = keeper_from(row.keeper)
    return keeper is None or keeper.role == "watchdog" or alive(keeper) is False


def _provider_of(rows: Sequence[MachineRow], name: str | None) -> str:
    return next((row.provider for row in rows if row.name == name), "")
