"""RunInstances: what EC2 refuses, what a client token promises, and what comes of a launch."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from moto.ec2.models import ec2_backends
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES

from tests.clouds.aws_cloud.images import resolve_image
from tests.clouds.aws_cloud.market import ON_DEMAND, SPOT, quota_code
from tests.clouds.aws_cloud.rentals import Rental, SpotRequest
from tests.clouds.aws_cloud.wire import Refused, tags
from tests.clouds.http_cloud import Reply

if TYPE_CHECKING:
    from tests.clouds.aws_cloud.cloud import AwsCloud

_USER_DATA_MAX = 16 << 10
_TOKEN_MAX = 64
_GONE = (
    "The client token you have provided is associated with a terminated instance. "
    "Please use a different client token"
)
_MISMATCH = (
    "Arguments on this idempotent request are inconsistent with arguments used in previous "
    "request(s)."
)
NO_CAPACITY = (
    "We currently do not have sufficient {type} capacity in the Availability Zone you requested "
    "({zone}). Our system will be working on provisioning additional capacity."
)
NO_SPOT = "There is no Spot capacity available that matches your request."
_QUOTA = (
    "You have requested more vCPU capacity than your current vCPU limit of {limit:g} allows for "
    "the instance bucket that the specified instance type belongs to. Please visit "
    "http://aws.amazon.com/contact-us/ec2-request to request an adjustment to this limit."
)


@dataclass
class Tokens:
    """What client tokens are bound to: a refused launch binds its token, too."""

    known: dict[tuple[str, str], tuple[str, str | None]] = field(default_factory=dict)

    def seen(self, place: str, token: str, arguments: str) -> str | None:
        """Return the instance that a token made. Raises Refused when it may not be used again."""
        if not token:
            return None
        if len(token) > _TOKEN_MAX:
            raise Refused("InvalidParameterValue", "Client token is longer than 64 characters")
        before = self.known.setdefault((place, token), (arguments, None))
        if before[0] != arguments:
            raise Refused("IdempotentParameterMismatch", _MISMATCH)
        return before[1]

    def made(self, place: str, token: str, arguments: str, instance_id: str) -> None:
        """Remember what it made."""
        self.known[place, token] = (arguments, instance_id)


def run_instances(cloud: AwsCloud, region: str, params: dict[str, str]) -> Reply:
    """Launch an instance, or say why not."""
    for name in ("ImageId", "InstanceType"):
        if not params.get(name) and not any(key.startswith("LaunchTemplate") for key in params):
            raise Refused("MissingParameter", f"The request must contain the parameter {name}")
    params = _defaults(resolve_image(cloud, region, params))
    _check(params)
    zone, zone_id, zonal = _zone(cloud, region, params)
    type_name = params.get("InstanceType", "m1.small")
    market = params.get("InstanceMarketOptions.MarketType", ON_DEMAND)
    if type_name not in INSTANCE_TYPES:
        raise Refused("InvalidInstanceType", f"Invalid value '{type_name}' for InstanceType.")
    if params.get("DryRun") == "true":
        raise Refused("DryRunOperation", "Request would have succeeded, but DryRun flag is set.")
    token = params.get("ClientToken", "")
    place = f"{region}/{zone if zonal else ''}"
    told = {k: v for k, v in params.items() if k != "ClientToken"}
    if not zonal:
        told = {k: v for k, v in told.items() if "SubnetId" not in k}
    arguments = repr(sorted(told.items()))
    before = cloud.tokens.seen(place, token, arguments)
    if before is not None:
        if not cloud.rentals.all[before].alive:
            raise Refused("IdempotentInstanceTerminated", _GONE)
        return _again(cloud, region, before)
    price = _price(cloud, region, type_name, zone, market, params)
    _count(cloud, region, type_name, market)
    if not cloud.market.take(type_name, zone, market):
        text = NO_SPOT if market == SPOT else NO_CAPACITY.format(type=type_name, zone=zone)
        raise Refused("InsufficientInstanceCapacity", text)
    reply = cloud.moto(region, {**params, "MaxCount": params.get("MinCount", "1")})
    if reply.status != 200:
        return reply
    for instance_id in re.findall(r"<instanceId>(i-\w+)</instanceId>", reply.content().decode()):
        _register(cloud, region, instance_id, (zone, zone_id), market, price, params)
        cloud.tokens.made(place, token, arguments, instance_id)
    return _again(cloud, region, instance_id)


def _again(cloud: AwsCloud, region: str, instance_id: str) -> Reply:
    """The reply to a launch: what Describe says, worded as RunInstances'."""
    found = cloud.moto(region, {"Action": "DescribeInstances", "InstanceId.1": instance_id})
    text = found.content().decode()
    inner = re.search(r"<reservationSet><item>(.*)</item></reservationSet>", text, re.DOTALL)
    assert inner is not None, text
    return Reply(
        200,
        (
            '<RunInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
            f"<requestId>r-emulated</requestId>{inner[1]}</RunInstancesResponse>"
        ).encode(),
        {"Content-Type": "text/xml;charset=UTF-8"},
    )


def _defaults(params: dict[str, str]) -> dict[str, str]:
    """A root volume goes with its instance unless somebody says otherwise; others stay."""
    params = dict(params)
    number = 1
    while device := params.get(f"BlockDeviceMapping.{number}.DeviceName"):
        is_root = device in ("/dev/sda1", "/dev/xvda")
        name = f"BlockDeviceMapping.{number}.Ebs.DeleteOnTermination"
        params.setdefault(name, "true" if is_root else "false")
        number += 1
    return params


def _check(params: Mapping[str, str]) -> None:
    options = "InstanceMarketOptions.SpotOptions."
    if params.get("InstanceMarketOptions.MarketType") == SPOT:
        kind = params.get(options + "SpotInstanceType", "one-time")
        does = params.get(options + "InstanceInterruptionBehavior", "terminate")
        if kind == "persistent" and does == "terminate":
            raise Refused(
                "InvalidParameterCombination",
                "The request with type 'persistent' is not supported when "
                "instanceInterruptionBehavior is set to 'terminate'.",
            )
        if kind == "one-time" and does != "terminate":
            raise Refused(
                "InvalidParameterCombination",
                "The request with type 'one-time' is not supported when "
                f"instanceInterruptionBehavior is set to '{does}'.",
            )
        if kind == "one-time" and options + "ValidUntil" in params:
            raise Refused(
                "InvalidParameterCombination",
                "The parameter validUntil cannot be specified when the SpotRequestType is set to "
                "'one-time'",
            )
        if params.get("DisableApiTermination") == "true":
            raise Refused(
                "InvalidParameterCombination",
                "You cannot enable DisableApiTermination for a Spot Instance.",
            )
        _bid(params)
    if params.get("NetworkInterface.2.DeviceIndex") and any(
        key.endswith("AssociatePublicIpAddress") for key in params
    ):
        raise Refused(
            "InvalidParameterCombination",
            "The associatePublicIPAddress parameter cannot be specified when launching with "
            "multiple network interfaces.",
        )
    if len(base64.b64decode(params.get("UserData", ""))) > _USER_DATA_MAX:
        raise Refused("InvalidParameterValue", "User data is limited to 16384 bytes")


def _bid(params: Mapping[str, str]) -> Decimal | None:
    text = params.get("InstanceMarketOptions.SpotOptions.MaxPrice")
    if text is None:
        return None
    try:
        bid = Decimal(text)
    except InvalidOperation:
        bid = Decimal(0)
    if bid <= Decimal("0.001"):
        raise Refused("InvalidParameterValue", f"Invalid value '{text}' for SpotPrice")
    return bid


def _zone(cloud: AwsCloud, region: str, params: Mapping[str, str]) -> tuple[str, str, bool]:
    """Return zone, zone id, and whether the caller chose it. Raises Refused."""
    backend = ec2_backends[cloud.account][region]
    subnet = params.get("SubnetId") or params.get("NetworkInterface.1.SubnetId")
    zone = params.get("Placement.AvailabilityZone") or None
    subnets = [each for by_zone in backend.subnets.values() for each in by_zone.values()]
    if subnet:
        found = next((each for each in subnets if each.id == subnet), None)
        if found is None:
            raise Refused("InvalidSubnetID.NotFound", f"The subnet ID '{subnet}' does not exist")
    else:
        own = [s for s in subnets if s.default_for_az and zone in (None, s.availability_zone)]
        if not own:
            raise Refused("VPCIdNotSpecified", "No default VPC for this user")
        found = min(own, key=lambda each: str(each.availability_zone))
    return found.availability_zone, found.availability_zone_id, bool(subnet or zone)


def _price(
    cloud: AwsCloud, region: str, type_name: str, zone: str, market: str, params: Mapping[str, str]
) -> Decimal:
    offered = any(
        row["InstanceType"] == type_name and row["Location"] == zone
        for row in INSTANCE_TYPE_OFFERINGS["availability-zone"].get(region, [])
    )
    if not offered:
        raise Refused(
            "Unsupported",
            f"Your requested instance type ({type_name}) is not supported in your requested "
            f"Availability Zone ({zone}).",
        )
    if market != SPOT:
        return cloud.market.on_demand_price(type_name) or Decimal(0)
    price = cloud.market.spot_price(type_name, zone, cloud.clock.now())
    if price is None:
        raise Refused("InsufficientInstanceCapacity", NO_SPOT)
    bid = _bid(params)
    if bid is not None and bid < price:
        raise Refused(
            "SpotMaxPriceTooLow",
            f"Your Spot request price of {bid} is lower than the minimum required Spot request "
            f"fulfillment price of {price}.",
        )
    return price


def _count(cloud: AwsCloud, region: str, type_name: str, market: str) -> None:
    code = quota_code(type_name, market)
    limit = cloud.market.quota(region, code)
    used = cloud.rentals.vcpus(region, lambda r: quota_code(r.type, r.market) == code)
    if used + vcpus_of(type_name) > limit:
        if market == SPOT:
            raise Refused("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
        raise Refused("VcpuLimitExceeded", _QUOTA.format(limit=limit))


def _register(
    cloud: AwsCloud,
    region: str,
    instance_id: str,
    where: tuple[str, str],
    market: str,
    price: Decimal,
    params: Mapping[str, str],
) -> None:
    now = cloud.clock.now()
    backend = ec2_backends[cloud.account][region]
    instance = backend.get_instance(instance_id)
    instance.launch_time = now.replace(tzinfo=None)
    own = tags(params)
    for nic in instance.nics.values():
        nic.public_ip = None  # it comes with running
        nic.add_tags(own.get("network-interface", {}))
    name = own.get("instance", {}).get("gpuctl:name") or own.get("instance", {}).get("Name", "")
    user_data = base64.b64decode(params.get("UserData", ""))
    request = None
    if market == SPOT:
        request = SpotRequest(
            "sir-" + instance_id[-8:], instance_id, now, own.get("spot-instances-request", {}), ""
        )
        instance.spot_instance_request_id = request.id
    rental = Rental(
        id=instance_id,
        region=region,
        zone=where[0],
        zone_id=where[1],
        type=instance.instance_type,
        vcpus=vcpus_of(instance.instance_type),
        market=market,
        name=name,
        token=params.get("ClientToken", ""),
        instance=instance,
        launched=now,
        price=price,
        user_data=user_data,
        request=request,
        machine=cloud.new_machine(instance_id, instance.instance_type, user_data),
    )
    if rental.machine is not None:
        facts = rental.machine.metadata.facts
        facts |= {"instance-id": instance_id, "placement/availability-zone": where[0]}
        if params.get("MetadataOptions.InstanceMetadataTags") == "enabled":
            rental.machine.metadata.tags = own.get("instance", {})
    cloud.rentals.add(rental)


def vcpus_of(type_name: str) -> int:
    """VCPUs of a type."""
    return int(INSTANCE_TYPES[type_name]["VCpuInfo"]["DefaultVCpus"])


def gpu_of(type_name: str) -> tuple[str, int] | None:
    """Name and number of its GPUs."""
    gpus: list[dict[str, Any]] = INSTANCE_TYPES[type_name].get("GpuInfo", {}).get("Gpus", [])
    if not gpus:
        return None
    return str(gpus[0]["Name"]), int(gpus[0].get("Count") or 1)
