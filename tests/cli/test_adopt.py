"""`gpuctl adopt`, and what every other command does with a borrowed machine."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gpuctl.ledger import Ledger
from gpuctl.remote.keys import public_key
from providers.base import Machine, Mark, State
from tests.cli.conftest import Gpuctl
from tests.clouds.memory_cloud import MemoryCloud
from tests.remote.sshd import Sshd, needs_sshd

pytestmark = needs_sshd

NAME = "gpuctl-trainer-a1b2c3-0123abcd"
ID = "m-terraform"


@pytest.fixture
def sshd(home: Path, tmp_path: Path) -> Iterator[Sshd]:
    """The computer that Terraform made."""
    home.mkdir(exist_ok=True)
    (tmp_path / "sshd").mkdir()
    server = Sshd(tmp_path / "sshd", authorized=[public_key(home)])
    server.start()
    yield server
    server.stop()


def output(sshd: Sshd, **changes: Any) -> dict[str, Any]:
    """What the modules' output says of it."""
    return {
        "provider": "memory",
        "id": ID,
        "name": NAME,
        "host": "127.0.0.1",
        "port": sshd.port,
        "user": sshd.access.user,
        "price_hour": "0.42",
        "gpu": None,
        "gpu_count": 0,
        "region": "here",
        "spot": False,
        "expires_at": (datetime.now(UTC) + timedelta(hours=8)).isoformat(),
        "host_keys": [sshd.host_key],
        "key_file": None,
        **changes,
    }


def outputs(**machines: object) -> str:
    """As `terraform output -json` prints them."""
    return json.dumps(
        {name: {"sensitive": False, "type": "dynamic", "value": v} for name, v in machines.items()}
    )


def there(cloud: MemoryCloud, mark: Mark | None = None) -> None:
    """Have the cloud list it, as Terraform made it."""
    cloud.machines[ID] = Machine(NAME, "memory", ID, State.READY, "running", mark=mark)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let a command find something on its stdin."""

    def pipe(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))

    return pipe


@pytest.fixture
def adopted(gpuctl: Gpuctl, sshd: Sshd, cloud: MemoryCloud, piped: Any) -> Any:
    """The machine, taken in from stdin."""
    there(cloud)
    piped(outputs(gpuctl_machine=output(sshd)))
    done = gpuctl("adopt", "--terraform", "-", "--json")
    assert done.code == 0, done.err
    [machine] = done.json["machines"]
    return machine


def test_adopt_takes_it_in_as_borrowed(adopted: Any, home: Path, sshd: Sshd) -> None:
    assert adopted["name"] == NAME
    assert (adopted["borrowed"], adopted["state"], adopted["purpose"]) == (
        True,
        "ready",
        "borrowed",
    )
    assert (adopted["price_hour"], adopted["cost_usd"]) == (0.42, 0)
    assert adopted["ssh"]["port"] == sshd.port
    assert sshd.host_key.split()[1] in (home / "known_hosts" / NAME).read_text()


def test_every_command_knows_it(adopted: Any, gpuctl: Gpuctl, tmp_path: Path) -> None:
    listed = gpuctl("list", "--json").json["machines"]
    assert [one["name"] for one in listed] == [NAME]
    assert "borrowed" in gpuctl("list").out
    refreshed = gpuctl("list", "--refresh", "--json")
    assert (refreshed.code, len(refreshed.json["machines"])) == (0, 1)
    done = gpuctl("exec", "trainer", "--json", "--", "echo", "there")
    assert done.json == {"stdout": "there\n", "stderr": "", "exit_code": 0}
    assert gpuctl("ssh", "trainer", "--json").json["machine"]["name"] == NAME
    assert f"Host {NAME} trainer" in gpuctl("ssh", "trainer", "--config").out
    source, target = tmp_path / "a", tmp_path / "there"
    source.write_text("x")
    assert gpuctl("upload", "trainer", source, f"{target}/").code == 0
    assert (target / "a").read_text() == "x"
    assert gpuctl("download", "trainer", f"{target}/a", tmp_path / "back").code == 0
    assert (tmp_path / "back").is_file()
    assert gpuctl("cost", "--json").json["cost_usd"] == 0


def test_nobody_ends_it(adopted: Any, gpuctl: Gpuctl, cloud: MemoryCloud) -> None:
    done = gpuctl("terminate", "trainer", "--yes", "--json")
    assert done.code == 2
    assert done.json["error"]["next"] == "`terraform destroy` ends it."
    done = gpuctl("terminate", "--all", "--yes")
    assert done.code == 0
    assert "Terraform owns it" in done.err
    done = gpuctl("extend", "trainer", "2h", "--json")
    assert (done.code, done.json["error"]["kind"]) == (2, "Usage")
    done = gpuctl("forget", "trainer", "--i-checked-the-console", "--json")
    assert (done.code, done.json["error"]["next"]) == (6, "`terraform destroy` ends it.")
    assert cloud.machines[ID].state is State.READY
    assert not [call for call in cloud.calls if "destroy" in call]


@pytest.mark.parametrize("marked", ["not at all", "as Terraform's", "as ours, and past its end"])
def test_reap_only_reports_it_and_audit_counts_it(
    adopted: Any, gpuctl: Gpuctl, cloud: MemoryCloud, ledger: Ledger, marked: str
) -> None:
    owner = (ledger.path.parent / "owner").read_text().strip()
    past = datetime.now(UTC) - timedelta(hours=1)
    if marked != "not at all":
        by = "terraform" if marked == "as Terraform's" else "gpuctl"
        there(cloud, Mark(owner, past, managed_by=by))
    done = gpuctl("reap", "--json")
    assert (done.code, done.json["reaped"]) == (0, []), done.err
    [kept] = done.json["kept"]
    assert "terraform destroy" in kept["why"]
    done = gpuctl("audit", "--json")
    assert (done.code, done.json["unaccounted"]) == (0, [])
    [billing] = done.json["billing"]
    assert (billing["whose"], billing["price_hour"]) == ("terraform", 0.42)
    assert not [call for call in cloud.calls if "destroy" in call]


def test_after_terraform_destroyed_it_the_books_are_empty(
    adopted: Any, gpuctl: Gpuctl, cloud: MemoryCloud, home: Path
) -> None:
    del cloud.machines[ID]
    done = gpuctl("terminate", "trainer", "--yes", "--json")
    assert done.code == 0, done.err
    [receipt] = done.json["receipts"]
    assert (receipt["confirmed"], len(receipt["confirmed_by"])) == (True, 2)
    assert (receipt["cost_usd"], receipt["cost_source"]) == (0, "on Terraform's bill")
    assert gpuctl("list", "--json").json["machines"] == []
    assert not (home / "known_hosts" / NAME).exists()
    done = gpuctl("exec", "trainer", "--", "true")
    assert done.code == 2
    assert "has ended" in done.err


def test_reap_closes_what_terraform_destroyed(
    adopted: Any, gpuctl: Gpuctl, cloud: MemoryCloud
) -> None:
    del cloud.machines[ID]
    done = gpuctl("reap", "--json")
    assert (done.code, [one["name"] for one in done.json["reaped"]]) == (0, [NAME]), done.err
    assert gpuctl("list", "--json").json["machines"] == []


def test_a_replaced_machine_keeps_its_name(
    adopted: Any, gpuctl: Gpuctl, cloud: MemoryCloud, sshd: Sshd, piped: Any
) -> None:
    sshd.stop()
    sshd.new_host_key()
    sshd.start()
    piped(outputs(gpuctl_machine=output(sshd, id="m-second", price_hour=0.5, host_keys=[])))
    done = gpuctl("adopt", "--terraform", "-", "--json")
    assert done.code == 0, done.err
    [machine] = gpuctl("list", "--json").json["machines"]
    assert (machine["name"], machine["provider_id"]) == (NAME, "m-second")
    assert machine["price_hour"] == 0.5
    assert gpuctl("exec", "trainer", "--", "true").code == 0


def test_a_folder_is_asked_with_terraform(
    gpuctl: Gpuctl,
    sshd: Sshd,
    cloud: MemoryCloud,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key = tmp_path / "infra" / "id"
    key.parent.mkdir()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    authorized = sshd.folder / "authorized_keys"
    authorized.write_text(key.with_suffix(".pub").read_text())  # not the home's own
    told = outputs(other="x", gpuctl_machine_a=output(sshd, key_file="id"))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "terraform").write_text(f"#!/bin/sh\n[ $1 = -chdir={key.parent} ] && echo '{told}'\n")
    (tools / "terraform").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")
    there(cloud)
    done = gpuctl("adopt", "--terraform", key.parent, "--json")
    assert done.code == 0, done.err
    [machine] = done.json["machines"]
    assert machine["ssh"]["key_file"] == str(key)
    assert machine["terraform"] == str(key.parent)
    done = gpuctl("terminate", "trainer", "--yes")
    assert f"terraform -chdir={key.parent} destroy" in done.err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"port": 0}, "gpuctl_machine.port"),
        ({"host": None}, "gpuctl_machine.host"),
        ({"user": "-oProxyCommand=x"}, "gpuctl_machine.user"),
        ({"name": "../x"}, "gpuctl_machine.name"),
        ({"price_hour": "-1"}, "gpuctl_machine.price_hour"),
        ({"price_hour": "a lot"}, "gpuctl_machine.price_hour"),
        ({"expires_at": "tomorrow"}, "gpuctl_machine.expires_at"),
        ({"expires_at": "2026-11-22T08:00:00"}, "gpuctl_machine.expires_at"),  # no time zone
        ({"expires_at": "2020-01-01T00:00:00Z"}, "gpuctl_machine.expires_at"),  # past
        ({"provider": "nowhere"}, "gpuctl_machine.provider"),
        ({"provider": "ssh"}, "gpuctl_machine.provider"),
        ({"key_file": "/nowhere/id"}, "gpuctl_machine.key_file"),
        ({"gpu_count": 1.5}, "gpuctl_machine.gpu_count"),
    ],
)
def test_a_wrong_key_is_named(
    gpuctl: Gpuctl, cloud: MemoryCloud, piped: Any, tmp_path: Path, changes: Any, said: str
) -> None:
    nobody = Sshd(tmp_path)  # it is not even asked
    (tmp_path / "host_key.pub").write_text("ssh-ed25519 AAAA")
    piped(outputs(gpuctl_machine=output(nobody, **changes)))
    done = gpuctl("adopt", "--terraform", "-", "--json")
    assert done.code == 2
    assert said in done.json["error"]["message"]
    assert gpuctl("list", "--json").json["machines"] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[]", "not Terraform's outputs"),
        ("{}", "no output gpuctl_machine"),
        (outputs(address="10.0.0.1"), "found address"),
        (outputs(gpuctl_machine="text"), "gpuctl_machine in what came on stdin"),
    ],
)
def test_what_is_no_output_is_refused(gpuctl: Gpuctl, piped: Any, text: str, said: str) -> None:
    piped(text)
    done = gpuctl("adopt", "--terraform", "-", "--json")
    assert done.code == 2
    assert said in done.json["error"]["message"]


def test_what_gpuctl_rented_cannot_be_adopted(
    gpuctl: Gpuctl, tmp_path: Path, cloud: MemoryCloud, piped: Any, ledger: Ledger
) -> None:
    ledger.record("adopted", machine=NAME, provider="memory", provider_id="m-other")
    (tmp_path / "host_key.pub").write_text("ssh-ed25519 AAAA")
    piped(outputs(gpuctl_machine=output(Sshd(tmp_path))))
    done = gpuctl("adopt", "--terraform", "-", "--json")
    assert done.code == 2
    assert "rented by gpuctl itself" in done.json["error"]["message"]
