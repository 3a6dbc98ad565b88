"""Renting: intent, create, outcome.

The intent is on disk before the call leaves (promise 1). A call whose outcome is unknown is
settled by looking for the machine's name, never repeated (promise 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from gpuctl.errors import (
    CapReached,
    GpuctlError,
    MayStillBill,
    NoCredentials,
    NothingRentable,
)
from gpuctl.fleet.access import access_facts
from gpuctl.fleet.closing import sweep
from gpuctl.fleet.consoles import by_hand
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.deadlines import ticks
from gpuctl.fleet.doubt import Doubt
from gpuctl.fleet.keeper import Keeper
from gpuctl.fleet.presence import prove_absent
from gpuctl.fleet.release import release
from gpuctl.fleet.spend_cap import check_spending
from gpuctl.fleet.under_way import said_under_way, seconds_under_way
from gpuctl.ledger import MachineRow
from gpuctl.names import new_machine_name
from gpuctl.remote.keys import public_key
from providers.base import (
    Ambiguous,
    AuthFailed,
    Machine,
    Mark,
    NoCapacity,
    Offer,
    Order,
    PriceChanged,
    Provider,
    ProviderError,
    Rehearsal,
)

DEFAULT_MAX_DURATION = timedelta(hours=24)
_SETTLE_ROUNDS = 10  # how many settling periods a doubtful create may take to show itself


@dataclass(frozen=True, slots=True)
class Need:
    """What a machine is rented for, and for how long at most."""

    middle: str  # the middle part of its name
    lease_seconds: float
    purpose: str  # "run" or "provision"
    max_duration: timedelta = DEFAULT_MAX_DURATION
    run: str | None = None
    attempt: int | None = None
    detached: bool = False
    disk_gb: float = 40
    image: str | None = None
    max_price_hour: Decimal | None = None
    rehearsal: Rehearsal | None = None
    idle_seconds: float | None = None  # end it when nobody has used it for so long


def acquire(
    fleet: Fleet,
    offer: Offer,
    need: Need,
    keeper: Keeper,
    *,
    guard: Callable[[], object],
) -> tuple[MachineRow, Machine]:
    """Rent one machine for an offer.

    Args:
        guard: arms what outlives this process (the watchdog); called after the intent is
            on disk and before the create leaves.

    Raises:
        ProviderError: nothing was rented, for the reason that the provider gave; a create whose
            outcome was unknown and is proven not to have happened is `NoCapacity`.
        PriceChanged: it cost more than the order allows; it was released again.
        CapReached: the caps on all spending leave nothing for it.
        MayStillBill: the outcome is unknown and could not be settled.
        UsageError: the home's SSH key cannot be used; nothing was asked for.
    """
    check_spending(fleet, offer.price_hour)
    provider = fleet.provider(offer.provider)
    # Before the intent: a key that cannot be used must not leave one behind.
    key = None if provider.capabilities.kind == "local" else public_key(fleet.home.path)
    name = _record_intent(fleet, offer, need, keeper)
    guard()
    order = _order(fleet, name, offer, need, key)
    try:
        # Ctrl-C in the middle of it leaves the row without a word: the call may still arrive.
        machine = provider.create(order)
    except Ambiguous as doubt:
        fleet.ledger.record("in_doubt", machine=name, message=str(doubt))
        found = settle(fleet, _row(fleet, name))
        if found is None:
            raise NoCapacity(
                f"{offer.provider} never made {name}: its create call failed ({doubt})"
            ) from doubt
        machine = found
    except ProviderError as refused:
        fleet.ledger.record("refused", machine=name, kind=refused.kind, message=str(refused))
        raise
    except Exception as broken:
        fleet.ledger.record("in_doubt", machine=name, message=type(broken).__name__)
        raise
    else:
        _record_created(fleet, machine)
        for note in machine.notes:
            fleet.say(f"{name}: {note}")
    _check_price(fleet, machine, offer, need)
    return _row(fleet, name), machine


def settle(fleet: Fleet, row: MachineRow) -> Machine | None:
    """Find out whether a create that nobody heard back from happened.

    Returns the machine, adopted into the ledger, or None when it is proven absent.

    Raises:
        MayStillBill: neither could be shown; the row stays open.
    """
    provider = fleet.provider(row.provider)
    left = seconds_under_way(fleet, row, provider.capabilities)
    if left > 0:
        fleet.say(said_under_way(row, left))
    appears_by = fleet.clock.monotonic() + left
    proof = prove_absent(
        provider,
        row.name,
        row.provider_id,
        fleet.clock,
        deadline=appears_by + max(_SETTLE_ROUNDS * provider.capabilities.settle_seconds, 5),
        not_before=appears_by,
        until_seen=True,
    )
    if proof.machine is not None:
        found = proof.machine
        fleet.ledger.record(
            "adopted",
            machine=row.name,
            provider_id=found.provider_id,
            price_hour=found.price_hour,
            region=found.region,
            created_at=found.created_at or fleet.clock.now(),
            access=access_facts(found.access),
        )
        return found
    if proof.absent:
        _swept(provider, row)
        fleet.ledger.record(
            "absent",
            machine=row.name,
            confirmed_by=[
                {"call": c.call, "at": c.at, "answer": c.answer} for c in proof.confirmed_by
            ],
        )
        return None
    raise MayStillBill(
        f"{provider.name} was asked to create {row.name} and its answer is unknown"
        + (f" ({proof.error})" if proof.error else ""),
        machine=row.name,
        next=f"Run `gpuctl terminate {row.name}`, or {by_hand(provider, row, row.provider_id)}. "
        "Until it is settled nothing else is rented.",
    )


def _swept(provider: Provider, row: MachineRow) -> None:
    """Remove what a machine has left that came after all, and ended before it was looked for.

    Raises:
        MayStillBill: that could not be done; the row stays open.
    """
    try:
        left = sweep(provider, {row.name})[row.name]
    except ProviderError as error:
        left = error
    if isinstance(left, ProviderError):
        raise Doubt(provider, row, None).unswept(left) from left


def why_refused(last: ProviderError | GpuctlError | None) -> GpuctlError:
    """Return what it means that no offer led to a usable machine; ``last`` said the last no."""
    if isinstance(last, PriceChanged):
        return CapReached(
            str(last), next="Raise the price cap (--max-price), or try again: prices move."
        )
    if isinstance(last, AuthFailed):
        return NoCredentials(str(last), next="`gpuctl doctor` says what is missing.")
    return NothingRentable(
        f"No offer led to a usable machine; the last one: {last}",
        next="Everything that was rented is released. Try again later, or ask for something else.",
    )


def hard_end(created: datetime, max_duration: timedelta) -> datetime:
    """Return the moment after which anybody may end the machine, in whole seconds."""
    return (created + max_duration).replace(microsecond=0)


def _record_intent(fleet: Fleet, offer: Offer, need: Need, keeper: Keeper) -> str:
    now = fleet.clock.now()
    name = new_machine_name(need.middle, fleet.home.owner)
    end = hard_end(now, need.max_duration)
    lease_until = min(now + timedelta(seconds=need.lease_seconds), end)
    left, hard_left = ((moment - now).total_seconds() for moment in (lease_until, end))
    fleet.ledger.record(
        "intended",
        machine=name,
        run=need.run,
        provider=offer.provider,
        offer_id=offer.id,
        gpu=offer.gpu,
        gpu_count=offer.gpu_count,
        spot=offer.spot or need.rehearsal is not None,
        price_hour=offer.price_hour,
        region=offer.region,
        disk_gb=need.disk_gb,
        owner=fleet.home.owner,
        attempt=need.attempt,
        hard_end=end,
        lease_until=lease_until,
        lease_seconds=need.lease_seconds,
        ticks=ticks(left, hard_left, fleet.clock),
        bill_step_seconds=fleet.provider(offer.provider).capabilities.bill_step_seconds,
        detached=need.detached,
        keeper=keeper.facts(),
        purpose=need.purpose,
    )
    return name


def _order(fleet: Fleet, name: str, offer: Offer, need: Need, key: str | None) -> Order:
    row = _row(fleet, name)
    return Order(
        name=name,
        offer=offer,
        mark=Mark(owner=fleet.home.owner, end=row.hard_end, run=need.run),
        disk_gb=need.disk_gb,
        image=need.image,
        ssh_public_key=key,
        max_price_hour=need.max_price_hour,
        rehearsal=need.rehearsal,
    )


def _record_created(fleet: Fleet, machine: Machine) -> None:
    fleet.ledger.record(
        "created",
        machine=machine.name,
        provider_id=machine.provider_id,
        price_hour=machine.price_hour,
        region=machine.region,
        created_at=machine.created_at or fleet.clock.now(),
        access=access_facts(machine.access),
    )


def _check_price(fleet: Fleet, machine: Machine, offer: Offer, need: Need) -> None:
    """End a machine that turned out dearer than allowed (promise 7)."""
    price = machine.price_hour
    if price is None:
        price = _fresh_price(fleet.provider(offer.provider), machine)
    if price is None or need.max_price_hour is None or price <= need.max_price_hour:
        return
    try:
        release(fleet, _row(fleet, machine.name), why="price above the cap")
    except GpuctlError as error:
        raise MayStillBill(
            f"{machine.name} costs {price} USD an hour, above the cap of {need.max_price_hour},"
            f" and could not be ended: {error.message}",
            machine=machine.name,
            next=f"Run `gpuctl terminate {machine.name}`.",
        ) from error
    raise PriceChanged(
        f"{offer.provider} charges {price} USD an hour for it, above the cap of "
        f"{need.max_price_hour}; it was released again"
    )


def _fresh_price(provider: Provider, machine: Machine) -> Decimal | None:
    try:
        return provider.get(machine.provider_id).price_hour
    except ProviderError:
        return None


def _row(fleet: Fleet, name: str) -> MachineRow:
    row = fleet.ledger.machine(name)
    if row is None:
        raise GpuctlError(f"The ledger has no machine {name}", machine=name)
    return row
