"""From "sshd answers" to a job's first output, on a machine that is far away.

One host behind a round trip of 50 ms at 1 Gbit/s, a real sshd, and a working folder of 10 MB of
Python sources in 300 files. Counted from the moment that the machine is created: that host's sshd
has answered by then. Goal: at most 2 s.

    python benchmarks/first_output.py [--rounds 5] [--round-trip 0.05]
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gpuctl.ledger import Ledger  # noqa: E402
from providers.base import SystemClock  # noqa: E402
from tests.clouds.ssh_hosts import Hosts  # noqa: E402
from tests.remote.relay import Relay  # noqa: E402

FIRST = "the first output of the job"
GOAL_SECONDS = 2.0
BANDWIDTH = 125e6  # bytes a second: 1 Gbit/s


def code(folder: Path) -> int:
    """Write 10 MB of Python sources in 300 files; return the bytes."""
    text = b"".join(path.read_bytes() for path in sorted((ROOT / "gpuctl").rglob("*.py")))
    chance, total = random.Random(1), 0
    for number in range(300):
        path = folder / f"p{number % 20}" / f"m{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        at, size = chance.randrange(len(text) // 2), chance.randrange(2_000, 64_000)
        total += path.write_bytes(text[at : at + size])
    return total


def one_run(round_trip: float) -> tuple[float, int]:
    """Return the seconds, and the bytes of code that were sent."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        hosts = Hosts(folder)
        server = hosts.add("far", python="/usr/bin/python3")
        with Relay(server.port, round_trip=round_trip, bandwidth=BANDWIDTH) as far:
            hosts.options["far"]["port"] = far.port
            hosts.write()
            size = code(folder / "job")
            (folder / "job" / "train.yaml").write_text(f"run: echo '{FIRST}'\n")
            try:
                return _measured(hosts, folder), size
            finally:
                server.stop()


def _measured(hosts: Hosts, folder: Path) -> float:
    settings = {k: v for k, v in hosts.environ().items() if k.startswith("GPUCTL_")}
    command = ["run", "job/train.yaml", "--provider", "ssh", "--yes"]
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "gpuctl", *command],
        cwd=folder,
        env={**os.environ, **settings, "GPUCTL_HOME": str(hosts.home()), "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    first = 0.0
    with process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if not first and FIRST in line:
                first = time.time()
    if process.returncode:
        sys.exit("".join(said))
    with Ledger.open(hosts.home() / "ledger.db", clock=SystemClock()) as ledger:
        [created] = [event.at for event in ledger.events() if event.kind == "created"]
    return first - created.timestamp()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-trip", type=float, default=0.05, help="seconds")
    asked = parser.parse_args()
    taken = []
    for _ in range(asked.rounds):
        seconds, size = one_run(asked.round_trip)
        taken.append(seconds)
        print(f"{seconds:.2f} s with {size / 1e6:.1f} MB of code", flush=True)
    median = statistics.median(taken)
    verdict = "met" if median <= GOAL_SECONDS else "MISSED"
    print(
        f"sshd answers -> first output at {asked.round_trip * 1000:.0f} ms: "
        f"median {median:.2f} s (goal {GOAL_SECONDS:.1f} s: {verdict})"
    )


if __name__ == "__main__":
    main()
