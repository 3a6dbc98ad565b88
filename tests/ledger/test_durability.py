"""Nothing that was recorded is lost: killed writers, and many of them at once."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from gpuctl.ledger import Ledger
from tests.ledger.facts import StepClock

ROOT = Path(__file__).resolve().parents[2]

WRITER = """
import sys
from pathlib import Path
from gpuctl.ledger import Ledger
from providers.base import SystemClock
from tests.ledger.facts import created, intended, name

path, middle, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with Ledger.open(path, clock=SystemClock(), patience=60) as ledger:
    for number in range(count // 2):
        machine = name(middle, number)
        print(ledger.record("intended", machine=machine, **intended()).seq, flush=True)
        print(ledger.record("created", machine=machine, **created()).seq, flush=True)
"""


def writer(path: Path, middle: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), middle, str(count)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(300)
def test_what_was_recorded_survives_kill_9(path: Path, clock: StepClock) -> None:
    dice = random.Random(9)
    promised: set[int] = set()
    for number in range(8):
        process = writer(path, f"w{number}", 100_000)
        assert process.stdout is not None
        for _ in range(dice.randrange(1, 60)):
            promised.add(int(process.stdout.readline()))
        process.kill()
        # What it had printed before it died counts too; a line cut short does not.
        promised |= {int(line) for line in process.stdout.read().split("\n")[:-1]}
        process.wait(30)
        process.stdout.close()
        with Ledger.open(path, clock=clock) as ledger:
            kept = {event.seq for event in ledger.events()}
            assert promised <= kept
            # At most the one that was under way when it was killed is more than promised.
            assert len(kept) <= len(promised) + number + 1
            assert ledger.check() == []


@pytest.mark.timeout(300)
def test_four_processes_at_once(path: Path, clock: StepClock) -> None:
    """They also race for making the file."""
    processes = [writer(path, f"p{number}", 200) for number in range(4)]
    said = [
        int(line) for process in processes for line in process.communicate(timeout=240)[0].split()
    ]
    assert [process.returncode for process in processes] == [0, 0, 0, 0]
    with Ledger.open(path, clock=clock) as ledger:
        assert sorted(said) == [event.seq for event in ledger.events()] == list(range(1, 801))
        assert len(ledger.machines(open_only=True)) == 400
        assert ledger.check() == []
