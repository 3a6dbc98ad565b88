"""How fast the ledger answers what `gpuctl list` asks, when much has happened.

Builds a ledger with 10,000 machines and 100,000 events in a temporary folder and prints the
medians of whole processes, Python's start included, beside `python -c "import sqlite3"`.

    python benchmarks/ledger.py [--machines 10000] [--rounds 9]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gpuctl.ledger import Ledger  # noqa: E402
from providers.base import SystemClock  # noqa: E402

OPEN_MACHINES = 20
BATCH = 500
READ = """
import sys
from pathlib import Path
from gpuctl.ledger import Ledger
from providers.base import SystemClock
with Ledger.open(Path(sys.argv[1]), clock=SystemClock()) as ledger:
    {call}
"""


def build(path: Path, machines: int) -> None:
    """Ten events a machine; all but the newest few are gone."""
    with Ledger.open(path, clock=SystemClock()) as ledger:
        for first in range(0, machines, BATCH):
            with ledger.transaction():
                for number in range(first, min(first + BATCH, machines)):
                    live_one(ledger, number, ends=number < machines - OPEN_MACHINES)


def live_one(ledger: Ledger, number: int, *, ends: bool) -> None:
    """Record one machine's life."""
    machine = f"gpuctl-bench-a1b2c3-{number:08x}"
    now = datetime.now(UTC)
    access = {"kind": "ssh", "host": "192.0.2.1", "port": 22, "user": "root", "host_keys": []}
    keeper = {"role": "controller", "host": "h", "boot": "b", "pid": 1, "started": "1"}
    ledger.record(
        "intended", machine=machine, provider="vastai", offer_id="1", gpu="RTX-4090", gpu_count=1,
        spot=True, price_hour=Decimal("0.35"), region="de", disk_gb=40, owner="a1b2c3d4e5f6",
        attempt=1, hard_end=now + timedelta(days=1), lease_until=now + timedelta(minutes=10),
        lease_seconds=600, detached=False, keeper=keeper, purpose="run",
    )  # fmt: skip
    ledger.record(
        "created", machine=machine, provider_id=f"i-{number}", price_hour=None, region="de",
        created_at=now, access=access,
    )  # fmt: skip
    ledger.record("observed", machine=machine, state="booting", status="loading")
    ledger.record("ready", machine=machine, steps={"boot": 31.5}, access=access, gpus=1)
    for _ in range(3):
        ledger.record("renewed", machine=machine, lease_until=now + timedelta(minutes=11))
    if not ends:
        return
    ledger.record("destroy_asked", machine=machine, why="completed")
    ledger.record("destroy_accepted", machine=machine, answer="ok")
    seen = [{"call": "list", "at": now, "answer": "absent"}] * 2
    ledger.record(
        "gone", machine=machine, confirmed_by=seen, cost_usd=Decimal("0.17"),
        cost_source="computed", ended_at=now + timedelta(minutes=30), leftovers=[],
    )  # fmt: skip


def median_of(work: Callable[[], object], rounds: int) -> float:
    """Seconds, the median of several rounds after one that warms up."""
    work()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def process(*arguments: str) -> Callable[[], object]:
    """A fresh Python process from start to end."""
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def main() -> None:
    """Build, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--machines", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.db")
        began = time.perf_counter()
        build(path, asked.machines)
        took = time.perf_counter() - began
        with Ledger.open(path, clock=SystemClock()) as ledger:
            events = ledger.events()[-1].seq
            one = "gpuctl-bench-a1b2c3-%08x" % (asked.machines // 2)
            inside = {
                "record one event, fsynced": lambda: ledger.record(
                    "renewed", machine=one, lease_until=datetime.now(UTC)
                ),
                "machine(name)": lambda: ledger.machine(one),
                "machines(open_only=True)": lambda: ledger.machines(open_only=True),
                "machines()": lambda: ledger.machines(),
                "find_machine(part)": lambda: ledger.find_machine(one[-8:]),
                "spend_since(a day ago)": lambda: ledger.spend_since(
                    datetime.now(UTC) - timedelta(days=1)
                ),
                "rebuild()": ledger.rebuild,
            }
            warm = {what: median_of(work, min(asked.rounds, 5)) for what, work in inside.items()}
        size = path.stat().st_size / 1e6
        print(f"{asked.machines} machines, {events} events, {size:.1f} MB; built in {took:.1f} s")
        base = median_of(process("-c", "import sqlite3"), asked.rounds)
        print(f"\n{'whole process':34}{'median':>10}{'ratio':>8}")
        print(f"{'python -c import sqlite3':34}{base * 1e3:>7.1f} ms{1:>8.1f}")
        for what, call in (
            ("import gpuctl.ledger", "pass"),
            ("list: machines(open_only=True)", "ledger.machines(open_only=True)"),
            ("list --all: machines()", "ledger.machines()"),
        ):
            cold = median_of(process("-c", READ.format(call=call), str(path)), asked.rounds)
            print(f"{what:34}{cold * 1e3:>7.1f} ms{cold / base:>8.1f}")
        print(f"\n{'inside a process':34}{'median':>10}")
        for what, seconds in warm.items():
            print(f"{what:34}{seconds * 1e3:>7.2f} ms")


if __name__ == "__main__":
    main()
