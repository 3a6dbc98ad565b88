"""The end of a machine is proven, or it is not claimed."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpuctl.errors import LedgerError, MayStillBill
from gpuctl.fleet.acquire import acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper
from gpuctl.fleet.release import release, release_all
from gpuctl.fleet.under_way import CREATE_SECONDS
from gpuctl.ledger import MachineRow
from providers.base import Ambiguous, AuthFailed, RateLimited
from tests.clouds.memory_cloud import HandClock, MemoryCloud
from tests.fleet.conftest import NEED, CutShort


@pytest.fixture
def row(fleet: Fleet, cloud: MemoryCloud, keeper: Keeper) -> MachineRow:
    return acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)[0]


def test_two_absences_a_settling_period_apart(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, row: MachineRow
) -> None:
    clock.pass_time(1800)
    receipt = release(fleet, row, why="test")
    first, second = receipt.confirmed_by
    assert (second.at - first.at).total_seconds() >= cloud.settle_seconds
    assert receipt.confirmed
    assert cloud.books() == (1, 0, 0)
    assert receipt.cost_usd == Decimal("0.50")
    assert receipt.cost_source == "computed"


def test_a_billing_api_is_quoted(fleet: Fleet, cloud: MemoryCloud, row: MachineRow) -> None:
    cloud.bills("m1", "0.77")
    receipt = release(fleet, row, why="test")
    assert (receipt.cost_usd, receipt.cost_source) == (Decimal("0.77"), "memory billing")


def test_releasing_twice_gives_the_same_receipt(
    fleet: Fleet, cloud: MemoryCloud, row: MachineRow
) -> None:
    first = release(fleet, row, why="test")
    calls = len(cloud.calls)
    closed = fleet.ledger.machine(row.name)
    assert closed is not None
    again = release(fleet, closed, why="test")
    assert again.confirmed
    assert again.confirmed_by == first.confirmed_by
    assert len(cloud.calls) == calls


def test_a_create_that_was_cut_short_may_arrive_after_two_absences(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, cut_short: CutShort
) -> None:
    """Found by the crash matrix: kill -9 while the cloud was at it, and then `reap`."""
    open_row = cut_short(cloud.create)
    cloud.faults.list_lag_seconds = 4 * cloud.settle_seconds  # the cloud is that slow
    receipt = release(fleet, open_row, why="test")
    assert receipt.provider_id == "m1"
    assert cloud.books() == (1, 0, 0)
    assert clock.now() - open_row.intended_at < timedelta(seconds=2 * CREATE_SECONDS)


def test_a_create_that_never_left_is_closed_when_it_cannot_be_under_way_any_more(
    fleet: Fleet, cut_short: CutShort
) -> None:
    open_row = cut_short(lambda _: None)
    receipt = release(fleet, open_row, why="test")
    assert (receipt.provider_id, receipt.cost_usd) == (None, 0)
    first, second = receipt.confirmed_by
    assert first.at - open_row.intended_at >= timedelta(seconds=CREATE_SECONDS)
    assert second.at > first.at


def test_a_new_machine_that_its_cloud_denies_is_ended_when_it_shows_up(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    """By whoever ends it: after a kill -9 that is another process than the one that made it."""
    cloud.shown_seconds = 60
    cloud.faults.denied_seconds = 50
    row, _ = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    receipt = release(fleet, row, why="test")
    assert receipt.confirmed
    assert cloud.books() == (1, 0, 0)


def test_a_new_machine_that_never_shows_up_is_absent_when_it_must_have_been_shown(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, keeper: Keeper
) -> None:
    cloud.shown_seconds = 60
    row, machine = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    del cloud.machines[machine.provider_id]
    receipt = release(fleet, row, why="test")
    assert row.created_at is not None
    assert receipt.confirmed_by[0].at - row.created_at >= timedelta(seconds=60)


def test_a_machine_whose_end_its_cloud_has_accepted_is_not_waited_for(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, keeper: Keeper
) -> None:
    """Found by the crash matrix: `reap` beside a watchdog that was about to prove it."""
    cloud.shown_seconds = 60
    row, machine = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    answer = cloud.destroy(machine.provider_id)
    fleet.ledger.record("destroy_accepted", machine=row.name, answer=answer)
    assert release(fleet, row, why="test").confirmed
    assert clock.now() - row.intended_at < timedelta(seconds=2 * cloud.settle_seconds)


def test_a_machine_that_its_cloud_knows_is_not_waited_for(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, keeper: Keeper
) -> None:
    cloud.shown_seconds = 60
    row, _ = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    assert release(fleet, row, why="test").confirmed
    assert row.created_at is not None
    assert clock.now() - row.created_at < timedelta(seconds=2 * cloud.settle_seconds)


def test_a_404_while_it_lives_is_not_believed(
    fleet: Fleet, cloud: MemoryCloud, row: MachineRow
) -> None:
    cloud.faults.destroy_ignored = 1
    cloud.faults.get_says_absent = 2
    receipt = release(fleet, row, why="test")
    assert receipt.confirmed
    assert cloud.books() == (1, 0, 0)
    assert cloud.calls.count("destroy m1") >= 2


def test_an_end_that_is_accepted_and_ignored_is_asked_for_again(
    fleet: Fleet, cloud: MemoryCloud, row: MachineRow
) -> None:
    cloud.faults.destroy_ignored = 3
    assert release(fleet, row, why="test").confirmed
    assert cloud.books() == (1, 0, 0)


def test_why_it_takes_so_long_is_said_once(
    fleet: Fleet, cloud: MemoryCloud, row: MachineRow
) -> None:
    said: list[str] = []
    fleet.say = said.append
    cloud.faults.destroy = [RateLimited("too many", 1), Ambiguous("503"), Ambiguous("502")]
    cloud.faults.list = [Ambiguous("504"), Ambiguous("504")]
    assert release(fleet, row, why="test").confirmed
    assert said[:2] == [
        "memory has not accepted every end yet (503); asking on",
        "memory does not say what is gone (504); asking on",
    ]
    assert not [line for line in said[2:] if "asking on" in line]


def test_list_errors_between_the_looks_do_not_count(
    fleet: Fleet, cloud: MemoryCloud, row: MachineRow
) -> None:
    cloud.faults.list = [Ambiguous("502"), Ambiguous("timeout")]
    receipt = release(fleet, row, why="test")
    assert len(receipt.confirmed_by) == 2


def test_no_proof_before_the_deadline_is_said(
    fleet: Fleet, cloud: MemoryCloud, row: MachineRow
) -> None:
    cloud.faults.list = [Ambiguous("502")] * 10_000
    with pytest.raises(MayStillBill) as raised:
        release(fleet, row, why="test", deadline_seconds=60)
    assert raised.value.may_bill
    assert "m1" in raised.value.message
    still = fleet.ledger.machine(row.name)
    assert still is not None
    assert not still.closed


def test_a_revoked_key_is_named(fleet: Fleet, cloud: MemoryCloud, row: MachineRow) -> None:
    cloud.faults.destroy = [AuthFailed("401 unauthorized")]
    with pytest.raises(MayStillBill, match="401") as raised:
        release(fleet, row, why="test")
    assert raised.value.next is not None
    assert "credentials" in raised.value.next
    assert cloud.books() == (1, 1, 0)


def test_leftovers_go_with_the_machine(fleet: Fleet, cloud: MemoryCloud, keeper: Keeper) -> None:
    cloud.faults.leftover = True
    row, _ = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    receipt = release(fleet, row, why="test")
    assert receipt.leftovers == ()
    assert cloud.books() == (1, 0, 0)


def test_a_ledger_that_cannot_be_written_does_not_keep_a_machine_alive(
    fleet: Fleet, cloud: MemoryCloud, row: MachineRow, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(fleet.ledger, "record", full)
    with pytest.raises(LedgerError):
        release(fleet, row, why="test")
    assert cloud.books() == (1, 0, 0)


def test_one_that_fails_does_not_keep_the_others_alive(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper, tmp_path: Path
) -> None:
    rows = [acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)[0] for _ in range(3)]
    cloud.faults.destroy = [AuthFailed("401")]
    receipts, errors = release_all(fleet, rows, why="test")
    assert len(receipts) == 2
    assert len(errors) == 1
    assert cloud.books() == (3, 1, 0)


def test_a_doubtful_create_that_happened_is_found_by_name_and_ended(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    cloud.faults.create_reply_lost = 1
    cloud.faults.list = [AuthFailed("not now")]
    with pytest.raises(MayStillBill):
        acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    (row,) = fleet.ledger.machines(open_only=True)
    assert release(fleet, row, why="test").confirmed
    assert cloud.books() == (1, 0, 0)
