"""From the shell, on emulated EC2 instances with real machines behind them.

The cloud's own books are asked what is left, never gpuctl.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from providers.aws_schedule import ROLE
from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.aws_cloud.cloud import KEY, SECRET
from tests.clouds.aws_cloud.rentals import NO_ROOM_AFTER_ALL
from tests.clouds.http_cloud import Fault
from tests.clouds.rented import needs_machines
from tests.faults.at_aws import AwsRehearsal, at_aws
from tests.faults.rehearsal import STEPS, TRAIN
from tests.run.whole_run import (
    Ended,
    all_released,
    logs_of,
    nothing_bills,
    reached_every_way,
    run,
)
from tests.waiting import until

pytestmark = needs_machines

ROOT = Path(__file__).resolve().parents[2]
LONGER = TRAIN.format(steps=60)
GPU = "resources: {gpu: A10G, spot: true}\n"


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[AwsRehearsal]:
    """A home with its key."""
    with at_aws(tmp_path) as made:
        yield made


def provisioned(rehearsal: AwsRehearsal, *more: str) -> str:
    """The name of a machine with one A10G."""
    code, document, err = rehearsal.gpuctl(
        "provision", "--gpu", "A10G", "--provider", "aws", "--yes", *more
    )
    assert code == 0, err
    return str(document["machine"]["name"])


def instance_of(rehearsal: AwsRehearsal, name: str | None = None) -> str:
    """The id of an instance that lives; the only one when no name is given."""
    [found] = [
        one.id
        for one in rehearsal.cloud.rentals.all.values()
        if one.alive and name in (None, one.name)
    ]
    return found


def client_of(cloud: AwsCloud) -> Any:
    """EC2 as another tool asks it."""
    return boto3.client(
        "ec2",
        region_name="us-east-1",
        endpoint_url=cloud.url,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )


def persistent(cloud: AwsCloud) -> str:
    """Rent something the way gpuctl never does; return its id."""
    ec2 = client_of(cloud)
    options = {"SpotInstanceType": "persistent", "InstanceInterruptionBehavior": "stop"}
    made = ec2.run_instances(
        ImageId=ec2.describe_images(Owners=["099720109477"])["Images"][0]["ImageId"],
        InstanceType="t3.micro",
        MinCount=1,
        MaxCount=1,
        InstanceMarketOptions={"MarketType": "spot", "SpotOptions": options},
    )
    return str(made["Instances"][0]["InstanceId"])


def test_a_machine_from_the_quote_to_its_end(rehearsal: AwsRehearsal) -> None:
    code, document, err = rehearsal.gpuctl("quote", "--gpu", "A10G", "--spot", "--provider", "aws")
    assert code == 0, err
    offer = document["offers"][0]
    assert (offer["id"], offer["spot"]) == ("spot:us-east-1:g5.xlarge", True)

    name = provisioned(rehearsal, "--offer", offer["id"])
    asked = rehearsal.start("exec", name, "--", "nvidia-smi", "--query-gpu=name")
    assert asked.communicate(timeout=60)[0].strip() == "NVIDIA A10G"
    key = rehearsal.cloud.machine(name).rented.public_host_key.split()[1]
    assert key in (rehearsal.home / "known_hosts" / name).read_text()  # handed over, not learnt

    code, document, err = rehearsal.gpuctl("list", "--refresh")
    assert [one["name"] for one in document["machines"]] == [name]
    code, document, err = rehearsal.gpuctl("terminate", name, "--yes")
    assert (code, document["receipts"][0]["confirmed"]) == (0, True), err
    nothing_bills(rehearsal)
    assert rehearsal.cloud.books.open() == {}
    for line in rehearsal.cloud.log:
        assert line.status != 503  # within the buckets that EC2 documents


@pytest.mark.slow
def test_every_way_to_a_machine(rehearsal: AwsRehearsal) -> None:
    name = provisioned(rehearsal, "--on-demand")
    reached_every_way(rehearsal, name)
    code, document, err = rehearsal.gpuctl("terminate", name, "--yes")
    assert (code, document["receipts"][0]["confirmed"]) == (0, True), err
    nothing_bills(rehearsal)
    assert rehearsal.cloud.books.open() == {}


@pytest.mark.slow
def test_a_whole_job(rehearsal: AwsRehearsal) -> None:
    ended = run(rehearsal, GPU + TRAIN.format(steps=STEPS))
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    result = rehearsal.folder / "job/artifacts/result.txt"
    assert result.read_text().strip() == f"{STEPS} from attempt 1"
    assert max(one["step"] for one in ended.run["checkpoints"]) == STEPS
    assert f"step {STEPS}" in logs_of(rehearsal)
    all_released(rehearsal, ended)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_quickstart(rehearsal: AwsRehearsal) -> None:
    shutil.copytree(
        ROOT / "examples/quickstart",
        rehearsal.folder / "quickstart",
        ignore=shutil.ignore_patterns("artifacts", "__pycache__"),
    )
    spec = rehearsal.folder / "quickstart/train.yaml"
    ended = Ended(*rehearsal.gpuctl("run", spec, "--provider", "aws", "--yes", seconds=240))
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert list((rehearsal.folder / "quickstart/artifacts").rglob("metrics.json"))
    assert ended.run["checkpoints"]
    all_released(rehearsal, ended)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["intended", "created", "run_state:running"])
def test_kill_and_reap(rehearsal: AwsRehearsal, moment: str) -> None:
    """Whatever gpuctl was doing when it was killed: the next `reap` leaves nothing."""
    path = rehearsal.write_spec(LONGER)
    process = rehearsal.start("run", path, "--provider", "aws", "--yes", "--json")
    assert until(lambda: moment in rehearsal.kinds(), 60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    rehearsal.kill_watchdog()
    code, _, err = rehearsal.gpuctl("reap")
    assert code == 0, err
    nothing_bills(rehearsal)
    assert rehearsal.cloud.books.open() == {}


@pytest.mark.slow
def test_a_lost_reply_is_adopted(rehearsal: AwsRehearsal) -> None:
    rehearsal.cloud.faults.append(Fault("/RunInstances", when="after"))
    ended = run(rehearsal)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert "adopted" in rehearsal.kinds()
    assert len(rehearsal.cloud.rentals.all) == 1
    all_released(rehearsal, ended)


@pytest.mark.slow
def test_an_interruption_with_notice_loses_nothing(rehearsal: AwsRehearsal) -> None:
    """The metadata service says so; the job writes once more; the next machine goes on."""
    path = rehearsal.write_spec(GPU + LONGER)
    process = rehearsal.start("run", path, "--provider", "aws", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 60)
    rehearsal.cloud.interrupt(instance_of(rehearsal), notice=12)
    out, err = process.communicate(timeout=110)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.outcomes) == (0, ["interrupted", "completed"]), err
    result = rehearsal.folder / "job/artifacts/result.txt"
    assert result.read_text().strip() == "60 from attempt 2"
    assert "restored checkpoint step-" in err
    assert "will be taken away" in err  # heard on the machine, before it was
    nothing_bills(rehearsal)
    assert rehearsal.cloud.books.open() == {}


@pytest.mark.slow
def test_a_recommendation_to_leave_changes_nothing(rehearsal: AwsRehearsal) -> None:
    """It may come hours before an interruption, or without one."""
    path = rehearsal.write_spec(GPU + TRAIN.format(steps=40))
    process = rehearsal.start("run", path, "--provider", "aws", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 60)
    rehearsal.cloud.rebalance(instance_of(rehearsal))
    out, err = process.communicate(timeout=110)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), err
    assert len(rehearsal.cloud.rentals.all) == 1
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_an_interruption_without_notice(rehearsal: AwsRehearsal) -> None:
    path = rehearsal.write_spec(GPU + LONGER)
    process = rehearsal.start("run", path, "--provider", "aws", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 60)
    rehearsal.cloud.interrupt(instance_of(rehearsal), notice=0, told=False)
    out, err = process.communicate(timeout=110)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.outcomes) == (0, ["interrupted", "completed"]), err
    assert "restored checkpoint step-" in err
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_when_everything_here_dies_the_machine_ends_itself(rehearsal: AwsRehearsal) -> None:
    """It switches itself off, and EC2 ends what does that."""
    path = rehearsal.write_spec("run: sleep 600\n")
    process = rehearsal.start("run", path, "--provider", "aws", "--yes", "--lease", "12s", "--json")
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 60)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    rehearsal.kill_watchdog()
    instance = instance_of(rehearsal)
    assert until(lambda: rehearsal.cloud.books.open() == {}, 60)
    assert rehearsal.cloud.rentals.all[instance].why[0] == "Client.InstanceInitiatedShutdown"
    assert rehearsal.gpuctl("reap")[0] == 0
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_the_timer_of_the_user_data_needs_nobody(rehearsal: AwsRehearsal) -> None:
    """No agent, no lease, no gpuctl: the hard end alone, set at boot."""
    name = provisioned(rehearsal, "--max-hours", "0.004", "--lease", "2h")
    os.kill(rehearsal.watchdog_pid() or -1, signal.SIGKILL)
    machine = rehearsal.cloud.machine(name).rented
    machine.start("pkill -9 -f machine_agent").wait(10)
    assert until(lambda: rehearsal.cloud.books.open() == {}, 60)


@pytest.mark.slow
def test_aws_ends_a_machine_that_hangs_when_it_has_a_role_for_that(
    rehearsal: AwsRehearsal,
) -> None:
    """Nothing of ours lives any more, here or there, and nobody asks AWS anything."""
    rehearsal.settings[ROLE] = "arn:aws:iam::111122223333:role/gpuctl-reaper"
    name = provisioned(rehearsal, "--max-hours", "0.01", "--lease", "2h")
    [schedule] = rehearsal.cloud.scheduler.schedules.values()
    assert schedule.name == name
    rehearsal.kill_watchdog()
    machine = rehearsal.cloud.machine(name).rented
    hang = "for pid in /proc/[0-9]*; do [ ${pid#/proc/} = $$ ] || kill -STOP ${pid#/proc/}; done"
    machine.start(hang)
    asked = len(rehearsal.cloud.log)
    assert until(lambda: rehearsal.cloud.books.open() == {}, 60)
    [rental] = rehearsal.cloud.rentals.all.values()
    assert rental.why[0] == "Client.UserInitiatedShutdown"
    assert len(rehearsal.cloud.log) == asked
    assert rehearsal.gpuctl("reap")[0] == 0
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_a_launch_that_fails_after_it_was_accepted_leads_to_the_next_offer(
    rehearsal: AwsRehearsal,
) -> None:
    rehearsal.cloud.rentals.launch_fails = [NO_ROOM_AFTER_ALL]
    name = provisioned(rehearsal, "--spot")
    assert list(rehearsal.cloud.books.open("instance").values()) == [name]
    assert len(rehearsal.cloud.rentals.all) == 2
    assert rehearsal.gpuctl("terminate", name, "--yes")[0] == 0
    nothing_bills(rehearsal)
    assert rehearsal.cloud.books.open() == {}


@pytest.mark.slow
def test_what_others_rented_is_shown_and_left_alone(rehearsal: AwsRehearsal) -> None:
    """Also what comes back by itself, out of a persistent spot request."""
    cloud = rehearsal.cloud
    cloud.rentals.times.resurrect = 0.5
    first = persistent(cloud)
    client_of(cloud).terminate_instances(InstanceIds=[first])
    assert until(lambda: len(cloud.rentals.rented()) == 1, 20)
    name = provisioned(rehearsal)
    code, document, err = rehearsal.gpuctl("audit")
    assert code == 0, err
    assert sorted(one["whose"] for one in document["billing"]) == ["ours", "unmarked"]
    assert rehearsal.gpuctl("terminate", "--all", "--yes")[0] == 0
    code, document, err = rehearsal.gpuctl("reap")
    assert (code, document["reaped"]) == (0, []), err
    assert list(cloud.books.open("instance").values()) == [""]
    assert name not in cloud.rentals.rented().values()


@pytest.mark.slow
def test_a_full_zone_and_a_zero_quota_from_the_shell(rehearsal: AwsRehearsal) -> None:
    rehearsal.cloud.market.capacity["g5.xlarge", "*", "spot"] = 0
    name = provisioned(rehearsal, "--spot")
    shown = rehearsal.gpuctl("list")[1]["machines"]
    assert [one["name"] for one in shown] == [name]
    assert rehearsal.cloud.rentals.all[instance_of(rehearsal)].type == "g5.2xlarge"
    rehearsal.cloud.market.quotas["us-east-1", "L-3819A6DF"] = 0
    code, document, err = rehearsal.gpuctl(
        "provision", "--gpu", "A10G", "--spot", "--provider", "aws", "--yes"
    )
    assert code == 3, err
    assert "L-3819A6DF" in json.dumps(document) + err
    assert rehearsal.gpuctl("terminate", "--all", "--yes")[0] == 0
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_a_key_that_is_wrong_exits_four(rehearsal: AwsRehearsal) -> None:
    rehearsal.settings["AWS_ACCESS_KEY_ID"] = "AKIASTRANGER"
    code, document, err = rehearsal.gpuctl("doctor", "--provider", "aws")
    assert code == 4, err
    code, document, err = rehearsal.gpuctl("quote", "--gpu", "A10G", "--provider", "aws")
    assert [one["kind"] for one in document["errors"]] == ["AuthFailed"]
    assert "AKIA" not in json.dumps(document) + err
