"""Ending machines by hand, also those that a living run would replace at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from gpuctl.errors import GpuctlError, LedgerError
from gpuctl.fleet import guarding
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import alive, keeper_from, this_process
from gpuctl.fleet.lease import keep
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.release import release_all
from gpuctl.ledger import MachineRow, RunRow
from gpuctl.run.cancel import cancel_run
from gpuctl.run.controller import TERMINAL
from gpuctl.run.reporting import Reporter


def terminate(
    fleet: Fleet, rows: Sequence[MachineRow], report: Reporter
) -> tuple[list[Receipt], list[GpuctlError]]:
    """End machines now, and with them the runs that they work for.

    To a run's controller a machine that vanishes is an interruption: it would rent the next one.
    So it is asked to stop first, and is waited for after its machine is gone.
    """
    guarding.revive(fleet)
    _take_charge(fleet, rows)
    runs = living_runs(fleet, rows)
    if not runs:
        return release_all(fleet, rows, why="terminate")
    with ThreadPoolExecutor(max_workers=len(runs)) as pool:
        cancelled = [pool.submit(cancel_run, fleet, run, report) for run in runs]
        receipts, errors = release_all(fleet, rows, why="terminate")
        for future in cancelled:
            try:
                future.result()
            except GpuctlError as error:
                errors.append(error)
    return receipts, errors


def _take_charge(fleet: Fleet, rows: Sequence[MachineRow]) -> None:
    """Keep what only the watchdog keeps, or nobody: when we die, it carries on at once."""
    me = this_process("terminate")
    try:
        with fleet.ledger.transaction():
            for row in rows:
                keeper = keeper_from(row.keeper)
                free = keeper is None or keeper.role == "watchdog" or alive(keeper) is False
                if free and not row.closed and not row.borrowed:
                    keep(fleet, row, me, detached=row.detached)
    except LedgerError as error:
        fleet.say(error.message)  # a full disk keeps no machine alive


def living_runs(fleet: Fleet, rows: Sequence[MachineRow]) -> list[RunRow]:
    """Return the runs of these machines that a controller on this computer carries."""
    found: list[RunRow] = []
    for run_id in sorted({row.run for row in rows if row.run is not None and not row.closed}):
        run = fleet.ledger.run(run_id)
        if run is None or run.state in TERMINAL:
            continue
        keeper = keeper_from(run.keeper)
        if keeper is not None and alive(keeper):
            found.append(run)
    return found
