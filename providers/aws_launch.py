"""What one launch asks for: the request, its token, and the order of the pools. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from providers import aws_boot
from providers.aws_ground import Image
from providers.aws_machines import machine_tags, marks, tag_list
from providers.aws_notes import Notes
from providers.aws_offers import SPOT, score
from providers.base import Order

_IOPS, _THROUGHPUT = 3000, 125  # what the price of a gp3 volume includes
_POOR_SCORE = 3
_TAGGED = ("instance", "volume", "network-interface")


@dataclass(frozen=True, slots=True)
class Pool:
    """One type in one zone: what a single launch asks for."""

    zone: str
    zone_id: str
    subnet: str
    vpc: str
    price: Decimal  # USD an hour, the instance alone


def token(name: str, region: str, type_name: str, zone_id: str, market: str) -> str:
    """Return the client token of one launch: the same again for the same machine and pool.

    A machine's name is never used twice, so neither is a token, after a refusal or an end.
    """
    text = "\0".join((name, region, type_name, zone_id, market))
    return hashlib.sha256(text.encode()).hexdigest()


def rank(pools: Sequence[Pool], notes: Notes) -> list[Pool]:
    """Sort: by price; zones that AWS itself thinks little of come last."""

    def key(pool: Pool) -> tuple[bool, Decimal, int, str]:
        points = score(notes, pool.zone_id)
        return (points is not None and points <= _POOR_SCORE, pool.price, -(points or 0), pool.zone)

    return sorted(pools, key=key)


def request(
    order: Order, region: str, type_name: str, market: str, pool: Pool, image: Image, group: str,
    host_key: aws_boot.HostKey, price_hour: Decimal, bid: Decimal | None,
) -> dict[str, Any]:  # fmt: skip
    """Return the arguments of RunInstances.

    Args:
        price_hour: of the whole machine, for its tag.
        bid: USD an hour for the instance alone that the caller allows at most; None: no limit.
    """
    kinds = (*_TAGGED, "spot-instances-request") if market == SPOT else _TAGGED
    own = {"instance": machine_tags(order, price_hour, host_key.public)}
    arguments: dict[str, Any] = {
        "ImageId": image.id,
        "InstanceType": type_name,
        "MinCount": 1,
        "MaxCount": 1,
        "ClientToken": token(order.name, region, type_name, pool.zone_id, market),
        "InstanceInitiatedShutdownBehavior": "terminate",
        "MetadataOptions": {
            "HttpTokens": "required",
            "HttpEndpoint": "enabled",
            "HttpPutResponseHopLimit": 2,  # a container on the machine can reach it
            "InstanceMetadataTags": "enabled",
        },
        "NetworkInterfaces": [
            {
                "DeviceIndex": 0,
                "SubnetId": pool.subnet,
                "Groups": [group],
                "AssociatePublicIpAddress": True,
                "DeleteOnTermination": True,
            }
        ],
        "BlockDeviceMappings": [
            {
                "DeviceName": image.root_device,
                "Ebs": {
                    "VolumeSize": disk_size(order.disk_gb, image),
                    "VolumeType": "gp3",
                    "Iops": _IOPS,
                    "Throughput": _THROUGHPUT,
                    "DeleteOnTermination": True,
                    "Encrypted": True,
                },
            }
        ],
        "UserData": aws_boot.user_data(order.mark.end, order.ssh_public_key, host_key),
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": tag_list(own.get(kind) or marks(order.name, order.mark))}
            for kind in kinds
        ],
    }
    if market == SPOT:
        options: dict[str, Any] = {
            "SpotInstanceType": "one-time",
            "InstanceInterruptionBehavior": "terminate",
        }
        if bid is not None:
            options["MaxPrice"] = f"{bid:.6f}"
        arguments["InstanceMarketOptions"] = {"MarketType": "spot", "SpotOptions": options}
    return arguments


def disk_size(disk_gb: float, image: Image) -> int:
    """Return the size of the root volume in GiB: what was asked for, never below the image's."""
    return max(int(-(-disk_gb // 1)), image.gigabytes)
