"""Rows of the ledger's tables as typed values. No event is parsed for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, TypeVar

from gpuctl.ledger.costs import Price
from gpuctl.ledger.faults import Unreadable
from gpuctl.ledger.machine_projection import Value
from gpuctl.ledger.rows import AttemptRow, CheckpointRow, MachineRow, OutputRow, RunRow
from providers.base import State

Record = tuple[Any, ...]
Query = Callable[[str, Sequence[Value]], list[Record]]
"""Takes SQL and its values, returns all records."""

_Made = TypeVar("_Made")

_MACHINE = (
    "SELECT name, provider, provider_id, state, gpu, gpu_count, spot, price_hour, region, disk_gb,"
    " offer_id, access, lease_until, lease_seconds, hard_end, run, attempt, owner, keeper,"
    " detached, purpose, intended_at, created_at, ready_at, ended_at, interrupted,"
    " destroy_asked_at, cost_usd, cost_source, confirmed_by, in_doubt, closed_by, prices,"
    " ticks, bill_step_seconds, terraform"
    " FROM machines"
)
_RUN = (
    "SELECT id, name, state, reason, exit_code, spec, spec_file, owner, store,"
    " created_at, ended_at, detached, keeper FROM runs"
)
_ATTEMPT = (
    "SELECT run, number, machine, started_at, ended_at, outcome, exit_code, reason, cost_usd"
    " FROM attempts"
)
_CHECKPOINT = "SELECT run, attempt, seq, name, version, step, at, bytes FROM checkpoints"
_OUTPUT = "SELECT run, source, target, bytes, at FROM outputs"

_STATES: Mapping[str, Any] = {str(state): state for state in State} | {"intended": "intended"}


def machines(query: Query, where: str = "", values: Sequence[Value] = ()) -> list[MachineRow]:
    """Return machines, oldest first.

    Args:
        where: a condition of SQL, or nothing.

    Raises:
        Unreadable: a row does not hold what was written there.
    """
    condition = f" WHERE {where}" if where else ""
    return _made(_machine, query(f"{_MACHINE}{condition} ORDER BY seq", values), "machine")


def runs(query: Query, where: str = "", values: Sequence[Value] = ()) -> list[RunRow]:
    """Return runs with all that belongs to them, newest first.

    Args:
        where: a condition of SQL on the table of runs, or nothing.

    Raises:
        Unreadable: a row does not hold what was written there.
    """
    condition = f" WHERE {where}" if where else ""
    records = query(f"{_RUN}{condition} ORDER BY seq DESC", values)
    if not records:
        return []
    mine = f"WHERE run IN (SELECT id FROM runs{condition})"  # noqa: S608
    attempts = _by_run(_attempt, query(f"{_ATTEMPT} {mine} ORDER BY number", values), "attempt")
    checkpoints = _by_run(
        _checkpoint,
        query(f"{_CHECKPOINT} {mine} AND pruned_at IS NULL ORDER BY attempt, seq", values),
        "checkpoint",
    )
    outputs = _by_run(_output, query(f"{_OUTPUT} {mine} ORDER BY at", values), "output")
    rented: dict[str, list[MachineRow]] = {}
    for machine in machines(query, mine.removeprefix("WHERE "), values):
        rented.setdefault(str(machine.run), []).append(machine)

    def made(record: Record) -> RunRow:
        key = record[0]
        return _run(
            record,
            tuple(attempts.get(key, ())),
            tuple(checkpoints.get(key, ())),
            tuple(outputs.get(key, ())),
            tuple(rented.get(key, ())),
        )

    return _made(made, records, "run")


def _made(make: Callable[[Record], _Made], records: Iterable[Record], what: str) -> list[_Made]:
    made = []
    for record in records:
        try:
            made.append(make(record))
        except (ValueError, ArithmeticError, KeyError, TypeError) as error:
            raise Unreadable(f"the {what} {record[0]!r} cannot be read ({error!r})") from error
    return made


def _by_run(
    make: Callable[[Record], _Made], records: Iterable[Record], what: str
) -> dict[str, list[_Made]]:
    grouped: dict[str, list[_Made]] = {}
    for record in records:
        grouped.setdefault(record[0], []).extend(_made(make, [record], what))
    return grouped


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _money(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _prices(text: str | None, flat: Decimal) -> tuple[Price, ...]:
    if text is None:
        return (Price(None, flat),)
    return tuple(Price(_moment(since), Decimal(price)) for since, price in json.loads(text))


def _machine(record: Record) -> MachineRow:
    (
        name, provider, provider_id, state, gpu, gpu_count, spot, price_hour, region, disk_gb,
        offer_id, access, lease_until, lease_seconds, hard_end, run, attempt, owner, keeper,
        detached, purpose, intended_at, created_at, ready_at, ended_at, interrupted,
        destroy_asked_at, cost_usd, cost_source, confirmed_by, in_doubt, closed_by, prices,
        ticks, bill_step_seconds, terraform,
    ) = record  # fmt: skip
    price = Decimal(price_hour)
    return MachineRow(
        name=name,
        provider=provider,
        provider_id=provider_id,
        state=_STATES[state],
        gpu=gpu,
        gpu_count=gpu_count,
        spot=bool(spot),
        price_hour=price,
        region=region,
        disk_gb=disk_gb,
        offer_id=offer_id,
        access_json=access,
        lease_until=datetime.fromisoformat(lease_until),
        lease_seconds=lease_seconds,
        hard_end=datetime.fromisoformat(hard_end),
        run=run,
        attempt=attempt,
        owner=owner,
        keeper_json=keeper,
        detached=bool(detached),
        purpose=purpose,
        intended_at=datetime.fromisoformat(intended_at),
        created_at=_moment(created_at),
        ready_at=_moment(ready_at),
        ended_at=_moment(ended_at),
        interrupted=interrupted,
        destroy_asked_at=_moment(destroy_asked_at),
        cost_usd=_money(cost_usd),
        cost_source=cost_source,
        confirmed_json=confirmed_by,
        in_doubt=bool(in_doubt),
        closed_by=closed_by,
        prices=_prices(prices, price),
        ticks_json=ticks,
        bill_step_seconds=bill_step_seconds,
        terraform=terraform,
    )


def _run(
    record: Record,
    attempts: tuple[AttemptRow, ...],
    checkpoints: tuple[CheckpointRow, ...],
    outputs: tuple[OutputRow, ...],
    rented: tuple[MachineRow, ...],
) -> RunRow:
    (
        id_, name, state, reason, exit_code, spec, spec_file, owner, store,
        created_at, ended_at, detached, keeper,
    ) = record  # fmt: skip
    return RunRow(
        id=id_,
        name=name,
        state=state,
        reason=reason,
        exit_code=exit_code,
        spec=_json(spec),
        spec_file=spec_file,
        owner=owner,
        store=store,
        created_at=datetime.fromisoformat(created_at),
        ended_at=_moment(ended_at),
        detached=bool(detached),
        keeper=_json(keeper),
        attempts=attempts,
        checkpoints=checkpoints,
        outputs=outputs,
        machines=rented,
    )


def _attempt(record: Record) -> AttemptRow:
    _, number, machine, started_at, ended_at, outcome, exit_code, reason, cost_usd = record
    return AttemptRow(
        number=number,
        machine=machine,
        started_at=datetime.fromisoformat(started_at),
        ended_at=_moment(ended_at),
        outcome=outcome,
        exit_code=exit_code,
        reason=reason,
        cost_usd=_money(cost_usd),
    )


def _checkpoint(record: Record) -> CheckpointRow:
    _, attempt, seq, name, version, step, at, size = record
    return CheckpointRow(attempt, seq, name, version, step, datetime.fromisoformat(at), size)


def _output(record: Record) -> OutputRow:
    _, source, target, size, at = record
    return OutputRow(source, target, size, datetime.fromisoformat(at))
