"""The emulated AWS account: what leaks, comes back, fails late or fires by itself."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.aws_cloud.images import DLAMI_OWNER
from tests.clouds.aws_cloud.rentals import NO_ROOM_AFTER_ALL
from tests.clouds.test_aws_cloud import (
    SPOT,
    START,
    client,
    cloud,
    ec2,
    launch,
    refused,
    schedule,
    subnets,
)

__all__ = ["cloud", "ec2"]

PERSISTENT = {
    "MarketType": "spot",
    "SpotOptions": {"SpotInstanceType": "persistent", "InstanceInterruptionBehavior": "stop"},
}


def described(ec2: Any, instance_id: str) -> Any:
    [group] = ec2.describe_instances(InstanceIds=[instance_id])["Reservations"]
    return group["Instances"][0]


def living(cloud: AwsCloud) -> list[str]:
    return [one.id for one in cloud.rentals.all.values() if one.alive]


# ------------------------------------------------------------------ what stays behind


def test_a_disk_under_a_wrong_name_is_a_second_one_and_stays(ec2: Any, cloud: AwsCloud) -> None:
    disks = [{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 100}}]  # Ubuntu's is /dev/sda1
    machine = launch(ec2, BlockDeviceMappings=disks)["InstanceId"]
    sizes = sorted(one["Size"] for one in ec2.describe_volumes()["Volumes"])
    assert sizes == [75, 100]
    ec2.terminate_instances(InstanceIds=[machine])
    cloud.clock.sleep(30)
    assert len(cloud.books.open()) == 1


def test_a_disk_smaller_than_its_image_is_refused(ec2: Any) -> None:
    disks = [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 40}}]
    assert refused(launch, ec2, BlockDeviceMappings=disks)[0] == "InvalidBlockDeviceMapping"


def test_disks_are_in_use_for_a_while_after_the_end(ec2: Any, cloud: AwsCloud) -> None:
    cloud.rentals.times.disks = 60
    machine = launch(ec2)["InstanceId"]
    ec2.terminate_instances(InstanceIds=[machine])
    cloud.clock.sleep(20)
    assert described(ec2, machine)["State"]["Name"] == "terminated"
    assert [one["State"] for one in ec2.describe_volumes()["Volumes"]] == ["in-use"]
    assert len(cloud.books.open("volume")) == 1
    cloud.clock.sleep(60)
    assert ec2.describe_volumes()["Volumes"] == []
    assert cloud.books.open() == {}


@pytest.mark.parametrize("stays", [True, False])
def test_interfaces_go_unless_somebody_says_otherwise(
    ec2: Any, cloud: AwsCloud, stays: bool
) -> None:
    place = subnets(ec2)["us-east-1a"]
    nic = {"DeviceIndex": 0, "SubnetId": place} | ({"DeleteOnTermination": False} if stays else {})
    for changes in ({"NetworkInterfaces": [nic]}, {"SubnetId": place}):
        machine = launch(ec2, **changes)["InstanceId"]
        ec2.terminate_instances(InstanceIds=[machine])
    cloud.clock.sleep(60)
    left = ec2.describe_network_interfaces()["NetworkInterfaces"]
    assert [one["Status"] for one in left] == ["available"] * stays


def test_the_public_address_costs_while_it_is_there(ec2: Any, cloud: AwsCloud) -> None:
    machine = launch(ec2)["InstanceId"]
    cloud.clock.sleep(30)
    assert next(iter(cloud.books.open("address"))).startswith(machine)
    ec2.terminate_instances(InstanceIds=[machine])
    assert cloud.books.open("address") == {}


def test_a_protected_machine_cannot_be_ended(ec2: Any, cloud: AwsCloud) -> None:
    machine = launch(ec2, InstanceMarketOptions=None)["InstanceId"]
    ec2.modify_instance_attribute(InstanceId=machine, DisableApiTermination={"Value": True})
    assert refused(ec2.terminate_instances, InstanceIds=[machine])[0] == "OperationNotPermitted"
    assert living(cloud) == [machine]
    ec2.modify_instance_attribute(InstanceId=machine, DisableApiTermination={"Value": False})
    ec2.terminate_instances(InstanceIds=[machine])
    assert living(cloud) == []


# ------------------------------------------------------------------ launches


def test_a_launch_that_is_accepted_and_then_fails(ec2: Any, cloud: AwsCloud) -> None:
    cloud.rentals.launch_fails = [NO_ROOM_AFTER_ALL]
    machine, other = launch(ec2)["InstanceId"], launch(ec2)["InstanceId"]
    cloud.clock.sleep(30)
    gone = described(ec2, machine)
    assert (gone["State"]["Name"], gone["StateReason"]["Code"]) == (
        "terminated",
        "Server.InsufficientInstanceCapacity",
    )
    assert described(ec2, other)["State"]["Name"] == "running"


def test_several_at_once(ec2: Any, cloud: AwsCloud) -> None:
    cloud.market.capacity["g5.xlarge", "*", "spot"] = 2
    assert refused(launch, ec2, MinCount=3, MaxCount=5)[0] == "InsufficientInstanceCapacity"
    assert cloud.market.capacity["g5.xlarge", "*", "spot"] == 2
    launch(ec2, MaxCount=5, ClientToken="t")
    launch(ec2, MaxCount=5, ClientToken="t")  # the same two
    assert len(living(cloud)) == 2


def test_launches_are_counted_by_instances(ec2: Any, cloud: AwsCloud) -> None:
    cloud.launch_bucket = (3, 1)
    launch(ec2, MaxCount=3)
    assert refused(launch, ec2) == ("RequestLimitExceeded", 503)
    ec2.describe_instances()
    cloud.clock.sleep(1)
    launch(ec2)


def test_the_documented_limits_count_each_action_in_each_region(ec2: Any, cloud: AwsCloud) -> None:
    cloud.documented_limits = True
    for _ in range(5):
        launch(ec2)
    assert refused(launch, ec2) == ("RequestLimitExceeded", 503)
    ec2.describe_instances()
    cloud.clock.sleep(0.5)
    launch(ec2)
    assert refused(launch, ec2) == ("RequestLimitExceeded", 503)
    other = client(cloud, region="us-west-2")
    image = other.describe_images(Owners=[DLAMI_OWNER], Filters=[NEWEST, X86])["Images"][0]
    launch(other, ImageId=image["ImageId"])


def test_a_key_pair_that_is_not_there(ec2: Any) -> None:
    assert refused(launch, ec2, KeyName="nobodys")[0] == "InvalidKeyPair.NotFound"


def test_speed_of_a_disk_is_kept(ec2: Any) -> None:
    ebs = {"VolumeSize": 80, "VolumeType": "gp3", "Iops": 4000, "Throughput": 250}
    launch(ec2, BlockDeviceMappings=[{"DeviceName": "/dev/sda1", "Ebs": ebs}])
    [volume] = ec2.describe_volumes()["Volumes"]
    assert (volume["Iops"], volume["Throughput"]) == (4000, 250)


# ------------------------------------------------------------------ templates and fleets


def template(ec2: Any) -> str:
    [image] = ec2.describe_images(Owners=[DLAMI_OWNER], Filters=[NEWEST, X86])["Images"]
    data = {
        "ImageId": image["ImageId"],
        "InstanceType": "g5.xlarge",
        "InstanceInitiatedShutdownBehavior": "terminate",
        "InstanceMarketOptions": SPOT,
        "MetadataOptions": {"HttpTokens": "required"},
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": {"VolumeSize": 90}}],
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": [{"Key": "a", "Value": "b"}]}
            for kind in ("instance", "volume", "spot-instances-request")
        ],
    }
    made = ec2.create_launch_template(LaunchTemplateName="t", LaunchTemplateData=data)
    return str(made["LaunchTemplate"]["LaunchTemplateId"])


NEWEST = {"Name": "name", "Values": ["*(Ubuntu 24.04)*"]}
X86 = {"Name": "architecture", "Values": ["x86_64"]}


def test_a_launch_from_a_template_keeps_everything_and_makes_one_disk(
    ec2: Any, cloud: AwsCloud
) -> None:
    identity = template(ec2)
    from_it = {"LaunchTemplateId": identity, "Version": "$Latest"}
    made = launch(ec2, LaunchTemplate=from_it, ImageId=None, InstanceMarketOptions=None)
    assert made["InstanceLifecycle"] == "spot"
    assert made["MetadataOptions"]["HttpTokens"] == "required"
    assert {"Key": "aws:ec2launchtemplate:id", "Value": identity} in made["Tags"]
    [volume] = ec2.describe_volumes()["Volumes"]
    assert (volume["Size"], volume["Tags"]) == (90, [{"Key": "a", "Value": "b"}])
    ec2.terminate_instances(InstanceIds=[made["InstanceId"]])
    cloud.clock.sleep(30)
    assert cloud.books.open() == {}


def fleet(ec2: Any, identity: str, **more: Any) -> Any:
    places = subnets(ec2)
    pools = [
        {"InstanceType": name, "SubnetId": places[zone]}
        for name in ("g5.xlarge", "g6.xlarge")
        for zone in ("us-east-1a", "us-east-1b")
    ]
    capacity = {"TotalTargetCapacity": 1, "DefaultTargetCapacityType": "spot"}
    return ec2.create_fleet(
        Type="instant",
        TargetCapacitySpecification=capacity,
        LaunchTemplateConfigs=[
            {
                "LaunchTemplateSpecification": {"LaunchTemplateId": identity, "Version": "1"},
                "Overrides": pools,
            }
        ],
        **more,
    )


def test_a_fleet_tells_every_pool_that_was_empty(ec2: Any, cloud: AwsCloud) -> None:
    identity = template(ec2)
    cloud.market.capacity["g5.xlarge", "*", "spot"] = 0
    said = fleet(ec2, identity, ClientToken="f")
    assert [one["ErrorCode"] for one in said["Errors"]] == ["InsufficientInstanceCapacity"] * 2
    [one] = said["Instances"]
    assert (one["InstanceType"], one["Lifecycle"]) == ("g6.xlarge", "spot")
    assert fleet(ec2, identity, ClientToken="f")["FleetId"] == said["FleetId"]
    assert living(cloud) == one["InstanceIds"]

    cloud.market.capacity["g6.xlarge", "*", "spot"] = 0
    nothing = fleet(ec2, identity)  # an answer that succeeds, without a machine
    assert (nothing["Instances"], len(nothing["Errors"])) == ([], 4)
    [error] = {one["ErrorCode"] for one in fleet(ec2, "lt-0123456789abcdef0")["Errors"]}
    assert error == "InvalidLaunchTemplateId.NotFound"


# ------------------------------------------------------------------ requests that come back


def test_a_persistent_request_launches_again_until_it_is_cancelled(
    ec2: Any, cloud: AwsCloud
) -> None:
    made = launch(ec2, InstanceMarketOptions=PERSISTENT)
    first, request = made["InstanceId"], made["SpotInstanceRequestId"]

    def told() -> tuple[str, str]:
        [row] = ec2.describe_spot_instance_requests(SpotInstanceRequestIds=[request])[
            "SpotInstanceRequests"
        ]
        return row["Type"], row["State"]

    cloud.clock.sleep(30)
    ec2.terminate_instances(InstanceIds=[first])
    cloud.clock.sleep(15)
    assert told() == ("persistent", "open")
    cloud.clock.sleep(30)
    ec2.describe_instances()
    [second] = living(cloud)
    assert second != first
    assert "Tags" not in described(ec2, second)  # nobody's, by its looks
    assert told() == ("persistent", "active")
    ec2.cancel_spot_instance_requests(SpotInstanceRequestIds=[request])
    assert living(cloud) == [second]  # a cancelled request ends nothing
    ec2.terminate_instances(InstanceIds=[second])
    cloud.clock.sleep(600)
    ec2.describe_instances()
    assert living(cloud) == []
    assert cloud.books.open() == {}


def test_an_interruption_can_stop_instead_and_its_disk_costs_on(ec2: Any, cloud: AwsCloud) -> None:
    machine = launch(ec2, InstanceMarketOptions=PERSISTENT)["InstanceId"]
    cloud.clock.sleep(30)
    ec2.describe_instances()
    cloud.interrupt(machine, notice=120)
    cloud.clock.sleep(121)
    gone = described(ec2, machine)
    assert (gone["State"]["Name"], gone["StateReason"]["Code"]) == (
        "stopped",
        "Server.SpotInstanceShutdown",
    )
    before = cloud.books.total(cloud.clock.now())
    cloud.clock.sleep(3600)
    assert 0 < cloud.books.total(cloud.clock.now()) - before < Decimal("0.02")


# ------------------------------------------------------------------ the scheduler


def ends(instance_id: str, at: datetime, **more: Any) -> dict[str, Any]:
    return {
        "ScheduleExpression": f"at({at:%Y-%m-%dT%H:%M:%S})",
        "Target": {
            "Arn": "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances",
            "RoleArn": "arn:aws:iam::111122223333:role/gpuctl-r",
            "Input": json.dumps({"InstanceIds": [instance_id]}),
        },
        **more,
    }


def test_a_schedule_fires_when_nobody_asks_anything(ec2: Any, cloud: AwsCloud) -> None:
    machine = launch(ec2)["InstanceId"]
    schedule(cloud, **ends(machine, START + timedelta(hours=1)))
    asked = len(cloud.log)
    cloud.clock.sleep(3599)
    assert len(cloud.rentals.rented()) == 1
    cloud.clock.sleep(2)
    assert cloud.rentals.rented() == {}
    assert len(cloud.log) == asked
    assert cloud.scheduler.schedules == {}
    assert cloud.rentals.all[machine].why[0] == "Client.UserInitiatedShutdown"


def test_a_schedule_whose_role_lacks_the_right_tries_in_vain(ec2: Any, cloud: AwsCloud) -> None:
    cloud.scheduler.role_denied = True
    machine = launch(ec2)["InstanceId"]
    schedule(cloud, **ends(machine, START + timedelta(hours=1)))
    cloud.clock.sleep(7200)
    assert len(cloud.rentals.rented()) == 1
    cloud.scheduler.role_denied = False  # it is tried again for a day
    assert cloud.rentals.rented() == {}


def test_the_zone_of_a_schedule_counts_and_an_update_replaces_all(
    ec2: Any, cloud: AwsCloud
) -> None:
    machine = launch(ec2)["InstanceId"]
    asked = ends(machine, START + timedelta(hours=9), ScheduleExpressionTimezone="Asia/Tokyo")
    with pytest.raises(ClientError, match="past"):
        schedule(cloud, **{**asked, "ScheduleExpression": "at(2026-11-21T20:00:00)"})
    schedule(cloud, **{**asked, "ScheduleExpression": "at(2026-11-21T22:00:00)"})
    scheduler = client(cloud, "scheduler")
    later = {**ends(machine, START + timedelta(hours=5)), "FlexibleTimeWindow": {"Mode": "OFF"}}
    scheduler.update_schedule(Name="gpuctl-x", **later)
    assert scheduler.get_schedule(Name="gpuctl-x")["ActionAfterCompletion"] == "NONE"
    cloud.clock.sleep(2 * 3600)
    assert len(cloud.rentals.rented()) == 1
    cloud.clock.sleep(3 * 3600 + 1)
    assert cloud.rentals.rented() == {}
    assert scheduler.get_schedule(Name="gpuctl-x")["State"] == "ENABLED"  # it stays, done


def test_groups_of_schedules(cloud: AwsCloud) -> None:
    scheduler = client(cloud, "scheduler")
    tags = [{"Key": "gpuctl:managed-by", "Value": "terraform"}]
    made = scheduler.create_schedule_group(Name="gpuctl", Tags=tags)
    assert scheduler.get_schedule_group(Name="gpuctl")["State"] == "ACTIVE"
    found = scheduler.list_tags_for_resource(ResourceArn=made["ScheduleGroupArn"])
    assert found["Tags"] == tags
    schedule(cloud, GroupName="gpuctl")
    scheduler.delete_schedule_group(Name="gpuctl")
    assert cloud.scheduler.schedules == {}
    with pytest.raises(ClientError, match="ResourceNotFound"):
        scheduler.list_schedules(GroupName="gpuctl")


# ------------------------------------------------------------------ the market


def test_prices_of_a_zone_by_its_id(ec2: Any) -> None:
    zones = ec2.describe_availability_zones()["AvailabilityZones"]
    found = ec2.describe_spot_price_history(
        InstanceTypes=["g5.xlarge"], AvailabilityZoneId=zones[0]["ZoneId"], StartTime=START
    )["SpotPriceHistory"]
    assert {one["AvailabilityZone"] for one in found} == {zones[0]["ZoneName"]}


def test_new_questions_for_scores_run_out_and_old_ones_do_not(ec2: Any, cloud: AwsCloud) -> None:
    cloud.market.score_limit = 1
    types = ["g5.xlarge", "g6.xlarge", "g4dn.xlarge"]

    def ask(names: list[str]) -> Any:
        return ec2.get_spot_placement_scores(InstanceTypes=names, TargetCapacity=1)

    for _ in range(2):
        assert ask(types)["SpotPlacementScores"]
    other = [*types, "g6e.xlarge"]
    assert refused(ask, other)[0] == "MaxConfigLimitExceededException"
    cloud.clock.sleep(86401)
    assert ask(other)["SpotPlacementScores"]


def test_the_price_list_is_served_in_three_regions(cloud: AwsCloud) -> None:
    asked = {"ServiceCode": "AmazonEC2", "Filters": [term("regionCode", "eu-west-1")]}
    for region in ("us-east-1", "eu-central-1", "ap-south-1"):
        assert client(cloud, "pricing", region).get_products(**asked)["PriceList"]
    with pytest.raises(ClientError, match="valid region"):
        client(cloud, "pricing", "eu-west-1").get_products(**asked)


def term(field: str, value: str) -> dict[str, str]:
    return {"Type": "TERM_MATCH", "Field": field, "Value": value}


def test_the_price_list_has_more_than_one_row_of_a_type(cloud: AwsCloud) -> None:
    asked = [term("regionCode", "us-east-1"), term("instanceType", "g5.xlarge")]
    pricing = client(cloud, "pricing")
    every = pricing.get_products(ServiceCode="AmazonEC2", Filters=asked)["PriceList"]
    asked += [term("operatingSystem", "Linux"), term("tenancy", "Shared")]
    asked += [term("capacitystatus", "Used"), term("preInstalledSw", "NA")]
    asked += [term("marketoption", "OnDemand")]
    meant = pricing.get_products(ServiceCode="AmazonEC2", Filters=asked)["PriceList"]
    assert len(every) > len(meant) == 2  # the price, and a row that costs nothing


# ------------------------------------------------------------------ what is moto's


def test_storage_and_roles_are_there_for_terraform(cloud: AwsCloud) -> None:
    s3 = client(cloud, "s3")
    s3.create_bucket(Bucket="checkpoints")
    s3.put_object(Bucket="checkpoints", Key="a/b c", Body=b"x" * 1000)
    assert s3.head_object(Bucket="checkpoints", Key="a/b c")["ContentLength"] == 1000
    assert s3.list_objects_v2(Bucket="checkpoints", Prefix="a/")["KeyCount"] == 1
    assert s3.get_object(Bucket="checkpoints", Key="a/b c")["Body"].read() == b"x" * 1000
    iam = client(cloud, "iam")
    iam.create_role(RoleName="gpuctl-r", AssumeRolePolicyDocument="{}")
    assert iam.get_role(RoleName="gpuctl-r")["Role"]["Arn"].endswith("role/gpuctl-r")
    assert cloud.log[-1].path == "/iam/us-east-1/GetRole"
