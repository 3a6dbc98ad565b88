"""How an event changes what is read from the ledger. Pure: a row and an event in, a row out.

Every event changes exactly one row of one table, so a table is a fold over the events, and
`rebuilt` makes all of them anew. A row is a mapping from column to what SQLite keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from gpuctl.ledger.encoding import dump, dump_or_null, moment_text
from gpuctl.ledger.events import MACHINE_KINDS, RUN_ENDED, RUN_KINDS, Event
from gpuctl.ledger.machine_projection import Row, Value, kept, machine_after

Key = tuple[Value, ...]
Fold = Callable[[Row | None, Event], Row]


@dataclass(frozen=True, slots=True)
class Table:
    """One table that is made from events."""

    name: str
    key: tuple[str, ...]  # columns
    key_of: Callable[[Event], Key]
    fold: Fold


def _run(row: Row | None, event: Event) -> Row:
    facts = event.facts
    if event.kind == "run_opened":
        if row is not None:
            raise ValueError(f"run_opened: {event.run} is in the ledger already")
        return {
            "id": event.run,
            "seq": event.seq,
            "name": facts["name"],
            "state": "pending",
            "reason": None,
            "exit_code": None,
            "spec": dump(facts["spec"]),
            "spec_file": facts.get("spec_file"),
            "owner": facts["owner"],
            "store": facts["store"],
            "created_at": moment_text(event.at),
            "ended_at": None,
            "detached": int(facts["detached"]),
            "keeper": dump_or_null(facts.get("keeper")),
        }
    if row is None:
        raise ValueError(f"{event.kind}: the ledger has no run {event.run}")
    if event.kind == "run_kept":
        return row | kept(row, event)
    ended = facts["state"] in RUN_ENDED
    return row | {
        "state": facts["state"],
        "reason": facts.get("reason"),
        "exit_code": facts.get("exit_code"),
        # A resumed run goes on; one that ended twice ended the first time.
        "ended_at": (row["ended_at"] or moment_text(event.at)) if ended else None,
    }


def _attempt(row: Row | None, event: Event) -> Row:
    facts = event.facts
    number = facts["number"]
    if event.kind == "attempt_started":
        if row is not None:
            raise ValueError(f"attempt_started: attempt {number} of {event.run} began already")
        return {
            "run": event.run,
            "number": number,
            "machine": event.machine,
            "started_at": moment_text(event.at),
            "ended_at": None,
            "outcome": None,
            "exit_code": None,
            "reason": None,
            "cost_usd": None,
        }
    if row is None:
        raise ValueError(f"attempt_ended: attempt {number} of {event.run} never began")
    return row | {
        "ended_at": row["ended_at"] or moment_text(event.at),
        "outcome": facts["outcome"],
        "exit_code": facts.get("exit_code"),
        "reason": facts.get("reason"),
        "cost_usd": facts.get("cost_usd") or row["cost_usd"],
    }


def _checkpoint(row: Row | None, event: Event) -> Row:
    facts = event.facts
    if event.kind == "checkpoint_pruned":
        # One that was shipped while no controller watched is met here for the first time.
        return (row or _unmet_checkpoint(event)) | {"pruned_at": moment_text(event.at)}
    return {
        "run": event.run,
        "attempt": facts["attempt"],
        "seq": facts["seq"],
        "name": facts["name"],
        "version": facts["version"],
        "step": facts.get("step"),
        "at": facts["at"],
        "bytes": facts["bytes"],
        # Learnt again after a re-attach; what was pruned stays pruned.
        "pruned_at": row["pruned_at"] if row else None,
    }


def _unmet_checkpoint(event: Event) -> Row:
    return {
        "run": event.run,
        "attempt": event.facts["attempt"],
        "seq": event.facts["seq"],
        "name": "",
        "version": 0,
        "step": None,
        "at": moment_text(event.at),
        "bytes": 0,
        "pruned_at": None,
    }


def _output(_row: Row | None, event: Event) -> Row:
    return {
        "run": event.run,
        "source": event.facts["from"],
        "target": event.facts["to"],
        "bytes": event.facts["bytes"],
        "at": moment_text(event.at),
    }


MACHINES = Table("machines", ("name",), lambda event: (event.machine,), machine_after)
RUNS = Table("runs", ("id",), lambda event: (event.run,), _run)
ATTEMPTS = Table(
    "attempts",
    ("run", "number"),
    lambda event: (event.run, event.facts["number"]),
    _attempt,
)
CHECKPOINTS = Table(
    "checkpoints",
    ("run", "attempt", "seq"),
    lambda event: (event.run, event.facts["attempt"], event.facts["seq"]),
    _checkpoint,
)
OUTPUTS = Table(
    "outputs",
    ("run", "source", "target"),
    lambda event: (event.run, event.facts["from"], event.facts["to"]),
    _output,
)
TABLES = (MACHINES, RUNS, ATTEMPTS, CHECKPOINTS, OUTPUTS)  # a table comes after what it refers to
TABLE_OF: Mapping[str, Table] = dict.fromkeys(MACHINE_KINDS, MACHINES) | {
    "run_opened": RUNS,
    "run_state": RUNS,
    "run_kept": RUNS,
    "attempt_started": ATTEMPTS,
    "attempt_ended": ATTEMPTS,
    "checkpoint": CHECKPOINTS,
    "checkpoint_pruned": CHECKPOINTS,
    "output": OUTPUTS,
}
assert set(TABLE_OF) == set(MACHINE_KINDS) | set(RUN_KINDS)


def rebuilt(events: Iterable[Event]) -> dict[str, dict[Key, Row]]:
    """Make every table anew from all events, in their order.

    Raises:
        ValueError, KeyError, TypeError: an event does not fit those before it.
    """
    tables: dict[str, dict[Key, Row]] = {table.name: {} for table in TABLES}
    for event in events:
        table = TABLE_OF[event.kind]
        rows, key = tables[table.name], table.key_of(event)
        rows[key] = table.fold(rows.get(key), event)
    return tables
