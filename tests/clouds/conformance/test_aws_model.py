"""Every reply that the layer writes by itself, against the SDK's own description of the API.

The SDK ignores what it does not know, and an empty value where it expects one; this does not.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.http_cloud import Reply, Request
from tests.clouds.memory_cloud import HandClock
from tests.clouds.test_aws_cloud import START, client, launch

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
        "CancelSpotInstanceRequests": lambda i: ec2.cancel_spot_instance_requests(
            SpotInstanceRequestIds=[cloud.rentals.all[i].request.id]  # type: ignore[union-attr]
        ),
        "TerminateInstances": lambda i: ec2.terminate_instances(InstanceIds=[i]),
    }


ACTIONS = (
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
    wrong = sorted(set(wrong_in(ET.fromstring(body), shape, action)))  # noqa: S314
    assert not wrong, "\n".join(wrong)
