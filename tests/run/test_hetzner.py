"""From the shell, on emulated Hetzner servers with real machines behind them.

The cloud's own books are asked what is left, never gpuctl.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clouds.hetzner_cloud import HetznerCloud, faults
from tests.clouds.rented import needs_machines
from tests.faults.at_hetzner import HetznerRehearsal, at_hetzner
from tests.faults.rehearsal import STEPS, TRAIN
from tests.run.whole_run import (
    Ended,
    all_released,
    logs_of,
    no_key_in_requests,
    reached_every_way,
    run,
)
from tests.waiting import until

pytestmark = needs_machines

ROOT = Path(__file__).resolve().parents[2]
LONGER = TRAIN.format(steps=60)


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[HetznerRehearsal]:
    with at_hetzner(tmp_path) as made:
        yield made


@pytest.fixture
def cloud(rehearsal: HetznerRehearsal) -> HetznerCloud:
    """Its project."""
    return rehearsal.cloud


def test_a_whole_job(rehearsal: HetznerRehearsal, cloud: HetznerCloud) -> None:
    ended = run(rehearsal)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    result = rehearsal.folder / "job/artifacts/result.txt"
    assert result.read_text().strip() == f"{STEPS} from attempt 1"
    assert max(one["step"] for one in ended.run["checkpoints"]) == STEPS
    assert f"step {STEPS}" in logs_of(rehearsal)
    all_released(rehearsal, ended)
    assert cloud.bills() == {}
    assert 0 < ended.run["cost_usd"] < 0.02  # a started hour


@pytest.mark.slow
def test_quote_provision_list_ssh_terminate(
    rehearsal: HetznerRehearsal, cloud: HetznerCloud
) -> None:
    cpus = ("--provider", "hetzner", "--gpu", "none", "--cpus", "8")
    code, quoted, _ = rehearsal.gpuctl("quote", *cpus)
    assert code == 0
    cheapest = quoted["offers"][0]
    assert cheapest["id"].startswith("hetzner:cx43:")
    assert cheapest["fx_rate"] > 1
    code, made, err = rehearsal.gpuctl("provision", *cpus, "--name", "box", "--yes")
    assert "cannot end itself" in err
    assert code == 0, err
    machine = made["machine"]
    assert machine["price_hour"] == cheapest["price_hour"]
    assert list(cloud.bills("server").values()) == [machine["name"]]
    # The host key was handed over: what is pinned is what the machine was given.
    pinned = (rehearsal.home / "known_hosts" / machine["name"]).read_text().split()[1:3]
    assert pinned == cloud.machine(machine["name"]).rented.public_host_key.split()[:2]
    code, listed, _ = rehearsal.gpuctl("list", "--refresh")
    assert [one["state"] for one in listed["machines"]] == ["ready"]
    process = rehearsal.start("exec", "box", "--", "pip", "--version")
    assert process.communicate(timeout=60)[0].startswith("pip ")
    reached_every_way(rehearsal, machine["name"])
    foreign = cloud.add_foreign()
    code, ended, err = rehearsal.gpuctl("terminate", "box", "--yes")
    assert code == 0, err
    assert ended["receipts"][0]["confirmed"] is True
    assert list(cloud.bills("server")) == [foreign]
    no_key_in_requests(rehearsal)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quickstart(rehearsal: HetznerRehearsal, cloud: HetznerCloud) -> None:
    job = rehearsal.folder / "quickstart"
    shutil.copytree(
        ROOT / "examples/quickstart", job, ignore=shutil.ignore_patterns("artifacts", "__pycache__")
    )
    code, document, err = rehearsal.gpuctl(
        "run", job / "train.yaml", "--provider", "hetzner", "--yes", seconds=240
    )
    ended = Ended(code, document, err)
    assert (code, ended.outcomes) == (0, ["completed"]), err
    assert json.loads((job / "artifacts/metrics.json").read_text())
    all_released(rehearsal, ended)
    assert cloud.bills() == {}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["intended", "created", "run_state:running"])
def test_killed_and_reaped(rehearsal: HetznerRehearsal, cloud: HetznerCloud, moment: str) -> None:
    path = rehearsal.write_spec(LONGER)
    process = rehearsal.start("run", path, "--provider", "hetzner", "--yes")
    assert until(lambda: moment in rehearsal.kinds(), 60, every=0.005)
    process.kill()
    process.communicate(timeout=20)
    rehearsal.kill_watchdog()
    code, document, err = rehearsal.gpuctl("reap")
    assert code == 0, (document, err)
    assert cloud.bills() == {}, err
    code, document, err = rehearsal.gpuctl("audit")
    assert (code, document["billing"]) == (0, []), err


@pytest.mark.slow
def test_reaped_from_elsewhere_by_its_labels(
    rehearsal: HetznerRehearsal, cloud: HetznerCloud
) -> None:
    """Another computer, without our ledger: only the owner is the same."""
    path = rehearsal.write_spec(LONGER)
    process = rehearsal.start("run", path, "--provider", "hetzner", "--yes")
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60)
    process.kill()
    process.communicate(timeout=20)
    rehearsal.kill_watchdog()
    _, checks, _ = rehearsal.gpuctl("doctor")
    [owner] = [c["detail"][:12] for c in checks["checks"] if c["name"] == "owner"]
    away = rehearsal.folder / "away"
    away.mkdir()
    other = HetznerRehearsal(away, rehearsal.settings | {"GPUCTL_OWNER": owner}, cloud=cloud)
    foreign = cloud.add_foreign()
    code, document, err = other.gpuctl("reap")
    assert code == 0, (document, err)
    assert [receipt["confirmed"] for receipt in document["reaped"]] == [True]
    assert list(cloud.bills("server")) == [foreign]


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        faults.commit_then_drop,
        lambda: faults.answers_after_commit(faults.SERVER_ERROR),
        lambda: faults.answers_after_commit(faults.TIMEOUT),
    ],
    ids=["dropped", "500", "504"],
)
def test_a_create_that_nobody_heard_back_from(
    rehearsal: HetznerRehearsal, cloud: HetznerCloud, fault: object
) -> None:
    cloud.faults.append(fault())  # type: ignore[operator]
    ended = run(rehearsal)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert "adopted" in rehearsal.kinds()
    assert len(cloud.requests("POST", "/servers$")) == 1
    assert cloud.bills() == {}


@pytest.mark.slow
def test_no_room_here_is_no_room_there(rehearsal: HetznerRehearsal, cloud: HetznerCloud) -> None:
    cloud.switches.capacity_out |= {("cx23", "*"), ("cax11", "fsn1")}
    ended = run(rehearsal)
    assert ended.code == 0, ended.err
    assert "error during placement" in ended.err
    assert cloud.bills() == {}


@pytest.mark.slow
def test_when_everything_here_dies_the_job_ends_and_the_machine_waits_for_reap(
    rehearsal: HetznerRehearsal, cloud: HetznerCloud
) -> None:
    """No credential is narrow enough for a server to delete itself; it costs until reap."""
    path = rehearsal.write_spec("run: sleep 600\n")
    process = rehearsal.start("run", path, "--provider", "hetzner", "--yes", "--lease", "12s")
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    rehearsal.kill_watchdog()
    [name] = cloud.bills("server").values()
    machine = cloud.machine(name).rented
    assert any("sleep 600" in command for command in machine.processes())
    assert until(lambda: not any("sleep 600" in c for c in machine.processes()), 60, every=0.5)
    assert list(cloud.bills("server").values()) == [name]
    timer = f"sleep {24 * 3600 // 1000}"  # of the boot, for the hard end
    assert any(command.startswith(timer) for command in machine.processes())
    code, document, err = rehearsal.gpuctl("audit")
    assert code == 6, (document, err)
    code, _, err = rehearsal.gpuctl("reap")
    assert code == 0, err
    assert cloud.bills() == {}


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_server_that_somebody_deletes_is_lost_and_the_job_goes_on(
    rehearsal: HetznerRehearsal, cloud: HetznerCloud
) -> None:
    path = rehearsal.write_spec(LONGER)
    process = rehearsal.start("run", path, "--provider", "hetzner", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 60)
    with cloud.lock:
        cloud.project.delete_server(next(iter(cloud.project.servers.values())))
    # It takes a while to be believed: 30 s of silence, and a minute of trying to reconnect.
    out, err = process.communicate(timeout=180)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.outcomes) == (0, ["lost", "completed"]), err
    assert "restored checkpoint step-" in err
    assert cloud.bills() == {}


@pytest.mark.slow
def test_an_sshd_that_comes_late(rehearsal: HetznerRehearsal, cloud: HetznerCloud) -> None:
    cloud.switches.ssh_refused_for = 4
    ended = run(rehearsal)
    assert ended.code == 0, ended.err
    assert cloud.bills() == {}


def test_a_gpu_is_refused_with_a_word(rehearsal: HetznerRehearsal) -> None:
    code, document, _ = rehearsal.gpuctl(
        "provision", "--provider", "hetzner", "--gpu", "A100-40GB", "--yes"
    )
    assert code == 3
    assert "no server types with a GPU" in document["error"]["message"]
    code, document, _ = rehearsal.gpuctl(
        "quote", "--provider", "hetzner", "--spot", "--gpu", "none"
    )
    assert code == 3
    assert "no spot" in json.dumps(document)
