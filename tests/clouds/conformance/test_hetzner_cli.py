"""Debian's hcloud command against the emulation. Fetched as a package, never installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuctl.remote.keys import public_key
from tests.clouds.hetzner_cloud import HetznerCloud, Pace
from tests.waiting import until

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(600)]

PLACE = Path(__file__).resolve().parents[3] / ".make" / "sdks" / "hcloud-cli"


@pytest.fixture(scope="module")
def hcloud() -> str:
    """The command: the system's, or out of Debian's package."""
    if found := shutil.which("hcloud"):
        return found
    command = PLACE / "usr/bin/hcloud"
    if not command.exists():
        PLACE.mkdir(parents=True, exist_ok=True)
        try:
            for argv in (
                ["apt-get", "download", "hcloud-cli"],
                ["sh", "-c", "dpkg-deb -x *.deb ."],
            ):
                subprocess.run(argv, cwd=PLACE, check=True, capture_output=True, timeout=300)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"hcloud-cli cannot be had here: {error}")
    return str(command)


@pytest.fixture(scope="module")
def cloud() -> Iterator[HetznerCloud]:
    quick = Pace(create=0.2, start=0.2, stop=0.1, shutdown=0.1, delete=0.1, other=0.1)
    with HetznerCloud(pace=quick) as made:
        made.switches.token_of_64 = True
        yield made


@pytest.fixture
def run(hcloud: str, cloud: HetznerCloud, tmp_path: Path) -> Any:
    """Runs it with a token of the emulation."""

    def go(*arguments: str) -> tuple[int, str, str]:
        environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "HCLOUD_TOKEN": cloud.token,
            "HCLOUD_ENDPOINT": cloud.endpoint,
        }
        done = subprocess.run(
            [hcloud, *arguments], capture_output=True, text=True, timeout=60, env=environ
        )
        return done.returncode, done.stdout, done.stderr

    return go


def test_a_life_by_the_command(run: Any, cloud: HetznerCloud, tmp_path: Path) -> None:
    key = public_key(tmp_path)
    code, _, err = run("ssh-key", "create", "--name", "mine", "--public-key", key)
    assert code == 0, err
    code, out, err = run(
        *("server", "create", "--name", "box", "--type", "cx23", "--image", "ubuntu-24.04"),
        *("--location", "fsn1", "--ssh-key", "mine", "--label", "gpuctl/owner=x"),
    )
    assert code == 0, err
    assert "IPv4: 198.18." in out
    code, out, err = run("server", "list", "--output", "columns=id,name,status,ipv4")
    assert code == 0, err
    assert "box" in out
    assert "running" in out
    code, out, err = run("server", "describe", "box", "-o", "json")
    assert code == 0, err
    described = json.loads(out)
    assert described["labels"] == {"gpuctl/owner": "x"}
    code, out, _ = run("server", "list", "--selector", "gpuctl/owner=y", "-o", "noheader")
    assert (code, out.strip()) == (0, "")
    for verb in ("poweroff", "poweron", "shutdown"):
        code, _, err = run("server", verb, "box")
        assert code == 0, err
    code, _, err = run("server", "enable-protection", "box", "delete")
    assert code == 0, err
    code, _, err = run("server", "delete", "box")
    assert code != 0
    assert "protected" in err
    code, _, err = run("server", "disable-protection", "box", "delete")
    assert code == 0, err
    code, _, err = run("server", "delete", "box")
    assert code == 0, err
    assert until(lambda: "box" not in cloud.bills("server").values(), 5)


@pytest.mark.parametrize(
    "words",
    [
        ("server-type", "list"),
        ("server-type", "describe", "ccx23"),
        ("location", "list"),
        ("image", "list"),
        ("ssh-key", "list"),
        ("primary-ip", "list"),
        ("volume", "list"),
        ("firewall", "list"),
        ("placement-group", "list"),
        ("floating-ip", "list"),
        ("load-balancer", "list"),
        ("iso", "list"),
    ],
    ids="-".join,
)
def test_what_can_be_listed(run: Any, words: tuple[str, ...]) -> None:
    code, _, err = run(*words)
    assert code == 0, err


def test_volumes_and_addresses(run: Any, cloud: HetznerCloud) -> None:
    code, _, err = run("volume", "create", "--name", "data", "--size", "10", "--location", "fsn1")
    assert code == 0, err
    code, _, err = run("volume", "delete", "data")
    assert code == 0, err
    assert cloud.bills("volume") == {}


def test_errors_are_shown_as_the_api_words_them(run: Any) -> None:
    code, _, err = run("server", "delete", "nobody")
    assert code != 0
    assert "not found" in err
    code, _, err = run(
        *("server", "create", "--name", "x", "--type", "cax11", "--image", "ubuntu-24.04"),
        *("--location", "ash"),
    )
    assert code != 0
    assert "error during placement" in err or "image" in err
    code, _, err = run("datacenter", "list")
    assert code != 0
    assert "deprecated_api_endpoint" in err


def test_a_wrong_token(run: Any, cloud: HetznerCloud, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "token", "f" * 64)
    cloud.switches.read_only = True
    try:
        code, _, err = run("ssh-key", "delete", "mine")
    finally:
        cloud.switches.read_only = False
    assert code != 0
    assert "read" in err or "not found" in err
