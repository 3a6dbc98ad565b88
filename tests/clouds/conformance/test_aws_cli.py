"""Amazon's own command line against the emulation."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.clouds.aws_cloud import AwsCloud, main_settings
from tests.clouds.aws_cloud.rentals import Times
from tests.clouds.conformance.environments import python_with
from tests.waiting import until

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(600)]

DLAMI = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"
MARK = "ResourceType=instance,Tags=[{Key=gpuctl:managed,Value=1},{Key=gpuctl:name,Value=box}]"


@pytest.fixture(scope="module")
def aws() -> str:
    """The command."""
    return str(Path(python_with("awscli", "awscli")).with_name("aws"))


@pytest.fixture
def cloud() -> Iterator[AwsCloud]:
    with AwsCloud() as made:
        made.rentals.times = Times(boot=1, end=1, unseen=0.5, stale=0.5)
        yield made


class Cli:
    """Runs it on an account of the emulation."""

    def __init__(self, aws: str, cloud: AwsCloud, home: Path) -> None:
        self.aws = aws
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "AWS_PAGER": "",
            **main_settings(cloud),
        }

    def run(self, *arguments: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [self.aws, *arguments, "--output", "json"],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.returncode, done.stdout, done.stderr

    def says(self, *arguments: str) -> Any:
        code, out, err = self.run(*arguments)
        assert code == 0, err
        return json.loads(out) if out.strip() else None


@pytest.fixture
def cli(aws: str, cloud: AwsCloud, tmp_path: Path) -> Cli:
    return Cli(aws, cloud, tmp_path)


def test_a_spot_instance_lives_and_ends(cli: Cli, cloud: AwsCloud) -> None:
    image = cli.says("ssm", "get-parameter", "--name", DLAMI)["Parameter"]["Value"]
    launch = (
        *("ec2", "run-instances", "--image-id", image, "--instance-type", "g5.xlarge"),
        *("--instance-market-options", "MarketType=spot", "--client-token", "once"),
        *("--tag-specifications", MARK),
    )
    [made] = cli.says(*launch)["Instances"]
    [again] = cli.says(*launch)["Instances"]
    assert made["InstanceId"] == again["InstanceId"]
    assert made["InstanceLifecycle"] == "spot"
    ids = ("--instance-ids", made["InstanceId"])
    assert until(lambda: cli.run("ec2", "describe-instances", *ids)[0] == 0, 20)
    cli.says("ec2", "wait", "instance-running", *ids)
    by_tag = ("--filters", "Name=tag:gpuctl:name,Values=box")
    [group] = cli.says("ec2", "describe-instances", *by_tag)["Reservations"]
    assert group["Instances"][0]["PublicIpAddress"].startswith("127.77.")
    [request] = cli.says("ec2", "describe-spot-instance-requests")["SpotInstanceRequests"]
    assert (request["State"], request["InstanceId"]) == ("active", made["InstanceId"])
    cli.says("ec2", "terminate-instances", *ids)
    cli.says("ec2", "wait", "instance-terminated", *ids)
    assert cloud.books.open() == {}


def test_what_is_sold(cli: Cli) -> None:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    found = cli.says(
        *("ec2", "describe-spot-price-history", "--instance-types", "g5.xlarge"),
        *("--product-descriptions", "Linux/UNIX", "--start-time", now),
    )["SpotPriceHistory"]
    assert len({row["AvailabilityZone"] for row in found}) == len(found) > 1
    listed = cli.says(
        *("pricing", "get-products", "--service-code", "AmazonEC2", "--filters"),
        "Type=TERM_MATCH,Field=regionCode,Value=us-east-1",
        "Type=TERM_MATCH,Field=instanceType,Value=g5.xlarge",
    )["PriceList"]
    assert any("1.0060000000" in row for row in listed)
    quota = ("--service-code", "ec2", "--quota-code", "L-3819A6DF")
    assert cli.says("service-quotas", "get-service-quota", *quota)["Quota"]["Value"] > 0
    scores = cli.says(
        *("ec2", "get-spot-placement-scores", "--target-capacity", "1"),
        *("--instance-types", "g5.xlarge", "g6.xlarge", "g4dn.xlarge"),
        "--single-availability-zone",
    )["SpotPlacementScores"]
    assert all(1 <= row["Score"] <= 10 for row in scores)


def test_what_is_refused(cli: Cli, cloud: AwsCloud) -> None:
    cloud.market.capacity["g5.xlarge", "*", "on-demand"] = 0
    cli.environ["AWS_MAX_ATTEMPTS"] = "1"
    launch = ("ec2", "run-instances", "--image-id", f"resolve:ssm:{DLAMI}")
    code, _, err = cli.run(*launch, "--instance-type", "g5.xlarge")
    assert code != 0
    assert "InsufficientInstanceCapacity" in err
    code, _, err = cli.run("ec2", "terminate-instances", "--instance-ids", "i-0123456789abcdef0")
    assert "InvalidInstanceID.NotFound" in err
    cli.environ["AWS_ACCESS_KEY_ID"] = "AKIASTRANGER"
    assert "AuthFailure" in cli.run("ec2", "describe-instances")[2]
    assert "InvalidClientTokenId" in cli.run("sts", "get-caller-identity")[2]


def test_schedules(cli: Cli) -> None:
    when = datetime.now(UTC) + timedelta(hours=1)
    target = {
        "Arn": "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances",
        "RoleArn": "arn:aws:iam::111122223333:role/gpuctl-reaper",
        "Input": json.dumps({"InstanceIds": ["i-0123456789abcdef0"]}),
    }
    name = ("--name", "gpuctl-box", "--group-name", "gpuctl")
    cli.says("scheduler", "create-schedule-group", "--name", "gpuctl")
    cli.says(
        *("scheduler", "create-schedule", *name, "--flexible-time-window", "Mode=OFF"),
        *("--schedule-expression", f"at({when:%Y-%m-%dT%H:%M:%S})"),
        *("--target", json.dumps(target)),
    )
    shown = cli.says("scheduler", "get-schedule", *name)["Target"]
    assert shown.pop("RetryPolicy")["MaximumRetryAttempts"] == 185  # by default
    assert shown == target
    listed = cli.says("scheduler", "list-schedules", "--name-prefix", "gpuctl-")["Schedules"]
    assert [row["Name"] for row in listed] == ["gpuctl-box"]
    cli.says("scheduler", "delete-schedule", *name)
    assert cli.run("scheduler", "get-schedule", *name)[0] != 0
