"""The module call that makes with Terraform what an offer would rent; `write_call` writes it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from gpuctl import __version__
from gpuctl.errors import UsageError
from gpuctl.terraform.outputs import OUTPUT
from providers.base import Offer

MODULES = Path(__file__).parent / "modules"
"""The modules: infra/modules in a checkout, a copy of it in an installed gpuctl."""

_PARTS = {"aws": ("aws-spot-gpu", "machine-boot"), "hetzner": ("hetzner-host", "machine-boot")}
_PINS = {"aws": ("hashicorp/aws", "5.100.0"), "hetzner": ("hetznercloud/hcloud", "1.68.0")}
_UBUNTU = "/aws/service/canonical/ubuntu/server/24.04/stable/current/{}/hvm/ebs-gp3/ami-id"
_ARM = re.compile(r"a1\.|[a-z]+[0-9]+g")  # Graviton: a g right behind the generation
_LEARNING_IMAGE_GB = 100  # AWS's Deep Learning image needs 75, and a job some more

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Wish:
    """What the machine is to be besides its offer."""

    name: str  # the middle part of its name
    owner: str
    max_hours: float
    disk_gb: float
    key_file: Path  # private; its public half lies beside it
    max_price: Decimal | None = None  # USD an hour, when the user said


def write_call(offer: Offer, wish: Wish, folder: Path) -> list[Path]:
    """Write a Terraform folder for an offer; return its files, without the modules'.

    Raises:
        UsageError: there is no module for the offer's provider, or the folder cannot be used.
    """
    files = {
        "main.tf": main_tf(offer, wish),
        "variables.tf": _VARIABLES,
        "outputs.tf": _OUTPUTS,
        "versions.tf": _versions_tf(offer.provider),
        "README.md": readme(offer, wish, folder),
    }
    if there := sorted(folder.glob("*.tf")):
        raise UsageError(
            f"--emit-terraform: there is a {there[0].name} in {folder} already",
            next="Name another folder; this one is left as it is.",
        )
    try:
        for part in _PARTS[offer.provider]:
            shutil.copytree(
                MODULES / part,
                folder / "modules" / part,
                ignore=shutil.ignore_patterns("tests", ".terraform*"),
                dirs_exist_ok=True,
            )
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--emit-terraform: {error.filename or folder}: {error.strerror or error}"
        ) from error
    return [folder / name for name in files]


def main_tf(offer: Offer, wish: Wish) -> str:
    """Return the root module, formatted as `terraform fmt` does.

    Raises:
        UsageError: there is no module for the offer's provider.
    """
    if offer.provider not in _PARTS:
        raise UsageError(
            f"--emit-terraform: the best offer is at {offer.provider}, which has no module",
            next=f"Add --provider {' or --provider '.join(_PARTS)}.",
        )
    kind, place = _of_aws(offer, wish) if offer.provider == "aws" else _of_hetzner(offer)
    module = _PARTS[offer.provider][0]
    local = _PINS[offer.provider][0].rpartition("/")[2]
    groups = [
        [("source", _text(f"./modules/{module}"))],
        [
            ("name", _text(wish.name)),
            ("owner", _text(wish.owner)),
            *((key, _value(value)) for key, value in kind.items()),
            ("price_hour", _text(f"{offer.price_hour:f}")),
            ("max_hours", _value(wish.max_hours)),
        ],
        [
            ("ssh_cidrs", "var.ssh_cidrs"),
            ("ssh_public_key", f"file({_text(f'{wish.key_file}.pub')})"),
            ("ssh_private_key_file", _text(str(wish.key_file))),
        ],
    ]
    body = "\n\n".join(_aligned(group) for group in groups)
    region = f"{{\n  region = {_text(place)}\n}}" if place else "{} # the token: HCLOUD_TOKEN"
    return f"""\
# Written by gpuctl {__version__} for its offer {offer.id}.
# ./modules is a copy of gpuctl's infra/modules, so that this folder needs no other; a fork of
# them, or git::https://<your mirror>//infra/modules/{module}?ref=<tag>, does as well.

provider "{local}" {region}

module "machine" {{
{body}
}}
"""


def _versions_tf(provider: str) -> str:
    source, version = _PINS[provider]
    local = source.rpartition("/")[2]
    return f"""\
terraform {{
  required_version = ">= 1.9"

  required_providers {{
    {local} = {{
      source  = "{source}"
      version = "{version}"
    }}
  }}
}}
"""


_VARIABLES = """\
variable "ssh_cidrs" {
  description = "Addresses that may reach sshd: your own, and `/32`."
  type        = list(string)
}
"""

_OUTPUTS = f"""\
output "{OUTPUT}" {{
  description = "What `gpuctl adopt` reads."
  value       = module.machine.{OUTPUT}
}}
"""


def readme(offer: Offer, wish: Wish, folder: Path) -> str:
    """Return what to do with the folder."""
    what = f"{offer.gpu_count}x {offer.gpu}" if offer.gpu else "a CPU machine"
    market = "spot" if offer.spot else "on-demand"
    return f"""\
# {wish.name}

One machine: {what}, {market}, at {offer.provider} in {offer.region}, about
{offer.price_hour:f} USD an hour; it ends itself {wish.max_hours:g} h after its creation.

```console
$ terraform init
$ terraform apply -var 'ssh_cidrs=["203.0.113.7/32"]'   # your address
$ gpuctl adopt --terraform {folder.name}                # from the folder above
$ gpuctl run train.yaml --machine {wish.name}
$ terraform destroy
```

The last command ends what it costs. gpuctl only borrows the machine and never ends it.
"""


def _of_aws(offer: Offer, wish: Wish) -> tuple[Mapping[str, Value], str]:
    """Return the variables of an EC2 machine, and its region."""
    _, region, instance_type = offer.id.split(":")
    said: dict[str, Value] = {"instance_type": instance_type, "spot": offer.spot}
    if offer.spot and wish.max_price is not None:
        said["max_price"] = f"{wish.max_price:f}"
    arm = _ARM.match(instance_type) is not None
    if offer.gpu and arm:
        raise UsageError(
            f"--emit-terraform: {instance_type} has an ARM processor, and the module boots none "
            "with a GPU by itself",
            next="Add --offer with another one's id, from `gpuctl quote --json`.",
        )
    if offer.gpu:
        said |= {"gpu": offer.gpu, "gpu_count": offer.gpu_count}
        said["root_volume_size"] = max(_LEARNING_IMAGE_GB, round(wish.disk_gb))
    else:
        said |= {
            "ami_ssm_parameter": _UBUNTU.format("arm64" if arm else "amd64"),
            "root_volume_size": max(8, round(wish.disk_gb)),
        }
    return said, region


def _of_hetzner(offer: Offer) -> tuple[Mapping[str, Value], str]:
    """Return the variables of a Hetzner server; its provider has no region."""
    _, server_type, location = offer.id.split(":")
    return {"server_type": server_type, "location": location}, ""


def _aligned(group: Sequence[tuple[str, str]]) -> str:
    width = max(len(key) for key, _ in group)
    return "\n".join(f"  {key:<{width}} = {value}" for key, value in group)


def _value(value: Value) -> str:
    if isinstance(value, str):
        return _text(value)
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _text(text: str) -> str:
    """Quote as HCL does: as JSON, and nothing in it is a template."""
    quoted = json.dumps(text, ensure_ascii=False)
    return quoted.replace("${", "$${").replace("%{", "%%{")
