"""Whole jobs on the emulated Vast.ai, with a real machine behind every instance."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from providers import vastai, vastai_boot
from providers.base import Mark, Order, SystemClock, Want
from providers.vastai import VastProvider
from tests.clouds.rented import needs_machines
from tests.clouds.vastai_cloud import Contract, main_settings
from tests.faults.at_vastai import VastRehearsal, at_vastai
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

pytestmark = [needs_machines, pytest.mark.timeout(240)]

ROOT = Path(__file__).resolve().parents[2]
GPU = "resources: {gpu: RTX-4090}\n"
SPOT = "resources: {gpu: RTX-4090, spot: true}\n"
LONG = 60


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[VastRehearsal]:
    with at_vastai(tmp_path) as made:
        yield made


def the_contract(rehearsal: VastRehearsal) -> Contract:
    [contract] = rehearsal.cloud.contracts.all.values()
    return contract


def nothing_leaked(rehearsal: VastRehearsal) -> None:
    """Ask the books, the system, `audit`, and the log."""
    nothing_bills(rehearsal)
    cloud = rehearsal.cloud
    assert cloud.contracts.books.open() == {}
    # On a busy computer a read may arrive too soon after the one before; it is waited out.
    assert not [line for line in cloud.refused if not line.startswith("GET ")]


def test_a_whole_job_on_a_bid(rehearsal: VastRehearsal) -> None:
    ended = run(rehearsal, SPOT + TRAIN.format(steps=STEPS), seconds=200)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert result(rehearsal) == f"{STEPS} from attempt 1"
    assert f"step {STEPS}" in logs_of(rehearsal)
    assert max(one["step"] for one in ended.run["checkpoints"]) == STEPS
    [receipt] = ended.document["receipts"]
    assert receipt["confirmed"] is True
    first, second = receipt["confirmed_by"]
    assert first["at"] < second["at"]
    [machine] = [attempt["machine"] for attempt in ended.run["attempts"]]
    assert (machine["gpu"], machine["gpu_count"], machine["spot"]) == ("RTX-4090", 1, True)
    nothing_leaked(rehearsal)


@pytest.mark.slow
@pytest.mark.timeout(600)  # pip fetches half a gigabyte, without a cache
def test_the_quickstart_at_the_documented_pace(tmp_path: Path) -> None:
    with at_vastai(tmp_path, patient=True) as rehearsal:
        rehearsal.cloud.switches.pacing = 1
        job = rehearsal.folder / "quickstart"
        ignored = shutil.ignore_patterns("artifacts")
        shutil.copytree(ROOT / "examples/quickstart", job, ignore=ignored)
        code, document, err = rehearsal.gpuctl(
            "run", job / "train.yaml", "--provider", "vastai", "--yes", seconds=550
        )
        ended = Ended(code, document, err)
        assert (code, ended.outcomes) == (0, ["completed"]), err
        assert ended.run["checkpoints"]
        assert list(job.glob("artifacts/**/metrics.json"))
        assert ended.document["receipts"][0]["confirmed"] is True
        nothing_leaked(rehearsal)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["direct", "proxy"])
def test_quote_provision_list_reach_terminate(rehearsal: VastRehearsal, way: str) -> None:
    """Either way into the machine will do."""
    rehearsal.cloud.switches.proxy_works = way == "proxy"
    rehearsal.cloud.switches.direct_works = way == "direct"
    code, document, err = rehearsal.gpuctl("quote", "--provider", "vastai", "--gpu", "A100-40GB")
    assert code == 0, err
    assert {one["gpu"] for one in document["offers"]} == {"A100-40GB-SXM"}
    arguments = ("--provider", "vastai", "--gpu", "A100-40GB", "--spot", "--yes")
    code, document, err = rehearsal.gpuctl("provision", *arguments)
    assert code == 0, err
    name = document["machine"]["name"]
    code, document, _ = rehearsal.gpuctl("list", "--refresh")
    assert [one["state"] for one in document["machines"]] == ["ready"]
    asked = "echo [$VAST_API_KEY]; nvidia-smi --query-gpu=name,memory.total --format=csv,noheader"
    there = rehearsal.start("exec", name, "--", "sh", "-c", asked)
    out, err = there.communicate(timeout=30)
    assert out == "[]\nNVIDIA A100-SXM4-40GB, 40960\n", err
    reached_every_way(rehearsal, name)
    code, document, err = rehearsal.gpuctl("terminate", name, "--yes")
    assert (code, document["receipts"][0]["confirmed"]) == (0, True), err
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_outbid_in_the_middle_goes_on_elsewhere_from_the_last_checkpoint(
    rehearsal: VastRehearsal,
) -> None:
    path = rehearsal.write_spec(SPOT + TRAIN.format(steps=LONG))
    process = rehearsal.start("run", path, "--provider", "vastai", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 90), rehearsal.kinds()
    first = the_contract(rehearsal)
    with rehearsal.cloud.lock:
        rehearsal.cloud.contracts.outbid(first.id)
    out, err = process.communicate(timeout=150)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.outcomes) == (0, ["interrupted", "completed"]), err
    assert result(rehearsal) == f"{LONG} from attempt 2"
    assert "restored checkpoint step-" in err
    assert rehearsal.cloud.contracts.books.things[str(first.id)].gone  # else it comes back
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_a_create_whose_answer_is_lost_is_adopted(rehearsal: VastRehearsal) -> None:
    rehearsal.cloud.switches.too_many_but_created = 1
    ended = run(rehearsal, GPU + "run: 'true'\n", seconds=200)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert len(rehearsal.cloud.contracts.books.things) == 1
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_offers_that_do_not_lead_to_a_machine_are_left_for_the_next(
    rehearsal: VastRehearsal,
) -> None:
    """Taken meanwhile, then a container that cannot start, then a usable one."""
    switches = rehearsal.cloud.switches
    switches.taken_at_create = 1
    switches.start_fails = "Error: OCI runtime create failed: no such device"
    arguments = ("--provider", "vastai", "--gpu", "RTX-4090", "--yes")
    process = rehearsal.start("provision", *arguments, "--json")
    books = rehearsal.cloud.contracts.books
    assert until(lambda: len(books.things) == 1, 60)
    assert until(lambda: books.open() == {}, 60)
    switches.start_fails = None
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    [label] = books.open().values()
    assert label.split()[0] == json.loads(out)["machine"]["name"]
    rehearsal.gpuctl("terminate", "--all", "--yes")
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_a_machine_that_never_answers_is_given_back_and_the_next_is_taken(
    tmp_path: Path,
) -> None:
    with at_vastai(tmp_path, hasty=IMPATIENT) as rehearsal:
        rehearsal.cloud.switches.sshd_never = True
        process = rehearsal.start(
            *("provision", "--provider", "vastai", "--gpu", "RTX-4090", "--yes", "--json")
        )
        books = rehearsal.cloud.contracts.books
        assert until(lambda: len(books.things) == 1 and books.open() == {}, 60)
        rehearsal.cloud.switches.sshd_never = False
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        [label] = books.open().values()
        assert label.split()[0] == json.loads(out)["machine"]["name"]
        rehearsal.gpuctl("terminate", "--all", "--yes")
        nothing_leaked(rehearsal)


@pytest.mark.slow
def test_an_offer_that_was_taken_and_left_a_stopped_instance_is_not_waited_for(
    rehearsal: VastRehearsal,
) -> None:
    """Vast.ai ignores `cancel_unavail`: what is left would bill its disk, and start some day."""
    rehearsal.cloud.switches.taken_at_create = 1
    rehearsal.cloud.switches.cancel_ignored = True
    code, document, err = rehearsal.gpuctl(
        "provision", "--provider", "vastai", "--gpu", "RTX-4090", "--yes"
    )
    assert code == 0, err
    first, second = rehearsal.cloud.contracts.books.things.values()
    assert (bool(first.gone), second.gone) == (True, None)
    assert second.name.split()[0] == document["machine"]["name"]
    rehearsal.gpuctl("terminate", "--all", "--yes")
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_credit_that_runs_out_in_the_middle_ends_the_run(rehearsal: VastRehearsal) -> None:
    """Vast.ai stops everything and bills the disks on, into the red: gpuctl destroys its own."""
    path = rehearsal.write_spec(GPU + TRAIN.format(steps=600))
    process = rehearsal.start("run", path, "--provider", "vastai", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 90), rehearsal.kinds()
    contracts = rehearsal.cloud.contracts
    with rehearsal.cloud.lock:
        contracts.credit = contracts.books.total(rehearsal.cloud.clock.now())
    assert until(lambda: "refused" in rehearsal.kinds(), 60), rehearsal.kinds()
    assert contracts.books.open() == {}
    process.send_signal(signal.SIGINT)  # else it waits a while for things to get better
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Add credit at" in err
    assert len(contracts.books.things) == 1
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_a_key_that_is_refused_meanwhile_is_no_proof_of_an_end(rehearsal: VastRehearsal) -> None:
    def refuse(now: bool) -> None:
        rehearsal.cloud.switches.session_expired = now

    not_ended_without_a_key(rehearsal, refuse, lambda: len(rehearsal.cloud.contracts.books.open()))
    nothing_leaked(rehearsal)


@pytest.mark.slow
def test_killed_and_reaped(rehearsal: VastRehearsal) -> None:
    path = rehearsal.write_spec(GPU + "run: sleep 600\n")
    process = rehearsal.start("run", path, "--provider", "vastai", "--yes", "--json")
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60), rehearsal.kinds()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    rehearsal.kill_watchdog()
    assert len(rehearsal.cloud.contracts.books.open()) == 1
    code, document, err = rehearsal.gpuctl("reap")
    assert (code, len(document["reaped"])) == (0, 1), err
    nothing_leaked(rehearsal)


@pytest.mark.slow
@pytest.mark.parametrize("session_env", [False, True])
def test_when_everything_here_dies_the_machine_ends_itself(
    rehearsal: VastRehearsal, session_env: bool
) -> None:
    """With the key of that one instance, which SSH sessions may not see by themselves."""
    rehearsal.cloud.switches.session_env = session_env
    path = rehearsal.write_spec(GPU + "run: sleep 600\n")
    arguments = ("run", path, "--provider", "vastai", "--yes", "--lease", "15s", "--json")
    process = rehearsal.start(*arguments)
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60), rehearsal.kinds()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    rehearsal.kill_watchdog()
    assert until(lambda: rehearsal.cloud.contracts.books.open() == {}, 60)
    assert rehearsal.machine_processes() == []
    code, document, err = rehearsal.gpuctl("reap")
    assert code == 0, (document, err)
    nothing_leaked(rehearsal)


def provider(rehearsal: VastRehearsal) -> VastProvider:
    """The adapter, in this process."""
    settings = main_settings(rehearsal.cloud)
    return VastProvider.from_environment(settings, home=rehearsal.home, clock=SystemClock())


def order(made: VastProvider, *, spot: bool, seconds: float) -> Order:
    """An order whose hard end is near."""
    offer = made.offers(Want(gpus=("RTX-4090",), spot=spot))[0]
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    return Order("gpuctl-x-c0ffee-0badcafe", offer, Mark("c0ffee123456", end))


def test_the_hard_end_is_kept_by_the_machine_itself(
    rehearsal: VastRehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody ever comes: armed at boot, with nothing but what the cloud put there."""
    monkeypatch.setattr(vastai, "PACE_FACTOR", 0.0)
    made = provider(rehearsal)
    made.create(replace(order(made, spot=False, seconds=5), ssh_public_key="ssh-ed25519 AAAA x"))
    contract = the_contract(rehearsal)
    keys = rehearsal.folder / f"machines/{contract.id}/root/.ssh/authorized_keys"
    assert until(lambda: contract.actual == "running" and keys.exists(), 20)
    assert until(lambda: "ssh-ed25519 AAAA x" in keys.read_text(), 10)
    contract.ssh_keys.clear()
    rehearsal.cloud.contracts.rewrite_keys(contract.id)  # as the host's daemon does after hours
    assert until(lambda: "ssh-ed25519 AAAA x" in keys.read_text(), 10)
    assert until(lambda: rehearsal.cloud.contracts.books.open() == {}, 30)
    [ended] = rehearsal.cloud.requests("DELETE", "/instances/")
    assert ended.status == 200


@pytest.mark.slow
def test_a_bid_that_comes_back_when_it_is_forgotten_ends_itself(
    rehearsal: VastRehearsal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vastai, "PACE_FACTOR", 0.0)
    monkeypatch.setattr(vastai_boot, "PATIENCE_SECONDS", 6)
    made = provider(rehearsal)
    made.create(order(made, spot=True, seconds=3600))
    contract = the_contract(rehearsal)
    assert until(lambda: contract.actual == "running", 20)
    agent = rehearsal.folder / f"machines/{contract.id}/root/.gpuctl/machine"
    assert until(agent.parent.exists, 10)
    agent.mkdir()
    (agent / "machine_agent.py").write_text("sent")  # somebody came
    assert not until(lambda: rehearsal.cloud.contracts.books.open() == {}, 9)
    with rehearsal.cloud.lock:
        rehearsal.cloud.contracts.outbid(contract.id)
        rehearsal.cloud.contracts.strangers_leave()
    assert until(lambda: rehearsal.cloud.contracts.books.open() == {}, 30)  # nobody came again
