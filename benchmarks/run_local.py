"""How long `gpuctl run` takes on this computer, and how much memory its controller needs.

Prints medians over several runs, each in a home of its own: from the start of the process to the
first output of a job without a set-up (goal: under 2 s), to the end of the process, and the most
memory that the controller ever used (goal: under 150 MB). Linux: memory is read from /proc.

    python benchmarks/run_local.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FIRST = "the first output of the job"
SPEC = f"name: bench\nrun: echo '{FIRST}'\n"
GOAL_SECONDS = 2.0
GOAL_MB = 150.0


@dataclass(frozen=True)
class Run:
    """One run: seconds since its start, and MB."""

    first_output: float
    ended: float
    memory: float


def one_run() -> Run:
    """Run a job that says one thing."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "job", "train.yaml")
        spec.parent.mkdir()
        spec.write_text(SPEC)
        environ = {**os.environ, "GPUCTL_HOME": str(Path(folder, "home")), "NO_COLOR": "1"}
        command = [sys.executable, "-P", "-m", "gpuctl", "run", str(spec), "--provider", "local"]
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--yes"],
            cwd=folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        first = memory = 0.0
        with process:
            assert process.stderr is not None
            said = []
            for line in process.stderr:
                said.append(line)
                if FIRST in line and not first:
                    first = time.perf_counter() - began
                memory = max(memory, peak_mb(process.pid))
            code = process.wait()
        ended = time.perf_counter() - began
        if code != 0 or not first:
            sys.exit(f"gpuctl run ended with {code}:\n{''.join(said)}")
        gone(Path(folder, "home"))
        return Run(first, ended, memory)


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has used so far; 0 where /proc does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    peak = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peak[0].split()[1]) * 1024 / 1e6 if peak else 0.0


def gone(home: Path) -> None:
    """Wait until the home's watchdog has seen that nothing is left to guard."""
    deadline = time.monotonic() + 20
    log = home / "watchdog.lock"
    while time.monotonic() < deadline and held(log):
        time.sleep(0.1)


def held(lock: Path) -> bool:
    """Whether somebody has the lock."""
    import fcntl

    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = max(parser.parse_args().rounds, 1)
    one_run()  # warms up the file cache
    runs = [one_run() for _ in range(rounds)]
    first = statistics.median(run.first_output for run in runs)
    ended = statistics.median(run.ended for run in runs)
    memory = statistics.median(run.memory for run in runs)
    print(f"medians of {rounds} runs, {os.cpu_count()} cores")
    print(f"{'to the first output of the job':34}{first:>8.2f} s   goal < {GOAL_SECONDS:g} s")
    print(f"{'to the end, machine proven gone':34}{ended:>8.2f} s")
    print(f"{'controller, most memory':34}{memory:>8.1f} MB  goal < {GOAL_MB:g} MB")


if __name__ == "__main__":
    main()
