"""RunInstances: what EC2 refuses, what a client token promises, and what comes of a launch."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from moto.ec2.models import ec2_backends
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES

from tests.clouds.aws_cloud.images import resolve_image
from tests.clouds.aws_cloud.market import ON_DEMAND, SPOT, quota_code
from tests.clouds.aws_cloud.rentals import Rental, SpotRequest
from tests.clouds.aws_cloud.templates import NUMBER, system_tags, with_template
from tests.clouds.aws_cloud.validation import bid_of, check
from tests.clouds.aws_cloud.wire import Refused, tags
from tests.clouds.http_cloud import Reply

if TYPE_CHECKING:
    from tests.clouds.aws_cloud.cloud import AwsCloud

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
_UNTAGGED = (
    "You are not authorized to perform this operation. User is not authorized to perform: "
    "ec2:CreateTags on resource: arn:aws:ec2:us-east-1:{account}:volume/* because no "
    "identity-based policy allows the ec2:CreateTags action"
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

    known: dict[tuple[str, str], tuple[str, list[str]]] = field(default_factory=dict)

    def seen(self, place: str, token: str, arguments: str) -> list[str]:
        """Return the instances that a token made. Raises Refused when it may not be used again."""
        if not token:
            return []
        if len(token) > _TOKEN_MAX:
            raise Refused("InvalidParameterValue", "Client token is longer than 64 characters")
        before = self.known.setdefault((place, token), (arguments, []))
        if before[0] != arguments:
            raise Refused("IdempotentParameterMismatch", _MISMATCH)
        return before[1]

    def made(self, place: str, token: str, arguments: str, instance_ids: list[str]) -> None:
        """Remember what it made."""
        self.known[place, token] = (arguments, instance_ids)


def run_instances(cloud: AwsCloud, region: str, params: dict[str, str]) -> Reply:
    """Launch instances, or say why not."""
    if "CreateTags" in cloud.denied and any(name.startswith("TagSpec") for name in params):
        raise Refused("UnauthorizedOperation", _UNTAGGED.format(account=cloud.account))
    if not cloud.may_launch(region, int(params.get("MaxCount", "1"))):
        raise Refused("RequestLimitExceeded", "Request limit exceeded.")
    params = with_template(cloud, region, params)
    for name in ("ImageId", "InstanceType"):
        if not params.get(name):
            raise Refused("MissingParameter", f"The request must contain the parameter {name}")
    params = _disks(cloud, region, resolve_image(cloud, region, params))
    check(params)
    _check_key(cloud, region, params)
    zone, zone_id, zonal = _zone(cloud, region, params)
    type_name = params["InstanceType"]
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
    if before:
        if not any(cloud.rentals.all[one].alive for one in before):
            raise Refused("IdempotentInstanceTerminated", _GONE)
        return _again(cloud, region, before)
    price = _price(cloud, region, type_name, zone, market, params)
    count = _possible(cloud, region, (type_name, zone, market), params)
    made = _launch(cloud, region, params, (zone, zone_id), (market, price), count)
    if isinstance(made, Reply):
        return made
    cloud.tokens.made(place, token, arguments, made)
    return _again(cloud, region, made)


def _launch(
    cloud: AwsCloud,
    region: str,
    params: dict[str, str],
    where: tuple[str, str],
    at: tuple[str, Decimal],
    count: int = 1,
    request: SpotRequest | None = None,
) -> list[str] | Reply:
    """Make instances that nothing stands in the way of; or what moto says instead."""
    plain = {k: v for k, v in params.items() if k != NUMBER}
    exact = {"Action": "RunInstances", "MinCount": str(count), "MaxCount": str(count)}
    reply = cloud.moto.ask(region, {**plain, **exact})
    if reply.status != 200:
        return reply
    ids = re.findall(r"<instanceId>(i-\w+)</instanceId>", reply.content().decode())
    for instance_id in ids:
        _register(cloud, region, instance_id, where, at, params, request)
    return ids


def relaunch(cloud: AwsCloud, before: Rental) -> None:
    """Have a persistent request launch again, if there is room; its instance has no tags."""
    zone = (before.zone, before.zone_id)
    price = cloud.market.spot_price(before.type, before.zone, cloud.clock.now())
    if price is None or not cloud.market.take(before.type, before.zone, SPOT):
        return
    params = {k: v for k, v in before.params.items() if not k.startswith("TagSpecification")}
    _launch(cloud, before.region, params, zone, (SPOT, price), 1, before.request)


def _again(cloud: AwsCloud, region: str, instance_ids: list[str]) -> Reply:
    """The reply to a launch: what Describe says, worded as RunInstances'."""
    asked = {f"InstanceId.{n}": one for n, one in enumerate(instance_ids, 1)}
    found = cloud.moto.ask(region, {"Action": "DescribeInstances", **asked})
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


def _disks(cloud: AwsCloud, region: str, params: dict[str, str]) -> dict[str, str]:
    """What is on the image's root device is its root, and goes with its instance.

    A mapping under another name is one more volume, and that stays unless somebody says otherwise.
    """
    image = ec2_backends[cloud.account][region].amis[params["ImageId"]]
    size = str(getattr(image, "gigabytes", 8))
    params, number, found = dict(params), 1, False
    while device := params.get(f"BlockDeviceMapping.{number}.DeviceName"):
        is_root = device == image.root_device_name
        found = found or is_root
        disk = f"BlockDeviceMapping.{number}.Ebs."
        params.setdefault(disk + "DeleteOnTermination", "true" if is_root else "false")
        if is_root:
            params.setdefault(disk + "VolumeSize", size)
            if int(params[disk + "VolumeSize"]) < int(size):
                text = f"Volume of size {params[disk + 'VolumeSize']}GB is smaller than snapshot"
                raise Refused("InvalidBlockDeviceMapping", text)
        number += 1
    if found:
        return params
    disk = f"BlockDeviceMapping.{number}."
    root = {"DeviceName": str(image.root_device_name), "Ebs.VolumeSize": size}
    root |= {"Ebs.DeleteOnTermination": "true", "Ebs.VolumeType": "gp3"}
    return params | {disk + name: value for name, value in root.items()}


def _check_key(cloud: AwsCloud, region: str, params: Mapping[str, str]) -> None:
    name = params.get("KeyName")
    if name and name not in ec2_backends[cloud.account][region].key_pairs:
        raise Refused("InvalidKeyPair.NotFound", f"The key pair '{name}' does not exist")


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
    bid = bid_of(params)
    if bid is not None and bid < price:
        raise Refused(
            "SpotMaxPriceTooLow",
            f"Your Spot request price of {bid} is lower than the minimum required Spot request "
            f"fulfillment price of {price}.",
        )
    return price


def _possible(
    cloud: AwsCloud, region: str, pool: tuple[str, str, str], params: Mapping[str, str]
) -> int:
    """How many can be launched: as many as wanted, or at least MinCount. Raises Refused."""
    type_name, zone, market = pool
    least, most = int(params.get("MinCount", "1")), int(params.get("MaxCount", "1"))
    if not 1 <= least <= most:
        raise Refused("InvalidParameterValue", "MinCount and MaxCount do not fit each other")
    code = quota_code(type_name, market)
    limit = cloud.market.quota(region, code)
    used = cloud.rentals.vcpus(region, lambda r: quota_code(r.type, r.market) == code)
    allowed = int((limit - used) // vcpus_of(type_name))
    if allowed < least:
        if market == SPOT:
            raise Refused("MaxSpotInstanceCountExceeded", "Max spot instance count exceeded")
        raise Refused("VcpuLimitExceeded", _QUOTA.format(limit=limit))
    had = 0
    while had < min(most, allowed) and cloud.market.take(type_name, zone, market):
        had += 1
    if had < least:
        cloud.market.give_back(type_name, zone, market, had)
        text = NO_SPOT if market == SPOT else NO_CAPACITY.format(type=type_name, zone=zone)
        raise Refused("InsufficientInstanceCapacity", text)
    return had


def _register(
    cloud: AwsCloud,
    region: str,
    instance_id: str,
    where: tuple[str, str],
    at: tuple[str, Decimal],
    params: dict[str, str],
    request: SpotRequest | None,
) -> None:
    now = cloud.clock.now()
    backend = ec2_backends[cloud.account][region]
    instance = backend.get_instance(instance_id)
    instance.launch_time = now.replace(tzinfo=None)
    own = tags(params)
    for number, nic in enumerate(instance.nics.values(), 1):
        nic.public_ip = None  # it comes with running
        nic.add_tags(own.get("network-interface", {}))
        given = params.get(f"NetworkInterface.{number}.DeleteOnTermination", "true")
        nic.delete_on_termination = given == "true"
    _set_disks(instance, params)
    instance.add_tags(system_tags(params))
    name = own.get("instance", {}).get("gpuctl:name") or own.get("instance", {}).get("Name", "")
    user_data = base64.b64decode(params.get("UserData", ""))
    if at[0] == SPOT:
        highest = cloud.market.on_demand_price(instance.instance_type) or Decimal(0)
        request = request or _request(region, instance_id, now, own, params, highest)
        request.instance_id = instance_id
        instance.spot_instance_request_id = request.id
    rental = Rental(
        id=instance_id,
        region=region,
        zone=where[0],
        zone_id=where[1],
        type=instance.instance_type,
        vcpus=vcpus_of(instance.instance_type),
        market=at[0],
        name=name,
        token=params.get("ClientToken", ""),
        instance=instance,
        launched=now,
        price=at[1],
        user_data=user_data,
        request=request,
        machine=cloud.new_machine(instance_id, instance.instance_type, user_data),
        params=params,
    )
    if rental.machine is not None:
        facts = rental.machine.metadata.facts
        facts |= {"instance-id": instance_id, "placement/availability-zone": where[0]}
        if params.get("MetadataOptions.InstanceMetadataTags") == "enabled":
            rental.machine.metadata.tags = own.get("instance", {})
        if profile := instance.iam_instance_profile:
            rental.machine.metadata.role = str(profile.get("Name") or profile["Arn"].split("/")[-1])
            cloud.keys.add(rental.machine.metadata.key_id)
    cloud.rentals.add(rental)


def _request(
    region: str,
    instance_id: str,
    now: datetime,
    own: Mapping[str, dict[str, str]],
    params: Mapping[str, str],
    highest: Decimal,
) -> SpotRequest:
    options = "InstanceMarketOptions.SpotOptions."
    return SpotRequest(
        "sir-" + instance_id[-8:],
        region,
        instance_id,
        now,
        own.get("spot-instances-request", {}),
        persistent=params.get(options + "SpotInstanceType") == "persistent",
        behaviour=params.get(options + "InstanceInterruptionBehavior", "terminate"),
        price=f"{bid_of(params) or highest:.6f}",
    )


def _set_disks(instance: Any, params: Mapping[str, str]) -> None:
    """What moto forgets of volumes."""
    number = 1
    while device := params.get(f"BlockDeviceMapping.{number}.DeviceName"):
        volume = instance.ec2_backend.get_volume(instance.block_device_mapping[device].volume_id)
        disk = f"BlockDeviceMapping.{number}.Ebs."
        for name, field_name in (("Iops", "iops"), ("Throughput", "throughput")):
            if value := params.get(disk + name):
                setattr(volume, field_name, int(value))
        number += 1


def vcpus_of(type_name: str) -> int:
    """VCPUs of a type."""
    return int(INSTANCE_TYPES[type_name]["VCpuInfo"]["DefaultVCpus"])


def gpu_of(type_name: str) -> tuple[str, int] | None:
    """Name and number of its GPUs."""
    gpus: list[dict[str, Any]] = INSTANCE_TYPES[type_name].get("GpuInfo", {}).get("Gpus", [])
    if not gpus:
        return None
    return str(gpus[0]["Name"]), int(gpus[0].get("Count") or 1)
