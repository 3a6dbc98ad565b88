"""Ctrl-C, SIGTERM and SIGHUP to an attached run, at every stage of it."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import pytest

from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import nothing_bills
from tests.waiting import until

SAVES = """
name: saves
setup: |
  echo setting up
  sleep {setup}
run: |
  mkdir -p "$GPUCTL_CHECKPOINT_DIR" out
  save() {{
    echo "$1" > "$GPUCTL_CHECKPOINT_DIR/.s"
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$1"
  }}
  trap 'save 99; exit {code}' TERM
  echo half > out/result.txt
  save 1
  echo working
  for i in $(seq {steps}); do sleep 0.1; done
outputs: [{{from: out, to: ./artifacts}}]
"""
STUBBORN = """
name: stubborn
run: |
  trap '' TERM
  echo working
  while true; do sleep 0.1; done
"""


def begun(rehearsal: Rehearsal, spec: str, *more: str) -> subprocess.Popen[str]:
    path = rehearsal.write_spec(spec)
    return rehearsal.start("run", path, "--provider", "local", "--yes", "--json", *more)


def endless(*, setup: float = 0, code: int = 143) -> str:
    return SAVES.format(setup=setup, steps=10_000, code=code)


def ended(process: subprocess.Popen[str], seconds: float = 30) -> tuple[int, Any, str]:
    """Exit code, the one JSON document, stderr."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, json.loads(out), err


def said(rehearsal: Rehearsal, text: str) -> bool:
    """Whether the job has written it, as far as the journal knows."""
    return any(text in file.read_text() for file in rehearsal.home.glob("runs/*/log.jsonl"))


def released_as_cancelled(rehearsal: Rehearsal, document: Any) -> None:
    run = document["run"]
    assert run["state"] == "cancelled"
    assert {one["outcome"] for one in run["attempts"]} <= {"cancelled"}
    assert document["error"]["kind"] == "Interrupted"
    assert document["error"]["may_bill"] is False
    assert all(one["confirmed"] for one in document["receipts"])
    assert len(document["receipts"]) == len(run["attempts"])
    nothing_bills(rehearsal)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 130)]
)
def test_in_the_middle_of_the_job_its_last_work_is_saved(
    rehearsal: Rehearsal, number: signal.Signals, code: int
) -> None:
    process = begun(rehearsal, endless())
    assert until(lambda: said(rehearsal, "working"), 30)
    process.send_signal(number)
    got, document, err = ended(process)
    assert got == code, err
    released_as_cancelled(rehearsal, document)
    saved = [one["name"] for one in document["run"]["checkpoints"]]
    assert saved == ["step-1", "step-99"]
    durable = rehearsal.gpuctl("checkpoints", "saves")[1]["checkpoints"]
    assert [(one["name"], one["whole"]) for one in durable] == [("step-1", True), ("step-99", True)]
    # What was there of the result is not thrown away either.
    assert (rehearsal.folder / "job/artifacts/result.txt").read_text() == "half\n"


def test_a_job_that_ends_well_when_it_is_told_to_stop_has_not_succeeded(
    rehearsal: Rehearsal,
) -> None:
    process = begun(rehearsal, endless(code=0))
    assert until(lambda: said(rehearsal, "working"), 30)
    process.send_signal(signal.SIGINT)
    got, document, err = ended(process)
    assert got == 130, err
    released_as_cancelled(rehearsal, document)
    assert [one["name"] for one in document["run"]["checkpoints"]] == ["step-1", "step-99"]


@pytest.mark.parametrize("moment", ["intended", "created", "ready", "run_state:preparing"])
def test_while_the_machine_is_made_ready(rehearsal: Rehearsal, moment: str) -> None:
    process = begun(rehearsal, endless())
    assert until(lambda: moment in rehearsal.kinds(), 30, every=0.005)
    process.send_signal(signal.SIGINT)
    got, document, err = ended(process)
    assert got == 130, err
    released_as_cancelled(rehearsal, document)


def test_before_anything_is_rented(rehearsal: Rehearsal) -> None:
    process = begun(rehearsal, endless())
    assert until(lambda: "run_kept" in rehearsal.kinds(), 30, every=0.001)
    process.send_signal(signal.SIGTERM)
    got, document, err = ended(process)
    assert got == 143, err
    released_as_cancelled(rehearsal, document)


def test_while_setup_runs(rehearsal: Rehearsal) -> None:
    process = begun(rehearsal, endless(setup=60))
    assert until(lambda: said(rehearsal, "setting up"), 30)
    process.send_signal(signal.SIGINT)
    got, document, err = ended(process)
    assert got == 130, err
    released_as_cancelled(rehearsal, document)
    assert document["run"]["checkpoints"] == []


@pytest.mark.parametrize("moment", ["run_state:finishing", "destroy_asked"])
def test_once_the_job_is_done_the_rest_is_done_too(rehearsal: Rehearsal, moment: str) -> None:
    process = begun(rehearsal, SAVES.format(setup=0, steps=1, code=143))
    assert until(lambda: moment in rehearsal.kinds(), 30, every=0.001)
    process.send_signal(signal.SIGINT)
    got, document, err = ended(process)
    # All that was asked for has been done: nothing was cancelled.
    assert (got, document["run"]["state"]) == (0, "succeeded"), err
    assert [one["confirmed"] for one in document["receipts"]] == [True]
    assert (rehearsal.folder / "job/artifacts/result.txt").read_text() == "half\n"
    nothing_bills(rehearsal)


def test_while_an_interrupted_machine_is_released(rehearsal: Rehearsal) -> None:
    process = begun(rehearsal, endless(), "--rehearse-interruption", "1s")
    assert until(lambda: "destroy_asked" in rehearsal.kinds(), 30, every=0.005)
    process.send_signal(signal.SIGINT)
    got, document, err = ended(process)
    assert got == 130, err
    run = document["run"]
    assert (run["state"], [one["outcome"] for one in run["attempts"]]) == (
        "cancelled",
        ["interrupted"],
    )
    nothing_bills(rehearsal)


def test_twice_leaves_at_once_and_the_watchdog_ends_the_machine(rehearsal: Rehearsal) -> None:
    process = begun(rehearsal, STUBBORN)
    assert until(lambda: said(rehearsal, "working"), 30)
    process.send_signal(signal.SIGINT)
    assert until(lambda: said(rehearsal, "SIGTERM sent"), 10)
    process.send_signal(signal.SIGINT)
    got, document, err = ended(process, seconds=3)
    assert got == 130, err
    (machine,) = [one["machine"]["name"] for one in document["run"]["attempts"]]
    error = document["error"]
    assert (error["machine"], error["may_bill"]) == (machine, True)
    assert machine in error["message"]
    assert f"gpuctl terminate {machine}" in error["next"]
    assert "may still be billing" in err
    assert document["run"]["state"] == "cancelled"
    assert until(rehearsal.nothing_is_left, 10), rehearsal.machine_processes()
    assert until(lambda: "gone" in rehearsal.kinds(), 5)
    nothing_bills(rehearsal)


def test_twice_while_a_machine_is_made(rehearsal: Rehearsal) -> None:
    process = begun(rehearsal, endless())
    assert until(lambda: "intended" in rehearsal.kinds(), 30, every=0.005)
    process.send_signal(signal.SIGINT)
    until(lambda: False, 0.05)  # two that wait to be delivered count as one
    process.send_signal(signal.SIGINT)
    got, document, err = ended(process)
    assert got == 130, err
    assert document["run"]["state"] == "cancelled"
    assert until(lambda: {"gone", "absent"} & set(rehearsal.kinds()), 20), rehearsal.kinds()
    nothing_bills(rehearsal)
