"""A second Ctrl-C while a cloud hangs: the process leaves, whatever its threads wait for."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
HANGS = """
import sys, threading
from datetime import UTC, datetime
from pathlib import Path
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import this_process
from gpuctl.fleet.release import release_all
from gpuctl.home import Home
from gpuctl.ledger import Ledger
from gpuctl.run.stopping import SecondSignal, StopRequest, stopping_on_signals
from tests.clouds.memory_cloud import HandClock, MemoryCloud

clock = HandClock(datetime(2026, 11, 21, 12, 0, tzinfo=UTC))
cloud = MemoryCloud(clock)
home = Home(Path(sys.argv[1]), "a1b2c3d4e5f6")
with Ledger.open(home.ledger, clock=clock) as ledger:
    fleet = Fleet(home, ledger, clock, {})
    fleet.use(cloud)
    need = Need(middle="demo", lease_seconds=600, purpose="provision")
    mine = this_process("controller")
    rows = [
        acquire(fleet, cloud.offer(), need, mine, guard=lambda: None)[0]
        for _ in range(int(sys.argv[2]))
    ]

    def hang(_id):
        if _id == "m1":
            print("hangs", flush=True)
        threading.Event().wait()

    cloud.destroy = hang
    stop = StopRequest()
    with stopping_on_signals(stop):
        try:
            release_all(fleet, rows, why="test")
        except SecondSignal:
            print("left", ledger.machine(rows[0].name).destroy_asked_at is not None)
"""


@pytest.mark.parametrize("machines", [1, 12])
def test_nobody_waits_for_a_destroy_that_hangs(tmp_path: Path, machines: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HANGS, str(tmp_path), str(machines)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(signal.SIGINT)
        until(lambda: False, 0.1)  # two that wait to be delivered count as one
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "left True\n"), err
