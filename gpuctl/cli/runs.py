"""`runs`, `status`, `logs` and `checkpoints`: what the ledger and the journal say of runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import click

from gpuctl.cli import shapes
from gpuctl.cli.opening import opened
from gpuctl.cli.options import example, follow_json_option, json_option
from gpuctl.cli.output import emit, write
from gpuctl.cli.terminal import line, table
from gpuctl.errors import UsageError
from gpuctl.fleet.context import Fleet
from gpuctl.ledger import RunRow
from gpuctl.printable import printable
from gpuctl.quantities import format_bytes, format_money
from gpuctl.run.journal import Entry, Journal

_POLL_SECONDS = 0.5


@click.command(epilog=example("gpuctl runs", "gpuctl runs --limit 5 --json"))
@click.option("--limit", type=click.IntRange(1), help="Only the newest this many.")
@json_option
def runs(limit: int | None, as_json: bool) -> None:
    """List the runs of this home, newest first. Reads the ledger only."""
    with opened() as fleet:
        now = fleet.clock.now()
        rows = fleet.ledger.runs(limit=limit)
        if as_json:
            emit({"runs": [shapes.run(row, now) for row in rows]})
            return
        if not rows:
            line("No runs yet. `gpuctl init` writes a first train.yaml.")
            return
        table(
            ["RUN", "STATE", "ATTEMPTS>", "COST>", "STARTED", "REASON"],
            [
                (
                    row.id,
                    row.state,
                    len(row.attempts),
                    format_money(row.cost_so_far(now)),
                    _local(row.created_at),
                    shapes.reason(row),
                )
                for row in rows
            ],
        )


@click.command(epilog=example("gpuctl status demo-1a2b3c", "gpuctl status demo --json"))
@click.argument("run")
@json_option
def status(run: str, as_json: bool) -> None:
    """Show one run with its attempts, checkpoints and outputs. RUN is any unique part of its id."""
    with opened() as fleet:
        row = fleet.ledger.find_run(run)
        now = fleet.clock.now()
        if as_json:
            emit({"run": shapes.run(row, now)})
        else:
            show_run(row, now)


def show_run(row: RunRow, now: datetime) -> None:
    """Print one run for a person."""
    line(f"{row.id}: {row.state}, {format_money(row.cost_so_far(now))} so far")
    if why := shapes.reason(row):
        line(f"  {why}")
    if row.exit_code is not None:
        line(f"  exit code {row.exit_code}")
    if row.attempts:
        _show_attempts(row, now)
    if row.checkpoints:
        last = row.checkpoints[-1]
        line(f"{len(row.checkpoints)} checkpoints in {row.store}; the newest is {last.name}")
    for output in row.outputs:
        line(f"output {output.source} -> {output.target} ({format_bytes(output.bytes)})")


def _show_attempts(row: RunRow, now: datetime) -> None:
    rented = {machine.name: machine for machine in row.machines}
    rows = []
    for one in row.attempts:
        machine = rented.get(one.machine)
        cost = shapes.attempt_cost(one, machine, now)
        rows.append(
            (
                one.number,
                one.machine,
                "" if machine is None else machine.provider,
                _local(one.started_at),
                one.outcome or "at work",
                "" if cost is None else format_money(cost),
                one.reason,
            )
        )
    table(["ATTEMPT>", "MACHINE", "PROVIDER", "STARTED", "OUTCOME", "COST>", "REASON"], rows)


@click.command(epilog=example("gpuctl checkpoints demo-1a2b3c", "gpuctl checkpoints demo --json"))
@click.argument("run")
@json_option
def checkpoints(run: str, as_json: bool) -> None:
    """List what of a run is durable: the checkpoints in its store, oldest first.

    Asks the store itself: one with a part missing is shown as not whole, and is never restored.
    """
    from gpuctl.store import open_store

    with opened() as fleet:
        row = fleet.ledger.find_run(run)
        if row.store is None:
            raise UsageError(f"{row.id} has no store")
        store = open_store(row.store, row.id, environ=fleet.environ)
        found = [one for one in store.manifests() if one.kind == "checkpoint"][::-1]
        whole = [store.is_whole(one) for one in found]
        corrupt = store.corrupt()
    if as_json:
        emit(
            {
                "run": row.id,
                "store": store.location,
                "checkpoints": [
                    shapes.stored_checkpoint(one, is_whole)
                    for one, is_whole in zip(found, whole, strict=True)
                ],
                "corrupt": [{"key": one.key, "why": one.why} for one in corrupt],
            }
        )
        return
    if not found:
        line(f"{row.id} has no checkpoint in {store.location}.")
        return
    line(f"In {store.location}:")
    table(
        ["NAME", "STEP>", "VERSION>", "ATTEMPT>", "SIZE>", "AT", ""],
        [
            (
                one.name,
                one.step,
                one.version,
                one.attempt,
                format_bytes(one.bytes),
                _local(one.at),
                "" if is_whole else "NOT WHOLE",
            )
            for one, is_whole in zip(found, whole, strict=True)
        ],
    )
    for one in corrupt:
        line(f"corrupt: {one.key}: {one.why}")


@click.command(epilog=example("gpuctl logs demo-1a2b3c -f", "gpuctl logs demo --tail 20"))
@click.argument("run")
@click.option("--follow", "-f", is_flag=True, help="Go on until the run has ended.")
@click.option("--attempt", type=click.IntRange(1), help="Only this attempt.")
@click.option("--tail", type=click.IntRange(0), help="Begin with the last this many lines.")
@follow_json_option
def logs(run: str, follow: bool, attempt: int | None, tail: int | None, as_json: bool) -> None:
    """Print what a run's job wrote, from every attempt.

    With --json one object a line: {"attempt", "at", "stream", "text"}.
    """
    with opened() as fleet:
        row = fleet.ledger.find_run(run)
        if attempt is not None and not follow and attempt > len(row.attempts):
            raise UsageError(f"{row.id} has no attempt {attempt}; it has had {len(row.attempts)}")
        journal = Journal(fleet.home, row.id)
        # The state is read before the journal: what was written before a run ended is all shown.
        going_on = _goes_on(fleet, row.id)
        offset = 0
        if tail is not None:
            offset = journal.end()
            _show(_last(journal.backwards(offset), attempt, tail, as_json), as_json, tail)
        offset = _show_rest(journal, offset, attempt, as_json)
        while follow and going_on:
            fleet.clock.sleep(_POLL_SECONDS)
            going_on = _goes_on(fleet, row.id)
            offset = _show_rest(journal, offset, attempt, as_json)
        row = fleet.ledger.run(row.id) or row
        if follow and _forsaken(row):
            sys.stderr.write(f"{row.id}: {shapes.reason(row)}\n")


def _show_rest(journal: Journal, offset: int, attempt: int | None, as_json: bool) -> int:
    """Show everything from an offset on, a piece at a time; return where it ended."""
    while True:
        entries, after = journal.read(offset)
        _show([one for one in entries if attempt in (None, one.attempt)], as_json, None)
        if after == offset:
            return offset
        offset = after


def _last(
    newest_first: Iterator[Entry], attempt: int | None, tail: int, as_json: bool
) -> list[Entry]:
    """Return entries that hold the last lines (with JSON: the last entries), oldest first."""
    found: list[Entry] = []
    lines = 0
    for entry in newest_first:
        # One line break more than asked for: the text before the first wanted line ends with it.
        if (len(found) >= tail) if as_json else (lines > tail):
            break
        if attempt in (None, entry.attempt):
            found.append(entry)
            lines += entry.text.count("\n")
    return found[::-1]


def _goes_on(fleet: Fleet, run_id: str) -> bool:
    row = fleet.ledger.run(run_id)
    return row is not None and row.state not in shapes.RUN_ENDED and not _forsaken(row)


def _forsaken(row: RunRow) -> bool:
    """Whether nobody is left who would write more."""
    return shapes.reason(row) != row.reason


def _show(entries: list[Entry], as_json: bool, tail: int | None) -> None:
    if as_json:
        for entry in entries if tail is None else entries[max(len(entries) - tail, 0) :]:
            emit(
                {
                    "attempt": entry.attempt,
                    "at": shapes.moment(datetime.fromtimestamp(entry.at, UTC)),
                    "stream": entry.stream,
                    "text": entry.text,
                }
            )
        return
    text = printable("".join(entry.text for entry in entries))
    write(text if tail is None else last_lines(text, tail))


def last_lines(text: str, count: int) -> str:
    """Return the last lines of a text."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[max(len(lines) - count, 0) :])


def _local(when: datetime) -> str:
    return f"{when.astimezone():%Y-%m-%d %H:%M}"
