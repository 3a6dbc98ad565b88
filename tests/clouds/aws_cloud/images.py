"""The images that AWS and Canonical publish, and the SSM parameters that name them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.ssm.models import Parameter, ssm_backends

from tests.clouds.aws_cloud.wire import Refused

if TYPE_CHECKING:
    from tests.clouds.aws_cloud.cloud import AwsCloud

DLAMI_OWNER = "898082745236"
_CANONICAL = "099720109477"
_AMAZON = "137112412989"
_DLAMI = "/aws/service/deeplearning/ami/{arch}/base-oss-nvidia-driver{gpu}-{os}/latest/ami-id"
_UBUNTU = "/aws/service/canonical/ubuntu/server/{os}/stable/current/{arch}/hvm/{disk}/ami-id"
_AL2023 = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-{arch}"


class Image(Ami):
    """An image whose root volume has the size that the real one has."""

    gigabytes = 8

    @property
    def block_device_mappings(self) -> list[dict[str, Any]]:
        """As DescribeImages shows it."""
        [mapping] = super().block_device_mappings
        ebs = {"VolumeSize": self.gigabytes, "DeleteOnTermination": True, "VolumeType": "gp3"}
        return [{**mapping, "Ebs": {**mapping["Ebs"], **ebs}}]


def seed(account: str, region: str) -> None:
    """Publish the images in a region, once."""
    backend = ec2_backends[account][region]
    if any(isinstance(ami, Image) for ami in backend.amis.values()):
        return
    ssm_backends[account][region]._parameters.latest_amis_loaded = True  # ours instead of moto's
    for arch in ("x86_64", "arm64"):
        for title, os in (
            ("Ubuntu 24.04", "ubuntu-24.04"),
            ("Ubuntu 22.04", "ubuntu-22.04"),
            ("Amazon Linux 2023", "amazon-linux-2023"),
        ):
            name = f"Deep Learning Base OSS Nvidia Driver GPU AMI ({title}) 20260717"
            ami = _add(account, region, name, arch, DLAMI_OWNER, 75)
            _name(account, region, _DLAMI.format(arch=arch, gpu="-gpu", os=os), ami)
        for os, disk in (("24.04", "ebs-gp3"), ("22.04", "ebs-gp2")):
            ami = _add(account, region, f"ubuntu-{os}-{arch}-server", arch, _CANONICAL, 8)
            short = "amd64" if arch == "x86_64" else arch
            _name(account, region, _UBUNTU.format(os=os, arch=short, disk=disk), ami)
        ami = _add(account, region, f"al2023-ami-2023-kernel-{arch}", arch, _AMAZON, 8)
        _name(account, region, _AL2023.format(arch=arch), ami)


def resolve_image(cloud: AwsCloud, region: str, params: dict[str, str]) -> dict[str, str]:
    """Follow ``resolve:ssm:`` as EC2 does, and refuse images that are not there."""
    image = params.get("ImageId", "")
    if not image:
        return params
    if image.startswith("resolve:ssm:"):
        name = image.removeprefix("resolve:ssm:")
        found = ssm_backends[cloud.account][region]._parameters.get(name)
        if not found:
            raise Refused("InvalidParameterValue", f"Could not resolve SSM parameter {name}")
        image = found[-1].value
    if not image.startswith("ami-"):
        raise Refused("InvalidAMIID.Malformed", f'Invalid id: "{image}" (expecting "ami-...")')
    if image not in ec2_backends[cloud.account][region].amis:
        raise Refused("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")
    return {**params, "ImageId": image}


def _add(account: str, region: str, name: str, arch: str, owner: str, gigabytes: int) -> str:
    backend = ec2_backends[account][region]
    ami_id = "ami-" + hashlib.sha256(f"{region}{name}{arch}".encode()).hexdigest()[:17]
    image = Image(
        backend,
        ami_id,
        name=name,
        owner_id=owner,
        public=True,
        virtualization_type="hvm",
        architecture=arch,
        root_device_name="/dev/xvda" if "Amazon" in name or "al2023" in name else "/dev/sda1",
        root_device_type="ebs",
        region_name=f"{region}a",
        creation_date=datetime(2026, 7, 17, tzinfo=UTC),
    )
    image.gigabytes = gigabytes
    backend.amis[ami_id] = image
    return ami_id


def _name(account: str, region: str, name: str, value: str) -> None:
    ssm_backends[account][region]._parameters[name].append(
        Parameter(
            account_id=account,
            name=name,
            value=value,
            parameter_type="String",
            description=None,
            allowed_pattern=None,
            keyid=None,
            last_modified_date=datetime(2026, 7, 17, tzinfo=UTC),
            version=1,
            data_type="text",
        )
    )
