"""Renting: the intent first, and no answer is never taken for a no."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from gpuctl.errors import MayStillBill
from gpuctl.fleet.acquire import Need, acquire, settle
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper
from gpuctl.fleet.under_way import CREATE_SECONDS
from providers.base import Ambiguous, AuthFailed, NoCapacity, Order, PriceChanged
from tests.clouds.memory_cloud import HandClock, MemoryCloud, no_capacity
from tests.fleet.conftest import NEED, CutShort


def kinds(fleet: Fleet) -> list[str]:
    return [event.kind for event in fleet.ledger.events()]


def test_the_intent_is_on_disk_before_the_create_leaves(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    create = cloud.create

    def spied(order: Order) -> object:
        row = fleet.ledger.machine(order.name)
        assert row is not None
        seen.append(str(row.state))
        return create(order)

    monkeypatch.setattr(cloud, "create", spied)
    row, machine = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: seen.append("guard"))
    assert seen == ["guard", "intended"]
    assert row.provider_id == machine.provider_id == "m1"
    assert kinds(fleet) == ["intended", "created"]
    assert machine.mark is not None
    assert machine.mark.owner == fleet.home.owner
    assert machine.mark.end == row.hard_end


def test_a_guard_that_cannot_be_armed_means_nothing_is_rented(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    def broken() -> None:
        raise RuntimeError("no watchdog")

    with pytest.raises(RuntimeError):
        acquire(fleet, cloud.offer(), NEED, keeper, guard=broken)
    assert cloud.books() == (0, 0, 0)


def test_a_refusal_closes_the_row(fleet: Fleet, cloud: MemoryCloud, keeper: Keeper) -> None:
    cloud.faults.create = [no_capacity()]
    with pytest.raises(NoCapacity):
        acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    assert fleet.ledger.machines(open_only=True) == []
    assert kinds(fleet) == ["intended", "refused"]


def test_a_lost_reply_is_adopted_and_never_repeated(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    cloud.faults.create_reply_lost = 1
    cloud.faults.list_lag_seconds = 25  # longer than one settling period of a careless client
    cloud.settle_seconds = 30
    row, _ = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    assert cloud.books() == (1, 1, 0)
    assert row.provider_id == "m1"
    assert not row.in_doubt
    assert sum(call.startswith("create") for call in cloud.calls) == 1


def test_a_create_that_never_happened_is_proven_absent(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    cloud.faults.create = [Ambiguous("504 gateway timeout")]
    with pytest.raises(NoCapacity, match="never made"):
        acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    (absent,) = [e for e in fleet.ledger.events() if e.kind == "absent"]
    assert len(absent.facts["confirmed_by"]) == 2
    assert fleet.ledger.machines(open_only=True) == []


def test_failing_lists_prove_nothing(fleet: Fleet, cloud: MemoryCloud, keeper: Keeper) -> None:
    cloud.faults.create = [Ambiguous("timeout")]
    cloud.faults.list = [Ambiguous("500")] * 1000
    with pytest.raises(MayStillBill) as raised:
        acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    (row,) = fleet.ledger.machines(open_only=True)
    assert raised.value.machine == row.name
    assert row.in_doubt
    cloud.faults.list = []
    assert settle(fleet, row) is None
    assert fleet.ledger.machines(open_only=True) == []


def test_a_revoked_key_while_settling_says_so(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    cloud.faults.create_reply_lost = 1
    cloud.faults.list = [AuthFailed("the key was revoked")]
    with pytest.raises(MayStillBill, match="revoked"):
        acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)


def test_a_reply_above_the_price_cap_is_ended(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    cloud.faults.create_price = Decimal("2.50")
    need = Need(middle="demo", lease_seconds=600, purpose="run", max_price_hour=Decimal("1.10"))
    with pytest.raises(PriceChanged, match=r"2\.50"):
        acquire(fleet, cloud.offer(), need, keeper, guard=lambda: None)
    assert cloud.books() == (1, 0, 0)
    assert fleet.ledger.machines(open_only=True) == []


def test_a_create_that_was_cut_short_is_found(
    fleet: Fleet, cloud: MemoryCloud, cut_short: CutShort
) -> None:
    found = settle(fleet, cut_short(cloud.create))
    assert found is not None
    assert found.provider_id == "m1"


def test_a_create_that_was_cut_short_may_arrive_while_it_is_looked_for(
    fleet: Fleet, cloud: MemoryCloud, cut_short: CutShort
) -> None:
    cloud.faults.denied_seconds = CREATE_SECONDS - 5  # the cloud is that slow
    row = cut_short(cloud.create)
    found = settle(fleet, row)
    assert found is not None
    assert found.provider_id == "m1"


def test_a_create_that_was_cut_short_and_never_arrived_is_absent_in_the_end(
    fleet: Fleet, clock: HandClock, cut_short: CutShort
) -> None:
    row = cut_short(lambda _: None)
    assert settle(fleet, row) is None
    assert clock.now() - row.intended_at >= timedelta(seconds=CREATE_SECONDS)


def test_a_cloud_may_deny_for_a_while_what_it_has_made(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    """The reply was lost, and two settling periods pass before the machine is shown."""
    cloud.shown_seconds = 60
    cloud.faults.denied_seconds = 50
    cloud.faults.create_reply_lost = 1
    row, machine = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    assert row.provider_id == machine.provider_id == "m1"


def test_the_lease_never_outlives_the_hard_end(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    need = Need(middle="demo", lease_seconds=7200, purpose="run", max_duration=timedelta(minutes=5))
    row, _ = acquire(fleet, cloud.offer(), need, keeper, guard=lambda: None)
    assert row.lease_until == row.hard_end


def test_what_a_machine_left_that_nobody_ever_heard_of_is_swept(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, keeper: Keeper
) -> None:
    """Found by random sequences: killed after the create, and then the spot machine was taken."""
    cloud.faults.leftover = True
    cloud.faults.create_reply_lost = 1
    cloud.faults.list = [Ambiguous("503")] * 1000
    with pytest.raises(MayStillBill):
        acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    cloud.faults.list = []
    cloud.take_away("m1")
    assert cloud.books() == (1, 0, 1)
    [row] = fleet.ledger.machines(open_only=True)
    assert settle(fleet, row) is None
    assert cloud.books() == (1, 0, 0)
