"""Machines that are taken away or vanish under a job."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest

from tests.faults.rehearsal import STEPS, Rehearsal
from tests.run.whole_run import Ended, all_released, run
from tests.waiting import until

COUNT = """
run: |
  start=1
  if [ -n "$GPUCTL_RESUME_FROM" ]; then start=$(( $(cat "$GPUCTL_RESUME_FROM") + 1 )); fi
  echo "from $start"
  for i in $(seq $start 12); do
    echo $i > "$GPUCTL_CHECKPOINT_DIR/.s"
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$i"
    sleep 0.2
  done
  mkdir -p out; echo "$i from attempt $GPUCTL_ATTEMPT" > out/result.txt
outputs: [{from: out, to: ./artifacts}]
"""


def kill_host(rehearsal: Rehearsal) -> None:
    """End the process that keeps the newest machine, as a computer that loses its power."""
    (machine,) = rehearsal.machine_folders()
    facts = json.loads((rehearsal.home / "local/machines" / machine / "host.json").read_text())
    os.kill(facts["process"][0], signal.SIGKILL)
    if facts["init"] is None:  # without namespaces nothing else goes with it
        for pid in rehearsal.machine_processes():
            os.kill(pid, signal.SIGKILL)


def checkpoints(rehearsal: Rehearsal) -> int:
    return rehearsal.kinds().count("checkpoint")


def test_no_recovery_left(rehearsal: Rehearsal) -> None:
    ended = run(
        rehearsal,
        f"{COUNT}on_interruption: {{max_recoveries: 0}}\n",
        "--rehearse-interruption",
        "1s",
    )
    assert (ended.code, ended.run["state"]) == (1, "failed"), ended.err
    assert ended.outcomes == ["interrupted"]
    assert "was taken away" in ended.run["reason"]
    assert "max_recoveries (0) is used up" in ended.run["reason"]
    assert "max_recoveries" in ended.error["message"]
    assert f"gpuctl resume {ended.run['id']}" in ended.error["next"]
    assert not (rehearsal.folder / "job/artifacts").exists()
    all_released(rehearsal, ended)

    again = Ended(*rehearsal.gpuctl("resume", ended.run["id"]))
    assert (again.code, again.run["state"]) == (0, "succeeded"), again.err
    assert again.outcomes == ["interrupted", "completed"]


@pytest.mark.parametrize("namespaces", ["1", "0"])
def test_a_machine_that_vanishes(rehearsal: Rehearsal, namespaces: str) -> None:
    rehearsal.settings["GPUCTL_LOCAL_NAMESPACES"] = namespaces
    path = rehearsal.write_spec(COUNT)
    process = rehearsal.start("run", path, "--provider", "local", "--yes", "--json")
    assert until(lambda: checkpoints(rehearsal) >= 3, 20), rehearsal.kinds()
    kill_host(rehearsal)
    out, err = process.communicate(timeout=60)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.run["state"]) == (0, "succeeded"), err
    assert ended.outcomes == ["lost", "completed"]
    assert ended.run["attempts"][0]["reason"]
    result = (rehearsal.folder / "job/artifacts/result.txt").read_text()
    assert result == f"{STEPS} from attempt 2\n"
    starts = [int(line.split()[1]) for line in err.splitlines() if re.fullmatch(r"from \d+", line)]
    assert starts[0] == 1
    assert starts[1] >= 3
    assert f"restored checkpoint step-{starts[1] - 1}" in err
    all_released(rehearsal, ended)


@pytest.mark.slow
def test_machines_that_keep_vanishing(rehearsal: Rehearsal) -> None:
    path = rehearsal.write_spec(f"{COUNT}on_interruption: {{max_recoveries: 1}}\n")
    process = rehearsal.start("run", path, "--provider", "local", "--yes", "--json")
    for number in (1, 2):
        before = checkpoints(rehearsal)
        assert until(
            lambda before=before, number=number: (  # type: ignore[misc]
                rehearsal.kinds().count("attempt_started") == number
                and checkpoints(rehearsal) > before + 1
            ),
            20,
        ), rehearsal.kinds()
        kill_host(rehearsal)
    out, err = process.communicate(timeout=60)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.run["state"], ended.outcomes) == (1, "failed", ["lost", "lost"]), err
    assert "max_recoveries (1) is used up" in ended.run["reason"]
    all_released(rehearsal, ended)


def test_a_notice_lets_the_job_save(rehearsal: Rehearsal) -> None:
    spec = """
run: |
  if [ -n "$GPUCTL_RESUME_FROM" ]; then mkdir -p out; cp "$GPUCTL_RESUME_FROM" out/; exit 0; fi
  trap 'echo kept > "$GPUCTL_CHECKPOINT_DIR/last-7"; exit 143' TERM
  while true; do sleep 0.1; done
outputs: [{from: out, to: ./artifacts}]
checkpoints: {settle: 0.5s}
"""
    ended = run(rehearsal, spec, "--rehearse-interruption", "1s,notice=5s")
    assert (ended.code, ended.outcomes) == (0, ["interrupted", "completed"]), ended.err
    assert (rehearsal.folder / "job/artifacts/last-7").read_text() == "kept\n"
    assert "will be taken away" in ended.err
    all_released(rehearsal, ended)
