"""`terminate` while the API is down, or killed in the middle: the watchdog carries on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpuctl.fleet import guarding
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.guarding import ensure_watchdog
from gpuctl.fleet.keeper import Keeper, alive, this_process
from gpuctl.fleet.lease import keep
from gpuctl.fleet.watchdog import Duty, judge
from gpuctl.home import Home
from gpuctl.ledger import Ledger
from gpuctl.run.terminating import terminate
from providers.base import Ambiguous, SystemClock, Want
from tests.clouds.http_cloud import Fault, Reply
from tests.clouds.memory_cloud import HandClock, MemoryCloud
from tests.clouds.runpod_cloud import RunpodCloud, Times, main_settings
from tests.waiting import until

OWNER = "a1b2c3d4e5f6"
NEED = Need("box", 7200, "provision", disk_gb=10)


class Silent:
    """A reporter that nobody reads."""

    def step(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def output(self, stream: str, text: str) -> None: ...
    def progress(self, what: str, done: int, total: int) -> None: ...


def test_what_cannot_be_ended_now_is_the_watchdogs_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that a person provisioned is the watchdog's to keep; its lease runs for hours."""
    revived: list[Fleet] = []
    monkeypatch.setattr(guarding, "revive", revived.append)
    clock = HandClock(datetime(2026, 11, 21, 12, tzinfo=UTC))
    cloud = MemoryCloud(clock)
    with Ledger.open(tmp_path / "ledger.db", clock=clock) as ledger:
        fleet = Fleet(Home(tmp_path, OWNER), ledger, clock, {})
        fleet.use(cloud)
        row, machine = acquire(
            fleet, cloud.offer(), NEED, this_process("provision"), guard=lambda: None
        )
        keep(fleet, row, this_process("watchdog"), detached=False)
        cloud.faults.destroy = [Ambiguous("503")] * 10_000
        receipts, [error] = terminate(fleet, ledger.machines(), Silent())
        assert receipts == []
        assert revived == [fleet]
        assert error.may_bill
        assert f"https://memory.example/machines/{machine.provider_id}" in str(error.next)
        left = ledger.machine(row.name)
        assert left is not None
        assert not left.closed
        assert left.keeper is not None
        assert left.keeper["role"] == "terminate"
        now = clock.now()
        assert judge(left, now, True).duty is Duty.NOTHING, "it still tries by itself"
        assert judge(left, now, False).duty is Duty.RELEASE, "it has gone: the watchdog's turn"


@contextmanager
def provisioned(cloud: RunpodCloud, home: Home) -> Iterator[tuple[str, Keeper, dict[str, str]]]:
    """A machine as `gpuctl provision` leaves it: kept by a real watchdog."""
    environ = {**os.environ, **main_settings(cloud), "GPUCTL_HOME": str(home.path)}
    (home.path / "owner").write_text(OWNER)
    clock = SystemClock()
    with Ledger.open(home.ledger, clock=clock) as ledger:
        fleet = Fleet(home, ledger, clock, environ)
        offer = fleet.provider("runpod").offers(Want(gpus=("RTX-4090",), disk_gb=10))[0]
        row, _ = acquire(
            fleet,
            offer,
            NEED,
            this_process("provision"),
            guard=lambda: ensure_watchdog(home, environ),
        )
        watchdog = ensure_watchdog(home, environ)
        keep(fleet, row, watchdog, detached=False)
    try:
        yield row.name, watchdog, environ
    finally:
        if alive(watchdog):
            os.kill(watchdog.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_terminate_that_is_killed_while_the_api_is_down(tmp_path: Path) -> None:
    home = Home(tmp_path, OWNER)
    with (
        RunpodCloud(clock=SystemClock(), times=Times(0, 0, 0)) as cloud,
        provisioned(cloud, home) as (name, watchdog, environ),
    ):
        down = Fault("/v2/pods/", method="DELETE", how="answer", reply=Reply(503, {}), times=None)
        cloud.faults.append(down)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpuctl", "terminate", name, "--yes", "--json"],
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

        def asked() -> int:
            return sum(one.method == "DELETE" for one in cloud.log)

        assert until(lambda: asked() >= 1, 60)
        process.kill()
        process.communicate(timeout=20)
        before = asked()
        assert until(lambda: asked() > before, 60), "the watchdog goes on by itself"
        assert list(cloud.books.open("pod").values()) == [name]
        cloud.faults.clear()
        assert until(lambda: cloud.books.open("pod") == {}, 90)
        assert until(lambda: alive(watchdog) is False, 60), "and ends when nothing is left"
        with Ledger.open(home.ledger, clock=SystemClock()) as ledger:
            row = ledger.machine(name)
            assert row is not None
            assert row.closed_by == "gone"
            assert row.lease_until - datetime.now(UTC) > timedelta(hours=1), "not by its lease"
