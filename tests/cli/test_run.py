"""`run` and what belongs to it, with real jobs on this computer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.cli.opening import opened
from gpuctl.cli.output import Partial
from gpuctl.cli.run import parse_rehearsal
from gpuctl.cli.runs import last_lines
from gpuctl.cli.stopping import left_behind, stoppable
from gpuctl.errors import Interrupted
from gpuctl.home import open_home
from gpuctl.ledger import Ledger
from gpuctl.quantities import exact_duration
from gpuctl.run.journal import Entry, Journal
from tests.cli.conftest import Gpuctl
from tests.waiting import until

LOCAL = ("--provider", "local", "--yes")
QUICK = """
name: quick
run: |
  echo "hello from $GPUCTL_RUN_ID"
  mkdir -p out "$GPUCTL_CHECKPOINT_DIR"
  echo 1 > "$GPUCTL_CHECKPOINT_DIR/.new" && mv "$GPUCTL_CHECKPOINT_DIR/.new" \
"$GPUCTL_CHECKPOINT_DIR/step-1"
  echo result > out/result.txt
checkpoints: {dir: checkpoints, keep: 2}
outputs: [{from: out, to: ./artifacts}]
"""
ENDLESS = "name: endless\nrun: 'echo started; while true; do sleep 0.1; done'\n"


def spec(text: str) -> str:
    Path("train.yaml").write_text(text)
    return "train.yaml"


def test_a_run_from_the_spec_to_the_result(gpuctl: Gpuctl) -> None:
    answer = gpuctl("run", spec(QUICK), *LOCAL, "--json")
    assert answer.code == 0, answer.err
    run = answer.json["run"]
    assert (run["state"], run["exit_code"], run["name"]) == ("succeeded", 0, "quick")
    assert [one["outcome"] for one in run["attempts"]] == ["completed"]
    assert [one["confirmed"] for one in answer.json["receipts"]] == [True]
    assert Path("artifacts/result.txt").read_text() == "result\n"
    assert f"hello from {run['id']}" in answer.err  # the job's output is not the result

    status = gpuctl("status", "quick", "--json").json["run"]
    assert (status["id"], status["state"]) == (run["id"], "succeeded")
    assert gpuctl("runs", "--json").json["runs"][0]["id"] == run["id"]
    assert run["id"] in gpuctl("runs").out

    durable = gpuctl("checkpoints", "quick", "--json").json["checkpoints"]
    assert [(one["name"], one["step"], one["whole"]) for one in durable] == [("step-1", 1, True)]

    assert f"hello from {run['id']}" in gpuctl("logs", "quick").out
    lines = [json.loads(one) for one in gpuctl("logs", "quick", "-f", "--json").out.splitlines()]
    assert all(set(one) == {"attempt", "at", "stream", "text"} for one in lines)
    assert gpuctl("logs", "quick", "--attempt", 2).code == 2

    cost = gpuctl("cost", run["id"], "--json").json
    assert (cost["run"], cost["cost_usd"], len(cost["machines"])) == (run["id"], 0.0, 1)

    # It has ended: nothing is left to resume, cancel or bill.
    assert gpuctl("resume", "quick", "--json").json["run"]["state"] == "succeeded"
    assert gpuctl("cancel", "quick", "--yes", "--json").json["run"]["state"] == "succeeded"
    assert gpuctl("audit", "--json").json["billing"] == []


def test_a_missing_part_of_a_checkpoint_is_not_whole(gpuctl: Gpuctl, home: Path) -> None:
    run = gpuctl("run", spec(QUICK), *LOCAL, "--json").json["run"]
    (blob,) = [
        file
        for file in (home / "store" / run["id"] / "blobs").rglob("*")
        if file.is_file() and file.read_bytes() == b"1\n"
    ]
    blob.unlink()
    durable = gpuctl("checkpoints", "quick", "--json").json["checkpoints"]
    assert [one["whole"] for one in durable] == [False]
    assert "NOT WHOLE" in gpuctl("checkpoints", "quick").out


def test_a_job_that_fails_is_1_beside_the_run_and_its_receipt(gpuctl: Gpuctl) -> None:
    answer = gpuctl("run", spec("name: bad\nrun: 'echo oops >&2; exit 9'\n"), *LOCAL, "--json")
    assert answer.code == 1
    assert answer.json["run"]["state"] == "failed"
    assert answer.json["run"]["exit_code"] == 9
    assert answer.json["error"]["may_bill"] is False
    assert answer.json["receipts"][0]["confirmed"] is True
    assert "9" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["missing.yaml", *LOCAL], "missing.yaml"),
        (["train.yaml", *LOCAL, "--set", "resources.gpux=A100"], "did you mean 'gpu'"),
        (["train.yaml", "--provider", "local"], "no terminal to ask on"),
        (["train.yaml", "--yes", "--rehearse-interruption", "8s"], "--provider local"),
        (["train.yaml", *LOCAL, "--rehearse-interruption", "8"], "no unit"),
        (["train.yaml", *LOCAL, "--lease", "1s"], "--lease"),
        (["train.yaml", *LOCAL, "--set", "secrets=[CANARY_TOKEN]"], "CANARY_TOKEN"),
        (["train.yaml", *LOCAL, "--set", "workdir=nowhere"], "nowhere"),
    ],
)
def test_wrong_usage_opens_no_run(gpuctl: Gpuctl, argv: list[str], said: str) -> None:
    spec(QUICK)
    answer = gpuctl("run", *argv, "--json")
    assert answer.code == 2
    assert said in answer.json["error"]["message"]
    assert gpuctl("runs", "--json").json == {"runs": []}


def test_a_broken_spec_is_one_line_with_file_line_and_key(gpuctl: Gpuctl) -> None:
    answer = gpuctl("run", spec("run: x\nresources:\n  gpus: A100\n"), *LOCAL)
    assert answer.code == 2
    assert "train.yaml:3: resources.gpus" in answer.err
    assert len(answer.err.splitlines()) <= 2


def test_detach_follow_and_cancel(gpuctl: Gpuctl) -> None:
    answer = gpuctl("run", spec(ENDLESS), *LOCAL, "--detach", "--json")
    assert answer.code == 0, answer.err
    run_id = answer.json["run"]["id"]
    assert answer.json["run"]["detached"] is True
    assert until(lambda: "started" in gpuctl("logs", run_id).out, 30)
    assert gpuctl("cancel", run_id, "--json").code == 2  # without --yes
    done = gpuctl("cancel", run_id, "--yes", "--json")
    assert done.code == 0, done.err
    assert done.json["run"]["state"] == "cancelled"
    assert done.json["receipts"][0]["confirmed"] is True
    assert "started" in gpuctl("logs", "-f", run_id).out  # ends, because the run has


def test_terminating_a_runs_machine_ends_the_run_and_rents_no_other(gpuctl: Gpuctl) -> None:
    run_id = gpuctl("run", spec(ENDLESS), *LOCAL, "--detach", "--json").json["run"]["id"]
    assert until(lambda: "started" in gpuctl("logs", run_id).out, 30)
    answer = gpuctl("terminate", "--all", "--yes", "--json")
    assert answer.code == 0, answer.err
    assert [one["confirmed"] for one in answer.json["receipts"]] == [True]
    run = gpuctl("status", run_id, "--json").json["run"]
    assert (run["state"], len(run["attempts"])) == ("cancelled", 1)
    assert gpuctl("list", "--json").json == {"machines": []}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 130)]
)
def test_a_signal_stops_the_job_and_releases_the_machine(
    gpuctl: Gpuctl, number: signal.Signals, code: int
) -> None:
    child = started(spec(ENDLESS))
    assert until(lambda: "started" in gpuctl("logs", "endless").out, 30)
    child.send_signal(number)
    out, _ = child.communicate(timeout=60)
    assert child.returncode == code
    document = json.loads(out)
    assert document["error"]["kind"] == "Interrupted"
    assert document["run"]["state"] == "cancelled"
    assert gpuctl("list", "--json").json == {"machines": []}


def test_after_kill_9_the_run_says_so_and_resume_carries_on(gpuctl: Gpuctl) -> None:
    text = (
        "name: comeback\nrun: |\n  echo started\n"
        '  if [ "$GPUCTL_ATTEMPT" = 1 ]; then while [ ! -e go ]; do sleep 0.1; done; fi\n'
    )
    child = started(spec(text))
    assert until(lambda: "started" in gpuctl("logs", "comeback").out, 30)
    child.kill()
    child.communicate()
    dead = gpuctl("status", "comeback", "--json").json["run"]
    assert dead["reason"] == f"its keeper died; `gpuctl resume {dead['id']}` carries on"
    assert dead["state"] == "running"
    assert "its keeper died" in gpuctl("logs", "comeback", "-f").err
    (machine,) = gpuctl("list", "--json").json["machines"]
    assert gpuctl("exec", machine["name"], "--", "touch", "work/go").code == 0
    done = gpuctl("resume", "comeback", "--json")
    assert done.code == 0, done.err
    assert done.json["run"]["state"] == "succeeded"
    assert [one["number"] for one in done.json["run"]["attempts"]] == [1]


def started(spec_file: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "gpuctl", "run", spec_file, *LOCAL, "--json"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(os.environ),
    )


# ------------------------------------------------------------------------- pure parts


@given(
    st.timedeltas(timedelta(seconds=1), timedelta(days=1)),
    st.none() | st.timedeltas(timedelta(seconds=1), timedelta(days=1)),
)
def test_rehearsals_read_back(after: timedelta, notice: timedelta | None) -> None:
    text = exact_duration(after) + (f",notice={exact_duration(notice)}" if notice else "")
    read = parse_rehearsal(text)
    assert read.after_seconds == after.total_seconds()
    assert read.notice_seconds == (notice.total_seconds() if notice else 0)


@pytest.mark.parametrize("text", ["", "8", "8s,", "8s,notice", "8s,notice=", "x,notice=5s", "-1s"])
def test_what_is_no_rehearsal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_rehearsal(text)


@given(st.lists(st.text(st.characters(codec="ascii", exclude_categories=["C"]))), st.integers(0, 9))
def test_the_last_lines_are_the_end_of_the_text(lines: list[str], count: int) -> None:
    text = "".join(one + "\n" for one in lines)
    kept = lines[-count:] if count else []
    assert last_lines(text, count) == "".join(one + "\n" for one in kept)


def test_leaving_at_once_names_what_may_bill(gpuctl: Gpuctl, ledger: Ledger) -> None:
    assert left_behind([]).may_bill is False
    gpuctl("provision", *LOCAL)
    (row,) = ledger.machines(open_only=True)
    error = left_behind([row])
    assert (error.exit_code, error.may_bill, error.machine) == (130, True, row.name)
    assert row.name in str(error.next)


def test_a_second_ctrl_c_becomes_an_error_with_the_document_as_it_is_then(home: Path) -> None:
    def insist() -> None:
        with opened() as fleet, stoppable(fleet, document=lambda: {"run": {"id": "x"}}) as stop:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(Interrupted):
                stop.pause(0)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Partial) as left:
        insist()
    assert left.value.error.exit_code == 130
    assert left.value.document == {"run": {"id": "x"}}


def test_logs_spare_the_terminal_and_json_keeps_all(
    gpuctl: Gpuctl, ledger: Ledger, home: Path
) -> None:
    here = open_home()
    ledger.record(
        "run_opened", run="demo-1a2b3c", name="demo", spec={}, owner=here.owner, store="/s",
        detached=False,
    )  # fmt: skip
    ledger.record("run_state", run="demo-1a2b3c", state="failed")
    journal = Journal(here, "demo-1a2b3c")
    for number, text in ((1, "one\n"), (2, "\x1b[2Jtwo\n"), (2, "three\n")):
        journal.append(Entry(number, 1, 1763730000.5, "out", text))
    journal.close()
    assert gpuctl("logs", "demo").out == "one\ntwo\nthree\n"
    assert gpuctl("logs", "demo", "--tail", 1).out == "three\n"
    assert gpuctl("logs", "demo", "--tail", 0).out == ""
    assert gpuctl("logs", "demo", "-f", "--attempt", 2).out == "two\nthree\n"
    documents: list[Any] = [
        json.loads(line) for line in gpuctl("logs", "demo", "--tail", 9, "--json").out.splitlines()
    ]
    assert documents[1] == {
        "attempt": 2, "at": "2025-11-21T13:00:00.500000Z", "stream": "out", "text": "\x1b[2Jtwo\n",
    }  # fmt: skip
