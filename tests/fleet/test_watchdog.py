"""The watchdog: what it owes each machine, and that it is one, outlives, and ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.errors import GpuctlError, MayStillBill
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.guarding import ensure_watchdog, revive, watchdog_of
from gpuctl.fleet.keeper import Keeper, alive, this_process
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.upgrade import Upgrade
from gpuctl.fleet.watchdog import (
    Duty,
    Watchdog,
    judge,
    retry_pause,
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


def test_a_teardown_is_the_watchdogs_when_nobody_else_keeps_the_machine(row: MachineRow) -> None:
    """`gpuctl terminate` gave up, or was killed, at a machine that a person had provisioned."""
    kept = replace(row, keeper_json=json.dumps(this_process("watchdog").facts()))
    assert duty(kept, 1, True) is Duty.NOTHING
    assert duty(replace(kept, destroy_asked_at=row.intended_at), 1, True) is Duty.RELEASE


def test_a_provisioning_that_was_cut_short_is_undone(row: MachineRow) -> None:
    dead = replace(row, keeper_json=json.dumps(replace(DEAD, role="provision").facts()))
    assert duty(dead, 1, False) is Duty.RELEASE
    assert duty(dead, 1, True) is Duty.NOTHING


@given(st.integers(1, 10**9))
def test_it_backs_off_to_minutes_and_no_further(failures: int) -> None:
    assert 2 <= retry_pause(failures) <= 300
    assert retry_pause(failures) <= retry_pause(failures + 1)


def test_it_never_gives_up_and_never_forgets(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cloud whose delete answers 5xx for three days."""
    row, _ = acquire(fleet, cloud.offer(), NEED, DEAD, guard=lambda: None)
    clock.pass_time(601)
    tried: list[float] = []

    def down(
        _fleet: Fleet, rows: Sequence[MachineRow], *, why: str
    ) -> tuple[list[Receipt], list[GpuctlError]]:
        tried.append(clock.monotonic())
        return [], [MayStillBill(f"503 ({why})", machine=one.name, next="-") for one in rows]

    watchdog = Watchdog(fleet, this_process("watchdog"))
    with monkeypatch.context() as patch:
        patch.setattr("gpuctl.fleet.watchdog.release_all", down)
        until_then = clock.monotonic() + 3 * 86400
        while clock.monotonic() < until_then:
            assert watchdog.round() == 1
            clock.pass_time(150)
    assert len(tried) > 3 * 86400 / 300 * 0.9
    pauses = [after - before for before, after in pairwise(tried)]
    assert max(pauses) <= 450
    clock.pass_time(300)
    assert watchdog.round() == 0
    assert cloud.machines == {}
    ended = fleet.ledger.machine(row.name)
    assert ended is not None
    assert ended.closed_by == "gone"


def test_a_cloud_that_hangs_does_not_keep_the_machines_of_another(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = MemoryCloud(clock, name="other")
    fleet.use(other)
    over = threading.Event()
    hanging, _ = acquire(fleet, cloud.offer(), NEED, DEAD, guard=lambda: None)
    acquire(fleet, other.offer(), NEED, DEAD, guard=lambda: None)
    destroy = cloud.destroy
    monkeypatch.setattr(cloud, "destroy", lambda id: over.wait(60) and destroy(id))
    clock.pass_time(601)
    watchdog = Watchdog(fleet, this_process("watchdog"))
    try:
        assert until(lambda: watchdog.round(0.1) == 1, 30)
        assert (len(cloud.machines), len(other.machines)) == (1, 0)
        assert watchdog.is_busy
        acquire(fleet, other.offer(), NEED, DEAD, guard=lambda: None)  # and one that comes later
        clock.pass_time(601)
        assert until(lambda: watchdog.round(0.1) == 1, 30)
        assert other.machines == {}
    finally:
        over.set()
    assert until(lambda: watchdog.round(0.1) == 0, 30)
    assert cloud.machines == {}
    assert not watchdog.is_busy
    assert sum(call == f"destroy {hanging.provider_id}" for call in cloud.calls) <= 2


def test_many_are_ended_together(fleet: Fleet, cloud: MemoryCloud, clock: HandClock) -> None:
    for _ in range(40):
        acquire(fleet, cloud.offer(), NEED, DEAD, guard=lambda: None)
    clock.pass_time(601)
    cloud.calls.clear()
    assert Watchdog(fleet, this_process("watchdog")).round() == 0
    assert cloud.machines == {}
    assert cloud.calls.count("list") <= 6, "the same listings prove all of them gone"


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


def _intend(home: Home, provider: str = "local") -> None:
    """Write an intent by a process that is dead: the watchdog has something to settle."""
    now = datetime.now(UTC)
    with Ledger.open(home.ledger, clock=SystemClock()) as ledger:
        ledger.record(
            "intended",
            machine="gpuctl-demo-a1b2c3-00000001",
            provider=provider,
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


@pytest.mark.parametrize(
    "blow", [signal.SIGHUP, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_it_outlives_its_terminal(tmp_path: Path, blow: signal.Signals) -> None:
    """Closing a terminal, and Ctrl-C in it, reach every process of the session but this one."""
    home = Home(tmp_path, OWNER)
    (tmp_path / "owner").write_text(OWNER)
    _intend(home)
    starter = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            "import os, sys; from pathlib import Path; from gpuctl.home import Home;"
            "from gpuctl.fleet.guarding import ensure_watchdog;"
            "print(ensure_watchdog(Home(Path(sys.argv[1]), sys.argv[2]), os.environ).pid)",
            str(tmp_path),
            OWNER,
        ],
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
        check=True,
    )
    pid = int(starter.stdout)
    keeper = watchdog_of(home)
    assert keeper is not None
    assert keeper.pid == pid
    assert os.getsid(pid) == pid, "a session of its own"
    assert os.getppid() != pid
    os.kill(pid, blow)
    assert alive(keeper)
    assert until(lambda: not alive(keeper), 30), "and it ends when nothing is left"


def test_of_many_that_start_at_once_one_stays(tmp_path: Path) -> None:
    home = Home(tmp_path, OWNER)
    (tmp_path / "owner").write_text(OWNER)
    _intend(home)
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: ensure_watchdog(home, dict(os.environ)), range(6)))
    assert len(set(found)) == 1
    assert until(lambda: not alive(found[0]), 30)


@pytest.mark.slow
def test_it_says_in_its_log_that_it_was_told_to_end(tmp_path: Path) -> None:
    home = Home(tmp_path, OWNER)
    (tmp_path / "owner").write_text(OWNER)
    _intend(home)
    keeper = ensure_watchdog(home, dict(os.environ))
    os.kill(keeper.pid, signal.SIGTERM)
    assert until(lambda: not alive(keeper), 10)
    assert "SIGTERM" in home.watchdog_log.read_text()
    revive_in(home)
    assert until(lambda: watchdog_of(home) is not None, 15), "the next command starts another"
    second = watchdog_of(home)
    assert until(lambda: second is None or not alive(second), 30)
    revive_in(home)
    assert watchdog_of(home) is None, "nothing is open any more"


def revive_in(home: Home) -> None:
    with Ledger.open(home.ledger, clock=SystemClock()) as ledger:
        revive(Fleet(home, ledger, SystemClock(), dict(os.environ)))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_after_an_upgrade_it_goes_on_with_the_new_code(tmp_path: Path) -> None:
    home = Home(tmp_path, OWNER)
    (tmp_path / "owner").write_text(OWNER)
    _intend(home, provider="nobody")  # so that there is something to guard for a while
    version = tmp_path / "version.py"
    version.write_text("1")
    hasty = (
        "import sys; import gpuctl; from gpuctl.fleet import upgrade, watchdog;"
        f"gpuctl.__file__ = {str(version)!r};"
        "upgrade._LOOK_SECONDS, upgrade._STEADY_SECONDS = 0.1, 0.3;"
        "watchdog.main()"
    )
    old = subprocess.Popen([sys.executable, "-P", "-c", hasty, str(tmp_path)])
    try:
        assert until(lambda: watchdog_of(home) is not None, 20)
        version.write_text("2")
        command = Path(f"/proc/{old.pid}/cmdline")
        assert until(lambda: b"gpuctl.fleet.watchdog\0" in command.read_bytes(), 120)
        assert until(lambda: watchdog_of(home) is not None, 60), "it holds the lock again"
        keeper = watchdog_of(home)
        assert keeper is not None
        assert keeper.pid == old.pid, "the same process, so that what it keeps stays kept"
    finally:
        old.kill()
        old.wait(10)


def test_an_upgrade_is_noticed_when_it_has_settled(tmp_path: Path) -> None:
    clock = HandClock(datetime(2026, 11, 21, tzinfo=UTC))
    file = tmp_path / "__init__.py"
    file.write_text("old")
    upgrade = Upgrade(clock, file)

    def looked(seconds: float) -> bool:
        clock.pass_time(seconds)
        return upgrade.is_there()

    assert not looked(60)
    file.unlink()  # an installer takes the old files away first
    assert not looked(60)
    assert not looked(60)
    file.write_text("new")
    assert not looked(11)
    assert not looked(15)
    assert looked(30)
    file.write_text("old")
    assert not looked(15)
    assert not looked(60), "taken back"


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
