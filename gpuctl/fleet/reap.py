"""Destroying what is ours and has no living keeper, also without our ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from gpuctl.errors import LedgerError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import alive, keeper_from
from gpuctl.fleet.orphans import find_orphans, sweep_orphans
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.release import release_all
from gpuctl.fleet.survey import Seen, Trouble, Verdict, survey
from gpuctl.fleet.uploads import give_up_uploads
from gpuctl.ledger import MachineRow
from providers.base import Leftover, ProviderError


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


def reap(fleet: Fleet, *, dry_run: bool = False, hard_end_only: bool = False) -> Reaped:
    """Destroy what `judge` condemns, close ledger rows whose machines are gone, and remove what
    machines and killed uploads left behind.
    """
    seen, errors, answered = survey(fleet)
    asked = tuple(sorted(answered | {one.provider for one in errors}))
    if hard_end_only:
        seen = [_by_its_hard_end(one, fleet.clock.now()) for one in seen]
    doomed = [one for one in seen if one.verdict.destroy]
    kept = tuple(one for one in seen if not one.verdict.destroy)
    ended_by = fleet.clock.now() if hard_end_only else None
    if dry_run:
        left, silent = find_orphans(fleet, answered, ended_by)
        would_sweep = tuple(one for some in left.values() for one in some)
        errors += silent
        return Reaped((), tuple(doomed), kept, tuple(errors), asked, would_sweep=would_sweep)
    rows = _claimed_all(fleet, doomed, errors)
    rows += [] if hard_end_only else _vanished(fleet, seen, answered)
    receipts, failures = release_all(fleet, rows, why="reaped")
    errors += [
        Trouble(_provider_of(rows, e.machine), e.kind, e.message, e.machine, e.next)
        for e in failures
    ]
    receipts += _returned(fleet, seen, answered, errors)
    swept, unswept = sweep_orphans(fleet, answered, ended_by)
    errors += [*unswept, *give_up_uploads(fleet)]
    return Reaped(tuple(receipts), (), kept, tuple(errors), asked, swept=tuple(swept))


def _claimed_all(fleet: Fleet, doomed: Sequence[Seen], errors: list[Trouble]) -> list[MachineRow]:
    """Return the rows of machines that are to end; what kept one from having any goes to errors."""
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
    return rows


def _by_its_hard_end(one: Seen, now: datetime) -> Seen:
    """Let a machine live that is condemned for another reason than its hard end."""
    mark = one.machine.mark
    if not one.verdict.destroy or mark is None or now >= mark.end:
        return one
    return replace(one, verdict=Verdict(False, f"its hard end is at {mark.end:%Y-%m-%d %H:%M} UTC"))


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
