"""The run controller: attempts until the job is done, and every way out releases."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gpuctl.errors import (
    CapReached,
    GpuctlError,
    Interrupted,
    LedgerError,
    NothingRentable,
    StoreError,
    UsageError,
)
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import alive, keeper_from, this_process
from gpuctl.fleet.lease import Renewal, keep, renew
from gpuctl.fleet.receipt import Receipt
from gpuctl.ledger import AttemptRow, RunRow
from gpuctl.run.attach import attach, end_in_store, end_unwatched, let_it_finish
from gpuctl.run.attempt import (
    carry,
    close_attempt,
    deliver_late,
    fetch_result,
    new_attempt,
    spare,
)
from gpuctl.run.checkpoints import note_unwatched
from gpuctl.run.finish import OnlyThere, deliver_outputs, how_to_look, release_machines
from gpuctl.run.opening import open_work
from gpuctl.run.recover import AttemptEnd, Outcome, after
from gpuctl.run.rent import Refusals
from gpuctl.run.reporting import Reporter
from gpuctl.run.stopping import SecondSignal, StopRequest
from gpuctl.run.work import Live

TERMINAL = frozenset({"succeeded", "failed", "cancelled"})
_CAPACITY_PATIENCE_SECONDS = 600.0
_CAPACITY_PAUSE_SECONDS = 30.0


class JobFailed(GpuctlError):
    """The job failed by its own fault."""

    kind = "JobFailed"


class GivenUp(GpuctlError):
    """Its machines were taken away more often than the spec puts up with."""

    kind = "GivenUp"


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How far a run came under this controller."""

    run: RunRow
    receipts: tuple[Receipt, ...]
    error: GpuctlError | None


class Controller:
    """Carries one run to its end. Also picks one up that another process left."""

    def __init__(
        self,
        fleet: Fleet,
        run_id: str,
        stop: StopRequest,
        report: Reporter,
        *,
        in_background: bool = False,
        with_secrets: bool = True,
    ) -> None:
        """Open the run's work.

        Args:
            in_background: whether the machine is to carry the run on when this process dies,
                also when the run was not detached before.
            with_secrets: False for one who only ends it.

        Raises:
            UsageError: there is no such run, or a secret is not in this environment.
            StoreError: its store cannot be used.
        """
        work = open_work(fleet, run_id, stop, report, with_secrets=with_secrets)
        if in_background:
            work = replace(work, options=replace(work.options, detach=True))
        self._work = work
        self._keeper = this_process("controller")
        self._refused: Refusals = {}
        self._recoveries = 0
        self._receipts: list[Receipt] = []
        self._spared: str | None = None

    def carry(self) -> RunEnd:
        """Run attempts until the run is over, release everything, and say how it went.

        Raises:
            UsageError: another living process looks after the run.
            SecondSignal: somebody insisted on leaving at once; the watchdog ends the machines.
        """
        work = self._work
        if work.row().state == "succeeded":
            work.report.step(f"{work.run_id} has already succeeded")
            return RunEnd(work.row(), (), None)
        self._take_charge()
        try:
            error = self._carried()
        except SecondSignal:
            self._hand_over()
            raise
        finally:
            try:
                work.journal.close()
            except OSError as trouble:
                work.report.warn(f"{work.journal.path} is not complete: {trouble.strerror}")
        return RunEnd(work.row(), tuple(self._receipts), error)

    def _take_charge(self) -> None:
        work = self._work
        with work.fleet.ledger.transaction():
            keeper = keeper_from(work.row().keeper)
            if keeper is not None and keeper != self._keeper and alive(keeper) is not False:
                raise UsageError(
                    f"{work.run_id} is looked after by process {keeper.pid} on {keeper.host}",
                    next=f"`gpuctl logs -f {work.run_id}` follows it.",
                )
            work.fleet.ledger.record(
                "run_kept",
                run=work.run_id,
                keeper=self._keeper.facts(),
                detached=work.options.detach,
            )

    def _carried(self) -> GpuctlError | None:
        """Attempts, then the release of whatever is still open, whatever happened."""
        error: GpuctlError | None = None
        try:
            error = self._attempts()
        except GpuctlError as failed:
            error = failed
        except SecondSignal:
            raise  # leave at once: releasing is what somebody no longer wants to wait for
        except BaseException:
            self._release_rest()
            raise
        released = self._release_rest()
        if error is not None:
            self._note_end(error)
        if error is not None and self._spared is not None:
            error.machine, error.may_bill = self._spared, True
            error.next = " ".join(filter(None, (error.next, how_to_look(self._spared))))
        # What may still bill matters more than why the job ended.
        return released if released is not None and released.may_bill else error or released

    def _note_end(self, error: GpuctlError) -> None:
        """Write down that the run has ended by an error; a ledger that is full keeps no run."""
        try:
            if not isinstance(error, LedgerError):
                # Else the attempt stays open: how it ended is in the store, for the next one.
                self._close_open_attempt(error)
            if isinstance(error, Interrupted):
                self._state("cancelled", error.message)
            elif self._work.row().state not in TERMINAL:
                self._state("failed", error.message)
        except LedgerError as trouble:
            self._work.report.warn(trouble.message)

    def _attempts(self) -> GpuctlError | None:
        work = self._work
        end = self._resumed()
        while True:
            if end is not None:
                verdict = after(
                    end,
                    recoveries=self._recoveries,
                    max_recoveries=work.spec.on_interruption.max_recoveries,
                )
                if not verdict.again:
                    self._state(verdict.state, verdict.reason, end.exit_code)
                    return self._error_of(end, verdict.reason)
                if not end.unfit:
                    self._recoveries += 1
                work.report.warn(f"{verdict.reason}; trying again")
                self._state(verdict.state, verdict.reason)
            work.stop.check()
            end = self._next_attempt()

    def _next_attempt(self) -> AttemptEnd:
        """Rent and run; after a loss, wait a while for capacity before giving up."""
        work = self._work
        patience = work.fleet.clock.monotonic() + _CAPACITY_PATIENCE_SECONDS
        while True:
            number = len(work.row().attempts) + 1
            self._state("provisioning")
            try:
                end, live = new_attempt(work, number, self._keeper, self._refused, self._recoveries)
            except NothingRentable as none:
                if self._recoveries == 0 or work.fleet.clock.monotonic() >= patience:
                    raise
                work.report.warn(f"{none.message}; waiting for capacity")
                work.stop.wait(_CAPACITY_PAUSE_SECONDS)
                work.stop.check()
                continue
            return self._wound_up(number, end, live)

    def _resumed(self) -> AttemptEnd | None:
        """Finish what an earlier controller began: follow its job, or close its attempt."""
        work = self._work
        attempts = work.row().attempts
        if not attempts:
            self._receipts += release_machines(work, "its controller died")
            return None
        last = attempts[-1]
        if last.outcome == "completed":
            if self._delivered(last):
                return AttemptEnd("completed", "", last.exit_code)
            work.report.warn(
                f"the result of attempt {last.number} was only on its machine, which is gone; "
                "running again from the last checkpoint"
            )
        if last.ended_at is None:
            found = attach(work, last)
            if found is not None:
                row, live = found
                work.report.step(f"re-attached to {row.name}")
                if work.options.detach and not row.detached:
                    let_it_finish(work, row, last.number)
                keep(work.fleet, row, self._keeper, detached=work.options.detach)
                renew(work.fleet, row, work.options.lease_seconds, on_machine=live.agent.renew)
                renewal = Renewal(work.fleet, row.name, work.options.lease_seconds)
                renewal.arm(live.agent.renew)
                end, reached = carry(work, row, renewal, lambda: live)
                return self._wound_up(last.number, end, reached)
            end = end_unwatched(work, last)
            note_unwatched(work, last.number)
            self._receipts += release_machines(work, "its controller died")
            if end.outcome in ("completed", "failed", "capped"):
                work.report.step(f"attempt {last.number} went on to its end without a controller")
                deliver_outputs(work, last.number, quietly=end.outcome != "completed")
            close_attempt(work, last.number, last.machine, end)
            if end.outcome in ("completed", "failed", "capped"):
                return end
        self._receipts += release_machines(work, "its controller died")
        return None

    def _wound_up(self, number: int, end: AttemptEnd, live: Live | None) -> AttemptEnd:
        """After an attempt: the result fetched, the machine released, the book closed."""
        work = self._work
        machine = next((a.machine for a in work.row().attempts if a.number == number), None)
        if machine is None:
            return end  # a cap refused it before anything was rented
        row = work.fleet.ledger.machine(machine)
        assert row is not None
        self._state("finishing")
        end = self._as_told(number, end)
        if end.outcome == "interrupted":
            work.fleet.ledger.record("interrupted", machine=machine, reason=end.reason)
        trouble = fetch_result(work, number, end, live)
        if spare(work, row, end, live, trouble):
            self._spared = machine
        try:
            self._receipts += release_machines(work, end.outcome, spare=self._spared)
        finally:
            if live is not None:
                live.connection.close()
            close_attempt(work, number, machine, end)
        if trouble is not None and end.outcome == "completed":
            raise trouble
        return end

    def _as_told(self, number: int, end: AttemptEnd) -> AttemptEnd:
        """A machine that went away may have ended its job before: its agent left word of it."""
        if end.outcome not in ("lost", "interrupted") or end.unfit:
            return end
        try:
            told = end_in_store(self._work, number)
        except StoreError as error:
            self._work.report.warn(error.message)
            return end
        if told is None or told.outcome not in ("completed", "failed", "capped"):
            return end
        note_unwatched(self._work, number)
        return told

    def _delivered(self, last: AttemptRow) -> bool:
        """Whether the result of a job that completed before is here now."""
        try:
            return deliver_late(self._work, last, self._keeper)
        except OnlyThere as error:
            self._spared = error.machine
            raise

    def _close_open_attempt(self, error: GpuctlError) -> None:
        attempts = self._work.row().attempts
        if attempts and attempts[-1].ended_at is None:
            outcome: Outcome = "cancelled" if isinstance(error, Interrupted) else "failed"
            close_attempt(
                self._work,
                attempts[-1].number,
                attempts[-1].machine,
                AttemptEnd(outcome, error.message),
            )

    def _release_rest(self) -> GpuctlError | None:
        """Release what is still open; the error when that could not be proven."""
        try:
            self._receipts += release_machines(self._work, "the run is over", spare=self._spared)
        except GpuctlError as error:
            self._work.report.warn(error.message)
            return error
        return None

    def _hand_over(self) -> None:
        """Leave at once: the watchdog ends what is open, since its end is now asked for."""
        ledger = self._work.fleet.ledger
        try:
            with ledger.transaction():
                for row in ledger.machines(open_only=True, run=self._work.run_id):
                    ledger.record("destroy_asked", machine=row.name, why="left in a hurry")
                self._close_open_attempt(Interrupted("left at once"))
                if self._work.row().state not in TERMINAL:
                    self._state("cancelled", "left at once")
        except LedgerError as error:
            self._work.report.warn(error.message)

    def _state(self, state: str, reason: str | None = None, exit_code: int | None = None) -> None:
        self._work.fleet.ledger.record(
            "run_state", run=self._work.run_id, state=state, reason=reason, exit_code=exit_code
        )

    def _error_of(self, end: AttemptEnd, reason: str | None) -> GpuctlError | None:
        if end.outcome == "completed":
            return None
        if end.outcome == "cancelled":
            return self._work.stop.error()
        if end.outcome == "capped":
            return CapReached(
                f"Ended by a cap: {reason}",
                next=f"Checkpoints are kept: `gpuctl checkpoints {self._work.run_id}`.",
            )
        if end.outcome in ("interrupted", "lost"):
            return GivenUp(
                f"The run was given up: {reason}",
                next=f"`gpuctl resume {self._work.run_id}` carries it on from its last checkpoint.",
            )
        return JobFailed(
            f"The job failed: {reason}",
            next=f"`gpuctl logs {self._work.run_id}` shows why.",
        )
