"""What the layer answers itself, or adds to what moto answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from moto.ec2.models import ec2_backends
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS

from tests.clouds.aws_cloud.market import LINUX, SPOT
from tests.clouds.aws_cloud.rentals import BY_USER, Rental
from tests.clouds.aws_cloud.wire import (
    Refused,
    filters,
    fits,
    form,
    json_reply,
    listed,
    paged,
    without_filters,
    xml,
)
from tests.clouds.http_cloud import Reply, Request

if TYPE_CHECKING:
    from tests.clouds.aws_cloud.cloud import AwsCloud

_INSTANCE = re.compile(r"i-([0-9a-f]{8}|[0-9a-f]{17})")
_SHUTTING_DOWN, _RUNNING = {"code": 32, "name": "shutting-down"}, {"code": 16, "name": "running"}
_ONE_TIME = (
    "You can't stop the Spot Instance '{id}' because it is associated with a one-time Spot "
    "Instance request. You can only stop Spot Instances associated with persistent Spot Instance "
    "requests."
)
_PROTECTED = (
    "The instance '{id}' may not be terminated. Modify its 'disableApiTermination' instance "
    "attribute and try again."
)


# ------------------------------------------------------------------------ instances


def asked(cloud: AwsCloud, region: str, params: Mapping[str, str]) -> list[Rental]:
    """The instances that a request names. Raises Refused for the first that is not there."""
    found = []
    for instance_id in listed(params, "InstanceId"):
        if not _INSTANCE.fullmatch(instance_id):
            raise Refused("InvalidInstanceID.Malformed", f'Invalid id: "{instance_id}"')
        rental = cloud.rentals.all.get(instance_id)
        forgotten = (
            rental is not None and rental.ended is not None and not _remembered(cloud, rental)
        )
        if rental is None or rental.region != region or forgotten or cloud.rentals.hidden(rental):
            text = f"The instance ID '{instance_id}' does not exist"
            raise Refused("InvalidInstanceID.NotFound", text)
        found.append(rental)
    return found


def _remembered(cloud: AwsCloud, rental: Rental) -> bool:
    assert rental.ended is not None
    age = (cloud.clock.now() - rental.ended).total_seconds()
    return age < cloud.rentals.times.forget


def terminate(cloud: AwsCloud, region: str, params: Mapping[str, str]) -> Reply:
    """End instances; again and again, if need be. One that is not there, and none is ended."""
    rentals = asked(cloud, region, params)
    for rental in rentals:
        if rental.alive and rental.instance.disable_api_termination:
            raise Refused("OperationNotPermitted", _PROTECTED.format(id=rental.id))
    rows = []
    for rental in rentals:
        before = {"code": rental.instance.state_code, "name": rental.instance.state}
        cloud.rentals.end(rental, BY_USER, cloud.clock.now())
        after = before if rental.terminated else _SHUTTING_DOWN
        rows.append(
            {"instanceId": rental.id, "currentState": after, "previousState": before or _RUNNING}
        )
    return xml("TerminateInstances", {"instancesSet": rows})


def stop_or_start(cloud: AwsCloud, region: str, action: str, params: Mapping[str, str]) -> Reply:
    """Stop or start on-demand instances; spot ones that are one-time cannot be stopped."""
    rentals = asked(cloud, region, params)
    for rental in rentals:
        if rental.request is not None and not rental.request.persistent:
            raise Refused("UnsupportedOperation", _ONE_TIME.format(id=rental.id))
    rows = []
    for rental in rentals:
        before = {"code": rental.instance.state_code, "name": rental.instance.state}
        if action == "StopInstances":
            cloud.rentals.stop(rental, BY_USER)
        elif rental.stopped:
            rental.stopped, rental.launched = False, cloud.clock.now()
        now = {"code": rental.instance.state_code, "name": rental.instance.state}
        rows.append({"instanceId": rental.id, "currentState": now, "previousState": before})
    return xml(action, {"instancesSet": rows})


def describe(cloud: AwsCloud, region: str, params: dict[str, str]) -> Reply:
    """Describe what is not hidden yet, with the filters that moto lacks."""
    asked(cloud, region, params)
    own = {"client-token": lambda r: r.token, "instance-lifecycle": lambda r: r.market}
    wanted = {name: values for name, values in filters(params).items() if name in own}

    def seen(rental: Rental) -> bool:
        if cloud.rentals.hidden(rental):
            return False
        return all(fits(own[name](rental), values) for name, values in wanted.items())

    unseen = {id(r.instance) for r in cloud.rentals.all.values() if not seen(r)}
    with _without(ec2_backends[cloud.account][region].reservations, unseen):
        return cloud.moto.ask(region, without_filters(params, own))


@contextmanager
def _without(reservations: dict[str, Any], unseen: set[int]) -> Iterator[None]:
    kept = dict(reservations)
    for key, reservation in kept.items():
        instances = reservation.instances
        if not instances or any(id(each) in unseen for each in instances):
            del reservations[key]
    try:
        yield
    finally:
        reservations.clear()
        reservations.update(kept)


def modify(cloud: AwsCloud, region: str, params: dict[str, str]) -> Reply:
    """Change an attribute: also how it behaves on a shutdown."""
    [rental] = asked(cloud, region, {"InstanceId.1": params.get("InstanceId", "")})
    value = params.get("InstanceInitiatedShutdownBehavior.Value")
    if value is not None:
        if rental.market == SPOT and value == "stop":
            raise Refused("UnsupportedOperation", "'stop' is not supported for Spot Instances")
        rental.instance.instance_initiated_shutdown_behavior = value
        return xml("ModifyInstanceAttribute", {"return": True})
    if params.get("DisableApiTermination.Value") == "true" and rental.market == SPOT:
        text = "You cannot enable termination protection for a Spot Instance."
        raise Refused("UnsupportedOperation", text)
    return cloud.moto.ask(region, params)


def console(cloud: AwsCloud, params: Mapping[str, str]) -> Reply:
    """What its console says: the fingerprints of its host keys."""
    import base64

    rental = cloud.rentals.all[params["InstanceId"]]
    key = rental.machine.rented.public_host_key if rental.machine and rental.running else ""
    lines = ["-----BEGIN SSH HOST KEY KEYS-----", key.strip(), "-----END SSH HOST KEY KEYS-----"]
    text = base64.b64encode("\n".join(lines).encode()).decode()
    return xml("GetConsoleOutput", {"instanceId": rental.id, "output": text})


def delete_group(cloud: AwsCloud, region: str, request: Request) -> Reply:
    """Delete a security group that nothing uses."""
    group = form(request.body).get("GroupId", "")
    for rental in cloud.rentals.all.values():
        used = {each.id for nic in rental.instance.nics.values() for each in nic.group_set}
        if not rental.terminated and group in used:
            raise Refused("DependencyViolation", f"resource {group} has a dependent object")
    return cloud.moto.ask(region, form(request.body))


def keep_books(cloud: AwsCloud, params: Mapping[str, str], reply: Reply) -> None:
    """Write down what somebody made or removed besides instances."""
    text = reply.content().decode()
    action = params.get("Action")
    if action == "CreateVolume" and (found := re.search(r"<volumeId>(vol-\w+)<", text)):
        cloud.rentals.begin_volume(found[1], "", int(params.get("Size", "8")))
    elif action == "DeleteVolume" and params["VolumeId"] in cloud.rentals.books.things:
        cloud.rentals.books.end(params["VolumeId"], cloud.clock.now())
    elif action == "AllocateAddress" and (found := re.search(r">(eipalloc-\w+)<", text)):
        cloud.rentals.begin_address(found[1], "")
    elif action == "ReleaseAddress":
        cloud.rentals.books.end(params["AllocationId"], cloud.clock.now())


# ------------------------------------------------------------------------ the market


def spot_prices(cloud: AwsCloud, region: str, params: Mapping[str, str]) -> Reply:
    """The changes since a moment, and the one that was in force then."""
    wanted = filters(params)
    types = listed(params, "InstanceType") or wanted.get("instance-type", ["*"])
    products = listed(params, "ProductDescription") or wanted.get("product-description", ["*"])
    zones = [params["AvailabilityZone"]] if "AvailabilityZone" in params else None
    zones = zones or wanted.get("availability-zone", ["*"])
    if "AvailabilityZoneId" in params:
        if "AvailabilityZone" in params:
            text = "AvailabilityZone and AvailabilityZoneId cannot be given together"
            raise Refused("InvalidParameterCombination", text)
        ids_named = {one: zone for zone, one in _zone_ids(cloud, region).items()}
        zones = [ids_named.get(params["AvailabilityZoneId"], "none")]
    start = _moment(params.get("StartTime"))
    ids = _zone_ids(cloud, region)
    rows = []
    pools = _pools(region)
    known = [each for each in pools if "*" in str(types) or each in types]
    for name, zone in ((each, zone) for each in known for zone in sorted(pools[each])):
        if not (fits(name, types) and fits(zone, zones) and fits(LINUX, products)):
            continue
        for when, price in _since(cloud.market.spot_changes(name, zone), start, cloud.clock.now()):
            rows.append(
                {
                    "instanceType": name,
                    "productDescription": LINUX,
                    "spotPrice": f"{price:.6f}",
                    "timestamp": f"{when:%Y-%m-%dT%H:%M:%S}.000Z",
                    "availabilityZone": zone,
                    "availabilityZoneId": ids.get(zone, ""),
                }
            )
    page, token = paged(rows, params)
    return xml("DescribeSpotPriceHistory", {"spotPriceHistorySet": page, "nextToken": token})


def _since(
    changes: list[tuple[datetime, Any]], start: datetime | None, now: datetime
) -> list[tuple[datetime, Any]]:
    past = [change for change in changes if change[0] <= now]
    if start is None:
        return past[::-1]
    before = [change for change in past if change[0] <= start]
    return [change for change in past if change[0] > start][::-1] + before[-1:]


def placement_scores(cloud: AwsCloud, region: str, params: Mapping[str, str]) -> Reply:
    """Scores of the zones of some regions."""
    regions = listed(params, "RegionName") or [region]
    asked_for = (*sorted(regions), *sorted(listed(params, "InstanceType")))
    if not cloud.market.may_score(asked_for, cloud.clock.now()):
        text = "You have exceeded the limit of configurations"
        raise Refused("MaxConfigLimitExceededException", text)
    zones = {zone: name for name in regions for zone in _zone_ids(cloud, name).values()}
    rows = cloud.market.placement_scores(zones, listed(params, "InstanceType"))
    return xml("GetSpotPlacementScores", {"spotPlacementScoreSet": rows})


@cache
def _types() -> list[str]:
    return sorted({row["InstanceType"] for row in INSTANCE_TYPE_OFFERINGS["region"]["us-east-1"]})


@cache
def _pools(region: str) -> dict[str, list[str]]:
    """Type -> its zones."""
    found: dict[str, list[str]] = {}
    for row in INSTANCE_TYPE_OFFERINGS["availability-zone"].get(region, []):
        found.setdefault(row["InstanceType"], []).append(row["Location"])
    return found


def products(cloud: AwsCloud, asked_for: dict[str, Any]) -> Reply:
    """Rows of the price list."""
    wanted: dict[str, list[str]] = {}
    for one in asked_for.get("Filters", []):
        several = one["Type"] == "ANY_OF"
        wanted[one["Field"]] = one["Value"].split(",") if several else [one["Value"]]
    rows = cloud.market.products(wanted, _types())
    begin = int(asked_for.get("NextToken") or 0)
    end = begin + min(int(asked_for.get("MaxResults") or 100), 100)
    more = {"NextToken": str(end)} if end < len(rows) else {}
    return json_reply({"FormatVersion": "aws_v1", "PriceList": rows[begin:end], **more})


def _zone_ids(cloud: AwsCloud, region: str) -> dict[str, str]:
    backend = ec2_backends[cloud.account][region]
    return {zone.name: zone.zone_id for zone in backend.describe_availability_zones()}


def _moment(text: str | None) -> datetime | None:
    if not text:
        return None
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
