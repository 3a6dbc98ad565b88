"""The emulated AWS account itself: rules that moto does not have, asked through the plain SDK."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.aws_cloud.cloud import KEY, SECRET
from tests.clouds.aws_cloud.machines import cloud_config
from tests.clouds.aws_cloud.metadata import Metadata
from tests.clouds.memory_cloud import HandClock

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
SPOT = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time"}}
DLAMI = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-24.04/latest/ami-id"


@pytest.fixture
def cloud() -> Iterator[AwsCloud]:
    with AwsCloud(clock=HandClock(START)) as made:
        yield made


def client(cloud: AwsCloud, service: str = "ec2", region: str = "us-east-1") -> Any:
    return boto3.client(
        service,
        region_name=region,
        endpoint_url=cloud.url,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(retries={"total_max_attempts": 1}),
    )


@pytest.fixture
def ec2(cloud: AwsCloud) -> Any:
    return client(cloud)


def launch(ec2: Any, **changes: Any) -> dict[str, Any]:
    arguments = {
        "ImageId": f"resolve:ssm:{DLAMI}",
        "InstanceType": "g5.xlarge",
        "MinCount": 1,
        "MaxCount": 1,
        "InstanceMarketOptions": SPOT,
        **changes,
    }
    found: dict[str, Any] = ec2.run_instances(**{k: v for k, v in arguments.items() if v})
    return dict(found["Instances"][0])


def refused(call: Any, *arguments: Any, **named: Any) -> tuple[str, int]:
    with pytest.raises(ClientError) as caught:
        call(*arguments, **named)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def subnets(ec2: Any) -> dict[str, str]:
    return {s["AvailabilityZone"]: s["SubnetId"] for s in ec2.describe_subnets()["Subnets"]}


# ------------------------------------------------------------------ tokens


def test_a_token_gives_the_same_instance_again(ec2: Any, cloud: AwsCloud) -> None:
    first = launch(ec2, ClientToken="t")
    assert launch(ec2, ClientToken="t")["InstanceId"] == first["InstanceId"]
    assert len(cloud.rentals.all) == 1
    other = refused(launch, ec2, ClientToken="t", InstanceType="g5.2xlarge")
    assert other == ("IdempotentParameterMismatch", 400)
    ec2.terminate_instances(InstanceIds=[first["InstanceId"]])
    assert refused(launch, ec2, ClientToken="t") == ("IdempotentInstanceTerminated", 400)


def test_a_token_is_zonal_where_the_zone_is_chosen(ec2: Any, cloud: AwsCloud) -> None:
    places = subnets(ec2)
    for zone in ("us-east-1a", "us-east-1b"):
        launch(ec2, ClientToken="t", SubnetId=places[zone])
    assert len(cloud.rentals.all) == 2  # the trap of fallback loops


def test_a_refused_launch_binds_its_token(ec2: Any, cloud: AwsCloud) -> None:
    cloud.market.capacity["g5.xlarge", "*", "spot"] = 0
    assert refused(launch, ec2, ClientToken="t") == ("InsufficientInstanceCapacity", 500)
    other = refused(launch, ec2, ClientToken="t", InstanceType="g5.2xlarge")
    assert other == ("IdempotentParameterMismatch", 400)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"InstanceType": "g99.nope"}, "InvalidInstanceType"),
        ({"ImageId": "ami-0123456789abcdef0"}, "InvalidAMIID.NotFound"),
        ({"SubnetId": "subnet-0123456789abcdef0"}, "InvalidSubnetID.NotFound"),
        ({"UserData": "x" * 16385}, "InvalidParameterValue"),
        ({"ClientToken": "x" * 65}, "InvalidParameterValue"),
        ({"InstanceType": "p5e.48xlarge"}, "Unsupported"),  # not in us-east-1
        ({"DryRun": True}, "DryRunOperation"),
    ],
)
def test_launches_that_are_refused(ec2: Any, cloud: AwsCloud, changes: Any, code: str) -> None:
    assert refused(launch, ec2, **changes)[0] == code
    assert cloud.rentals.all == {}


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"SpotInstanceType": "persistent"}, "InvalidParameterCombination"),
        ({"InstanceInterruptionBehavior": "stop"}, "InvalidParameterCombination"),
        ({"ValidUntil": START}, "InvalidParameterCombination"),
        ({"MaxPrice": "0.0005"}, "InvalidParameterValue"),
        ({"MaxPrice": "0.01"}, "SpotMaxPriceTooLow"),
    ],
)
def test_spot_options_that_are_refused(ec2: Any, options: Any, code: str) -> None:
    given = {"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "one-time", **options}}
    assert refused(launch, ec2, InstanceMarketOptions=given)[0] == code


def test_ids(ec2: Any) -> None:
    end = ec2.terminate_instances
    assert refused(end, InstanceIds=["foo"])[0] == "InvalidInstanceID.Malformed"
    absent = "i-0123456789abcdef0"
    assert refused(end, InstanceIds=[absent])[0] == "InvalidInstanceID.NotFound"
    machine = launch(ec2)["InstanceId"]
    refused(end, InstanceIds=[machine, absent])
    assert ec2.describe_instances()["Reservations"][0]["Instances"][0]["State"]["Code"] == 0
    for _ in range(2):
        assert end(InstanceIds=[machine])["TerminatingInstances"]


def test_spot_cannot_be_stopped_nor_protected(ec2: Any) -> None:
    machine = launch(ec2)["InstanceId"]
    assert refused(ec2.stop_instances, InstanceIds=[machine])[0] == "UnsupportedOperation"
    protect = {"InstanceId": machine, "DisableApiTermination": {"Value": True}}
    assert refused(ec2.modify_instance_attribute, **protect)[0] == "UnsupportedOperation"


def test_actions_whose_books_would_lie_are_refused(ec2: Any) -> None:
    code = refused(ec2.request_spot_instances, LaunchSpecification={"ImageId": "ami-1"})[0]
    assert code == "UnsupportedOperation"


def test_a_quota_counts_until_the_request_is_cancelled(ec2: Any, cloud: AwsCloud) -> None:
    cloud.market.quotas["us-east-1", "L-3819A6DF"] = 4
    machine = launch(ec2)
    ec2.terminate_instances(InstanceIds=[machine["InstanceId"]])
    assert refused(launch, ec2) == ("MaxSpotInstanceCountExceeded", 400)
    ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[machine["SpotInstanceRequestId"]])
    launch(ec2)
    cloud.market.quotas["us-east-1", "L-DB2E81BA"] = 0
    assert refused(launch, ec2, InstanceMarketOptions=None) == ("VcpuLimitExceeded", 400)


# ------------------------------------------------------------------ life, requests, books


def test_a_life_by_the_clouds_clock(ec2: Any, cloud: AwsCloud) -> None:
    cloud.rentals.times.unseen = 5
    machine = launch(ec2)["InstanceId"]

    def state() -> str:
        found = ec2.describe_instances(InstanceIds=[machine])["Reservations"][0]["Instances"][0]
        return str(found["State"]["Name"])

    assert refused(ec2.describe_instances, InstanceIds=[machine])[0].endswith("NotFound")
    assert ec2.describe_instances()["Reservations"] == []
    seen = []
    for step in range(6):
        cloud.clock.sleep(6)
        if step == 4:
            ec2.terminate_instances(InstanceIds=[machine])
        seen.append(state())
    assert list(dict.fromkeys(seen)) == ["pending", "running", "shutting-down"]
    cloud.clock.sleep(10)
    assert state() == "terminated"
    cloud.clock.sleep(3600)
    assert refused(ec2.describe_instances, InstanceIds=[machine])[0].endswith("NotFound")


def test_what_a_life_costs(ec2: Any, cloud: AwsCloud) -> None:
    cloud.market.spot["g5.xlarge", "us-east-1a"] = [(START, Decimal("0.36"))]
    machine = launch(ec2, SubnetId=subnets(ec2)["us-east-1a"])["InstanceId"]
    cloud.clock.sleep(20)  # pending costs nothing
    ec2.describe_instances()
    cloud.clock.sleep(3600)
    ec2.terminate_instances(InstanceIds=[machine])
    cloud.clock.sleep(600)
    assert abs(cloud.books.billed(machine, cloud.clock.now()) - Decimal("0.36")) < Decimal("1e-4")
    assert cloud.books.open() == {}


def test_volumes_stay_when_nobody_says_otherwise(ec2: Any, cloud: AwsCloud) -> None:
    disks = [
        {"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 75}},
        {"DeviceName": "/dev/sdb", "Ebs": {"VolumeSize": 100}},
    ]
    machine = launch(ec2, BlockDeviceMappings=disks)["InstanceId"]
    assert len(cloud.books.open("volume")) == 2
    ec2.terminate_instances(InstanceIds=[machine])
    cloud.clock.sleep(30)
    [left] = ec2.describe_volumes()["Volumes"]
    assert (left["Size"], left["State"]) == (100, "available")
    assert list(cloud.books.open()) == [left["VolumeId"]]
    ec2.delete_volume(VolumeId=left["VolumeId"])
    assert cloud.books.open() == {}


def test_stopped_machines_still_pay_for_their_disk(ec2: Any, cloud: AwsCloud) -> None:
    machine = launch(ec2, InstanceMarketOptions=None)["InstanceId"]
    cloud.clock.sleep(30)
    ec2.stop_instances(InstanceIds=[machine])
    before = cloud.books.total(cloud.clock.now())
    cloud.clock.sleep(3600)
    grown = cloud.books.total(cloud.clock.now()) - before
    assert 0 < grown < Decimal("0.01")


@pytest.mark.parametrize("cancelled", [True, False])
def test_the_codes_of_a_spot_request(ec2: Any, cloud: AwsCloud, cancelled: bool) -> None:
    machine = launch(ec2)
    ids = [machine["SpotInstanceRequestId"]]

    def request() -> tuple[str, str]:
        [row] = ec2.describe_spot_instance_requests(SpotInstanceRequestIds=ids)[
            "SpotInstanceRequests"
        ]
        return row["State"], row["Status"]["Code"]

    assert request() == ("active", "fulfilled")
    if cancelled:
        ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=ids)
        assert request() == ("cancelled", "request-canceled-and-instance-running")
        assert len(cloud.rentals.rented()) == 1
    ec2.terminate_instances(InstanceIds=[machine["InstanceId"]])
    cloud.clock.sleep(30)
    expected = "cancelled" if cancelled else "closed"
    assert request() == (expected, "instance-terminated-by-user")
    cloud.clock.sleep(4 * 3600)
    assert refused(ec2.describe_spot_instance_requests, SpotInstanceRequestIds=ids)[1] == 400


def test_an_interruption(ec2: Any, cloud: AwsCloud) -> None:
    machine = launch(ec2)
    cloud.clock.sleep(30)
    ec2.describe_instances()
    cloud.interrupt(machine["InstanceId"], notice=120)
    [row] = ec2.describe_spot_instance_requests()["SpotInstanceRequests"]
    assert row["Status"]["Code"] == "instance-terminated-no-capacity"
    assert cloud.events[0]["detail"]["instance-id"] == machine["InstanceId"]
    assert len(cloud.rentals.rented()) == 1
    cloud.clock.sleep(121)
    [gone] = ec2.describe_instances()["Reservations"][0]["Instances"]
    assert gone["State"]["Name"] == "terminated"
    assert gone["StateReason"]["Code"] == "Server.SpotInstanceTermination"


def test_filters_and_pages(ec2: Any, cloud: AwsCloud) -> None:
    for number in range(7):
        launch(ec2, ClientToken=f"t{number}", InstanceMarketOptions=SPOT if number else None)
    for name, value, count in (("client-token", "t3", 1), ("instance-lifecycle", "spot", 6)):
        found = ec2.describe_instances(Filters=[{"Name": name, "Values": [value]}])
        assert len(found["Reservations"]) == count
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=["g5.*"], PaginationConfig={"PageSize": 7}
    )
    sizes = [len(page["SpotPriceHistory"]) for page in pages]
    assert max(sizes) == 7
    assert len(sizes) > 3


def test_a_group_in_use_stays(ec2: Any) -> None:
    group = ec2.create_security_group(GroupName="g", Description="d")["GroupId"]
    machine = launch(ec2, SecurityGroupIds=[group])["InstanceId"]
    assert refused(ec2.delete_security_group, GroupId=group)[0] == "DependencyViolation"
    ec2.terminate_instances(InstanceIds=[machine])


def test_requests_run_out(ec2: Any, cloud: AwsCloud) -> None:
    cloud.bucket = (3, 1)
    codes = []
    for _ in range(5):
        try:
            ec2.describe_volumes()
            codes.append("")
        except ClientError as error:
            codes.append(error.response["Error"]["Code"])
    assert codes == ["", "", "", "RequestLimitExceeded", "RequestLimitExceeded"]
    cloud.clock.sleep(1)
    ec2.describe_volumes()


# ------------------------------------------------------------------ schedules


def schedule(cloud: AwsCloud, **changes: Any) -> Any:
    body = {
        "Name": "gpuctl-x",
        "ScheduleExpression": f"at({START + timedelta(hours=1):%Y-%m-%dT%H:%M:%S})",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "ClientToken": "t",
        "Target": {
            "Arn": "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances",
            "RoleArn": "arn:aws:iam::1:role/gpuctl-r",
            "Input": json.dumps({"InstanceIds": ["i-1"]}),
        },
        **changes,
    }
    return client(cloud, "scheduler").create_schedule(**body)


def test_schedules(cloud: AwsCloud) -> None:
    with pytest.raises(ClientError, match="past"):
        schedule(cloud, ScheduleExpression="at(2020-01-01T00:00:00)")
    with pytest.raises(ClientError, match="Expression"):
        schedule(cloud, ScheduleExpression="soon")
    with pytest.raises(ClientError, match="ResourceNotFound"):
        schedule(cloud, GroupName="none")
    schedule(cloud)
    schedule(cloud)  # the same token: nothing happens
    with pytest.raises(ClientError, match="Conflict"):
        schedule(cloud, ClientToken="u")
    cloud.clock.sleep(3601)
    client(cloud).describe_instances()
    assert cloud.scheduler.schedules == {}


# ------------------------------------------------------------------ the metadata service


def ask(root: str, method: str, path: str, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(str(urlsplit(root).netloc), timeout=5)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers=named)
    reply = connection.getresponse()
    return reply.status, reply.read()


def test_the_metadata_service() -> None:
    clock = HandClock(START)
    with Metadata(clock) as service:
        service.facts["instance-id"] = "i-1"
        where = "/latest/meta-data/instance-id"
        assert ask(service.url, "PUT", "/latest/api/token")[0] == 400
        assert ask(service.url, "GET", where)[0] == 401
        _, token = ask(
            service.url, "PUT", "/latest/api/token", X_aws_ec2_metadata_token_ttl_seconds="60"
        )
        own = {"X_aws_ec2_metadata_token": token.decode()}
        assert ask(service.url, "GET", where, **own) == (200, b"i-1")
        action = "/latest/meta-data/spot/instance-action"
        assert ask(service.url, "GET", action, **own)[0] == 404
        service.announce(START + timedelta(minutes=2))
        _, said = ask(service.url, "GET", action, **own)
        assert json.loads(said) == {"action": "terminate", "time": "2026-11-21T12:02:00Z"}
        clock.pass_time(61)
        assert ask(service.url, "GET", where, **own)[0] == 401


def test_user_data_is_read_as_cloud_init_does() -> None:
    assert cloud_config(b'#cloud-config\n{"bootcmd": ["true"]}')["bootcmd"] == ["true"]
    assert cloud_config(b"#!/bin/sh\ntrue") == {}
    assert cloud_config(base64.b64encode(b"#cloud-config\na: 1")) == {}


def test_two_accounts_know_nothing_of_each_other() -> None:
    with AwsCloud(clock=HandClock(START)) as one, AwsCloud(clock=HandClock(START)) as two:
        launch(client(one))
        assert client(two).describe_instances()["Reservations"] == []
        assert client(one, region="eu-west-1").describe_instances()["Reservations"] == []
        assert threading.active_count() < 100
