"""`gpuctl run --machine`: on a machine that Terraform made, and on one that we provisioned."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clouds.rented import needs_machines
from tests.faults.at_aws import at_aws
from tests.faults.on_borrowed import NAME, BorrowedRehearsal, on_borrowed
from tests.faults.rehearsal import STEPS, TRAIN
from tests.run.whole_run import Ended, all_released, nothing_bills, result
from tests.waiting import until

pytestmark = needs_machines

LONGER = TRAIN.format(steps=60)


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[BorrowedRehearsal]:
    """A home that has adopted a machine."""
    with on_borrowed(tmp_path) as made:
        made.adopt()
        yield made


def still_there(rehearsal: BorrowedRehearsal) -> None:
    """The machine lives, is in the books, and nothing of a run is left on it."""
    assert until(rehearsal.nothing_is_left, 10), rehearsal.machine_folders()
    assert rehearsal.rented.alive
    code, document, err = rehearsal.gpuctl("list")
    assert [(one["name"], one["borrowed"]) for one in document["machines"]] == [(NAME, True)]
    code, document, err = rehearsal.gpuctl("audit")
    assert (code, document["unaccounted"]) == (0, []), err
    assert [one["whose"] for one in document["billing"]] == ["terraform"]


def test_a_whole_job_leaves_the_machine(rehearsal: BorrowedRehearsal) -> None:
    ended = Ended(*rehearsal.run())
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert result(rehearsal) == f"{STEPS} from attempt 1"
    assert max(one["step"] for one in ended.run["checkpoints"]) == STEPS
    [machine] = [attempt["machine"] for attempt in ended.run["attempts"]]
    assert (machine["provider"], machine["region"]) == ("borrowed", NAME)
    assert machine["provider_id"].startswith(f"{NAME}/gpuctl-count-")
    assert machine["price_hour"] == 0.36
    [receipt] = ended.document["receipts"]
    assert (receipt["name"], receipt["confirmed"]) == (machine["name"], True)
    assert len(receipt["confirmed_by"]) == 2
    assert 0 < receipt["cost_usd"] < 0.02
    assert f"{NAME} stays, at $0.36 an hour until" in ended.err
    assert "`terraform destroy` ends it" in ended.err
    still_there(rehearsal)
    code, document, _ = rehearsal.gpuctl("cost")
    assert (code, document["cost_usd"]) == (0, receipt["cost_usd"])


@pytest.mark.slow
def test_a_failing_job_leaves_the_machine_too(rehearsal: BorrowedRehearsal) -> None:
    ended = Ended(*rehearsal.run("run: (sleep 300 &) ; exit 7\n"))
    assert (ended.code, ended.run["exit_code"], ended.outcomes) == (1, 7, ["failed"]), ended.err
    still_there(rehearsal)
    again = Ended(*rehearsal.run())  # as often as one likes
    assert (again.code, again.outcomes) == (0, ["completed"]), again.err


@pytest.mark.slow
def test_what_does_not_fit_is_not_begun(rehearsal: BorrowedRehearsal) -> None:
    ended = Ended(*rehearsal.run("run: echo never\nresources: {gpu: A100-40GB, spot: true}\n"))
    assert (ended.code, ended.outcomes) == (3, []), ended.err
    assert f"{NAME} cannot be had" in ended.error["message"]
    assert "no NVIDIA GPU" in ended.error["message"]
    path = rehearsal.write_spec()
    code, document, _ = rehearsal.gpuctl("run", path, "--machine", "nobody", "--yes")
    assert (code, document["error"]["kind"]) == (2, "Usage")
    code, document, _ = rehearsal.gpuctl(
        "run", path, "--machine", "trainer", "--provider", "local", "--yes"
    )
    assert (code, document["error"]["kind"]) == (2, "Usage")


@pytest.mark.slow
def test_two_at_once_are_refused(rehearsal: BorrowedRehearsal) -> None:
    first = rehearsal.start(
        "run", rehearsal.write_spec("run: sleep 60\n"), "--machine", NAME, "--yes", "--json"
    )
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60)
    ended = Ended(*rehearsal.run())
    assert (ended.code, ended.outcomes) == (3, []), ended.err
    assert f"{NAME} is taken" in ended.error["message"]
    code, _, _ = rehearsal.gpuctl("terminate", NAME, "--yes")
    assert code == 2, "its machine is Terraform's, also while a run has it"
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 143, err
    assert json.loads(out)["run"]["state"] == "cancelled"
    still_there(rehearsal)


@pytest.mark.slow
def test_resume_after_a_kill(rehearsal: BorrowedRehearsal) -> None:
    process = rehearsal.start(
        "run", rehearsal.write_spec(), "--machine", "trainer", "--yes", "--json"
    )
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    ended = Ended(*rehearsal.gpuctl("resume", rehearsal.run_id()))
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert result(rehearsal) == f"{STEPS} from attempt 1"
    still_there(rehearsal)


@pytest.mark.slow
def test_when_everything_here_dies_the_machine_is_given_back(rehearsal: BorrowedRehearsal) -> None:
    path = rehearsal.write_spec("run: sleep 600\n")
    process = rehearsal.start(
        "run", path, "--machine", "trainer", "--lease", "12s", "--yes", "--json"
    )
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    rehearsal.kill_watchdog()
    assert until(rehearsal.nothing_is_left, 40), rehearsal.machine_folders()
    code, _, err = rehearsal.gpuctl("reap")
    assert code == 0, err
    still_there(rehearsal)


@pytest.mark.slow
def test_a_machine_of_ours_is_left_to_its_lease(tmp_path: Path) -> None:
    with at_aws(tmp_path) as rehearsal:
        code, document, err = rehearsal.gpuctl(
            "provision", "--provider", "aws", "--name", "own", "--yes"
        )
        assert code == 0, err
        name = document["machine"]["name"]
        path = rehearsal.write_spec()
        ended = Ended(*rehearsal.gpuctl("run", path, "--machine", "own", "--yes"))
        assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
        assert result(rehearsal) == f"{STEPS} from attempt 1"
        assert ended.run["cost_usd"] == 0, "it is paid for under its own name"
        assert f"`gpuctl terminate {name}` ends it now" in ended.err
        code, document, _ = rehearsal.gpuctl("list")
        assert [one["name"] for one in document["machines"]] == [name]
        assert rehearsal.gpuctl("terminate", "own", "--yes")[0] == 0
        all_released(rehearsal, ended)


@pytest.mark.slow
def test_a_borrowed_machine_that_is_taken_away_closes_the_books(tmp_path: Path) -> None:
    """Its cloud says that it is gone: nothing may still bill, and the run can be resumed."""
    with at_aws(tmp_path) as rehearsal:
        code, _, err = rehearsal.gpuctl(
            "provision", "--provider", "aws", "--spot", "--gpu", "A10G", "--name", "own", "--yes"
        )
        assert code == 0, err
        process = rehearsal.start(
            "run", rehearsal.write_spec(LONGER), "--machine", "own", "--yes", "--json"
        )
        assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 60)
        [instance] = [one.id for one in rehearsal.cloud.rentals.all.values() if one.alive]
        rehearsal.cloud.interrupt(instance, notice=12)
        assert until(lambda: "gone" in rehearsal.kinds(), 90)
        process.send_signal(signal.SIGTERM)  # else it waits for another machine
        out, err = process.communicate(timeout=90)
        ended = Ended(process.returncode, json.loads(out), err)
        assert "will be taken away" in err
        assert ended.outcomes[0] == "interrupted", err
        assert ended.document["receipts"][0]["confirmed"], err
        assert rehearsal.gpuctl("reap")[0] == 0
        nothing_bills(rehearsal)
