"""`gpuctl cancel`: whoever looks after the run, and when nobody does."""

from __future__ import annotations

import json
import os
import platform
import signal
from typing import Any

import pytest

from gpuctl.fleet.keeper import process_started
from gpuctl.ledger import Ledger
from providers.base import SystemClock
from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import nothing_bills
from tests.waiting import until

SAVES = """
name: saves
run: |
  trap 'echo 9 > "$GPUCTL_CHECKPOINT_DIR/step-9"; exit 143' TERM
  echo half > half.txt
  echo working
  while true; do sleep 0.1; done
checkpoints: {settle: 0.2s}
outputs: [{from: half.txt, to: ./artifacts}]
"""
RUN = ("--provider", "local", "--yes")


def working(rehearsal: Rehearsal) -> bool:
    return any("working" in file.read_text() for file in rehearsal.home.glob("runs/*/log.jsonl"))


def cancelled(rehearsal: Rehearsal, document: Any, *, receipts: int = 1) -> None:
    run = document["run"]
    assert run["state"] == "cancelled"
    assert [one["outcome"] for one in run["attempts"]] == ["cancelled"]
    assert [one["confirmed"] for one in document["receipts"]] == [True] * receipts
    nothing_bills(rehearsal)


def saved(rehearsal: Rehearsal) -> list[str]:
    code, document, err = rehearsal.gpuctl("checkpoints", "saves")
    assert code == 0, err
    return [one["name"] for one in document["checkpoints"] if one["whole"]]


def test_an_attached_run(rehearsal: Rehearsal) -> None:
    process = rehearsal.start("run", rehearsal.write_spec(SAVES), *RUN, "--json")
    assert until(lambda: working(rehearsal), 30)
    code, document, err = rehearsal.gpuctl("cancel", "saves", "--yes")
    assert code == 0, err
    cancelled(rehearsal, document)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 143, err  # it was asked by a SIGTERM
    cancelled(rehearsal, json.loads(out))
    assert saved(rehearsal) == ["step-9"]


def test_a_detached_run(rehearsal: Rehearsal) -> None:
    rehearsal.gpuctl("run", rehearsal.write_spec(SAVES), *RUN, "--detach")
    assert until(lambda: working(rehearsal), 30)
    code, document, err = rehearsal.gpuctl("cancel", "saves", "--yes")
    assert code == 0, err
    cancelled(rehearsal, document)
    assert saved(rehearsal) == ["step-9"]
    assert (rehearsal.folder / "job" / "artifacts" / "half.txt").exists()


@pytest.mark.parametrize("detached", [False, True], ids=["attached", "detached"])
def test_a_run_whose_controller_was_killed(rehearsal: Rehearsal, detached: bool) -> None:
    spec = rehearsal.write_spec(SAVES)
    if detached:
        rehearsal.gpuctl("run", spec, *RUN, "--detach")
        assert until(lambda: working(rehearsal), 30)
        run = rehearsal.gpuctl("status", "saves")[1]["run"]
        kept = next(e for e in reversed(rehearsal.events()) if e.kind == "run_kept")
        pid = int(kept.facts["keeper"]["pid"])
        assert run["state"] == "running"
        os.kill(pid, signal.SIGKILL)
        assert until(lambda: process_started(pid) is None, 5)
    else:
        process = rehearsal.start("run", spec, *RUN)
        assert until(lambda: working(rehearsal), 30)
        process.kill()
        process.communicate(timeout=10)
    code, document, err = rehearsal.gpuctl("cancel", "saves", "--yes")
    assert code == 0, err
    cancelled(rehearsal, document)
    # It could save its last work, what there was of the result is here, the ledger knows it all.
    assert saved(rehearsal) == ["step-9"]
    assert [one["name"] for one in document["run"]["checkpoints"]] == ["step-9"]
    assert (rehearsal.folder / "job" / "artifacts" / "half.txt").exists()


@pytest.mark.slow
def test_a_run_whose_machine_is_gone_too(rehearsal: Rehearsal) -> None:
    process = rehearsal.start("run", rehearsal.write_spec(SAVES), *RUN, "--lease", "5s")
    assert until(lambda: working(rehearsal), 30)
    process.kill()
    process.communicate(timeout=10)
    assert until(lambda: "gone" in rehearsal.kinds(), 30)
    code, document, err = rehearsal.gpuctl("cancel", "saves", "--yes")
    assert code == 0, err
    run = document["run"]
    assert (run["state"], len(run["attempts"])) == ("cancelled", 1)
    assert run["attempts"][0]["ended_at"] is not None
    nothing_bills(rehearsal)


def test_a_run_that_has_ended_stays_as_it_is(rehearsal: Rehearsal) -> None:
    code, done, err = rehearsal.gpuctl(
        "run", rehearsal.write_spec("name: saves\nrun: 'true'\n"), *RUN
    )
    assert code == 0, err
    before = len(rehearsal.events())
    code, document, err = rehearsal.gpuctl("cancel", "saves", "--yes")
    assert code == 0, err
    assert document["run"]["state"] == done["run"]["state"] == "succeeded"
    assert len(rehearsal.events()) == before


def test_a_run_on_another_computer_is_left_to_it(rehearsal: Rehearsal) -> None:
    process = rehearsal.start("run", rehearsal.write_spec(SAVES), *RUN)
    assert until(lambda: working(rehearsal), 30)
    process.kill()
    process.communicate(timeout=10)
    elsewhere = f"not-{platform.node()}"
    with Ledger.open(rehearsal.home / "ledger.db", clock=SystemClock()) as ledger:
        run = ledger.find_run("saves")
        assert run.keeper is not None
        ledger.record(
            "run_kept",
            run=run.id,
            keeper={**run.keeper, "host": elsewhere, "boot": "its own"},
            detached=False,
        )
    for command in (("cancel", "saves", "--yes"), ("resume", "saves")):
        code, document, err = rehearsal.gpuctl(*command)
        assert code == 2, err
        assert elsewhere in document["error"]["message"]
    code, document, err = rehearsal.gpuctl("status", "saves")
    assert document["run"]["state"] == "running"
    # The machine itself can be ended from anywhere.
    code, document, err = rehearsal.gpuctl("terminate", "--all", "--yes")
    assert (code, [one["confirmed"] for one in document["receipts"]]) == (0, [True]), err
