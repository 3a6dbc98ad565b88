"""What is left of machines that are gone: ours is removed, anything else never."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.audit import audit
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper
from gpuctl.fleet.reap import reap
from gpuctl.names import new_machine_name
from providers.base import Ambiguous, Leftover, Machine, Mark, State
from tests.clouds.memory_cloud import HandClock, MemoryCloud
from tests.fleet.conftest import OWNER

NEED = Need(middle="demo", lease_seconds=600, purpose="run")
OTHER = "ffffffffffff"


def volume(cloud: MemoryCloud, clock: HandClock, owner: str = OWNER, **changes: object) -> Leftover:
    mark = Mark(owner, clock.now() + timedelta(hours=1))
    left = Leftover("memory", "volume", "v9", new_machine_name("demo", owner), mark)
    left = replace(left, **changes)  # type: ignore[arg-type]
    cloud.volumes[left.id] = left
    return left


def test_an_orphan_of_ours_is_unaccounted_until_reap_removes_it(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock
) -> None:
    left = volume(cloud, clock)
    (billing,) = audit(fleet).unaccounted
    assert (billing.leftover, billing.whose) == (left, "ours")
    assert reap(fleet, dry_run=True).would_sweep == (left,)
    assert cloud.books() == (0, 0, 1)
    done = reap(fleet)
    assert (done.swept, done.errors) == ((left,), ())
    assert cloud.books() == (0, 0, 0)
    assert audit(fleet).clean


def test_what_is_not_ours_stays(fleet: Fleet, cloud: MemoryCloud, clock: HandClock) -> None:
    mark = Mark(OWNER, clock.now())
    volume(cloud, clock, owner=OTHER, id="theirs")
    volume(cloud, clock, id="unmarked", mark=None)
    volume(cloud, clock, id="terraform", mark=replace(mark, managed_by="terraform"))
    volume(cloud, clock, id="not our name", name="backup", mark=mark)
    assert reap(fleet).swept == ()
    assert len(cloud.volumes) == 4
    found = {one.leftover.id: one for one in audit(fleet).billing if one.leftover}
    whose = {number: one.whose for number, one in found.items()}
    assert whose == {
        "theirs": "other",
        "unmarked": "ours",
        "terraform": "terraform",
        "not our name": "other",
    }
    assert [number for number, one in found.items() if one.unaccounted] == ["unmarked"]


def test_a_living_machine_keeps_what_it_has(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    cloud.faults.leftover = True
    acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    assert reap(fleet).swept == ()
    assert cloud.books() == (1, 1, 1)


def test_so_does_one_whose_row_is_open(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, keeper: Keeper
) -> None:
    cloud.faults.leftover = True
    acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    cloud.faults.list_lag_seconds = 3600
    assert reap(fleet).swept == ()
    assert cloud.books() == (1, 1, 1)


def test_one_that_shows_its_parts_before_itself_keeps_them(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = volume(cloud, clock)
    slept: list[float] = []

    def meanwhile(seconds: float) -> None:
        slept.append(seconds)
        cloud.machines["m1"] = Machine(
            left.name, "memory", "m1", State.BOOTING, "STARTING", mark=left.mark
        )

    monkeypatch.setattr(clock, "sleep", meanwhile)
    assert reap(fleet).swept == ()
    assert slept == [cloud.settle_seconds]
    assert left.id in cloud.volumes


def test_only_past_its_hard_end(fleet: Fleet, cloud: MemoryCloud, clock: HandClock) -> None:
    left = volume(cloud, clock)
    assert reap(fleet, hard_end_only=True).swept == ()
    clock.pass_time(3601)
    assert reap(fleet, hard_end_only=True).swept == (left,)


def test_one_that_cannot_be_removed_may_bill(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = volume(cloud, clock)

    def refuse(_: Leftover) -> None:
        raise Ambiguous("no answer")

    monkeypatch.setattr(cloud, "remove", refuse)
    done = reap(fleet)
    assert done.swept == ()
    (trouble,) = done.errors
    assert left.id in trouble.message
    assert "may bill" in trouble.message
