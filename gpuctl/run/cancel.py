"""Ending a run that somebody else may be carrying."""

from __future__ import annotations

import os
import signal

from gpuctl.errors import Interrupted, MayStillBill, UsageError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, alive, keeper_from
from gpuctl.fleet.release import receipt_of
from gpuctl.ledger import RunRow
from gpuctl.run.controller import TERMINAL, Controller, RunEnd
from gpuctl.run.finish import release_machines
from gpuctl.run.opening import open_work
from gpuctl.run.reporting import Reporter
from gpuctl.run.stopping import StopRequest

_CONTROLLER_SECONDS = 240.0
_POLL_SECONDS = 0.2


def cancel_run(fleet: Fleet, run: RunRow, report: Reporter) -> RunEnd:
    """End a run: by its controller when that lives, else in its place.

    Raises:
        UsageError: its controller lives on another computer.
        MayStillBill: a machine could not be proven gone.
    """
    if run.state in TERMINAL and not fleet.ledger.machines(open_only=True, run=run.id):
        return RunEnd(run, (), None)
    keeper = keeper_from(run.keeper)
    if keeper is not None and run.state not in TERMINAL:
        lives = alive(keeper)
        if lives is None:
            raise UsageError(
                f"{run.id} is looked after by process {keeper.pid} on {keeper.host}",
                next=f"Run `gpuctl cancel {run.id}` on {keeper.host}; "
                f"here `gpuctl terminate` ends its machine.",
            )
        if lives:
            return _by_its_controller(fleet, run, keeper, report)
    return _in_its_place(fleet, run, report)


def _by_its_controller(fleet: Fleet, run: RunRow, keeper: Keeper, report: Reporter) -> RunEnd:
    report.step(f"asking process {keeper.pid} to stop")
    os.kill(keeper.pid, signal.SIGTERM)
    deadline = fleet.clock.monotonic() + _CONTROLLER_SECONDS
    while fleet.clock.monotonic() < deadline:
        now = fleet.ledger.run(run.id) or run
        still_open = fleet.ledger.machines(open_only=True, run=run.id)
        if now.state in TERMINAL and not still_open:
            moment = fleet.clock.now()
            rows = fleet.ledger.machines(run=run.id)
            return RunEnd(now, tuple(receipt_of(row, moment) for row in rows), None)
        if alive(keeper) is False:
            return _in_its_place(fleet, now, report)
        fleet.clock.sleep(_POLL_SECONDS)
    raise MayStillBill(
        f"The controller of {run.id} (process {keeper.pid}) has not stopped it in time",
        next=f"Run `gpuctl terminate` on its machines, or kill {keeper.pid} and cancel again.",
    )


def _in_its_place(fleet: Fleet, run: RunRow, report: Reporter) -> RunEnd:
    """Be the run's controller for as long as it takes to end it."""
    report = _WithoutOutput(report)
    if run.state in TERMINAL:  # only a machine that was kept is left
        work = open_work(fleet, run.id, StopRequest(), report, with_secrets=False)
        receipts = release_machines(work, "cancelled")
        return RunEnd(work.row(), tuple(receipts), None)
    stop = StopRequest()
    stop.request()
    end = Controller(fleet, run.id, stop, report, with_secrets=False).carry()
    wanted = isinstance(end.error, Interrupted)
    return RunEnd(end.run, end.receipts, None if wanted else end.error)


class _WithoutOutput:
    """Passes on all but what the job wrote: that goes to the journal, nobody asked to see it."""

    def __init__(self, report: Reporter) -> None:
        self.step, self.warn, self.progress = report.step, report.warn, report.progress

    def output(self, stream: str, text: str) -> None:
        """Leave it to the journal."""
