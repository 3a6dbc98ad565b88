"""The AWS modules applied for real: Terraform's own provider against the emulated AWS.

The books are the oracle: what was made bills, and after `terraform destroy`, or after the machine
has ended itself, nothing does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from providers import aws_boot
from providers.aws import AwsProvider
from providers.base import Mark, Order, SystemClock, Want
from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.aws_cloud.machines import cloud_config
from tests.clouds.aws_cloud.rentals import Rental, Times
from tests.clouds.rented import needs_machines
from tests.infra.terraform import Root, copy_of_infra, need_terraform
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OWNER = "0123456789ab"
GPUCTL = str(Path(sys.executable).parent / "gpuctl")


class Ahead(SystemClock):
    """The computer's clock, and what the test puts on top."""

    ahead = timedelta(0)

    def now(self) -> datetime:
        return super().now() + self.ahead


@pytest.fixture
def cloud() -> Iterator[AwsCloud]:
    """An account whose instances only bill."""
    with AwsCloud(clock=Ahead()) as made:
        made.rentals.times = Times(boot=1, end=1)
        yield made


@pytest.fixture
def with_machines(tmp_path: Path) -> Iterator[AwsCloud]:
    """An account with a real machine behind every instance, set up by its user data."""
    with AwsCloud(folder=tmp_path / "machines", machines=True) as made:
        made.rentals.times = Times(boot=1, end=1)
        yield made


@pytest.fixture
def infra(tmp_path: Path) -> Path:
    need_terraform()
    return copy_of_infra(tmp_path)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return new_key(tmp_path / "id_ed25519")


def new_key(file: Path) -> Path:
    quiet = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)]
    subprocess.run(quiet, check=True, timeout=30)
    return file


def environ(cloud: AwsCloud) -> dict[str, str]:
    services = ("S3", "IAM")
    return {**cloud.settings(), **{f"AWS_ENDPOINT_URL_{name}": cloud.url for name in services}}


def root(cloud: AwsCloud, folder: Path, **variables: object) -> Root:
    """A root module led to the emulation, ready, with its variables set."""
    made = Root(folder, environ(cloud))
    (folder / "terraform.tfvars.json").write_text(json.dumps(variables))
    made.init()
    return made


def output(made: Root, name: str = "gpuctl_machine") -> Any:
    return json.loads(made.run("output", "-json", name))


def rental(cloud: AwsCloud, machine: dict[str, Any]) -> Rental:
    """The instance of a machine, as it is at present."""
    with cloud.lock:
        cloud.rentals.advance()
    return cloud.rentals.all[machine["id"].split("/")[1]]


def session(cloud: AwsCloud) -> boto3.Session:
    settings = environ(cloud)
    key, secret = settings["AWS_ACCESS_KEY_ID"], settings["AWS_SECRET_ACCESS_KEY"]
    return boto3.Session(key, secret, region_name="us-east-1")


def nothing_bills(cloud: AwsCloud) -> bool:
    return cloud.books.open() == {}


def gpuctl(cloud: AwsCloud, home: Path, *arguments: str) -> tuple[int, Any]:
    """Run gpuctl on an account and return its exit status and its JSON."""
    done = subprocess.run(
        [GPUCTL, *arguments, "--json"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "GPUCTL_HOME": str(home / "gpuctl"),
            "GPUCTL_OWNER": OWNER,
            **environ(cloud),
        },
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, json.loads(done.stdout)


def test_the_complete_example_from_apply_to_empty_books(
    cloud: AwsCloud, infra: Path, key: Path, tmp_path: Path
) -> None:
    """All of it but the host at Hetzner, for whose provider there is only a stand-in."""
    host_key = new_key(tmp_path / "host_key")
    made = root(
        cloud,
        infra / "examples" / "complete",
        owner=OWNER,
        bucket="checkpoints-of-somebody",
        ssh_cidrs=["203.0.113.7/32", "2001:db8::/32"],
        ssh_key_file=str(key),
        host_key_file=str(host_key),
        serving=False,
    )
    made.run("apply", "-auto-approve")
    made.run("plan", "-detailed-exitcode")  # 2 would mean that it sees a difference

    machine = output(made)
    assert len(cloud.books.open("volume")) == 1
    assert list(cloud.books.open("instance").values()) == [machine["name"]]
    its_own_data(cloud, machine, key, host_key)
    the_doors_are_closed(cloud, machine)
    gpuctl_leaves_it_alone(cloud, machine, tmp_path)

    [timer] = cloud.scheduler.schedules.values()
    assert timer.name == machine["name"]
    assert timer.instance_ids == [machine["id"].split("/")[1]]

    made.run("destroy", "-auto-approve")
    assert until(lambda: nothing_bills(cloud), 10)
    nothing_is_left(cloud)


def its_own_data(cloud: AwsCloud, machine: dict[str, Any], key: Path, host_key: Path) -> None:
    """It is given what gpuctl gives a machine, and its end is the one that it says."""
    data = cloud_config(rental(cloud, machine).user_data)
    end = datetime.fromisoformat(machine["expires_at"])
    public = host_key.with_suffix(".pub").read_text().split()
    pair = aws_boot.HostKey(host_key.read_text(), " ".join(public[:2]))
    login = key.with_suffix(".pub").read_text().strip()
    ours = cloud_config(aws_boot.user_data(end, login, pair).encode())
    assert data.pop("ssh_pwauth") is False
    commands, known = data.pop("bootcmd"), ours.pop("bootcmd")
    assert commands[0] == known[0], "the timer is another one than gpuctl's"
    assert [one for one in commands if one not in known] == []
    assert data == ours
    assert machine["host_keys"] == [pair.public]


def the_doors_are_closed(cloud: AwsCloud, machine: dict[str, Any]) -> None:
    aws = session(cloud)
    ec2 = aws.client("ec2", endpoint_url=cloud.url)
    named = [{"Name": "group-name", "Values": [machine["name"]]}]
    [group] = ec2.describe_security_groups(Filters=named)["SecurityGroups"]
    [rule] = [one for one in group["IpPermissions"] if one["IpRanges"]]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    assert [one["CidrIp"] for one in rule["IpRanges"]] == ["203.0.113.7/32"]
    iam = aws.client("iam", endpoint_url=cloud.url)
    policy = iam.get_role_policy(RoleName=machine["name"], PolicyName="checkpoints")
    touched = [one["Resource"] for one in policy["PolicyDocument"]["Statement"]]
    bucket = "arn:aws:s3:::checkpoints-of-somebody"
    assert touched == [bucket, f"{bucket}/ckpt/*"]


def gpuctl_leaves_it_alone(cloud: AwsCloud, machine: dict[str, Any], home: Path) -> None:
    """`audit` knows whose it is and is content; `reap` only lists it."""
    code, audit = gpuctl(cloud, home, "audit")
    assert code == 0, audit
    assert [(one["name"], one["whose"]) for one in audit["billing"]] == [
        (machine["name"], "terraform")
    ]
    assert audit["unaccounted"] == []
    code, reaped = gpuctl(cloud, home, "reap")
    assert code == 0, reaped
    assert reaped["reaped"] == []
    assert [one["name"] for one in reaped["kept"]] == [machine["name"]]
    assert rental(cloud, machine).alive


def nothing_is_left(cloud: AwsCloud, *kept: str) -> None:
    """Only the security groups ``kept`` are there, and no bucket, role or schedule is."""
    aws = session(cloud)
    assert aws.client("s3", endpoint_url=cloud.url).list_buckets()["Buckets"] == []
    iam = aws.client("iam", endpoint_url=cloud.url)
    assert iam.list_roles()["Roles"] == []
    assert iam.list_instance_profiles()["InstanceProfiles"] == []
    groups = aws.client("ec2", endpoint_url=cloud.url).describe_security_groups()
    assert {one["GroupName"] for one in groups["SecurityGroups"]} == {"default", *kept}
    assert cloud.scheduler.schedules == {}
    assert cloud.scheduler.groups == {}


MACHINE = """
provider "aws" {}

module "trainer" {
  source         = "../modules/aws-spot-gpu"
  name           = "trainer"
  owner          = "0123456789ab"
  instance_type  = "g5.xlarge"
  spot           = var.spot
  max_hours      = var.max_hours
  ssh_cidrs      = ["203.0.113.7/32"]
  ssh_public_key = file("${var.ssh_key_file}.pub")
}

module "deadman" {
  source   = "../modules/aws-deadman"
  count    = var.deadman ? 1 : 0
  machines = { trainer = module.trainer.gpuctl_machine }
}

variable "spot" { default = true }
variable "max_hours" { type = number }
variable "ssh_key_file" { type = string }
variable "deadman" { default = false }

output "gpuctl_machine" { value = module.trainer.gpuctl_machine }
"""


def new_root(cloud: AwsCloud, infra: Path, text: str, **variables: object) -> Root:
    """A root module of the test's own."""
    folder = infra / "test"
    folder.mkdir()
    (folder / "main.tf").write_text(text)
    shutil.copy(infra / "examples" / "aws-spot-gpu" / "versions.tf", folder)
    return root(cloud, folder, **variables)


@needs_machines
def test_a_machine_ends_itself_at_its_hard_end_and_is_not_made_again_unasked(
    with_machines: AwsCloud, infra: Path, key: Path
) -> None:
    cloud = with_machines
    made = new_root(cloud, infra, MACHINE, ssh_key_file=str(key), max_hours=40 / 3600)
    made.run("apply", "-auto-approve")
    machine = output(made)
    end = datetime.fromisoformat(machine["expires_at"])
    assert rental(cloud, machine).alive
    assert until(lambda: not rental(cloud, machine).alive, 90)
    ended = rental(cloud, machine).ended
    assert ended is not None
    assert timedelta(0) <= ended - end < timedelta(seconds=15)
    assert rental(cloud, machine).why[0] == "Client.InstanceInitiatedShutdown"
    assert until(lambda: nothing_bills(cloud), 10)

    said = made.run("plan", code=1)
    assert "is past its hard end" in said
    assert "-replace=" in said
    assert nothing_bills(cloud)

    made.run("destroy", "-auto-approve")
    nothing_is_left(cloud)


def test_a_new_life_is_a_new_machine(cloud: AwsCloud, infra: Path, key: Path) -> None:
    made = new_root(cloud, infra, MACHINE, ssh_key_file=str(key), max_hours=2, spot=False)
    made.run("apply", "-auto-approve")
    before = output(made)
    made.run("apply", "-auto-approve", "-replace=module.trainer.module.boot.terraform_data.this")
    after = output(made)
    assert after["name"] != before["name"]
    assert after["id"] != before["id"]
    assert not rental(cloud, before).alive
    assert until(lambda: list(cloud.books.open("instance").values()) == [after["name"]], 10)
    made.run("destroy", "-auto-approve")
    assert until(lambda: nothing_bills(cloud), 10)
    nothing_is_left(cloud)


def test_the_dead_man_switch_ends_a_machine_whose_own_timer_does_not(
    cloud: AwsCloud, infra: Path, key: Path
) -> None:
    """The account's clock goes on and the machine's does not: only AWS's timer can fire."""
    made = new_root(cloud, infra, MACHINE, ssh_key_file=str(key), max_hours=2, deadman=True)
    made.run("apply", "-auto-approve")
    machine = output(made)
    assert isinstance(cloud.clock, Ahead)
    cloud.clock.ahead = timedelta(hours=1, minutes=58)
    assert rental(cloud, machine).alive, "it was ended before its time"
    cloud.clock.ahead = timedelta(hours=2, minutes=1)
    assert until(lambda: not rental(cloud, machine).alive, 10)
    assert rental(cloud, machine).why[0] == "Client.UserInitiatedShutdown"
    assert until(lambda: nothing_bills(cloud), 10)
    made.run("destroy", "-auto-approve")
    nothing_is_left(cloud)


def test_the_role_is_the_one_that_gpuctl_arms_its_timers_with(
    cloud: AwsCloud, infra: Path, tmp_path: Path
) -> None:
    made = root(cloud, infra / "examples" / "aws-deadman")
    made.run("apply", "-auto-approve")
    role = output(made, "gpuctl_environment")
    settings = {**environ(cloud), **role}
    provider = AwsProvider.from_environment(settings, home=tmp_path / "home", clock=cloud.clock)
    [offer, *_] = provider.offers(Want(gpus=("A10G",), disk_gb=1))
    mark = Mark(OWNER, datetime.now(UTC) + timedelta(hours=1))
    login = new_key(tmp_path / "login").with_suffix(".pub").read_text()
    name = "gpuctl-box-012345-89abcdef"
    machine = provider.create(Order(name, offer, mark, ssh_public_key=login))
    [timer] = cloud.scheduler.schedules.values()
    assert timer.group == "gpuctl"
    assert timer.body["Target"]["RoleArn"] == role["GPUCTL_AWS_SCHEDULER_ROLE"]
    made.run("plan", "-detailed-exitcode")
    provider.destroy(machine.provider_id)
    assert until(lambda: nothing_bills(cloud), 10)
    made.run("destroy", "-auto-approve")
    nothing_is_left(cloud, "gpuctl")  # which all of gpuctl's machines use; it is free


BUCKET = """
provider "aws" {}

module "checkpoints" {
  source                  = "../modules/aws-checkpoint-bucket"
  bucket                  = "ckpt-of-somebody"
  force_destroy           = var.force_destroy
  deny_insecure_transport = false # the emulated S3 has no TLS
}

variable "force_destroy" { default = false }
"""


def test_checkpoints_are_destroyed_only_when_that_is_wanted(cloud: AwsCloud, infra: Path) -> None:
    made = new_root(cloud, infra, BUCKET)
    made.run("apply", "-auto-approve")
    made.run("plan", "-detailed-exitcode")
    s3 = session(cloud).client("s3", endpoint_url=cloud.url)
    s3.put_object(Bucket="ckpt-of-somebody", Key="ckpt/step-1", Body=b"weights")
    assert "BucketNotEmpty" in made.run("destroy", "-auto-approve", code=1)
    assert s3.get_object(Bucket="ckpt-of-somebody", Key="ckpt/step-1")["Body"].read() == b"weights"
    made.run("apply", "-auto-approve", "-var=force_destroy=true")
    made.run("destroy", "-auto-approve", "-var=force_destroy=true")
    assert s3.list_buckets()["Buckets"] == []
