"""What a machine on EC2 can leave behind: volumes, interfaces, spot requests, schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from providers import aws_schedule
from providers.aws_client import Aws
from providers.aws_errors import said
from providers.aws_machines import MANAGED, read_mark, tags_of
from providers.base import InvalidRequest, Leftover, NotFound

_OURS = {"Name": f"tag:{MANAGED}", "Values": ["1"]}
_FREE = {"Name": "status", "Values": ["available"]}
# A disabled one has a machine that an interruption has stopped; others of its kind launch again.
_OPEN = {"Name": "state", "Values": ["open", "active", "disabled"]}
_GP3_MONTH = Decimal("0.08")


def leftovers(aws: Aws, region: str, alive: Mapping[str, str]) -> list[Leftover]:
    """Return what is left in a region.

    Args:
        alive: instance id -> name of every machine there that is not ending; what belongs to
            one of them is not left over.

    Raises:
        ProviderError: something could not be listed; a part of the truth is none.
    """
    found: list[Leftover] = []
    volumes = _listed(aws, region, "describe_volumes", "Volumes", [_OURS, _FREE])
    for row in volumes:
        price = _GP3_MONTH * int(row.get("Size", 0))
        found += _leftover(row, region, "volume", "VolumeId", price)
    interfaces = _listed(
        aws, region, "describe_network_interfaces", "NetworkInterfaces", [_OURS, _FREE]
    )
    for row in interfaces:
        row = {**row, "Tags": row.get("TagSet", row.get("Tags"))}
        found += _leftover(row, region, "interface", "NetworkInterfaceId", None)
    requests = _listed(
        aws, region, "describe_spot_instance_requests", "SpotInstanceRequests", [_OURS, _OPEN]
    )
    for row in requests:
        if row.get("InstanceId") not in alive:
            found += _leftover(row, region, "spot-request", "SpotInstanceRequestId", None)
    if aws.environ.get(aws_schedule.ROLE):
        found += aws_schedule.left(aws, region, frozenset(alive.values()))
    return found


def remove(aws: Aws, leftover: Leftover) -> None:
    """Remove one; one that is not there is fine. Raises ProviderError."""
    region, _, own = leftover.id.partition("/")
    client = aws.ec2(region)
    calls: Mapping[str, Callable[[], object]] = {
        "volume": lambda: client.delete_volume(VolumeId=own),
        "interface": lambda: client.delete_network_interface(NetworkInterfaceId=own),
        "spot-request": lambda: client.cancel_spot_instance_requests(SpotInstanceRequestIds=[own]),
        "schedule": lambda: aws_schedule.disarm(aws, region, own),
    }
    if leftover.kind not in calls:
        raise InvalidRequest(f"A {leftover.kind} is nothing that gpuctl leaves on AWS.")
    try:
        with said(f"AWS did not remove the {leftover.kind} {own} in {region}"):
            calls[leftover.kind]()
    except NotFound:
        return


def cancel_request_of(aws: Aws, region: str, instance_id: str) -> None:
    """Cancel the spot request behind an instance that is ending.

    Until then it counts against the quota, so that the next launch could be refused.
    """
    mine = [{"Name": "instance-id", "Values": [instance_id]}, _OPEN]
    rows = _listed(aws, region, "describe_spot_instance_requests", "SpotInstanceRequests", mine)
    ids = [str(row["SpotInstanceRequestId"]) for row in rows]
    if ids:
        with said(f"AWS did not cancel the spot request of {instance_id}"):
            aws.ec2(region).cancel_spot_instance_requests(SpotInstanceRequestIds=ids)


def _listed(
    aws: Aws, region: str, call: str, key: str, filters: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    with said(f"AWS did not list what is left in {region}"):
        pages = aws.ec2(region).get_paginator(call)
        return [row for page in pages.paginate(Filters=list(filters)) for row in page[key]]


def _leftover(
    row: Mapping[str, Any], region: str, kind: str, key: str, price: Decimal | None
) -> list[Leftover]:
    tags = tags_of(row)
    mark = read_mark(tags)
    if mark is None or mark.managed_by != "gpuctl":
        return []
    name = tags.get("gpuctl:name", "")
    return [Leftover("aws", kind, f"{region}/{row[key]}", name, mark, price)]
