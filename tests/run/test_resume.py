"""`gpuctl resume`: within the lease, after it, and of runs that have ended."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import nothing_bills
from tests.waiting import until

COUNTS = """
name: counts
env: {{FAILS: "{fails}"}}
budget: {{max_duration: {most}}}
run: |
  start=1
  if [ -n "$GPUCTL_RESUME_FROM" ]; then start=$(( $(cat "$GPUCTL_RESUME_FROM") + 1 )); fi
  for i in $(seq $start {steps}); do
    echo "step $i"
    echo $i > "$GPUCTL_CHECKPOINT_DIR/.s"
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$i"
    sleep 0.1
    if [ "$i/$GPUCTL_ATTEMPT" = "$FAILS" ]; then exit 7; fi
  done
  mkdir -p out
  echo "{steps} from attempt $GPUCTL_ATTEMPT" > out/result.txt
outputs: [{{from: out, to: ./artifacts}}]
"""
RUN = ("--provider", "local", "--yes")


def counts(steps: int, *, fails: str = "", most: str = "1h") -> str:
    return COUNTS.format(steps=steps, fails=fails, most=most)


def out_lines(rehearsal: Rehearsal) -> list[str]:
    """What the job wrote, every line of the journal, all attempts."""
    (journal,) = rehearsal.home.glob("runs/*/log.jsonl")
    entries = map(json.loads, journal.read_text().splitlines())
    return "".join(one["text"] for one in entries if one["stream"] == "out").splitlines()


def result(rehearsal: Rehearsal) -> str:
    return (rehearsal.folder / "job" / "artifacts" / "result.txt").read_text()


def killed_after(rehearsal: Rehearsal, process: subprocess.Popen[str], checkpoints: int) -> None:
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= checkpoints, 30)
    process.kill()
    process.communicate(timeout=10)


def test_a_run_that_is_looked_after_is_left_alone(rehearsal: Rehearsal) -> None:
    process = rehearsal.start("run", rehearsal.write_spec(counts(1000)), *RUN)
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 30)
    code, document, err = rehearsal.gpuctl("resume", "counts")
    assert code == 2, err
    assert f"process {process.pid}" in document["error"]["message"]
    assert process.poll() is None
    assert rehearsal.kinds().count("intended") == 1
    process.terminate()
    process.communicate(timeout=30)
    nothing_bills(rehearsal)


def test_a_run_that_has_succeeded_is_over(rehearsal: Rehearsal) -> None:
    code, _, err = rehearsal.gpuctl("run", rehearsal.write_spec(counts(2)), *RUN)
    assert code == 0, err
    code, document, err = rehearsal.gpuctl("resume", "counts")
    assert (code, document["run"]["state"], document["receipts"]) == (0, "succeeded", [])
    assert rehearsal.kinds().count("intended") == 1


def test_a_failed_run_starts_again_from_its_last_checkpoint(rehearsal: Rehearsal) -> None:
    code, document, err = rehearsal.gpuctl(
        "run", rehearsal.write_spec(counts(6, fails="4/1")), *RUN
    )
    assert (code, document["run"]["exit_code"]) == (1, 7), err
    code, document, err = rehearsal.gpuctl("resume", "counts")
    assert code == 0, err
    run = document["run"]
    assert (run["state"], run["exit_code"]) == ("succeeded", 0)
    assert [one["outcome"] for one in run["attempts"]] == ["failed", "completed"]
    assert out_lines(rehearsal) == [f"step {i}" for i in range(1, 7)]
    assert result(rehearsal) == "6 from attempt 2\n"
    assert len(document["receipts"]) == 1  # the first one's was given before
    nothing_bills(rehearsal)


def test_a_cancelled_run_goes_on(rehearsal: Rehearsal) -> None:
    process = rehearsal.start("run", rehearsal.write_spec(counts(30)), *RUN)
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 30)
    process.terminate()
    process.communicate(timeout=30)
    code, document, err = rehearsal.gpuctl("resume", "counts")
    assert code == 0, err
    assert [one["outcome"] for one in document["run"]["attempts"]] == ["cancelled", "completed"]
    assert out_lines(rehearsal) == [f"step {i}" for i in range(1, 31)]
    nothing_bills(rehearsal)


def test_a_capped_run_is_refused_by_the_same_cap(rehearsal: Rehearsal) -> None:
    code, document, err = rehearsal.gpuctl(
        "run", rehearsal.write_spec(counts(1000, most="5s")), *RUN
    )
    assert (code, document["run"]["attempts"][0]["outcome"]) == (5, "capped"), err
    for _ in range(4):  # what is left of the cap may do for another try
        rented = rehearsal.kinds().count("intended")
        code, document, err = rehearsal.gpuctl("resume", "counts")
        assert code == 5, err
        assert "max_duration" in document["error"]["message"]
        if rehearsal.kinds().count("intended") == rented:
            break
    else:
        pytest.fail("it goes on renting")
    nothing_bills(rehearsal)


def test_within_the_lease_the_job_is_picked_up_and_no_line_is_lost(rehearsal: Rehearsal) -> None:
    process = rehearsal.start("run", rehearsal.write_spec(counts(40)), *RUN)
    killed_after(rehearsal, process, 3)
    for _ in range(2):  # the one who picked it up dies too
        seen = rehearsal.kinds().count("checkpoint")
        killed_after(rehearsal, rehearsal.start("resume", "counts"), seen + 4)
    code, document, err = rehearsal.gpuctl("resume", "counts")
    assert code == 0, err
    assert [(one["number"], one["outcome"]) for one in document["run"]["attempts"]] == [
        (1, "completed")
    ]
    assert out_lines(rehearsal) == [f"step {i}" for i in range(1, 41)]
    noted = [e.facts["name"] for e in rehearsal.events() if e.kind == "checkpoint"]
    assert noted == [f"step-{i}" for i in range(1, 41)]
    assert rehearsal.kinds().count("intended") == 1
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_after_the_lease_the_next_attempt_starts_from_the_last_checkpoint(
    rehearsal: Rehearsal,
) -> None:
    process = rehearsal.start("run", rehearsal.write_spec(counts(90)), *RUN, "--lease", "5s")
    killed_after(rehearsal, process, 3)
    assert until(rehearsal.nothing_is_left, 30), rehearsal.machine_processes()
    code, document, err = rehearsal.gpuctl("resume", "counts")
    assert code == 0, err
    assert [one["outcome"] for one in document["run"]["attempts"]] == ["lost", "completed"]
    assert result(rehearsal) == "90 from attempt 2\n"
    restored = [line for line in err.splitlines() if "restored checkpoint" in line]
    assert restored, err
    # What the first machine synced at the end of its lease was not done again.
    lines = out_lines(rehearsal)
    first_of_second = lines.index("step 90") - (90 - int(restored[0].rpartition("-")[2])) + 1
    assert lines[first_of_second] == f"step {int(restored[0].rpartition('-')[2]) + 1}"
    nothing_bills(rehearsal)


@pytest.mark.parametrize("by", ["resume", "resume --detach"])
@pytest.mark.slow
def test_only_one_of_two_who_resume_at_once_gets_it(rehearsal: Rehearsal, by: str) -> None:
    process = rehearsal.start("run", rehearsal.write_spec(counts(60)), *RUN)
    killed_after(rehearsal, process, 2)
    word, *flags = by.split()
    both = [rehearsal.start(word, "counts", *flags, "--json") for _ in range(2)]
    done = [(one.communicate(timeout=60), one.returncode) for one in both]
    codes = sorted(code for _, code in done)
    assert codes in ([0, 1], [0, 2]), done
    if flags:
        assert until(lambda: "run_state:succeeded" in rehearsal.kinds(), 40)
    assert rehearsal.kinds().count("intended") == 1
    assert out_lines(rehearsal) == [f"step {i}" for i in range(1, 61)]
    nothing_bills(rehearsal)
