"""What a launch stands on: an image, a subnet in each zone, and a group that lets SSH in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from providers.aws_client import Aws
from providers.aws_errors import code_of, said
from providers.aws_machines import MANAGED, tag_list
from providers.aws_notes import Notes
from providers.aws_offers import is_image
from providers.base import InvalidRequest, NotFound, Unsupported

IMAGE = "GPUCTL_AWS_IMAGE"
SUBNETS = "GPUCTL_AWS_SUBNETS"
GROUP = "gpuctl"
_DLAMI = (
    "/aws/service/deeplearning/ami/{arch}/base-oss-nvidia-driver{gpu}-ubuntu-{os}/latest/ami-id"
)
_UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/{arch}/hvm/ebs-gp3/ami-id"
_DLAMI_OWNER = "898082745236"
_DLAMI_NAME = "Deep Learning Base OSS Nvidia Driver GPU AMI (Ubuntu {os}) *"
_DLAMI_VERSIONS = ("24.04", "22.04")
_IMAGES_KEPT = timedelta(hours=6)
_SSH = {
    "IpProtocol": "tcp",
    "FromPort": 22,
    "ToPort": 22,
    "IpRanges": [{"CidrIp": "0.0.0.0/0", "Description": "keys only"}],
}


@dataclass(frozen=True, slots=True)
class Image:
    """What a machine boots from."""

    id: str
    root_device: str
    gigabytes: int  # of its snapshot: a root volume cannot be smaller


def zones(aws: Aws, region: str) -> list[tuple[str, str, str, str]]:
    """Return (zone, zone id, subnet, VPC), a subnet a zone.

    Those of the default VPC, or those that GPUCTL_AWS_SUBNETS names and this region has.

    Raises:
        InvalidRequest: there is none.
    """
    named = [part.strip() for part in aws.environ.get(SUBNETS, "").split(",") if part.strip()]
    wanted = {"Name": "subnet-id", "Values": named}
    default = {"Name": "default-for-az", "Values": ["true"]}
    with said(f"AWS did not list the subnets of {region}"):
        pages = aws.ec2(region).get_paginator("describe_subnets")
        filters = [wanted if named else default]
        rows = [row for page in pages.paginate(Filters=filters) for row in page["Subnets"]]
    if not rows:
        raise InvalidRequest(
            f"There is no default VPC in {region}, and {SUBNETS} names no subnet there. Make one "
            f"(`aws ec2 create-default-vpc --region {region}`) or name subnets, one a zone."
        )
    first: dict[str, tuple[str, str, str, str]] = {}
    for row in rows:
        zone = str(row["AvailabilityZone"])
        found = (zone, str(row["AvailabilityZoneId"]), str(row["SubnetId"]), str(row["VpcId"]))
        first.setdefault(zone, found)
    return list(first.values())


def find_image(
    aws: Aws, notes: Notes, region: str, wanted: str | None, arch: str, gpu: bool
) -> Image:
    """Return what to boot: what the order names, else the setting, else AWS's own for the type.

    Raises:
        Unsupported: a container's image was named.
        InvalidRequest: there is no such image.
    """
    name = wanted or aws.environ.get(IMAGE) or None
    if name is not None and not is_image(name):
        raise Unsupported(f"{name!r} is no machine image: name an AMI or an SSM parameter.")
    parameters = [name] if name else _own_images(arch, gpu)
    key = f"{region} {parameters[0]}"
    if known := notes.get("images", key, _IMAGES_KEPT):
        return Image(*known[1])
    ami = _resolved(aws, region, [str(p) for p in parameters])
    if ami is None and name is None and gpu:
        ami = _newest(aws, region, arch)
    if ami is None:
        raise InvalidRequest(
            f"{region} has no image under {parameters[0]}; name one in {IMAGE}, or with --image."
        )
    found = _described(aws, region, ami)
    notes.put("images", {key: [found.id, found.root_device, found.gigabytes]})
    return found


def _own_images(arch: str, gpu: bool) -> list[str]:
    if not gpu:
        return [_UBUNTU.format(arch="amd64" if arch == "x86_64" else arch)]
    # AWS's own page leaves "-gpu-" out, and everybody else's code has it.
    return [
        _DLAMI.format(arch=arch, gpu=word, os=version)
        for version in _DLAMI_VERSIONS
        for word in ("-gpu", "")
    ]


def _resolved(aws: Aws, region: str, names: Sequence[str]) -> str | None:
    if names[0].startswith("ami-"):
        return names[0]
    for name in names:
        parameter = name.removeprefix("resolve:ssm:")
        try:
            with said(f"AWS did not tell the image of {region}"):
                found = aws.ssm(region).get_parameter(Name=parameter)
        except NotFound:
            continue
        return str(found["Parameter"]["Value"])
    return None


def _newest(aws: Aws, region: str, arch: str) -> str | None:
    """Look for AWS's deep-learning image by its title: parameters have been renamed before."""
    titles = [_DLAMI_NAME.format(os=version) for version in _DLAMI_VERSIONS]
    filters = [
        {"Name": "name", "Values": titles},
        {"Name": "architecture", "Values": [arch]},
        {"Name": "state", "Values": ["available"]},
    ]
    with said(f"AWS did not list the images of {region}"):
        rows = aws.ec2(region).describe_images(Owners=[_DLAMI_OWNER], Filters=filters)["Images"]
    best = f"Ubuntu {_DLAMI_VERSIONS[0]}"
    newest = max(rows, key=lambda row: (best in row["Name"], row["CreationDate"]), default=None)
    return str(newest["ImageId"]) if newest else None


def _described(aws: Aws, region: str, ami: str) -> Image:
    rows: list[dict[str, Any]] = []
    with suppress(NotFound), said(f"AWS did not describe the image {ami} of {region}"):
        rows = aws.ec2(region).describe_images(ImageIds=[ami])["Images"]
    if not rows:
        raise InvalidRequest(f"{region} has no image {ami}; images differ from region to region.")
    root = str(rows[0].get("RootDeviceName") or "/dev/sda1")
    sizes = [
        int(mapping.get("Ebs", {}).get("VolumeSize", 0))
        for mapping in rows[0].get("BlockDeviceMappings", [])
        if mapping.get("DeviceName") == root
    ]
    return Image(ami, root, max(sizes, default=0))


def security_group(aws: Aws, region: str, vpc: str) -> str:
    """Return the group that lets SSH in: made once a VPC, used by all our machines, free.

    Whoever narrows its rule keeps it narrow: only a group without any rule gets one.

    Raises:
        ProviderError: it could neither be found nor made; nothing was rented.
    """
    from botocore.exceptions import ClientError

    client = aws.launching(region)
    with said(f"AWS did not make the security group {GROUP} in {region}"):
        row = _group(aws, region, vpc)
        if row is None:
            try:
                tags = [{"ResourceType": "security-group", "Tags": tag_list({MANAGED: "1"})}]
                row = client.create_security_group(
                    GroupName=GROUP,
                    Description="SSH to machines of gpuctl",
                    VpcId=vpc,
                    TagSpecifications=tags,
                )
            except ClientError as error:  # somebody made it at this very moment
                if code_of(error) != "InvalidGroup.Duplicate":
                    raise
                row = _group(aws, region, vpc) or {}
        group = str(row.get("GroupId", ""))
        if not row.get("IpPermissions"):
            try:
                client.authorize_security_group_ingress(GroupId=group, IpPermissions=[_SSH])
            except ClientError as error:
                if code_of(error) != "InvalidPermission.Duplicate":
                    raise
    return group


def _group(aws: Aws, region: str, vpc: str) -> dict[str, Any] | None:
    filters = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [vpc]}]
    rows = aws.ec2(region).describe_security_groups(Filters=filters)["SecurityGroups"]
    return dict(rows[0]) if rows else None
