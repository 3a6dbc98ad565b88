"""`gpuctl provision --emit-terraform`: a folder instead of a machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest

from gpuctl.errors import UsageError
from gpuctl.terraform.module import MODULES, Wish, main_tf, write_call
from providers.base import Offer
from tests.cli.conftest import Gpuctl
from tests.clouds.memory_cloud import MemoryCloud

needs_terraform = pytest.mark.skipif(
    shutil.which("terraform") is None, reason="there is no terraform here"
)


def offer(id: str, provider: str = "aws", gpu: str | None = None, *, spot: bool = False) -> Offer:
    price = Decimal("0.4519")
    return Offer(provider, id, gpu, 1 if gpu else 0, None, spot, price, "somewhere")


SPOT = offer("spot:us-west-2:g5.xlarge", gpu="A10G", spot=True)
CPU = offer("on-demand:us-east-1:c7g.large")
HETZNER = offer("hetzner:cx23:hel1", "hetzner")


def wish(folder: Path) -> Wish:
    return Wish("trainer", "a1b2c3d4e5f6", 7.5, 60, folder / 'odd "${x}" key', Decimal("0.60"))


@pytest.mark.parametrize("one", [SPOT, CPU, HETZNER], ids=lambda one: str(one.id))
def test_every_variable_is_one_of_the_module(tmp_path: Path, one: Offer) -> None:
    text = main_tf(one, wish(tmp_path))
    [module] = re.findall(r'source = "\./modules/(.+)"', text)
    known = re.findall(r'^variable "(\w+)"', (MODULES / module / "variables.tf").read_text(), re.M)
    body = text.partition('module "machine" {')[2].partition("\n}")[0]
    given = set(re.findall(r"^  (\w+) +=", body, re.M)) - {"source"}
    assert given <= set(known)
    assert {"name", "owner", "price_hour", "max_hours", "ssh_cidrs", "ssh_public_key"} <= given
    assert "7.5" in body
    assert '"${x}' not in text, "what a file is called is no template"


def test_what_an_offer_says_reaches_the_module(tmp_path: Path) -> None:
    text = re.sub(r" +=", " =", main_tf(SPOT, wish(tmp_path)))
    for said in (
        'region = "us-west-2"',
        'instance_type = "g5.xlarge"',
        "spot = true",
        'max_price = "0.60"',
        'gpu = "A10G"',
        'price_hour = "0.4519"',
    ):
        assert said in text
    text = re.sub(r" +=", " =", main_tf(CPU, wish(tmp_path)))
    assert "arm64" in text
    assert "max_price" not in text
    assert "root_volume_size = 60" in text


@needs_terraform
@pytest.mark.parametrize("one", [SPOT, CPU, HETZNER], ids=lambda one: str(one.id))
def test_it_is_formatted_as_terraform_does(tmp_path: Path, one: Offer) -> None:
    write_call(one, wish(tmp_path), tmp_path / "made")
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-diff", tmp_path / "made"],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CHECKPOINT_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_terraform
@pytest.mark.slow
def test_terraform_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    plugins = os.environ.get("TF_PLUGIN_DIR", "/opt/tf-plugins")
    if not list(Path(plugins).glob("*/hashicorp/aws/*")):
        pytest.skip("TF_PLUGIN_DIR names no folder with the AWS plugin")
    for name in ("id", "id.pub"):
        (tmp_path / name).write_text("ssh-ed25519 AAAA me\n")
    made = tmp_path / "made"
    write_call(SPOT, Wish("trainer", "a1b2c3d4e5f6", 24.0, 60, tmp_path / "id"), made)
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CHECKPOINT_DISABLE": "1"}
    for step in (["init", f"-plugin-dir={plugins}"], ["validate"]):
        done = subprocess.run(
            ["terraform", *step, "-no-color"],
            cwd=made,
            env=environ,
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "main.tf").write_text("mine")
    with pytest.raises(UsageError, match=r"main\.tf in .* already"):
        write_call(SPOT, wish(tmp_path), tmp_path)
    assert (tmp_path / "main.tf").read_text() == "mine"


def test_other_providers_have_no_module(gpuctl: Gpuctl, cloud: MemoryCloud, tmp_path: Path) -> None:
    done = gpuctl(
        "provision", "--provider", "memory", "--emit-terraform", tmp_path / "made", "--json"
    )
    assert done.code == 2
    assert "no module" in done.json["error"]["message"]
    assert done.json["error"]["next"] == "Add --provider aws or --provider hetzner."
    assert not (tmp_path / "made").exists()
    assert cloud.books() == (0, 0, 0)


def test_nothing_is_rented_and_no_answer_needed(
    gpuctl: Gpuctl, cloud: MemoryCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "offers", lambda _want: [offer("hetzner:cx23:hel1", "memory")])
    from gpuctl.terraform import module

    monkeypatch.setitem(module._PARTS, "memory", module._PARTS["hetzner"])
    monkeypatch.setitem(module._PINS, "memory", module._PINS["hetzner"])
    made = tmp_path / "made"
    done = gpuctl("provision", "--provider", "memory", "--emit-terraform", made, "--json")
    assert done.code == 0, done.err
    names = {"main.tf", "variables.tf", "outputs.tf", "versions.tf", "README.md"}
    assert set(done.json["files"]) == {str(made / name) for name in names}
    assert (made / "modules/hetzner-host/main.tf").is_file()
    assert (made / "modules/machine-boot/main.tf").is_file()
    assert f"gpuctl adopt --terraform {made.name}" in (made / "README.md").read_text()
    assert cloud.books() == (0, 0, 0)
