"""Leases by a clock that nobody can set: jumps of the wall clock neither extend nor cut them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuctl.agent.client import AgentClient
from gpuctl.fleet import deadlines, keeper, lease
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.deadlines import by_this_clock, hard_seconds
from gpuctl.fleet.guard import armed_agent
from gpuctl.fleet.keeper import NO_BOOT, Keeper, alive, this_process
from gpuctl.fleet.lease import renew
from gpuctl.fleet.ready import Ready
from gpuctl.fleet.reap import reap
from gpuctl.fleet.release import release
from gpuctl.fleet.watchdog import Duty, judge
from gpuctl.home import Home
from gpuctl.ledger import Ledger, MachineRow
from providers.base import SystemClock
from tests.clouds.memory_cloud import HandClock, MemoryCloud
from tests.faults.rehearsal import Rehearsal
from tests.fleet.conftest import OWNER
from tests.waiting import until

START = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)  # the night on which Europe's clocks go forward
LEASE = 600.0
NEED = Need(middle="demo", lease_seconds=LEASE, purpose="run", max_duration=timedelta(hours=3))
HOUR = 3600.0


class JumpyClock(HandClock):
    """A clock whose wall is set by hand; its seconds go on as they do."""

    def __init__(self, start: datetime) -> None:
        super().__init__(start)
        self.wall_off = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.wall_off

    def jump(self, seconds: float) -> None:
        """Set the wall clock."""
        self.wall_off += timedelta(seconds=seconds)


class TrueClock:
    """The time as it is, for the cloud: nobody here sets its clock."""

    def __init__(self, clock: JumpyClock) -> None:
        self._clock = clock
        self.monotonic, self.sleep = clock.monotonic, clock.sleep

    def now(self) -> datetime:
        return self._clock.now() - self._clock.wall_off


@pytest.fixture
def clock() -> JumpyClock:
    return JumpyClock(START)


@pytest.fixture
def cloud(clock: JumpyClock) -> MemoryCloud:
    return MemoryCloud(TrueClock(clock))


@pytest.fixture
def fleet(tmp_path: Path, clock: JumpyClock, cloud: MemoryCloud) -> Iterator[Fleet]:
    with opened(tmp_path, clock, cloud) as made:
        yield made


@contextmanager
def opened(folder: Path, clock: JumpyClock, cloud: MemoryCloud) -> Iterator[Fleet]:
    """A fleet on a folder."""
    with Ledger.open(folder / "ledger.db", clock=clock) as ledger:
        fleet = Fleet(Home(folder, OWNER), ledger, clock, {})
        fleet.use(cloud)
        yield fleet


def rented(fleet: Fleet, cloud: MemoryCloud) -> str:
    return acquire(fleet, cloud.offer(), NEED, this_process("controller"), guard=lambda: None)[
        0
    ].name


def row_of(fleet: Fleet, name: str) -> MachineRow:
    row = fleet.ledger.machine(name)
    assert row is not None
    return by_this_clock(row, fleet.clock)


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.floats(0, 500), st.floats(-30 * HOUR, 30 * HOUR)), min_size=1, max_size=6
    ),
    renewed_at=st.integers(0, 5),
)
def test_what_is_left_is_what_has_not_passed(
    steps: list[tuple[float, float]], renewed_at: int
) -> None:
    clock = JumpyClock(START)
    cloud = MemoryCloud(TrueClock(clock))
    with TemporaryDirectory() as folder, opened(Path(folder), clock, cloud) as fleet:
        name = rented(fleet, cloud)
        began = clock.monotonic()
        lease_ends, hard_ends = began + LEASE, began + 3 * HOUR
        for number, (seconds, jump) in enumerate(steps):
            clock.pass_time(seconds)
            clock.jump(jump)
            now = clock.monotonic()
            if number == renewed_at:
                found = fleet.ledger.machine(name)
                assert found is not None
                renew(fleet, found, LEASE)
                lease_ends = min(now + LEASE, hard_ends)
            row = row_of(fleet, name)
            left = (row.lease_until - clock.now()).total_seconds()
            assert left == pytest.approx(lease_ends - now, abs=2)
            assert hard_seconds(row, clock) == pytest.approx(hard_ends - now, abs=2)
            age = (clock.now() - row.intended_at).total_seconds()
            assert age == pytest.approx(now - began, abs=2)
            if abs(lease_ends - now) > 2:
                over = now > lease_ends
                assert (judge(row, clock.now(), True).duty is Duty.RELEASE) is over


@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forward", "back"])
def test_reap_goes_by_it_too(
    fleet: Fleet, cloud: MemoryCloud, clock: JumpyClock, jump: float
) -> None:
    rented(fleet, cloud)
    clock.jump(jump)
    assert reap(fleet).receipts == ()
    clock.pass_time(LEASE + 1)
    assert len(reap(fleet).receipts) == 1


@pytest.mark.parametrize("jump", [HOUR, -HOUR], ids=["forward", "back"])
def test_so_is_a_machine_looked_for_that_its_cloud_still_denies(
    fleet: Fleet, cloud: MemoryCloud, clock: JumpyClock, jump: float
) -> None:
    """Found by random sequences: by the wall clock it was an hour old, and taken for gone."""
    cloud.shown_seconds, cloud.faults.denied_seconds = 60, 50
    name = rented(fleet, cloud)
    clock.jump(jump)
    row = fleet.ledger.machine(name)
    assert row is not None
    assert release(fleet, row, why="test").confirmed
    assert cloud.books() == (1, 0, 0)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_watchdog_whose_clock_goes_wrong_by_an_hour_ends_nothing_early(tmp_path: Path) -> None:
    """Real processes: only the wall clock of the watchdog is another one."""
    rehearsal = Rehearsal(tmp_path)
    code, made, err = rehearsal.gpuctl(
        "provision", "--provider", "local", "--yes", "--lease", "10m"
    )
    assert code == 0, err
    rehearsal.kill_watchdog()
    ahead = (
        "from datetime import UTC, datetime, timedelta; from providers.base import SystemClock;"
        "SystemClock.now = lambda self: datetime.now(UTC) + timedelta(hours=1);"
        "from gpuctl.fleet import watchdog; watchdog.main()"
    )
    watchdog = subprocess.Popen(
        [sys.executable, "-P", "-c", ahead, str(rehearsal.home)], env=rehearsal.environ
    )
    try:
        assert until(lambda: rehearsal.watchdog_pid() == watchdog.pid, 60)
        assert not until(lambda: "destroy_asked" in rehearsal.kinds(), 5)
        assert watchdog.poll() is None
        [listed] = rehearsal.gpuctl("list", "--refresh")[1]["machines"]
        assert (listed["name"], listed["state"]) == (made["machine"]["name"], "ready")
    finally:
        watchdog.kill()
        watchdog.wait(10)
        assert rehearsal.gpuctl("terminate", "--all", "--yes")[0] == 0
        rehearsal.kill_watchdog()
    assert rehearsal.nothing_is_left()


def test_after_a_boot_the_wall_clock_is_all_there_is(
    fleet: Fleet, cloud: MemoryCloud, clock: JumpyClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = rented(fleet, cloud)
    for boot in ("another boot", NO_BOOT):
        monkeypatch.setattr(deadlines, "boot_id", lambda boot=boot: boot)
        row = row_of(fleet, name)
        assert row.lease_until == START + timedelta(seconds=LEASE)
        assert judge(row, START + timedelta(seconds=LEASE + 1), False).duty is Duty.RELEASE


def test_a_row_of_an_older_gpuctl_has_the_wall_clock_only(
    fleet: Fleet, cloud: MemoryCloud, clock: JumpyClock
) -> None:
    name = rented(fleet, cloud)
    fleet.ledger.record("renewed", machine=name, lease_until=START + timedelta(hours=1))
    assert row_of(fleet, name).lease_until == START + timedelta(hours=1)


def test_a_machine_is_told_how_long_it_has_and_not_only_until_when(
    fleet: Fleet, cloud: MemoryCloud, clock: JumpyClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own clock may be wrong, and so may this computer's have become."""
    name = rented(fleet, cloud)
    told: list[Mapping[str, Any]] = []
    monkeypatch.setattr(AgentClient, "begin", lambda *given, **_: told.append(given[3]))
    clock.pass_time(600)
    clock.jump(HOUR)
    row = fleet.ledger.machine(name)
    assert row is not None
    ready = Ready(cloud.get("m1"), SimpleNamespace(home="/root"))  # type: ignore[arg-type]
    armed_agent(ready, row, ".gpuctl/machine", LEASE, clock=clock)
    [orders] = told
    assert orders["hard_seconds"] == pytest.approx(3 * HOUR - 600, abs=2)
    assert orders["hard_end"] - clock.now().timestamp() == pytest.approx(3 * HOUR - 600, abs=2)


def test_the_time_that_a_computer_sleeps_counts() -> None:
    since_boot = time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
    assert SystemClock().monotonic() == pytest.approx(since_boot, abs=5)


def test_a_lease_is_renewed_as_soon_as_the_computer_wakes_up(
    fleet: Fleet, cloud: MemoryCloud, clock: JumpyClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_NAP_SECONDS", 0.02)
    name = rented(fleet, cloud)
    before = row_of(fleet, name).lease_until
    renewal = lease.Renewal(fleet, name, LEASE)
    renewal.start()
    try:
        clock.pass_time(61)  # nearly all of it asleep
        assert until(lambda: row_of(fleet, name).lease_until > before, 10)
    finally:
        renewal.stop()


# ------------------------------------------------------------------------- keepers


def test_a_computer_that_is_called_otherwise_is_known_by_its_boot() -> None:
    me = this_process("watchdog")
    renamed = Keeper(me.role, "another-name.fritz.box", me.boot, me.pid, me.started)
    assert alive(renamed) is True
    assert alive(Keeper(me.role, "elsewhere", "its boot", me.pid, me.started)) is None
    assert alive(Keeper(me.role, me.host, "an earlier boot", me.pid, me.started)) is False


@pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="no containers here")
def test_of_another_container_of_this_computer_nobody_can_know() -> None:
    """They may share a home, and have each a process 7."""
    me = this_process("watchdog")
    boot, _, numbers = me.boot.partition(" ")
    assert numbers.startswith("pid:")
    for host in (me.host, "container-2"):
        other = Keeper(me.role, host, f"{boot} pid:[1]", me.pid, me.started)
        assert alive(other) is None
    older = Keeper(me.role, me.host, boot, me.pid, me.started)  # of a gpuctl before this one
    assert alive(older) is True
    assert alive(Keeper(me.role, me.host, boot, me.pid, "0")) is False
    assert alive(Keeper(me.role, "container-2", boot, me.pid, me.started)) is None


def test_dates_of_processes_are_told_without_daylight_saving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")
    assert keeper._answer("date", "+%Z") == "UTC"
