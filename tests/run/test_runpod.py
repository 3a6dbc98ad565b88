"""Whole jobs on the emulated RunPod, with a real machine behind every pod."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clouds.rented import needs_machines
from tests.faults.at_runpod import RunpodRehearsal, at_runpod
from tests.faults.rehearsal import IMPATIENT, STEPS, TRAIN
from tests.run.whole_run import (
    Ended,
    logs_of,
    not_ended_without_a_key,
    nothing_bills,
    reached_every_way,
    result,
    run,
)
from tests.waiting import until

pytestmark = [needs_machines, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
LONG = 60
GPU = "resources: {gpu: RTX-4090}\n"


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[RunpodRehearsal]:
    with at_runpod(tmp_path) as made:
        yield made


def nothing_leaked(rehearsal: RunpodRehearsal) -> None:
    """Ask the books, the system, `audit`, and the log."""
    nothing_bills(rehearsal)
    cloud = rehearsal.cloud
    assert cloud.books.open() == {}
    assert 429 not in {line.status for line in cloud.log}


def test_a_whole_job_on_a_gpu(rehearsal: RunpodRehearsal) -> None:
    ended = run(rehearsal, GPU + TRAIN.format(steps=STEPS), seconds=280)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert result(rehearsal) == f"{STEPS} from attempt 1"
    assert f"step {STEPS}" in logs_of(rehearsal)
    assert max(one["step"] for one in ended.run["checkpoints"]) == STEPS
    [receipt] = ended.document["receipts"]
    assert receipt["confirmed"] is True
    first, second = receipt["confirmed_by"]
    assert first["at"] < second["at"]
    [machine] = [attempt["machine"] for attempt in ended.run["attempts"]]
    assert (machine["gpu"], machine["gpu_count"]) == ("RTX-4090", 1)
    assert not rehearsal.cloud.account.machines or not list(
        rehearsal.cloud.account.machines.iterdir()
    )
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_the_quickstart(rehearsal: RunpodRehearsal) -> None:
    job = rehearsal.folder / "quickstart"
    shutil.copytree(ROOT / "examples/quickstart", job, ignore=shutil.ignore_patterns("artifacts"))
    code, document, err = rehearsal.gpuctl(
        "run", job / "train.yaml", "--provider", "runpod", "--yes", seconds=280
    )
    ended = Ended(code, document, err)
    assert (code, ended.outcomes) == (0, ["completed"]), err
    assert ended.run["checkpoints"]
    assert list(job.glob("artifacts/**/metrics.json"))
    assert ended.document["receipts"][0]["confirmed"] is True
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_provision_reach_terminate(rehearsal: RunpodRehearsal) -> None:
    rehearsal.cloud.switches.ssh_refused_for = 3  # as it is after a port was published
    code, document, err = rehearsal.gpuctl("quote", "--provider", "runpod", "--gpu", "RTX-4090")
    assert code == 0, err
    assert document["offers"][0]["gpu"] == "RTX-4090"
    code, document, err = rehearsal.gpuctl(
        "provision", "--provider", "runpod", "--gpu", "RTX-4090", "--yes"
    )
    assert code == 0, err
    name = document["machine"]["name"]
    code, document, _ = rehearsal.gpuctl("list", "--refresh")
    assert [one["state"] for one in document["machines"]] == ["ready"]
    asked = "echo [$RUNPOD_API_KEY]; nvidia-smi --query-gpu=name --format=csv,noheader"
    done = rehearsal.start("exec", name, "--", "sh", "-c", asked)
    out, err = done.communicate(timeout=30)
    assert (done.returncode, out) == (0, "[]\nNVIDIA GeForce RTX 4090\n"), err
    reached_every_way(rehearsal, name)
    code, document, err = rehearsal.gpuctl("terminate", name, "--yes")
    assert (code, document["receipts"][0]["confirmed"]) == (0, True), err
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_a_pod_that_is_short_of_gpus_is_given_back_and_the_next_is_taken(
    rehearsal: RunpodRehearsal,
) -> None:
    rehearsal.cloud.switches.fewer_gpus = 1
    code, document, err = rehearsal.gpuctl(
        "provision", "--provider", "runpod", "--gpu", "RTX-4090", "--yes"
    )
    assert code == 0, err
    assert "0 GPUs" in err
    assert list(rehearsal.cloud.books.open().values()) == [document["machine"]["name"]]
    assert len(rehearsal.cloud.books.things) == 2
    rehearsal.gpuctl("terminate", "--all", "--yes")
    nothing_leaked(rehearsal)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["never_ready", "container_restarts", "image_pull_stuck"])
def test_a_pod_that_never_answers_is_given_back_and_the_next_is_taken(
    tmp_path: Path, fault: str
) -> None:
    with at_runpod(tmp_path, hasty=IMPATIENT) as rehearsal:
        setattr(rehearsal.cloud.switches, fault, 1)
        code, document, err = rehearsal.gpuctl(
            "provision", "--provider", "runpod", "--gpu", "RTX-4090", "--yes"
        )
        assert code == 0, err
        first, second = rehearsal.cloud.books.things.values()
        assert first.gone
        assert rehearsal.cloud.books.open() == {second.id: document["machine"]["name"]}
        rehearsal.gpuctl("terminate", "--all", "--yes")
        nothing_leaked(rehearsal)


@pytest.mark.slow
def test_an_image_that_does_not_exist_costs_a_minute_not_the_boots_deadline(
    tmp_path: Path,
) -> None:
    """RunPod pulls it again and again, and bills; its logs say why."""
    sooner = "from datetime import timedelta; from providers import runpod_logs as logs; "
    with at_runpod(tmp_path, hasty=f"{sooner}logs._AFTER = timedelta(seconds=1)") as rehearsal:
        switches = rehearsal.cloud.switches
        switches.image_pull_error = "manifest for no/such:1 not found: manifest unknown"
        switches.no_capacity = {("*", place) for place in ("US-TX-3", "EUR-IS-1")}
        code, document, err = rehearsal.gpuctl(
            *("provision", "--provider", "runpod", "--gpu", "A40", "--image", "no/such:1", "--yes")
        )
        assert code == 3, (document, err)
        assert "manifest unknown" in err
        assert rehearsal.cloud.books.things
        nothing_leaked(rehearsal)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_money_that_runs_out_in_the_middle_ends_the_run(rehearsal: RunpodRehearsal) -> None:
    """RunPod takes the pod; nothing else can be rented, and gpuctl says why."""
    rehearsal.cloud.switches.balance_check_s = 1
    path = rehearsal.write_spec(GPU + TRAIN.format(steps=600))
    process = rehearsal.start("run", path, "--provider", "runpod", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 60), rehearsal.kinds()
    with rehearsal.cloud.lock:
        rehearsal.cloud.account.balance = rehearsal.cloud.account.books.total(
            rehearsal.cloud.clock.now()
        )
    # A link that breaks is believed to heal for minutes.
    assert until(lambda: "refused" in rehearsal.kinds(), 400), rehearsal.kinds()
    assert rehearsal.cloud.books.open() == {}
    process.send_signal(signal.SIGINT)  # else it waits a while for things to get better
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "too little money" in err
    assert len(rehearsal.cloud.books.things) == 1
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_a_create_whose_answer_is_lost_is_adopted(rehearsal: RunpodRehearsal) -> None:
    rehearsal.cloud.switches.drop_response = 1
    ended = run(rehearsal, seconds=280)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert len(rehearsal.cloud.books.things) == 1
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_a_key_that_is_refused_meanwhile_is_no_proof_of_an_end(rehearsal: RunpodRehearsal) -> None:
    def refuse(now: bool) -> None:
        rehearsal.cloud.switches.key_revoked = now

    not_ended_without_a_key(rehearsal, refuse, lambda: len(rehearsal.cloud.books.open()))
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_killed_and_reaped(rehearsal: RunpodRehearsal) -> None:
    path = rehearsal.write_spec("run: sleep 600\n")
    process = rehearsal.start("run", path, "--provider", "runpod", "--yes", "--json")
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60), rehearsal.kinds()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    rehearsal.kill_watchdog()
    assert len(rehearsal.cloud.books.open()) == 1
    code, document, err = rehearsal.gpuctl("reap")
    assert (code, len(document["reaped"])) == (0, 1), err
    nothing_leaked(rehearsal)


@pytest.mark.slow
@pytest.mark.parametrize("rights", ["terminate", "stop"])
def test_when_everything_here_dies_the_pod_ends_itself(
    rehearsal: RunpodRehearsal, rights: str
) -> None:
    """With its own key: deleted where that may do so, else stopped, which costs nothing here."""
    rehearsal.cloud.switches.scoped_rights = rights  # type: ignore[assignment]
    path = rehearsal.write_spec("run: sleep 600\n")
    process = rehearsal.start(
        "run", path, "--provider", "runpod", "--yes", "--lease", "15s", "--json"
    )
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60), rehearsal.kinds()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    rehearsal.kill_watchdog()
    [pod] = rehearsal.cloud.account.pods.values()
    ended = {"terminate": "terminated", "stop": "stopped"}[rights]
    assert until(lambda: pod.state == ended, 60)
    books = rehearsal.cloud.books
    assert books.things[pod.id].spans[-1].price_hour == 0 or books.open() == {}
    assert rehearsal.machine_processes() == []
    code, document, err = rehearsal.gpuctl("reap")
    assert code == 0, (document, err)
    nothing_leaked(rehearsal)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["externally_terminated", "host_lost"])
def test_a_pod_that_is_lost_goes_on_from_its_last_checkpoint(
    rehearsal: RunpodRehearsal, how: str
) -> None:
    path = rehearsal.write_spec(TRAIN.format(steps=LONG))
    process = rehearsal.start("run", path, "--provider", "runpod", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 60), rehearsal.kinds()
    [pod] = rehearsal.cloud.account.pods.values()
    getattr(rehearsal.cloud, how)(pod.id)
    # A link that breaks is believed to heal for minutes.
    out, err = process.communicate(timeout=560)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.outcomes) == (0, ["lost", "completed"]), err
    assert result(rehearsal) == f"{LONG} from attempt 2"
    assert "restored checkpoint step-" in err
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_an_image_of_somebody_elses(rehearsal: RunpodRehearsal) -> None:
    """What starts its sshd is really run."""
    spec = "resources: {gpu: RTX-4090, image: 'pytorch/pytorch:2.8.0'}\nrun: echo done\n"
    ended = run(rehearsal, spec, seconds=280)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    nothing_leaked(rehearsal)
