"""The requests that stand behind spot instances: described, and cancelled."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tests.clouds.aws_cloud.market import LINUX
from tests.clouds.aws_cloud.rentals import SpotRequest
from tests.clouds.aws_cloud.wire import Refused, filters, fits, listed, paged, tag_set, xml
from tests.clouds.http_cloud import Reply

if TYPE_CHECKING:
    from tests.clouds.aws_cloud.cloud import AwsCloud

_KEPT = timedelta(hours=4)
_ABSENT = "InvalidSpotInstanceRequestID.NotFound"


def describe(cloud: AwsCloud, region: str, params: Mapping[str, str]) -> Reply:
    """Describe the requests behind spot instances."""
    ids, wanted = listed(params, "SpotInstanceRequestId"), filters(params)
    rows = []
    for request in _known(cloud, region):
        row = _row(request)
        if ids and request.id not in ids:
            continue
        if all(_has(request, row, name, values) for name, values in wanted.items()):
            rows.append(row)
    if ids and len(rows) < len(ids) and not wanted:
        raise Refused(_ABSENT, f"The spot instance request ID '{ids[0]}' does not exist")
    page, token = paged(rows, params)
    return xml("DescribeSpotInstanceRequests", {"spotInstanceRequestSet": page, "nextToken": token})


def cancel(cloud: AwsCloud, region: str, params: Mapping[str, str]) -> Reply:
    """Cancel requests; their instances go on."""
    ids = listed(params, "SpotInstanceRequestId")
    found = {request.id: request for request in _known(cloud, region)}
    for each in ids:
        if each not in found:
            raise Refused(_ABSENT, f"The spot instance request ID '{each}' does not exist")
    now = cloud.clock.now()
    for each in ids:
        request = found[each]
        request.cancelled = request.cancelled or now
        if not request.instance_id:
            request.closed, request.ended = "canceled-before-fulfillment", now
    rows = [{"spotInstanceRequestId": each, "state": "cancelled"} for each in ids]
    return xml("CancelSpotInstanceRequests", {"spotInstanceRequestSet": rows})


def _known(cloud: AwsCloud, region: str) -> list[SpotRequest]:
    now = cloud.clock.now()
    return [
        one
        for one in cloud.rentals.requests.values()
        if one.region == region and not (one.ended and now - one.ended > _KEPT)
    ]


def _state(request: SpotRequest) -> tuple[str, str]:
    """Its state, and its status code."""
    if request.closed is not None:
        state = "disabled" if "-stopped-" in request.closed else "closed"
        return "cancelled" if request.cancelled else state, request.closed
    if request.cancelled is not None:
        return "cancelled", "request-canceled-and-instance-running"
    if not request.instance_id:
        return "open", "instance-terminated-by-user"
    return "active", "fulfilled"


def _row(request: SpotRequest) -> dict[str, Any]:
    state, code = _state(request)
    stamp = f"{request.created:%Y-%m-%dT%H:%M:%S}.000Z"
    row = {
        "spotInstanceRequestId": request.id,
        "state": state,
        "status": {"code": code, "message": "", "updateTime": stamp},
        "type": "persistent" if request.persistent else "one-time",
        "instanceInterruptionBehavior": request.behaviour,
        "productDescription": LINUX,
        "spotPrice": request.price,
        "createTime": stamp,
        "tagSet": tag_set(request.tags),
    }
    return row | ({"instanceId": request.instance_id} if request.instance_id else {})


def _has(request: SpotRequest, row: Mapping[str, Any], name: str, values: list[str]) -> bool:
    if name.startswith("tag:"):
        return fits(request.tags.get(name.removeprefix("tag:"), ""), values)
    known = {
        "instance-id": request.instance_id,
        "state": row["state"],
        "status-code": row["status"]["code"],
        "spot-instance-request-id": request.id,
        "type": row["type"],
    }
    if name not in known:
        raise Refused("InvalidParameterValue", f"The filter '{name}' is invalid")
    return fits(known[name], values)
