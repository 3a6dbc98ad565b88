"""The reaper's units parse, and what they run ends what is past its hard end."""

from __future__ import annotations

import json
import os
import plistlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpuctl.names import new_machine_name
from providers.aws_policy import policy
from providers.base import Mark, Order, SystemClock, Want
from providers.registry import create_provider
from tests.clouds.runpod_cloud import RunpodCloud, Times, main_settings

ROOT = Path(__file__).resolve().parents[2]
REAPER = ROOT / "scripts" / "reaper"
OWNER = "a1b2c3d4e5f6"


# --------------------------------------------------------------------------- units


def test_the_systemd_units_are_whole(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze on this computer")
    units = [str(REAPER / name) for name in ("gpuctl-reap.service", "gpuctl-reap.timer")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", "--man=no", *units],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "gpuctl" not in done.stderr


def test_the_timer_makes_up_for_what_was_missed() -> None:
    text = (REAPER / "gpuctl-reap.timer").read_text()
    assert "Persistent=true" in text
    assert "OnCalendar=*:0/10" in text


def test_the_launchd_job_is_whole() -> None:
    job = plistlib.loads((REAPER / "org.gpuctl.reap.plist").read_bytes())
    assert job["Label"] == "org.gpuctl.reap"
    assert job["StartInterval"] == 600
    assert job["ProgramArguments"][0] == "/bin/sh"
    assert "reap.sh" in job["ProgramArguments"][-1]


def test_the_workflow_is_whole_and_gentle() -> None:
    workflow: dict[Any, Any] = yaml.safe_load((REAPER / "github-actions.yml").read_text())
    when = workflow[True]  # YAML 1.1 reads `on` as a boolean; GitHub does not
    assert re.fullmatch(r"[\d,]+ \* \* \* \*", when["schedule"][0]["cron"])
    assert workflow["concurrency"]["cancel-in-progress"] is False
    assert workflow["permissions"] == {"contents": "read", "id-token": "write"}
    steps = workflow["jobs"]["reap"]["steps"]
    assert steps[-1]["run"].startswith("gpuctl reap --json")
    assert "--hard-end-only" in steps[-1]["env"]["REAP_OPTIONS"]
    assert workflow["jobs"]["reap"]["timeout-minutes"] >= 30


def test_the_document_names_every_file() -> None:
    text = (ROOT / "docs" / "reaper.md").read_text()
    for file in REAPER.iterdir():
        assert file.name in text, file.name


def test_its_rights_at_aws_are_a_part_of_gpuctls_own() -> None:
    text = (ROOT / "docs" / "reaper.md").read_text()
    [block] = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    asked = {action for rule in json.loads(block)["Statement"] for action in rule["Action"]}
    given = {
        action
        for rule in policy()["Statement"]
        for action in ([rule["Action"]] if isinstance(rule["Action"], str) else rule["Action"])
    }
    assert asked <= given
    assert not any("Run" in action or "Create" in action for action in asked), "it rents nothing"


# --------------------------------------------------------------- what they really run


@pytest.fixture
def user(tmp_path: Path) -> Path:
    """Somebody's home, with the reaper installed as docs/reaper.md says."""
    home = tmp_path / "me"
    place = home / ".config" / "gpuctl"
    place.mkdir(parents=True)
    (home / "Library" / "Logs").mkdir(parents=True)  # every Mac has it
    for name in ("reap.sh", "reaper.env"):
        shutil.copy(REAPER / name, place / name)
    return home


def settle_in(user: Path, **settings: str) -> None:
    text = (REAPER / "reaper.env").read_text()
    own = {"GPUCTL_HOME": str(user / "gpuctl"), "GPUCTL_BIN": str(Path(sys.executable).parent)}
    lines = [f"{key}='{value}'" for key, value in {**own, **settings}.items()]
    (user / ".config/gpuctl/reaper.env").write_text(text + "\n".join([*lines, ""]))


def reaped(user: Path, command: list[str], seconds: float = 60) -> tuple[int, Any, str]:
    """Run a unit's command with the little that a timer gives it."""
    done = subprocess.run(
        command,
        env={"HOME": str(user), "PATH": "/usr/bin:/bin"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    lines = [line for line in _said(user, done.stdout).splitlines() if line.startswith("{")]
    return done.returncode, json.loads(lines[-1]) if lines else None, done.stderr


def _said(user: Path, stdout: str) -> str:
    for log in (user / ".config/gpuctl/last-reap.json", user / "Library/Logs/gpuctl-reap.log"):
        if log.exists():
            return log.read_text()
    return stdout


def from_systemd(user: Path) -> list[str]:
    text = (REAPER / "gpuctl-reap.service").read_text()
    [line] = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    return line.replace("%h", str(user)).split()


def from_cron(user: Path) -> list[str]:
    [line] = [
        line
        for line in (REAPER / "crontab").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    return ["/bin/sh", "-c", line.split(None, 5)[5]]


def from_launchd(user: Path) -> list[str]:
    job = plistlib.loads((REAPER / "org.gpuctl.reap.plist").read_bytes())
    return list(job["ProgramArguments"])


@pytest.fixture
def cloud() -> Iterator[RunpodCloud]:
    with RunpodCloud(clock=SystemClock(), times=Times(0, 0, 0)) as made:
        yield made


@pytest.mark.parametrize(
    "unit",
    [
        from_systemd,
        pytest.param(from_cron, marks=pytest.mark.slow),
        pytest.param(from_launchd, marks=pytest.mark.slow),
    ],
)
def test_in_a_fresh_home_everybody_with_credentials_is_asked(
    unit: Any, user: Path, cloud: RunpodCloud
) -> None:
    settle_in(user, GPUCTL_OWNER=OWNER, **main_settings(cloud))
    code, document, err = reaped(user, unit(user))
    assert code == 0, err
    assert "runpod" in document["asked"]
    assert document["reaped"] == document["errors"] == []


def test_who_cannot_be_asked_is_told_with_an_alert(user: Path, cloud: RunpodCloud) -> None:
    alert, revoked = user / "alert.txt", "rpa_revoked_0123456789"
    settings = {**main_settings(cloud), "RUNPOD_API_KEY": revoked}
    settle_in(user, ALERT_COMMAND=f"cat > {alert}", **settings)
    code, document, _ = reaped(user, from_systemd(user))
    assert code == 6
    assert document["errors"][0]["provider"] == "runpod"
    assert "ended with 6" in alert.read_text()
    assert revoked not in alert.read_text()


def test_who_asks_nobody_has_shown_nothing(user: Path) -> None:
    settle_in(user, REAP_OPTIONS="--hard-end-only")
    code, document, err = reaped(user, from_systemd(user))
    assert code == 4, (document, err)
    assert "nobody was asked" in err


def test_without_settings_it_says_what_is_missing(user: Path) -> None:
    (user / ".config/gpuctl/reaper.env").unlink()
    code, document, err = reaped(user, from_systemd(user))
    assert (code, document) == (2, None)
    assert "reaper.env" in err


def rent(cloud: RunpodCloud, home: Path, owner: str, left: timedelta) -> str:
    """A machine of gpuctl's, of which no ledger here knows."""
    settings = {**os.environ, **main_settings(cloud)}
    provider = create_provider("runpod", settings, home=home, clock=SystemClock())
    offer = provider.offers(Want(gpus=("RTX-4090",), disk_gb=10))[0]
    mark = Mark(owner, datetime.now(UTC) + left)
    return provider.create(Order(new_machine_name("lost", owner), offer, mark, 10)).provider_id


@pytest.mark.slow
def test_from_elsewhere_only_what_is_past_its_hard_end_is_ended(
    user: Path, cloud: RunpodCloud, tmp_path: Path
) -> None:
    over = rent(cloud, tmp_path, OWNER, timedelta(seconds=-1))
    others = rent(cloud, tmp_path, "ffffffffffff", timedelta(seconds=-1))
    living = rent(cloud, tmp_path, OWNER, timedelta(hours=1))
    settle_in(user, GPUCTL_OWNER=OWNER, REAP_OPTIONS="--hard-end-only", **main_settings(cloud))
    code, document, err = reaped(user, from_systemd(user), 120)
    assert code == 0, err
    assert {one["provider_id"] for one in document["reaped"]} == {over, others}
    assert [one["provider_id"] for one in document["kept"]] == [living]
    assert set(cloud.books.open("pod")) == {living}

    # The computer is lost: everything of its owner goes.
    settle_in(user, GPUCTL_OWNER=OWNER, **main_settings(cloud))
    code, document, err = reaped(user, from_systemd(user), 120)
    assert code == 0, err
    assert cloud.books.open("pod") == {}
