"""CreateFleet of type instant: every pool that is named, and what each of them says."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.clouds.aws_cloud.launching import run_instances
from tests.clouds.aws_cloud.market import SPOT
from tests.clouds.aws_cloud.wire import Refused, tags, xml
from tests.clouds.http_cloud import Reply

if TYPE_CHECKING:
    from tests.clouds.aws_cloud.cloud import AwsCloud

_KINDS = {"fleet"}  # of its tags that are not its instances'


def create(cloud: AwsCloud, region: str, params: Mapping[str, str]) -> Reply:
    """Launch one from the first pool with room; errors of the others stand in the reply."""
    if params.get("Type") != "instant":
        text = "Only fleets of type instant are emulated: the books of others would lie"
        raise Refused("UnsupportedOperation", text)
    if not params.get("LaunchTemplateConfigs.1.LaunchTemplateSpecification.Version"):
        text = "The request must contain the parameter LaunchTemplateConfigs"
        raise Refused("MissingParameter", text)
    token = params.get("ClientToken", "")
    arguments = repr(sorted((k, v) for k, v in params.items() if k != "ClientToken"))
    [fleet] = cloud.tokens.seen(f"{region}/fleet", token, arguments) or [""]
    if fleet:
        return cloud.fleets[fleet]
    fleet = "fleet-" + secrets.token_hex(18)
    wanted = int(params.get("TargetCapacitySpecification.TotalTargetCapacity", "1"))
    instances: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    for pool in _pools(params):
        if len(instances) >= wanted:
            break
        _from_pool(cloud, region, params, pool, f"{fleet}-{len(errors)}", instances, errors)
    content = {"fleetId": fleet, "errorSet": errors, "fleetInstanceSet": instances}
    reply = xml("CreateFleet", content)
    cloud.fleets[fleet] = reply
    cloud.tokens.made(f"{region}/fleet", token, arguments, [fleet])
    return reply


def _from_pool(
    cloud: AwsCloud,
    region: str,
    params: Mapping[str, str],
    pool: dict[str, str],
    token: str,
    instances: list[dict[str, Any]],
    errors: list[dict[str, Any]],
) -> None:
    market = params.get("TargetCapacitySpecification.DefaultTargetCapacityType", "on-demand")
    named = {"launchTemplateAndOverrides": _told(pool), "lifecycle": market}
    try:
        reply = run_instances(cloud, region, _launch(params, pool, market, token))
    except Refused as refused:
        errors.append({**named, "errorCode": refused.code, "errorMessage": str(refused)})
        return
    ids = re.findall(r"<instanceId>(i-\w+)</instanceId>", reply.content().decode())
    assert ids, reply.content()
    for one in ids:
        cloud.rentals.all[one].instance.add_tags({"aws:ec2:fleet-id": token.rpartition("-")[0]})
    type_name = cloud.rentals.all[ids[0]].type
    instances.append({**named, "instanceIds": ids, "instanceType": type_name})


def _launch(
    params: Mapping[str, str], pool: Mapping[str, str], market: str, token: str
) -> dict[str, str]:
    """The launch that one pool stands for."""
    asked = {"MinCount": "1", "MaxCount": "1", "ClientToken": token[-64:]}
    for name in ("InstanceType", "ImageId", "SubnetId"):
        if name in pool:
            asked[name] = pool[name]
    if zone := pool.get("AvailabilityZone"):
        asked["Placement.AvailabilityZone"] = zone
    asked |= {name: pool[name] for name in pool if name.startswith("LaunchTemplate.")}
    if market == SPOT:
        options = "InstanceMarketOptions."
        asked |= {
            f"{options}MarketType": SPOT,
            f"{options}SpotOptions.SpotInstanceType": "one-time",
        }
        if bid := pool.get("MaxPrice"):
            asked[f"{options}SpotOptions.MaxPrice"] = bid
    number = 0
    for kind, own in tags(params).items():
        if kind in _KINDS:
            continue
        number += 1
        asked[f"TagSpecification.{number}.ResourceType"] = kind
        for place, (key, value) in enumerate(own.items(), 1):
            asked[f"TagSpecification.{number}.Tag.{place}.Key"] = key
            asked[f"TagSpecification.{number}.Tag.{place}.Value"] = value
    return asked


def _pools(params: Mapping[str, str]) -> list[dict[str, str]]:
    """Every override of every template."""
    found: dict[tuple[int, int], dict[str, str]] = {}
    for key, value in params.items():
        if match := re.fullmatch(r"LaunchTemplateConfigs\.(\d+)\.Overrides\.(\d+)\.(.+)", key):
            found.setdefault((int(match[1]), int(match[2])), {})[match[3]] = value
    for (config, _), pool in found.items():
        start = f"LaunchTemplateConfigs.{config}.LaunchTemplateSpecification."
        for key, value in params.items():
            if key.startswith(start):
                pool["LaunchTemplate." + key.removeprefix(start)] = value
    return [found[key] for key in sorted(found)]


def _told(pool: Mapping[str, str]) -> dict[str, Any]:
    lower = {name[0].lower() + name[1:]: value for name, value in pool.items() if "." not in name}
    return {
        "launchTemplateSpecification": {
            "launchTemplateId": pool.get("LaunchTemplate.LaunchTemplateId", ""),
            "version": pool.get("LaunchTemplate.Version", ""),
        },
        "overrides": lower,
    }
