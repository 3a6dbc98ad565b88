"""Every reply that the layer writes by itself, against the SDK's own description of the API.

The SDK ignores what it does not know, and an empty value where it expects one; this does not.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.http_cloud import Reply, Request
from tests.clouds.memory_cloud import HandClock
from tests.clouds.test_aws_cloud import DLAMI, START, client, launch, schedule
from tests.clouds.test_aws_switches import fleet, template

pytestmark = pytest.mark.conformance


@pytest.fixture
def replies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """(path, body) of everything that the account answers."""
    seen: list[tuple[str, bytes]] = []

    def note(self: AwsCloud, request: Request, reply: Reply) -> Reply:
        seen.append((request.path, reply.content()))
        return reply

    monkeypatch.setattr(AwsCloud, "adorn", note)
    return seen


@pytest.fixture
def cloud(replies: list[tuple[str, bytes]]) -> Iterator[AwsCloud]:
    with AwsCloud(clock=HandClock(START)) as made:
        yield made


def wrong_in(element: ET.Element, shape: Any, path: str) -> Iterator[str]:
    """Yield what an element has that its shape does not allow."""
    if shape.type_name == "list":
        for child in element:
            if _name(child) != "item":
                yield f"{path}/{_name(child)} is no item of a list"
            else:
                yield from wrong_in(child, shape.member, f"{path}[]")
    elif shape.type_name == "structure":
        known = {
            member.serialization.get("name", name): member for name, member in shape.members.items()
        }
        for child in element:
            name = _name(child)
            if name in known:
                yield from wrong_in(child, known[name], f"{path}/{name}")
            elif name not in ("requestId", "RequestId"):
                yield f"{path}/{name} is not in the model"
    else:
        text = element.text or ""
        if shape.type_name in ("integer", "long") and not text.lstrip("-").isdecimal():
            yield f"{path} is {text!r}, not a number"
        if shape.type_name == "boolean" and text not in ("true", "false"):
            yield f"{path} is {text!r}, not a boolean"
        enum = getattr(shape, "enum", None)
        if enum and text and text not in enum:
            yield f"{path} is {text!r}, none of {enum}"


def _name(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def everything(cloud: AwsCloud, ec2: Any) -> dict[str, Callable[[str], object]]:
    """What is asked, by action; each gets the id of a running spot instance."""
    return {
        "DescribeInstances": lambda i: ec2.describe_instances(InstanceIds=[i]),
        "DescribeInstanceStatus": lambda i: ec2.describe_instance_status(InstanceIds=[i]),
        "DescribeSpotInstanceRequests": lambda _: ec2.describe_spot_instance_requests(),
        "DescribeSpotPriceHistory": lambda _: ec2.describe_spot_price_history(
            InstanceTypes=["g5.xlarge"]
        ),
        "GetSpotPlacementScores": lambda _: ec2.get_spot_placement_scores(
            InstanceTypes=["g5.xlarge", "g6.xlarge", "g4dn.xlarge"],
            TargetCapacity=1,
            SingleAvailabilityZone=True,
        ),
        "GetConsoleOutput": lambda i: ec2.get_console_output(InstanceId=i),
        "DescribeImages": lambda _: ec2.describe_images(Owners=["898082745236"]),
        "DescribeVolumes": lambda _: ec2.describe_volumes(),
        "DescribeSubnets": lambda _: ec2.describe_subnets(),
        "DescribeAvailabilityZones": lambda _: ec2.describe_availability_zones(),
        "DescribeInstanceTypes": lambda _: ec2.describe_instance_types(
            Filters=[{"Name": "instance-type", "Values": ["g5.*"]}]
        ),
        "DescribeNetworkInterfaces": lambda _: ec2.describe_network_interfaces(),
        "DescribeSecurityGroups": lambda _: ec2.describe_security_groups(),
        "CreateSecurityGroup": lambda _: group(ec2),
        "AuthorizeSecurityGroupIngress": lambda _: ec2.authorize_security_group_ingress(
            GroupId=group(ec2),
            IpPermissions=[{"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}],
        ),
        "ModifyInstanceAttribute": lambda i: ec2.modify_instance_attribute(
            InstanceId=i, InstanceInitiatedShutdownBehavior={"Value": "terminate"}
        ),
        "CreateFleet": lambda _: fleet(ec2, template(ec2)),
        "DeleteVolume": lambda _: ec2.delete_volume(
            VolumeId=ec2.create_volume(AvailabilityZone="us-east-1a", Size=8)["VolumeId"]
        ),
        "DeleteNetworkInterface": lambda _: ec2.delete_network_interface(
            NetworkInterfaceId=ec2.create_network_interface(
                SubnetId=ec2.describe_subnets()["Subnets"][0]["SubnetId"]
            )["NetworkInterface"]["NetworkInterfaceId"]
        ),
        "CancelSpotInstanceRequests": lambda i: ec2.cancel_spot_instance_requests(
            SpotInstanceRequestIds=[cloud.rentals.all[i].request.id]  # type: ignore[union-attr]
        ),
        "TerminateInstances": lambda i: ec2.terminate_instances(InstanceIds=[i]),
    }


def group(ec2: Any) -> str:
    """Make a security group."""
    return str(ec2.create_security_group(GroupName="g", Description="d")["GroupId"])


ACTIONS = (
    *("DescribeAvailabilityZones", "DescribeInstanceTypes", "DescribeNetworkInterfaces"),
    *("DescribeSecurityGroups", "CreateSecurityGroup", "AuthorizeSecurityGroupIngress"),
    *("ModifyInstanceAttribute", "CreateFleet", "DeleteVolume", "DeleteNetworkInterface"),
    *("RunInstances", "DescribeInstances", "DescribeInstanceStatus", "DescribeImages"),
    *("DescribeSpotInstanceRequests", "DescribeSpotPriceHistory", "GetSpotPlacementScores"),
    *("GetConsoleOutput", "DescribeVolumes", "DescribeSubnets", "CancelSpotInstanceRequests"),
    "TerminateInstances",
)


@pytest.mark.parametrize("action", ACTIONS)
def test_replies_are_those_of_the_model(
    cloud: AwsCloud, replies: list[tuple[str, bytes]], action: str
) -> None:
    ec2 = client(cloud)
    instance = launch(ec2)["InstanceId"]
    cloud.clock.sleep(30)
    if action != "RunInstances":
        everything(cloud, ec2)[action](instance)
    [*_, (_, body)] = [one for one in replies if one[0].endswith("/" + action)]
    shape = ec2.meta.service_model.operation_model(action).output_shape
    if shape is None:
        return  # nothing but an acknowledgement
    wrong = sorted(set(wrong_in(ET.fromstring(body), shape, action)))  # noqa: S314
    assert not wrong, "\n".join(wrong)


# ------------------------------------------------------------------ the services that speak JSON


def odd_in(value: object, shape: Any, path: str) -> Iterator[str]:
    """Yield what a JSON value has that its shape does not allow."""
    kind = shape.type_name
    if kind == "structure" and isinstance(value, dict):
        for name, inner in value.items():
            if name in shape.members:
                yield from odd_in(inner, shape.members[name], f"{path}/{name}")
            else:
                yield f"{path}/{name} is not in the model"
        for name in shape.required_members:
            if name not in value:
                yield f"{path}/{name} is missing"
    elif kind == "list" and isinstance(value, list):
        for inner in value:
            yield from odd_in(inner, shape.member, f"{path}[]")
    elif not isinstance(value, _JSON.get(kind, object)):
        yield f"{path} is {value!r}, not a {kind}"
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{path} is {value!r}, none of {shape.enum}"


_JSON: dict[str, Any] = {
    "string": str,
    "integer": int,
    "long": int,
    "double": (int, float),
    "timestamp": (int, float),
    "boolean": bool,
    "structure": dict,
    "list": list,
}


def asked_in_json(cloud: AwsCloud) -> dict[str, tuple[str, Callable[[Any], object]]]:
    """What is asked of services that speak JSON: the service, and how."""
    region = {"Type": "TERM_MATCH", "Field": "regionCode", "Value": "us-east-1"}
    kind = {"Type": "TERM_MATCH", "Field": "instanceType", "Value": "g5.xlarge"}
    quota = {"ServiceCode": "ec2", "QuotaCode": "L-3819A6DF"}
    return {
        "GetProducts": (
            "pricing",
            lambda c: c.get_products(ServiceCode="AmazonEC2", Filters=[region, kind]),
        ),
        "GetServiceQuota": ("service-quotas", lambda c: c.get_service_quota(**quota)),
        "ListServiceQuotas": (
            "service-quotas",
            lambda c: c.list_service_quotas(ServiceCode="ec2"),
        ),
        "GetParameter": ("ssm", lambda c: c.get_parameter(Name=DLAMI)),
        "CreateScheduleGroup": ("scheduler", lambda c: c.create_schedule_group(Name="g")),
        "GetScheduleGroup": (
            "scheduler",
            lambda c: (c.create_schedule_group(Name="g"), c.get_schedule_group(Name="g")),
        ),
        "CreateSchedule": ("scheduler", lambda _: schedule(cloud)),
        "GetSchedule": (
            "scheduler",
            lambda c: (schedule(cloud), c.get_schedule(Name="gpuctl-x")),
        ),
        "ListSchedules": (
            "scheduler",
            lambda c: (schedule(cloud), c.list_schedules(NamePrefix="gpuctl-")),
        ),
        "DeleteSchedule": (
            "scheduler",
            lambda c: (schedule(cloud), c.delete_schedule(Name="gpuctl-x")),
        ),
    }


JSON_ACTIONS = (
    *("GetProducts", "GetServiceQuota", "ListServiceQuotas", "GetParameter", "GetSchedule"),
    *("CreateScheduleGroup", "GetScheduleGroup", "CreateSchedule", "ListSchedules"),
    "DeleteSchedule",
)


@pytest.mark.parametrize("action", JSON_ACTIONS)
def test_json_replies_are_those_of_the_model(
    cloud: AwsCloud, replies: list[tuple[str, bytes]], action: str
) -> None:
    service, ask = asked_in_json(cloud)[action]
    asking = client(cloud, service)
    ask(asking)
    shape = asking.meta.service_model.operation_model(action).output_shape
    wrong = sorted(set(odd_in(json.loads(replies[-1][1]), shape, action)))
    assert not wrong, "\n".join(wrong)
