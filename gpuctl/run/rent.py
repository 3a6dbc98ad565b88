"""Choosing and renting the machine of the next attempt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from gpuctl.errors import CapReached, NoCredentials, NothingRentable
from gpuctl.fleet.acquire import DEFAULT_MAX_DURATION, Need, acquire
from gpuctl.fleet.keeper import Keeper
from gpuctl.fleet.watchdog import ensure_watchdog
from gpuctl.ledger import MachineRow
from gpuctl.market import nearest
from gpuctl.policy import choose
from gpuctl.run.caps import Allowance
from gpuctl.run.launch import agent_folder
from gpuctl.run.prepare import quote, want_of
from gpuctl.run.work import Work
from providers.base import AuthFailed, Machine, Offer, PriceChanged, ProviderError

Refusals = set[tuple[str, str]]
"""(provider, offer id) of what was tried and refused, or found unfit."""


@dataclass(frozen=True, slots=True)
class Rented:
    """A machine for one attempt, and the offer that it came from."""

    row: MachineRow
    machine: Machine
    offer: Offer


def candidates(work: Work, refused: frozenset[tuple[str, str]], recoveries: int) -> list[Offer]:
    """Ask the market and rank what it has.

    Raises:
        NothingRentable: nothing that was not refused already.
    """
    found = quote(work.fleet, work.spec, work.named, minutes=None)
    for error in found.errors:
        work.report.warn(f"{error.provider}: {error.message}")
    ranked = choose(
        found.offers,
        spot=work.spec.resources.spot,
        refused=refused,
        recoveries=recoveries,
        max_price_hour=work.spec.resources.max_price,
    )
    if not ranked:
        want = want_of(work.spec)
        raise NothingRentable(
            "Nothing rentable matches what the spec asks for"
            + (f" ({len(refused)} offers were tried and refused)" if refused else ""),
            next="; ".join(nearest(want, found.offers)) or "Ask for less, or other providers.",
        )
    return ranked


def rent(
    work: Work,
    number: int,
    allowance: Allowance,
    keeper: Keeper,
    refused: Refusals,
    recoveries: int,
) -> Rented:
    """Walk down the offers until one is rented. Refusals are added to ``refused``.

    Raises:
        NothingRentable: every offer was refused.
        CapReached: the last word was a price above the cap.
        NoCredentials: every provider refused the credentials.
        MayStillBill: a create's outcome is unknown; nothing else is rented meanwhile.
    """
    last: ProviderError | None = None
    for offer in candidates(work, frozenset(refused), recoveries):
        work.stop.check()
        work.report.step(
            f"renting {offer.gpu or 'a CPU machine'} from {offer.provider} "
            f"at {offer.price_hour} USD an hour"
        )
        try:
            row, machine = acquire(
                work.fleet,
                offer,
                _need(work, number, allowance),
                keeper,
                guard=lambda: ensure_watchdog(work.fleet.home, work.fleet.environ),
            )
        except ProviderError as error:
            refused.add((offer.provider, offer.id))
            work.report.warn(f"{offer.provider} refused: {error}")
            last = error
            continue
        return Rented(row, machine, offer)
    raise _nothing(last)


def _need(work: Work, number: int, allowance: Allowance) -> Need:
    longest = DEFAULT_MAX_DURATION
    if allowance.seconds is not None:
        longest = timedelta(seconds=allowance.seconds)
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


def _nothing(last: ProviderError | None) -> NothingRentable | CapReached | NoCredentials:
    if isinstance(last, PriceChanged):
        return CapReached(str(last), next="Raise resources.max_price, or try again later.")
    if isinstance(last, AuthFailed):
        return NoCredentials(str(last), next="`gpuctl doctor` says what is missing.")
    return NothingRentable(
        f"Every offer was refused; the last one said: {last}",
        next="Try again later, or allow other providers or GPUs.",
    )
