"""What is borrowed is lent to runs and ended by nobody here."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from gpuctl.errors import NothingRentable, UsageError
from gpuctl.fleet.access import end_command, stays
from gpuctl.fleet.borrowed import current, offers_of, why_not_lent
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper
from gpuctl.fleet.release import release, release_all
from gpuctl.fleet.returning import close_if_gone
from gpuctl.fleet.watchdog import Watchdog
from gpuctl.ledger import MachineRow
from providers.base import Ambiguous, Machine, State, Want
from tests.clouds.memory_cloud import HandClock, MemoryCloud

FIRST = "gpuctl-trainer-a1b2c3-00000001"
SECOND = "gpuctl-trainer-a1b2c3-00000002"


def borrow(fleet: Fleet, name: str = FIRST, **changes: Any) -> MachineRow:
    """Take a machine in as adopted and answered."""
    facts: dict[str, Any] = {
        "provider": "memory",
        "provider_id": f"id-{name[-1]}",
        "gpu": None,
        "gpu_count": 0,
        "spot": True,
        "price_hour": Decimal("0.42"),
        "region": "here",
        "hard_end": fleet.clock.now() + timedelta(hours=8),
        "access": {"kind": "ssh", "host": "192.0.2.1", "port": 22, "user": "root"},
        "owner": fleet.home.owner,
        "terraform": "/infra/my trainer",
    }
    fleet.ledger.record("borrowed", machine=name, **{**facts, **changes})
    fleet.ledger.record("ready", machine=name, steps={}, gpus=0)
    row = fleet.ledger.machine(name)
    assert row is not None
    return row


def listed(cloud: MemoryCloud, row: MachineRow, **changes: Any) -> None:
    """Have its cloud show it."""
    machine = Machine(row.name, "memory", str(row.provider_id), State.READY, "running")
    cloud.machines[machine.provider_id] = replace(machine, **changes)


def test_release_refuses_it_whoever_asks(fleet: Fleet, cloud: MemoryCloud) -> None:
    row = borrow(fleet)
    listed(cloud, row)
    with pytest.raises(UsageError, match="never ends what it did not make") as refused:
        release(fleet, row, why="test")
    assert refused.value.next == "`terraform -chdir='/infra/my trainer' destroy` ends it."
    receipts, [error] = release_all(fleet, [row], why="test")
    assert (receipts, type(error)) == ([], UsageError)
    assert cloud.calls == []
    assert fleet.ledger.machine(row.name) == row


def test_the_watchdog_has_nothing_to_do_with_it(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, keeper: Keeper
) -> None:
    listed(cloud, borrow(fleet))
    clock.pass_time(9 * 3600)  # past its hard end
    assert Watchdog(fleet, keeper).round() == 0, "it would never end itself"
    assert cloud.calls == []


def test_its_row_is_closed_by_two_answers_and_no_fewer(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock
) -> None:
    row = borrow(fleet)
    listed(cloud, row)
    assert close_if_gone(fleet, row) is None
    del cloud.machines[str(row.provider_id)]
    cloud.faults.list = [Ambiguous("502")] * 50
    with pytest.raises(Ambiguous):
        close_if_gone(fleet, row)
    cloud.faults.list.clear()
    began = clock.now()
    receipt = close_if_gone(fleet, row)
    assert receipt is not None
    first, second = receipt.confirmed_by
    assert first.at >= began
    assert (second.at - first.at).total_seconds() >= cloud.settle_seconds
    closed = fleet.ledger.machine(row.name)
    assert closed is not None
    assert (closed.closed_by, closed.cost_so_far(clock.now())) == ("gone", 0)


def test_what_terraform_made_in_its_place_is_found(fleet: Fleet, cloud: MemoryCloud) -> None:
    row = borrow(fleet)
    assert current(fleet, FIRST) == row
    borrow(fleet, SECOND, terraform="/another")
    assert close_if_gone(fleet, row) is not None
    closed = current(fleet, FIRST)
    assert closed is not None
    assert closed.name == FIRST, "a machine of another folder is another machine"
    borrow(fleet, SECOND)
    now = current(fleet, FIRST)
    assert now is not None
    assert now.name == SECOND
    assert current(fleet, "nobody") is None


def test_offers_of_what_is_gone(fleet: Fleet) -> None:
    with pytest.raises(NothingRentable, match="does not know it"):
        offers_of(fleet, FIRST, Want())
    row = borrow(fleet)
    close_if_gone(fleet, row)
    with pytest.raises(NothingRentable, match="it has ended"):
        offers_of(fleet, FIRST, Want())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"closed_by": "gone"}, "it has ended (gone)"),
        ({"provider": "borrowed", "purpose": "run", "run": "r-1"}, "it works for the run r-1"),
        ({"ready_at": None}, "it has not answered yet"),
        ({"access_json": None}, "it has not answered yet"),
        ({"access_json": '{"kind": "local", "root": "/x"}'}, "it is on this computer"),
        ({"provider": "ssh"}, "it is a claim on a host of yours"),
    ],
)
def test_who_can_be_lent(fleet: Fleet, changes: dict[str, Any], why: str | None) -> None:
    told = why_not_lent(replace(borrow(fleet), **changes))
    assert (told is None) is (why is None)
    assert (why or "") in (told or "")


def test_a_folder_that_nobody_told_is_left_out_of_the_command(fleet: Fleet) -> None:
    row = borrow(fleet, terraform="", price_hour=Decimal(0))
    assert end_command(row) == "terraform destroy"
    assert "at an unknown price until" in stays(row)
