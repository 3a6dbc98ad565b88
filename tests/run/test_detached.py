"""`run --detach`: a controller in the background, and what becomes of the run without it."""

from __future__ import annotations

import json
import os
import signal
import time
from datetime import UTC, datetime

import pytest

from gpuctl.fleet.keeper import process_started
from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import nothing_bills
from tests.waiting import until

COUNTS = """
name: counts
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
  echo "{steps} from attempt $GPUCTL_ATTEMPT" > out/result.txt
  exit {code}
checkpoints: {{keep: 3}}
outputs: [{{from: out, to: ./artifacts}}, {{from: nowhere, to: ./elsewhere}}]
"""
LEASE = "5s"


def detached(rehearsal: Rehearsal, *, steps: int = 12, code: int = 0) -> str:
    """Start a run in the background; return its id."""
    path = rehearsal.write_spec(COUNTS.format(steps=steps, code=code))
    code, document, err = rehearsal.gpuctl(
        "run", path, "--provider", "local", "--yes", "--detach", "--lease", LEASE
    )
    assert code == 0, err
    assert document["run"]["detached"] is True
    run_id: str = document["run"]["id"]
    return run_id


def controller_of(rehearsal: Rehearsal) -> int:
    return next(
        int(event.facts["keeper"]["pid"])
        for event in reversed(rehearsal.events())
        if event.kind == "run_kept"
    )


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert until(lambda: process_started(pid) is None, 10)


def state(rehearsal: Rehearsal, run_id: str) -> str:
    return str(rehearsal.gpuctl("status", run_id)[1]["run"]["state"])


def intended(rehearsal: Rehearsal) -> int:
    """How many machines were ever asked for."""
    return rehearsal.kinds().count("intended")


def result(rehearsal: Rehearsal) -> str:
    return (rehearsal.folder / "job" / "artifacts" / "result.txt").read_text()


def steps_in_journal(rehearsal: Rehearsal, run_id: str) -> list[str]:
    code, _, _ = rehearsal.gpuctl("status", run_id)
    assert code == 0
    text = "".join(
        entry["text"]
        for entry in map(
            json.loads, (rehearsal.home / "runs" / run_id / "log.jsonl").read_text().splitlines()
        )
        if entry["stream"] == "out"
    )
    return text.splitlines()


def test_the_background_carries_it_to_its_end(rehearsal: Rehearsal) -> None:
    began = time.monotonic()
    run_id = detached(rehearsal, steps=20)
    assert time.monotonic() - began < 10
    follow = rehearsal.start("logs", run_id, "-f", "--json")
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 20)
    (listed,) = rehearsal.gpuctl("list")[1]["machines"]
    assert (listed["run"], listed["detached"]) == (run_id, True)
    assert rehearsal.gpuctl("runs")[1]["runs"][0]["state"] == "running"
    assert state(rehearsal, run_id) == "running"
    assert rehearsal.gpuctl("checkpoints", run_id)[1]["checkpoints"][0]["whole"] is True
    out, err = follow.communicate(timeout=30)  # ends when the run has
    assert follow.returncode == 0, err
    followed = "".join(
        one["text"] for one in map(json.loads, out.splitlines()) if one["stream"] == "out"
    )
    assert followed.splitlines() == [f"step {i}" for i in range(1, 21)]
    run = rehearsal.gpuctl("status", run_id)[1]["run"]
    assert (run["state"], [one["outcome"] for one in run["attempts"]]) == (
        "succeeded",
        ["completed"],
    )
    assert result(rehearsal) == "20 from attempt 1\n"
    nothing_bills(rehearsal)


@pytest.mark.parametrize("watchdog_lives", [True, False], ids=["watchdog", "nobody"])
def test_the_machine_alone_ends_the_job_and_itself(
    rehearsal: Rehearsal, watchdog_lives: bool
) -> None:
    run_id = detached(rehearsal)
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 20)
    kill(controller_of(rehearsal))
    if not watchdog_lives:
        rehearsal.kill_watchdog()
    code, document, _ = rehearsal.gpuctl("reap")
    assert (code, document["reaped"]) == (0, [])  # detached: it goes on without a keeper
    status = rehearsal.gpuctl("status", run_id)[1]["run"]
    assert f"gpuctl resume {run_id}" in status["reason"]
    assert until(lambda: not rehearsal.machine_processes(), 30), rehearsal.machine_processes()
    code, document, err = rehearsal.gpuctl("resume", run_id)
    assert code == 0, err
    run = document["run"]
    assert (run["state"], run["exit_code"]) == ("succeeded", 0)
    assert [(one["number"], one["outcome"]) for one in run["attempts"]] == [(1, "completed")]
    assert [one["name"] for one in run["checkpoints"]] == ["step-10", "step-11", "step-12"]
    assert "outputs that were not there: nowhere" in run["reason"]
    assert result(rehearsal) == "12 from attempt 1\n"
    assert intended(rehearsal) == 1  # nothing was rented for it
    nothing_bills(rehearsal)
    # Once more: it is over.
    code, document, _ = rehearsal.gpuctl("resume", run_id)
    assert (code, document["run"]["state"], intended(rehearsal)) == (0, "succeeded", 1)


def test_a_job_that_failed_while_nobody_looked_has_failed(rehearsal: Rehearsal) -> None:
    run_id = detached(rehearsal, code=3)
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 20)
    kill(controller_of(rehearsal))
    assert until(rehearsal.nothing_is_left, 30), rehearsal.machine_processes()
    code, document, err = rehearsal.gpuctl("resume", run_id)
    assert code == 1, err
    run = document["run"]
    assert (run["state"], run["exit_code"]) == ("failed", 3)
    assert [one["outcome"] for one in run["attempts"]] == ["failed"]
    assert document["error"]["kind"] == "JobFailed"
    assert intended(rehearsal) == 1
    assert result(rehearsal) == "12 from attempt 1\n"  # what it left is fetched all the same


def test_resume_picks_up_what_still_runs(rehearsal: Rehearsal) -> None:
    run_id = detached(rehearsal, steps=30)
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 20)
    kill(controller_of(rehearsal))
    # Past its lease: the machine goes on by itself, and can be picked up again.
    lease = next(e for e in reversed(rehearsal.events()) if e.kind in ("renewed", "intended"))
    left = datetime.fromisoformat(lease.facts["lease_until"]) - datetime.now(UTC)
    until(lambda: False, left.total_seconds() + 0.5)
    code, document, err = rehearsal.gpuctl("resume", run_id)
    assert code == 0, err
    assert [(one["number"], one["outcome"]) for one in document["run"]["attempts"]] == [
        (1, "completed")
    ]
    assert steps_in_journal(rehearsal, run_id) == [f"step {i}" for i in range(1, 31)]
    assert result(rehearsal) == "30 from attempt 1\n"
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_an_output_that_the_store_lost_is_made_again(rehearsal: Rehearsal) -> None:
    run_id = detached(rehearsal)
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 20)
    kill(controller_of(rehearsal))
    assert until(rehearsal.nothing_is_left, 30)
    store = rehearsal.home / "store" / run_id / "manifests"
    output = next(file for file in sorted(store.iterdir()) if '"kind":"output"' in file.read_text())
    output.unlink()
    code, document, err = rehearsal.gpuctl("resume", run_id)
    assert code == 0, err
    assert [one["outcome"] for one in document["run"]["attempts"]] == ["lost", "completed"]
    assert result(rehearsal) == "12 from attempt 2\n"
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_a_run_can_be_detached_later(rehearsal: Rehearsal) -> None:
    spec = rehearsal.write_spec(COUNTS.format(steps=30, code=0))
    process = rehearsal.start("run", spec, "--provider", "local", "--yes", "--lease", LEASE)
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 20)
    process.kill()
    process.communicate(timeout=10)
    code, document, err = rehearsal.gpuctl("resume", "counts", "--detach")
    assert code == 0, err
    run_id = document["run"]["id"]
    noted = rehearsal.kinds().count("checkpoint")
    assert until(lambda: rehearsal.kinds().count("checkpoint") > noted, 20)
    kill(controller_of(rehearsal))
    assert until(rehearsal.nothing_is_left, 30), rehearsal.machine_processes()
    code, document, err = rehearsal.gpuctl("resume", run_id)
    assert code == 0, err
    assert [one["outcome"] for one in document["run"]["attempts"]] == ["completed"]
    assert result(rehearsal) == "30 from attempt 1\n"
