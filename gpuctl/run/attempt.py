"""One attempt: a machine rented, the job launched and followed, the result fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from gpuctl.errors import GpuctlError, Interrupted, RemoteError, StoreError
from gpuctl.fleet.acquire import DEFAULT_MAX_DURATION
from gpuctl.fleet.deadlines import hard_seconds
from gpuctl.fleet.keeper import Keeper
from gpuctl.fleet.lease import Renewal, keep, renew
from gpuctl.fleet.ready import NotReady
from gpuctl.ledger import AttemptRow, MachineRow
from gpuctl.policy import offer_key
from gpuctl.run.attach import attach
from gpuctl.run.caps import Allowance, Caps, Used, allowance
from gpuctl.run.finish import OnlyThere, deliver_outputs, hold
from gpuctl.run.follow import Follower, fate_of
from gpuctl.run.launch import OutOfTime, Unfit, launch
from gpuctl.run.prepare import caps_of, used_by
from gpuctl.run.recover import AttemptEnd
from gpuctl.run.relay import Relay
from gpuctl.run.rent import Refusals, rent
from gpuctl.run.stopping import SecondSignal
from gpuctl.run.work import Live, Work
from providers.base import Clock

_HARD_END_SLACK_SECONDS = 1.0


def new_attempt(
    work: Work, number: int, keeper: Keeper, refused: Refusals, recoveries: int
) -> tuple[AttemptEnd, Live | None]:
    """Rent a machine, run the job on it and follow it to its end.

    Returns how it ended and the machine while it can still be reached.

    Raises:
        NothingRentable, CapReached, NoCredentials, MayStillBill: no machine was rented.
        StoreError: the store cannot be read. Asked before renting, else only the restore fails.
    """
    before = allowance_now(work, Decimal(0))
    if before.spent:
        return AttemptEnd("capped", f"budget.{before.cap} is used up"), None
    newest = work.store.newest_whole(verify=False)  # the machine verifies what it takes
    rented = rent(
        work, number, lambda price: allowance_now(work, price), keeper, refused, recoveries
    )
    row = rented.row
    work.fleet.ledger.record("attempt_started", run=work.run_id, number=number, machine=row.name)
    left = _until(row, allowance_now(work, row.price_hour), work.fleet.clock)
    renewal = Renewal(work.fleet, row.name, work.options.lease_seconds)
    end, live = carry(
        work,
        row,
        renewal,
        lambda: launch(work, row, rented.machine, number, renewal, left, newest),
    )
    if end.unfit:
        refused[offer_key(rented.offer)] = end.reason
    if end.outcome == "capped" and left.cap is not None:
        end = replace(end, reason=f"budget.{left.cap} is used up")
    return end, live


def carry(
    work: Work, row: MachineRow, renewal: Renewal, begin: Callable[[], Live]
) -> tuple[AttemptEnd, Live | None]:
    """Begin (or re-join) the job on a machine and follow it; the lease is renewed meanwhile."""
    end, live = _carried(work, row, renewal, begin)
    if end.outcome == "lost" and hard_seconds(row, work.fleet.clock) <= _HARD_END_SLACK_SECONDS:
        # The caps set the hard end; whoever ended the machine then did as told.
        return replace(end, outcome="capped", unfit=False), live
    return end, live


def _carried(
    work: Work, row: MachineRow, renewal: Renewal, begin: Callable[[], Live]
) -> tuple[AttemptEnd, Live | None]:
    live: Live | None = None
    renewal.start()
    try:
        live = begin()
        return Follower(work, live).follow(), live
    except NotReady as error:
        return AttemptEnd("lost", error.message, unfit=True), None
    except Unfit as error:
        return AttemptEnd("failed", error.message, unfit=True), None
    except OutOfTime as error:
        return AttemptEnd("capped", error.message), None
    except Interrupted:
        return AttemptEnd("cancelled", "stopped on request"), live
    except RemoteError as error:
        if fate_of(work, row.name) == "interrupted":
            return AttemptEnd("interrupted", f"{row.name} was taken away"), None
        return AttemptEnd("lost", f"{row.name} stopped answering: {error.message}"), None
    except SecondSignal:
        renewal.stop(wait_seconds=0)
        raise
    finally:
        renewal.stop()


def close_attempt(work: Work, number: int, machine: str, end: AttemptEnd) -> None:
    """Write the end of an attempt into the ledger, with what its machine has cost."""
    row = work.fleet.ledger.machine(machine)
    cost = row.cost_so_far(work.fleet.clock.now()) if row else Decimal(0)
    work.fleet.ledger.record(
        "attempt_ended",
        run=work.run_id,
        number=number,
        outcome=end.outcome,
        exit_code=end.exit_code,
        reason=end.reason or None,
        cost_usd=cost,
    )


def fetch_result(work: Work, number: int, end: AttemptEnd, live: Live | None) -> GpuctlError | None:
    """Fetch the outputs of an attempt whose job ended by itself or by us.

    A result that cannot be fetched now is an error, not a loss: it stays in the store, or on the
    machine (`OnlyThere`).
    """
    if end.outcome in ("interrupted", "lost") or end.unfit:
        return None
    if live is None and end.outcome != "completed":
        return None  # its job was never handed over
    try:
        deliver_outputs(
            work, number, quietly=end.outcome != "completed", live=live, told=end.outputs
        )
    except (StoreError, OnlyThere) as error:
        work.report.warn(error.message)
        return error
    return None


def deliver_late(work: Work, attempt: AttemptRow, keeper: Keeper) -> bool:
    """Fetch the result of a job that completed under an earlier controller.

    Returns whether it is here: False when only its machine had it, and that is gone.

    Raises:
        StoreError: it could not be fetched; it is still in the store.
        OnlyThere: it is still on the machine, which is held on.
    """
    found = attach(work, attempt)
    if found is None:
        stored = {one.name for one in work.store.manifests() if one.attempt == attempt.number}
        if not all(output.source in stored for output in work.spec.outputs) and (
            work.store.ending(attempt.number) is None
        ):
            return False
        deliver_outputs(work, attempt.number)
        return True
    row, live = found
    keep(work.fleet, row, keeper, detached=False)
    renew(work.fleet, row, work.options.lease_seconds, on_machine=live.agent.renew)
    renewal = Renewal(work.fleet, row.name, work.options.lease_seconds)
    renewal.arm(live.agent.renew)
    renewal.start()
    try:
        job = live.agent.status().job
        if live.outbox is not None:
            Relay(work, live, live.outbox).finish(row.hard_end)
        deliver_outputs(work, attempt.number, live=live, told=job.outputs if job else ())
    except OnlyThere:
        hold(work, live, row, work.options.lease_seconds)
        raise
    finally:
        renewal.stop()
        live.connection.close()
    return True


def spare(
    work: Work,
    row: MachineRow,
    end: AttemptEnd,
    live: Live | None,
    trouble: GpuctlError | None = None,
) -> bool:
    """Hold a machine that is still needed: for a look at a failed job, or for its only result.

    Args:
        trouble: why the result could not be fetched.
    """
    if live is None or end.unfit:
        return False
    seconds = work.options.keep_failed_seconds if end.outcome == "failed" else 0
    if end.outcome == "completed" and isinstance(trouble, OnlyThere):
        seconds = max(work.options.lease_seconds, work.options.keep_failed_seconds)
    if seconds <= 0:
        return False
    try:
        hold(work, live, row, seconds)
    except RemoteError as error:
        work.report.warn(f"{row.name} cannot be kept: {error.message}")
        return False
    return True


def allowance_now(work: Work, price_hour: Decimal) -> Allowance:
    """Return what the run's caps leave for a machine at this price, at most a day."""
    now = work.fleet.clock.now()
    run = work.row()
    caps = caps_of(work.spec, run.created_at)
    used = Used(_cost(work.fleet.ledger.machines(run=work.run_id), now), used_by(run, now))
    return _within_a_day(allowance(caps, used, price_hour, now), caps)


def _until(row: MachineRow, left: Allowance, clock: Clock) -> Allowance:
    """Return an allowance that ends no later than the machine itself."""
    seconds = max(hard_seconds(row, clock), 0)
    return left if left.seconds is None else replace(left, seconds=min(left.seconds, seconds))


def _within_a_day(left: Allowance, caps: Caps) -> Allowance:
    day = DEFAULT_MAX_DURATION.total_seconds()
    if left.seconds is not None and (left.seconds <= day or caps.max_duration is not None):
        return left
    return Allowance(day, "max_duration (24 h unless set)")


def _cost(rows: Sequence[MachineRow], now: datetime) -> Decimal:
    return sum((row.cost_so_far(now) for row in rows), Decimal(0))
