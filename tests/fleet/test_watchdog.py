"""The watchdog: what it owes each machine, and that it is one, outlives, and ends."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, alive, this_process
from gpuctl.fleet.watchdog import (
    Duty,
    Watchdog,
    ensure_watchdog,
    judge,
)
from gpuctl.home import Home
from gpuctl.ledger import Ledger, MachineRow
from providers.base import Ambiguous, SystemClock
from tests.clouds.memory_cloud import HandClock, MemoryCloud
from tests.fleet.conftest import OWNER
from tests.waiting import until

NEED = Need(middle="demo", lease_seconds=600, purpose="run")
DEAD = Keeper("controller", this_process("controller").host, "an earlier boot", 1, "0")


@pytest.fixture
def row(fleet: Fleet, cloud: MemoryCloud, keeper: Keeper) -> MachineRow:
    return acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)[0]


def duty(row: MachineRow, seconds: float, lives: bool | None) -> Duty:
    return judge(row, row.intended_at + timedelta(seconds=seconds), lives).duty


def test_a_machine_that_is_looked_after_is_left_alone(row: MachineRow) -> None:
    assert duty(row, 10, True) is Duty.NOTHING
    assert duty(row, 10, None) is Duty.NOTHING


def test_an_abandoned_one_is_watched_until_its_lease_ends(row: MachineRow) -> None:
    assert duty(row, 10, False) is Duty.LOOK
    assert duty(row, 600, False) is Duty.RELEASE


def test_a_ready_machine_may_sync_after_its_lease(row: MachineRow) -> None:
    ready = replace(row, ready_at=row.intended_at)
    assert duty(ready, 600 + 60 - 1, False) is Duty.LOOK
    assert duty(ready, 600 + 60, False) is Duty.RELEASE


def test_a_living_keeper_that_sleeps_past_its_lease_loses_the_machine(row: MachineRow) -> None:
    assert duty(row, 601, True) is Duty.RELEASE


def test_a_machine_that_its_living_controller_is_making_is_left_alone(row: MachineRow) -> None:
    assert duty(replace(row, detached=True, provider_id=None), 0, True) is Duty.NOTHING
    assert duty(replace(row, detached=True), 1, True) is Duty.NOTHING


def test_a_detached_run_goes_on_to_its_hard_end(row: MachineRow) -> None:
    detached = replace(row, detached=True)
    assert duty(detached, 3600, False) is Duty.LOOK
    assert duty(detached, 24 * 3600, False) is Duty.RELEASE


def test_a_teardown_that_was_cut_short_goes_on(row: MachineRow) -> None:
    asked = replace(row, destroy_asked_at=row.intended_at)
    assert duty(asked, 1, False) is Duty.RELEASE
    assert duty(asked, 1, True) is Duty.NOTHING


def test_a_create_that_was_cut_short_is_settled(row: MachineRow) -> None:
    assert duty(replace(row, provider_id=None), 1, False) is Duty.SETTLE
    assert duty(replace(row, provider_id=None), 1, True) is Duty.NOTHING


def test_rounds_end_what_is_due_and_keep_trying(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock
) -> None:
    acquire(fleet, cloud.offer(), NEED, DEAD, guard=lambda: None)
    watchdog = Watchdog(fleet, this_process("watchdog"))
    assert watchdog.round() == 1
    clock.pass_time(601)
    cloud.faults.list = [Ambiguous("503")] * 200
    said: list[str] = []
    fleet.say = said.append
    assert watchdog.round() == 1
    assert cloud.machines == {}  # ended, but nothing has proven it yet
    cloud.faults.list = []
    clock.pass_time(400)
    assert watchdog.round() == 0
    assert any("again in" in line for line in said)


def test_a_machine_that_ended_by_itself_is_closed(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock
) -> None:
    row, _ = acquire(fleet, cloud.offer(), NEED, DEAD, guard=lambda: None)
    cloud.take_away("m1")
    assert Watchdog(fleet, this_process("watchdog")).round() == 0
    closed = fleet.ledger.machine(row.name)
    assert closed is not None
    assert closed.closed


def test_what_an_earlier_watchdog_kept_is_taken_over(fleet: Fleet, cloud: MemoryCloud) -> None:
    row, _ = acquire(fleet, cloud.offer(), NEED, replace(DEAD, role="watchdog"), guard=lambda: None)
    me = this_process("watchdog")
    Watchdog(fleet, me).round()
    kept = fleet.ledger.machine(row.name)
    assert kept is not None
    assert kept.keeper == me.facts()


def _intend(home: Home) -> None:
    """Write an intent by a process that is dead: the watchdog has something to settle."""
    now = datetime.now(UTC)
    with Ledger.open(home.ledger, clock=SystemClock()) as ledger:
        ledger.record(
            "intended",
            machine="gpuctl-demo-a1b2c3-00000001",
            provider="local",
            offer_id="local:cpu",
            gpu=None,
            gpu_count=0,
            spot=False,
            price_hour=0,
            region="here",
            disk_gb=1,
            owner=OWNER,
            hard_end=now + timedelta(hours=1),
            lease_until=now + timedelta(hours=1),
            lease_seconds=3600,
            detached=False,
            keeper=DEAD.facts(),
            purpose="run",
        )


def test_one_process_a_home_that_settles_and_ends_itself(tmp_path: Path) -> None:
    home = Home(tmp_path, OWNER)
    (tmp_path / "owner").write_text(OWNER)
    _intend(home)
    first = ensure_watchdog(home, dict(os.environ))
    assert first.role == "watchdog"
    assert ensure_watchdog(home, dict(os.environ)) == first
    assert until(lambda: not alive(first), 30), home.watchdog_log.read_text()
    with Ledger.open(home.ledger, clock=SystemClock()) as ledger:
        assert ledger.machines(open_only=True) == []


def test_a_killed_watchdog_is_replaced(tmp_path: Path) -> None:
    home = Home(tmp_path, OWNER)
    (tmp_path / "owner").write_text(OWNER)
    _intend(home)
    first = ensure_watchdog(home, dict(os.environ))
    os.kill(first.pid, signal.SIGKILL)
    assert until(lambda: not alive(first), 10)
    second = ensure_watchdog(home, dict(os.environ))
    assert second.pid != first.pid
    assert until(lambda: not alive(second), 30)
