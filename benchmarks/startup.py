"""How long gpuctl takes to start: medians, and the ratio to ``python -c "import click"``.

    python benchmarks/startup.py [ROUNDS]

Run it on a quiet machine. ``--version`` must stay at or below 1.5 times importing click.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT = 1.5  # times `import click`, for --version
BASE = ("import click", [sys.executable, "-c", "import click"])


def commands() -> list[tuple[str, list[str]]]:
    """Name -> argv of everything that is measured."""
    beside = Path(sys.executable).with_name("gpuctl")
    script = str(beside) if beside.exists() else shutil.which("gpuctl")
    if script is None:
        raise SystemExit("gpuctl is not installed for this Python: pip install -e .")
    lines = ["--version", "--help", "list", "list --json", "runs", "quote --offline --gpu none"]
    return [BASE, *((f"gpuctl {line}", [script, *line.split()]) for line in lines)]


def once(argv: list[str], environ: dict[str, str]) -> float:
    """Seconds that one start takes."""
    began = time.perf_counter()
    subprocess.run(
        argv, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - began


def main() -> None:
    """Measure in turns, so that a busy moment hits everybody."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    measured = commands()
    times: dict[str, list[float]] = {name: [] for name, _ in measured}
    with tempfile.TemporaryDirectory() as home:
        environ = {**os.environ, "GPUCTL_HOME": home}
        for _, argv in measured:
            once(argv, environ)  # fills the caches, makes the home
        for _ in range(rounds):
            for name, argv in measured:
                times[name].append(once(argv, environ))
    base = statistics.median(times[BASE[0]])
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"{name:32} {median * 1000:7.1f} ms   {median / base:5.2f} x import click")
    ratio = statistics.median(times["gpuctl --version"]) / base
    print(f"\n--version: {ratio:.2f} of {LIMIT} allowed: {'ok' if ratio <= LIMIT else 'TOO SLOW'}")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
