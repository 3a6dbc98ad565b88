"""Several gpuctl at once, a ledger that is locked, and a controller that sleeps for too long."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import nothing_bills
from tests.waiting import until

COUNTS = """
name: {name}
run: |
  start=1
  if [ -n "$GPUCTL_RESUME_FROM" ]; then start=$(( $(cat "$GPUCTL_RESUME_FROM") + 1 )); fi
  for i in $(seq $start {steps}); do
    echo "step $i"
    echo $i > "$GPUCTL_CHECKPOINT_DIR/.s"
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$i"
    sleep 0.2
  done
  mkdir -p out
  echo "{name} from attempt $GPUCTL_ATTEMPT" > out/{name}.txt
outputs: [{{from: out, to: ./artifacts}}]
"""
RUN = ("--provider", "local", "--yes", "--json")


def begun(rehearsal: Rehearsal, name: str, steps: int, *more: str) -> subprocess.Popen[str]:
    spec = rehearsal.write_spec(COUNTS.format(name=name, steps=steps))
    named = spec.with_name(f"{name}.yaml")
    spec.rename(named)
    return rehearsal.start("run", named, *RUN, *more)


def ended(process: subprocess.Popen[str], seconds: float = 60) -> Any:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return json.loads(out)["run"]


def result(rehearsal: Rehearsal, name: str) -> str:
    return (rehearsal.folder / "job" / "artifacts" / f"{name}.txt").read_text()


def test_two_runs_in_one_home(rehearsal: Rehearsal) -> None:
    first = begun(rehearsal, "first", 10)
    second = begun(rehearsal, "second", 10, "--rehearse-interruption", "1s")
    for process, name, outcomes in (
        (first, "first", ["completed"]),
        (second, "second", ["interrupted", "completed"]),
    ):
        run = ended(process)
        assert [one["outcome"] for one in run["attempts"]] == outcomes
        assert result(rehearsal, name) == f"{name} from attempt {len(outcomes)}\n"
    assert len(rehearsal.gpuctl("runs")[1]["runs"]) == 2
    nothing_bills(rehearsal)


def test_two_homes_know_nothing_of_each_other(rehearsal: Rehearsal, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Rehearsal(tmp_path / "other")
    first = begun(rehearsal, "first", 25)
    second = begun(other, "second", 25)
    assert until(lambda: "checkpoint" in rehearsal.kinds() and "checkpoint" in other.kinds(), 30)
    # What one home ends is its own.
    code, document, err = rehearsal.gpuctl("reap")
    assert (code, document["reaped"]) == (0, []), err
    code, document, err = rehearsal.gpuctl("terminate", "--all", "--yes")
    assert code == 0, err
    assert len(document["receipts"]) == 1
    first.communicate(timeout=30)
    assert ended(second)["state"] == "succeeded"
    assert result(other, "second") == "second from attempt 1\n"
    nothing_bills(rehearsal)
    nothing_bills(other)
    other.kill_watchdog()


def test_a_ledger_that_is_locked_for_a_while_is_waited_for(rehearsal: Rehearsal) -> None:
    process = begun(rehearsal, "patient", 10)
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 30)
    with closing(sqlite3.connect(rehearsal.home / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        until(lambda: False, 3)
        other.execute("ROLLBACK")
    run = ended(process)
    assert [one["outcome"] for one in run["attempts"]] == ["completed"]
    names = [e.facts["name"] for e in rehearsal.events() if e.kind == "checkpoint"]
    assert names == [f"step-{i}" for i in range(1, 11)]
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_a_controller_that_sleeps_past_its_lease_recovers_and_never_resurrects(
    rehearsal: Rehearsal,
) -> None:
    process = begun(rehearsal, "sleeper", 100, "--lease", "6s")
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 30)
    process.send_signal(signal.SIGSTOP)
    try:
        # A closed lid: the machine's own guard and the watchdog do not sleep with us.
        assert until(lambda: not rehearsal.machine_processes(), 30), rehearsal.machine_processes()
        first = next(e.machine for e in rehearsal.events() if e.kind == "intended")
    finally:
        process.send_signal(signal.SIGCONT)
    run = ended(process)
    assert [one["outcome"] for one in run["attempts"]] == ["lost", "completed"]
    assert result(rehearsal, "sleeper") == "sleeper from attempt 2\n"
    kinds = [e.kind for e in rehearsal.events() if e.machine == first]
    assert "gone" in kinds
    assert "renewed" not in kinds[kinds.index("destroy_asked") :]
    steps = [e.facts["name"] for e in rehearsal.events() if e.kind == "checkpoint"]
    assert steps[-1] == "step-100"
    nothing_bills(rehearsal)
