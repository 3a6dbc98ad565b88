"""What machine-boot makes is what gpuctl reads: the name, the end, the host key in a label."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from gpuctl.names import parse_machine_name
from providers import aws_boot, hetzner_boot
from tests.infra.terraform import Root, copy_of_infra, need_terraform

LOGIN = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFUbnA0ixCiEuOhkzpmmFNyz1lMXyyGMSJ11CrYYs0aH me"


def test_a_machine_of_terraforms_can_be_read_by_gpuctl(tmp_path: Path) -> None:
    need_terraform()
    boot = Root(copy_of_infra(tmp_path) / "modules" / "machine-boot")
    boot.init()
    key = aws_boot.new_host_key()
    (boot.folder / "terraform.tfvars.json").write_text(
        json.dumps(
            {
                "name": "a-trainer",
                "owner": "0123456789abcdef",
                "max_hours": 0.5,
                "ssh_public_key": f"{LOGIN}\n",
                "host_key": {"private": key.private, "public": f"{key.public} of a machine\n"},
            }
        )
    )
    boot.run("apply", "-auto-approve")
    told = {name: one["value"] for name, one in json.loads(boot.run("output", "-json")).items()}

    name = parse_machine_name(told["name"])
    assert name is not None
    assert (name.middle, name.owner) == ("a-trainer", "012345")
    assert datetime.fromtimestamp(told["end"], UTC) == datetime.fromisoformat(told["expires_at"])
    assert told["host_key_public"] == key.public
    assert hetzner_boot.host_key_of(told["host_key_label"]) == key.public
    data = json.loads(told["user_data"].removeprefix("#cloud-config\n"))
    assert data["ssh_keys"] == {"ed25519_private": key.private, "ed25519_public": key.public}
    assert data["ssh_authorized_keys"] == [LOGIN]

    boot.run("plan", "-detailed-exitcode")  # 2 would mean another name or end
