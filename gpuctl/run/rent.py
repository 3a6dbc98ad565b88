"""Choosing and renting the machine of the next attempt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from gpuctl.errors import CapReached, NothingRentable
from gpuctl.fleet.acquire import DEFAULT_MAX_DURATION, Need, acquire, why_refused
from gpuctl.fleet.asking import ask_rentable, nothing_found
from gpuctl.fleet.borrowed import current, offers_of
from gpuctl.fleet.guarding import ensure_watchdog
from gpuctl.fleet.keeper import Keeper
from gpuctl.fleet.refusals import Refusal, may_say_yes, refused_last, telling
from gpuctl.ledger import MachineRow
from gpuctl.policy import History, choose, offer_key, pool_of
from gpuctl.run.caps import Allowance
from gpuctl.run.launch import agent_folder
from gpuctl.run.prepare import asked, caps_of, spot_of, want_of
from gpuctl.run.work import Work
from providers.base import Machine, Offer, ProviderError

Refusals = dict[str, str]
"""`offer_key` of what was tried and refused, or found unfit; and why."""


@dataclass(frozen=True, slots=True)
class Rented:
    """A machine for one attempt, and the offer that it came from."""

    row: MachineRow
    machine: Machine
    offer: Offer


def candidates(work: Work, refused: Refusals, recoveries: int) -> list[Offer]:
    """Ask the market and rank what it has.

    Raises:
        NothingRentable: nothing that was not refused already.
        NoCredentials: nobody who was asked has credentials.
    """
    if work.options.machine is not None:
        return _lent(work, work.options.machine, refused)
    spec, fleet = work.spec, work.fleet
    want, named = want_of(spec), asked(spec, work.named)
    found = ask_rentable(fleet, want, named)
    for error in found.errors:
        work.report.warn(f"{error.provider}: {error.message}")
    if not any(offer.available for offer in found.offers):
        raise nothing_found(fleet, want, named, found)
    run = work.row()
    deadline = caps_of(spec, run.created_at).deadline
    ranked = choose(
        found.offers,
        spot=spot_of(spec),
        max_price_hour=spec.resources.max_price,
        refused=refused,
        history=_history(run.machines, fleet.clock.now()),
        recoveries_left=spec.on_interruption.max_recoveries - recoveries,
        deadline_hours=_hours(deadline - fleet.clock.now()) if deadline else None,
        window_hours=_hours(deadline - run.created_at) if deadline else None,
    )
    if not ranked:
        why = f"; the last one: {[*refused.values()][-1]}" if refused else ""
        raise NothingRentable(
            f"Every offer that matches was tried and refused ({len(refused)}){why}",
            next="Ask for something else, or try again later.",
        )
    return refused_last(fleet, [candidate.offer for candidate in ranked])


def _lent(work: Work, name: str, refused: Refusals) -> list[Offer]:
    """Return what the machine that is lent to the run has. There is no market to ask."""
    offers = offers_of(work.fleet, name, want_of(work.spec))
    left = [offer for offer in offers if offer_key(offer) not in refused]
    if not left:
        raise NothingRentable(
            f"{name} is not what the job needs: {[*refused.values()][-1]}",
            machine=name,
            next="Ask for less in train.yaml, or name another machine.",
        )
    return left


def _history(machines: Sequence[MachineRow], now: datetime) -> History:
    """Return what the markets have done to this run's machines up to now."""
    taken: Counter[str] = Counter()
    hours: dict[str, float] = {}
    for row in machines:
        if not row.spot or row.created_at is None:
            continue
        market = pool_of(row.provider, row.region, row.gpu, row.gpu_count, spot=True)
        hours[market] = hours.get(market, 0.0) + _hours((row.ended_at or now) - row.created_at)
        taken[market] += row.interrupted is not None
    return History(taken, hours)


def _hours(span: timedelta) -> float:
    return max(span.total_seconds() / 3600, 0.0)


def rent(
    work: Work,
    number: int,
    allowed: Callable[[Decimal], Allowance],
    keeper: Keeper,
    refused: Refusals,
    recoveries: int,
) -> Rented:
    """Walk down the offers until one is rented. Refusals are added to ``refused``.

    Args:
        allowed: what the caps leave for a machine at a price an hour.

    Raises:
        NothingRentable: every offer was refused.
        CapReached: one had become dearer than allowed, or no cap leaves enough for any.
        NoCredentials: every provider refused the credentials.
        MayStillBill: a create's outcome is unknown; nothing else is rented meanwhile.
    """
    tried: list[Refusal] = []
    spent: CapReached | None = None
    for offer in candidates(work, refused, recoveries):
        work.stop.check()
        if not may_say_yes(offer, tried):
            continue
        left = allowed(offer.price_hour)
        if left.spent:
            spent = spent or CapReached(
                f"budget.{left.cap} leaves too little for a machine at {offer.price_hour} USD "
                "an hour",
                next=f"Raise budget.{left.cap}, or ask for something cheaper.",
            )
            continue
        work.report.step(_announced(work, offer))
        try:
            row, machine = acquire(
                work.fleet,
                offer,
                _need(work, number, left),
                keeper,
                guard=lambda: ensure_watchdog(work.fleet.home, work.fleet.environ),
            )
        except ProviderError as error:
            refused[offer_key(offer)] = str(error)
            work.report.warn(f"{offer.provider} refused: {error}")
            tried.append((offer, error))
            continue
        return Rented(row, machine, offer)
    raise spent if spent is not None and not tried else why_refused(telling(tried))


def _announced(work: Work, offer: Offer) -> str:
    price = f"at {offer.price_hour} USD an hour"
    if work.options.machine is not None:
        return f"borrowing {work.options.machine}, {offer.gpu or 'without a GPU'}, {price}"
    return f"renting {offer.gpu or 'a CPU machine'} from {offer.provider} {price}"


def _need(work: Work, number: int, allowance: Allowance) -> Need:
    longest = DEFAULT_MAX_DURATION
    if allowance.seconds is not None:
        longest = timedelta(seconds=allowance.seconds)
    lent = current(work.fleet, work.options.machine or "")
    if lent is not None:  # whoever made it ends it then
        longest = min(longest, lent.hard_end - work.fleet.clock.now())
    rehearsal = work.options.rehearsal if number == 1 else None
    if rehearsal is not None:
        started = f"{agent_folder(work.run_id, number)}/job-started"
        rehearsal = replace(rehearsal, armed_by=started)
    return Need(
        middle=work.spec.name,
        lease_seconds=work.options.lease_seconds,
        purpose="run",
        max_duration=longest,
        run=work.run_id,
        attempt=number,
        detached=work.options.detach,
        disk_gb=work.spec.resources.disk,
        image=work.spec.resources.image,
        max_price_hour=work.spec.resources.max_price,
        rehearsal=rehearsal,
    )
