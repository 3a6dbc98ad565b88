"""A new machine that its cloud does not show yet is waited for; one that vanished is not."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gpuctl.fleet.acquire import acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper
from gpuctl.fleet.ready import NotReady, make_ready
from gpuctl.ledger import MachineRow
from providers.base import Machine, State
from tests.clouds.memory_cloud import HandClock, MemoryCloud
from tests.fleet.conftest import NEED


@pytest.fixture
def denying(cloud: MemoryCloud) -> MemoryCloud:
    cloud.shown_seconds = 60
    cloud.faults.denied_seconds = 50
    return cloud


@pytest.fixture
def rented(fleet: Fleet, denying: MemoryCloud, keeper: Keeper) -> tuple[MachineRow, Machine]:
    row, machine = acquire(fleet, denying.offer(), NEED, keeper, guard=lambda: None)
    booting = denying.machines["m1"] = replace(machine, state=State.BOOTING)
    return row, booting


def test_a_machine_that_is_denied_at_first_is_waited_for(
    fleet: Fleet, denying: MemoryCloud, rented: tuple[MachineRow, Machine]
) -> None:
    denying.machines["m1"] = replace(rented[1], state=State.LOST, status="broken")
    with pytest.raises(NotReady, match=r"became lost \(broken\)"):
        make_ready(fleet, *rented)


def test_a_machine_that_never_shows_up_has_vanished(
    fleet: Fleet, denying: MemoryCloud, clock: HandClock, rented: tuple[MachineRow, Machine]
) -> None:
    del denying.machines["m1"]
    began = clock.now()
    with pytest.raises(NotReady, match="vanished"):
        make_ready(fleet, *rented)
    assert clock.now() - began >= timedelta(seconds=60)


def test_a_machine_that_was_shown_and_is_denied_has_vanished(
    fleet: Fleet, denying: MemoryCloud, clock: HandClock, rented: tuple[MachineRow, Machine]
) -> None:
    clock.pass_time(50)
    looks = iter(range(3))
    began = clock.now()

    def taken_away_after_a_look() -> None:
        if next(looks) == 2:
            del denying.machines["m1"]

    with pytest.raises(NotReady, match="vanished"):
        make_ready(fleet, *rented, check=taken_away_after_a_look)
    assert clock.now() - began < timedelta(seconds=10)
