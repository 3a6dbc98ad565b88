"""From `provision` to `terminate` with a real machine: a folder and processes on this computer."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gpuctl.fleet import provision as phase
from gpuctl.fleet.keeper import this_process
from gpuctl.ledger import Ledger
from providers.base import AuthFailed, NoCapacity, PriceChanged, QuotaExceeded, Want
from tests.cli.conftest import Gpuctl
from tests.clouds.memory_cloud import MemoryCloud


def provision(gpuctl: Gpuctl, *more: object) -> str:
    answer = gpuctl("provision", "--provider", "local", "--yes", "--json", *more)
    assert answer.code == 0, answer.err
    return str(answer.json["machine"]["name"])


def test_a_machine_from_its_birth_to_its_end(gpuctl: Gpuctl, ledger: Ledger) -> None:
    answer = gpuctl(
        "provision", "--provider", "local", "--name", "My Box", "--lease", "5m", "--max-hours", 3,
        "--yes", "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    machine = answer.json["machine"]
    name = machine["name"]
    assert name.startswith("gpuctl-my-box-")
    assert (machine["state"], machine["ssh"], machine["price_hour"]) == ("ready", None, 0.0)

    row = ledger.machine(name)
    assert row is not None
    assert row.keeper is not None
    assert row.keeper["role"] == "watchdog"
    assert row.hard_end - row.intended_at <= timedelta(hours=3)
    assert timedelta(seconds=240) < row.lease_until - row.intended_at < timedelta(seconds=360)

    assert [one["name"] for one in gpuctl("list", "--json").json["machines"]] == [name]

    # exec: the command's own code and streams.
    done = gpuctl("exec", "my-box", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")
    done = gpuctl("exec", "my-box", "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert done.code == 7
    assert json.loads(done.out) == {"stdout": "out\n", "stderr": "err\n", "exit_code": 7}

    # Data up and down.
    Path("data/sub").mkdir(parents=True)
    Path("data/sub/file").write_text("content")
    up = gpuctl("upload", "my-box", "data", "in", "--json")
    assert (up.code, up.json["files"], up.json["bytes"]) == (0, 1, 7)
    assert gpuctl("upload", "my-box", "data", "in", "--json").json["skipped"] == 1
    down = gpuctl("download", "my-box", "in", "out", "--json")
    assert (down.code, Path("out/sub/file").read_text()) == (0, "content")
    assert gpuctl("upload", "my-box", "nowhere", "in").code == 2
    assert gpuctl("download", "my-box", "nowhere", "out").code == 1

    # Leases.
    extended = gpuctl("extend", "my-box", "1h", "--json").json["machine"]
    assert datetime.fromisoformat(extended["lease_expires_at"]) > row.lease_until
    assert "hard end" in gpuctl("extend", "my-box", "30h").out
    capped = gpuctl("list", "--json").json["machines"][0]
    assert capped["lease_expires_at"] == capped["hard_end"]
    assert gpuctl("extend", "my-box", "soon").code == 2

    assert gpuctl("audit").code == 0
    assert gpuctl("reap", "--json").json["kept"][0]["name"] == name

    ended = gpuctl("terminate", "my-box", "--yes", "--json").json["receipts"][0]
    assert (ended["confirmed"], len(ended["confirmed_by"])) == (True, 2)
    assert gpuctl("list", "--json").json["machines"] == []
    assert gpuctl("list", "--all", "--json").json["machines"][0]["state"] == "gone"
    gone = gpuctl("exec", "my-box", "--", "true")
    assert gone.code == 2
    assert "has ended" in gone.err
    assert gpuctl("extend", "my-box", "1h").code == 2


def test_the_agent_on_the_machine_is_armed(gpuctl: Gpuctl) -> None:
    name = provision(gpuctl)
    found = gpuctl("exec", name, "--json", "--", "sh", "-c", "cat .gpuctl/machine/lease.json")
    assert found.code == 0, found.err


def test_what_is_shown_to_a_person_says_how_to_reach_and_end_it(
    gpuctl: Gpuctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCTL_LOCAL_PRICE_HOUR", "2")
    text = gpuctl("provision", "--provider", "local", "--max-hours", 3, "--yes").out
    assert "$2.00 an hour" in text
    assert "$6.00 at most" in text
    for command in ("gpuctl ssh", "gpuctl extend", "gpuctl terminate"):
        assert command in text


def test_without_yes_and_terminal_nothing_is_rented(gpuctl: Gpuctl, ledger: Ledger) -> None:
    answer = gpuctl("provision", "--provider", "local", "--json")
    assert answer.code == 2
    assert "--yes" in answer.json["error"]["next"]
    assert ledger.machines() == []


@pytest.mark.parametrize(
    "argv",
    [
        ["--lease", "1s"],
        ["--lease", "5"],
        ["--max-hours", "0"],
        ["--name", "!!!"],
        ["--offer", "local:nothing"],
        ["--gpu", "RTX-4091"],
    ],
)
def test_wrong_usage_rents_nothing(gpuctl: Gpuctl, ledger: Ledger, argv: list[str]) -> None:
    assert gpuctl("provision", "--provider", "local", "--yes", *argv).code == 2
    assert ledger.machines() == []


def test_nothing_that_fits_is_3(gpuctl: Gpuctl, ledger: Ledger) -> None:
    answer = gpuctl("provision", "--provider", "local", "--cpus", 4096, "--yes", "--json")
    assert answer.code == 3
    assert "CPUs" in answer.json["error"]["next"]
    assert ledger.machines() == []


def test_a_price_above_the_cap_is_3(gpuctl: Gpuctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCTL_LOCAL_PRICE_HOUR", "2")
    argv = ["provision", "--provider", "local", "--max-price", "1.99", "--yes", "--json"]
    assert gpuctl(*argv).code == 3


def test_no_credentials_anywhere_is_4(
    gpuctl: Gpuctl, cloud: MemoryCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.credentials = False
    assert gpuctl("provision", "--yes", "--json").json["error"]["kind"] == "Credentials"
    assert gpuctl("provision", "--provider", "memory", "--yes").code == 4
    cloud.credentials = True

    def refused(_want: Want) -> list[object]:
        raise AuthFailed("the key was revoked")

    monkeypatch.setattr(cloud, "offers", refused)
    assert gpuctl("provision", "--provider", "memory", "--yes").code == 4


@pytest.mark.parametrize(
    ("fault", "code", "kind"),
    [
        ({"create": [NoCapacity("sold out")]}, 3, "NothingRentable"),
        ({"create": [PriceChanged("dearer now")]}, 5, "Cap"),
        ({"create_price": Decimal("5")}, 5, "Cap"),
        ({"create": [AuthFailed("revoked")]}, 4, "Credentials"),
        ({"create": [QuotaExceeded("the quota L-3819A6DF is zero")]}, 3, "NothingRentable"),
    ],
)
def test_what_a_create_that_is_refused_exits_with(
    gpuctl: Gpuctl,
    cloud: MemoryCloud,
    monkeypatch: pytest.MonkeyPatch,
    fault: dict[str, Any],
    code: int,
    kind: str,
) -> None:
    monkeypatch.setattr(phase, "ensure_watchdog", lambda *_: this_process("watchdog"))
    for name, value in fault.items():
        setattr(cloud.faults, name, value)
    answer = gpuctl("provision", "--provider", "memory", "--max-price", "1.50", "--yes", "--json")
    assert (answer.code, answer.json["error"]["kind"]) == (code, kind), answer.err
    assert answer.json["error"]["next"]
    assert answer.json["error"]["may_bill"] is False
    assert cloud.books()[1] == 0
    if "quota" in answer.err:
        assert "L-3819A6DF" in answer.json["error"]["message"]


def test_nothing_matches_names_the_nearest_as_quote_does(
    gpuctl: Gpuctl, cloud: MemoryCloud
) -> None:
    answer = gpuctl("provision", "--provider", "memory", "--max-price", "0.5", "--yes", "--json")
    assert answer.code == 3
    assert answer.json["nearest"][0]["difference"] == "just above the price cap"
    assert answer.json["error"]["next"].startswith("Nearest:")


def test_a_terminal_is_asked_and_no_means_no(
    gpuctl: Gpuctl, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def confirm(question: str, **_: object) -> bool:
        asked.append(question)
        return False

    monkeypatch.setattr("sys.stdin", _Terminal())
    monkeypatch.setattr("click.confirm", confirm)
    answer = gpuctl("provision", "--provider", "local")
    assert answer.code == 1
    assert "You said no" in answer.err
    assert asked[0].startswith("Rent a CPU machine (on-demand) from local at $0.00 an hour")
    assert ledger.machines() == []


class _Terminal:
    def isatty(self) -> bool:
        return True
