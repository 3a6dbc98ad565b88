"""Destroying what is ours and has no living keeper, also without our ledger.

`judge` is the whole policy and asks nobody; everything else is asking and doing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypeVar

from gpuctl.errors import GpuctlError, LedgerError
from gpuctl.fleet.access import end_command
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.deadlines import by_this_clock
from gpuctl.fleet.keeper import Keeper, alive, keeper_from
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.release import release_all
from gpuctl.ledger import MachineRow
from gpuctl.names import parse_machine_name
from providers.base import Leftover, Machine, Provider, ProviderError, State

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


@dataclass(frozen=True, slots=True)
class Reaped:
    """What a reap did."""

    receipts: tuple[Receipt, ...]
    would_reap: tuple[Seen, ...]  # with dry_run
    kept: tuple[Seen, ...]
    errors: tuple[Trouble, ...]
    asked: tuple[str, ...] = ()  # providers, those that did not answer too
    swept: tuple[Leftover, ...] = ()  # of machines that were gone before
    would_sweep: tuple[Leftover, ...] = ()  # with dry_run


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


def reap(fleet: Fleet, *, dry_run: bool = False, hard_end_only: bool = False) -> Reaped:
    """Destroy what `judge` condemns, and close ledger rows whose machines are gone."""
    seen, errors, answered = survey(fleet)
    asked = tuple(sorted(answered | {one.provider for one in errors}))
    if hard_end_only:
        seen = [_by_its_hard_end(one, fleet.clock.now()) for one in seen]
    doomed = [one for one in seen if one.verdict.destroy]
    kept = tuple(one for one in seen if not one.verdict.destroy)
    if dry_run:
        return Reaped((), tuple(doomed), kept, tuple(errors), asked)
    rows: list[MachineRow] = []
    for one in doomed:
        try:
            rows.append(_claimed(fleet, one))
        except LedgerError as error:
            # The others have their rows already, and are ended all the same.
            machine = one.machine
            told = (
                f"{machine.name} ({machine.provider_id}) was not ended and bills: {error.message}"
            )
            errors.append(Trouble(machine.provider, error.kind, told, machine.name, error.next))
    rows += [] if hard_end_only else _vanished(fleet, seen, answered)
    receipts, failures = release_all(fleet, rows, why="reaped")
    errors += [
        Trouble(_provider_of(rows, e.machine), e.kind, e.message, e.machine, e.next)
        for e in failures
    ]
    receipts += _returned(fleet, seen, answered, errors)
    return Reaped(tuple(receipts), (), kept, tuple(errors), asked)


def _by_its_hard_end(one: Seen, now: datetime) -> Seen:
    """Let a machine live that is condemned for another reason than its hard end."""
    mark = one.machine.mark
    if not one.verdict.destroy or mark is None or now >= mark.end:
        return one
    return replace(one, verdict=Verdict(False, f"its hard end is at {mark.end:%Y-%m-%d %H:%M} UTC"))


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


def _is_borrowed(row: MachineRow) -> bool:
    return row.borrowed and not row.closed


def _returned(
    fleet: Fleet, seen: Sequence[Seen], answered: set[str], errors: list[Trouble]
) -> list[Receipt]:
    """Close the rows of borrowed machines that Terraform has destroyed."""
    there = {one.row.name for one in seen if one.row is not None}
    receipts: list[Receipt] = []
    for row in fleet.ledger.machines(open_only=True, borrowed=True):
        if not row.borrowed or row.provider not in answered or row.name in there:
            continue
        from gpuctl.fleet.returning import close_if_gone

        try:
            receipt = close_if_gone(fleet, row)
        except ProviderError as error:
            errors.append(Trouble(row.provider, error.kind, str(error), row.name))
            continue
        receipts += [receipt] if receipt is not None else []
    return receipts


def _forsaken(row: MachineRow) -> bool:
    keeper = keeper_from(row.keeper)
    return keeper is None or keeper.role == "watchdog" or alive(keeper) is False


def _provider_of(rows: Sequence[MachineRow], name: str | None) -> str:
    return next((row.provider for row in rows if row.name == name), "")
