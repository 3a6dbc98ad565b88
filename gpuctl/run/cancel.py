"""Ending a run that somebody else may be carrying."""

from __future__ import annotations

import os
import platform
import signal

from gpuctl.agent.client import AgentClient
from gpuctl.errors import MayStillBill, RemoteError, UsageError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, alive, keeper_from
from gpuctl.fleet.release import receipt_of
from gpuctl.ledger import RunRow
from gpuctl.run.attach import attach
from gpuctl.run.attempt import close_attempt
from gpuctl.run.caps import TERM_GRACE_SECONDS
from gpuctl.run.controller import TERMINAL, RunEnd
from gpuctl.run.finish import release_machines
from gpuctl.run.opening import open_work
from gpuctl.run.recover import AttemptEnd
from gpuctl.run.reporting import Reporter
from gpuctl.run.stopping import StopRequest
from gpuctl.run.work import Work

_CONTROLLER_SECONDS = 240.0
_POLL_SECONDS = 0.2
_SYNC_SECONDS = 60.0


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
    assert keeper.host == platform.node()
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
    work = open_work(fleet, run.id, StopRequest(), report, with_secrets=False)
    attempts = work.row().attempts
    last = attempts[-1] if attempts and attempts[-1].ended_at is None else None
    if last is not None:
        found = attach(work, last)
        if found is not None:
            _let_it_save(work, found[1].agent)
    receipts = release_machines(work, "cancelled")
    if last is not None:
        close_attempt(work, last.number, last.machine, AttemptEnd("cancelled", "cancelled"))
    if work.row().state not in TERMINAL:
        fleet.ledger.record("run_state", run=run.id, state="cancelled", reason="cancelled")
    return RunEnd(work.row(), tuple(receipts), None)


def _let_it_save(work: Work, agent: AgentClient) -> None:
    """Stop the job and wait until its agent has shipped what is whole, within its grace."""
    deadline = work.fleet.clock.monotonic() + TERM_GRACE_SECONDS + _SYNC_SECONDS
    try:
        agent.stop("cancelled", TERM_GRACE_SECONDS)
        while work.fleet.clock.monotonic() < deadline:
            job = agent.status().job
            if job is None or job.phase == "ended":
                return
            work.fleet.clock.sleep(_POLL_SECONDS)
    except RemoteError as error:
        work.report.warn(f"the job could not save its last work: {error.message}")
