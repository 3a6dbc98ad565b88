"""Launch templates: what a launch takes from one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from moto.ec2.models import ec2_backends

from tests.clouds.aws_cloud.wire import Refused

if TYPE_CHECKING:
    from tests.clouds.aws_cloud.cloud import AwsCloud

NUMBER = " template"  # of a launch's parameters: "id:version", where it came from a template
_NAMES = {
    "BlockDeviceMappings": "BlockDeviceMapping",
    "NetworkInterfaces": "NetworkInterface",
    "SecurityGroupIds": "SecurityGroupId",
    "SecurityGroups": "SecurityGroup",
    "TagSpecifications": "TagSpecification",
    "Tags": "Tag",
    "Groups": "SecurityGroupId",
}


def with_template(cloud: AwsCloud, region: str, params: Mapping[str, str]) -> dict[str, str]:
    """Return a launch with what its template says and the launch itself does not.

    Raises:
        Refused: there is no such template, or no such version of it.
    """
    given = {
        name: value
        for name, value in params.items()
        if not name.startswith("LaunchTemplate.") or not value
    }
    identity = params.get("LaunchTemplate.LaunchTemplateId")
    title = params.get("LaunchTemplate.LaunchTemplateName")
    if not identity and not title:
        return dict(params)
    found = next(
        (
            one
            for one in ec2_backends[cloud.account][region].launch_templates.values()
            if one.id == identity or one.name == title
        ),
        None,
    )
    if found is None:
        code = "Id.NotFound" if identity else "Name.NotFoundException"
        raise Refused(f"InvalidLaunchTemplate{code}", "The launch template does not exist.")
    wanted = params.get("LaunchTemplate.Version", "$Default")
    number = {"$Default": found.default_version_number, "$Latest": found.latest_version_number}
    version = next(
        (v for v in found.versions if str(v.number) == str(number.get(wanted, wanted))), None
    )
    if version is None:
        text = f"Could not find launch template version {wanted}"
        raise Refused("InvalidLaunchTemplateId.VersionNotFound", text)
    return {
        **_beside(given, version.data),
        **given,
        NUMBER: f"{found.id}:{version.number}",
    }


def system_tags(params: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that EC2 gives an instance out of a template."""
    if NUMBER not in params:
        return {}
    identity, _, number = params[NUMBER].partition(":")
    return {"aws:ec2launchtemplate:id": identity, "aws:ec2launchtemplate:version": number}


def _beside(given: Mapping[str, str], data: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in data.items():
        name = _NAMES.get(key, key)
        if any(one == name or one.startswith(name + ".") for one in given):
            continue
        if key == "TagSpecifications":
            value = [one for one in value if one.get("ResourceType") != "launch-template"]
        found.update(_flat(name, value))
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """A structure as the query protocol has it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{_NAMES.get(key, key)}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value, 1):
            yield from _flat(f"{name}.{number}", inner)
    elif isinstance(value, bool):
        yield name, "true" if value else "false"
    elif value is not None:
        yield name, str(value)
