"""A machine that is booted again guards its lease: the clouds' boot scripts, on real machines."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import gpuctl.agent
from providers import aws_boot, vastai_boot
from providers.base import SystemClock
from tests.clouds.aws_cloud.machines import _PROGRAMS as AWS_PROGRAMS
from tests.clouds.aws_cloud.machines import AwsMachine, cloud_config
from tests.clouds.http_cloud import HttpCloud, Reply, Request, route
from tests.clouds.rented import Rented, needs_machines
from tests.remote.sshd import free_port
from tests.waiting import until

pytestmark = [needs_machines, pytest.mark.slow]

AGENT = Path(gpuctl.agent.__file__).with_name("machine_agent.py")
HARD_END = timedelta(hours=3)


def arm(machine: Rented, lease_seconds: float, end: dict[str, Any]) -> None:
    """Send the agent and have it guard a lease, as gpuctl does."""
    folder = machine.folder / "root/.gpuctl/machine"
    folder.mkdir(parents=True)
    (folder / "machine_agent.py").write_bytes(AGENT.read_bytes())
    orders = json.dumps(
        {"lease_seconds": lease_seconds, "hard_end": time.time() + 3 * 3600, "end": end}
    )
    place = "/root/.gpuctl/machine"
    command = f"python3 {place}/machine_agent.py arm {place}"
    done = machine.start(f"echo {shlex.quote(orders)} | {command}")
    assert done.wait(20) == 0, (machine.folder / "boot.log").read_text()


def guards(machine: Rented) -> list[str]:
    return [one for one in machine.processes() if "machine_agent.py" in one]


# ----------------------------------------------------------------------------- AWS


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[Rented]:
    machine = Rented(tmp_path / "machine", programs=AWS_PROGRAMS)
    yield machine
    machine.remove()


def boot_instance(machine: Rented) -> None:
    """What cloud-init does at every boot, with the user data of gpuctl."""
    data = aws_boot.user_data(datetime.now(UTC) + HARD_END, None, aws_boot.new_host_key())
    machine.boot()
    with suppress(AssertionError):  # it may have ended before its boot has
        for command in cloud_config(data.encode())["bootcmd"]:
            machine.start(shlex.join(command)).wait(60)


def test_an_instance_that_was_rebooted_ends_with_its_lease(instance: Rented) -> None:
    boot_instance(instance)
    assert guards(instance) == []
    arm(instance, 8, {"argv": ["sh", "-c", aws_boot.POWEROFF]})
    armed = time.time()
    instance.kill()
    boot_instance(instance)
    assert len(guards(instance)) == 1
    lease = json.loads((instance.folder / "root/.gpuctl/machine/lease.json").read_text())
    assert lease["lease_until"] == pytest.approx(armed + 8, abs=2), "no longer than it was"
    off = instance.folder / "run/powered-off"
    assert not off.exists() or time.time() > armed + 7
    assert until(off.exists, 40)


def test_an_instance_whose_lease_ran_out_while_it_was_off_ends_at_once(instance: Rented) -> None:
    boot_instance(instance)
    arm(instance, 2, {"argv": ["true"]})  # what ends it is told anew at every boot
    instance.kill()
    assert until(lambda: False, 2.5) is False  # the lease passes
    boot_instance(instance)
    assert until((instance.folder / "run/powered-off").exists, 30)


def test_an_instance_that_never_lets_anybody_in_ends_at_its_hard_end(tmp_path: Path) -> None:
    """Found by the crash matrix: the emulated EC2 looked at such a machine only once it had."""
    end = datetime.now(UTC) + timedelta(seconds=2)
    data = aws_boot.user_data(end, None, aws_boot.new_host_key()).encode()
    address = ("127.77.255.1", free_port())
    machine = AwsMachine(tmp_path / "machine", SystemClock(), address, None, data, ssh_seconds=600)
    machine.start()
    try:
        assert machine.off.wait(30), machine.failed
    finally:
        machine.kill()


# -------------------------------------------------------------------------- Vast.ai


class OneInstance(HttpCloud):
    """The one call that a machine's own key is good for."""

    ended = 0

    @route("DELETE", "/api/v0/instances/{number}")
    def destroy(self, request: Request, number: str) -> Reply:
        if number == "77" and request.headers.get("authorization") == "Bearer scoped-key":
            self.ended += 1
            return Reply(200, {"success": True})
        return Reply(401, {"success": False})


@pytest.fixture
def account() -> Iterator[OneInstance]:
    with OneInstance() as made:
        yield made


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Rented]:
    env = {"CONTAINER_API_KEY": "scoped-key", "CONTAINER_ID": "77"}
    machine = Rented(tmp_path / "machine", env=env)
    yield machine
    machine.remove()


def boot_container(machine: Rented, account: OneInstance) -> None:
    """What Vast.ai does at every start: it runs `onstart`."""
    script = vastai_boot.onstart(
        account.url, datetime.now(UTC) + HARD_END, None, patience=vastai_boot.PATIENCE_SECONDS
    )
    machine.boot()
    (machine.folder / "root/onstart.sh").write_text(script)
    machine.start("bash /root/onstart.sh").wait(30)


def test_a_container_that_comes_back_ends_with_its_lease(
    container: Rented, account: OneInstance
) -> None:
    boot_container(container, account)
    end = vastai_boot.self_end(account.url, "77")
    arm(container, 8, {"argv": list(end.argv)})
    container.kill()
    assert account.ended == 0
    boot_container(container, account)
    assert until(lambda: len(guards(container)) == 1, 20)
    assert until(lambda: account.ended > 0, 40)


def test_a_guard_that_the_job_has_killed_is_started_again(
    container: Rented, account: OneInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    onstart = vastai_boot.onstart

    def hasty(*given: Any, **named: Any) -> str:
        """Every few seconds instead of every few minutes."""
        return onstart(*given, **named).replace("-gt 20 ] && S=20", "-gt 1 ] && S=1")

    monkeypatch.setattr(vastai_boot, "onstart", hasty)
    boot_container(container, account)
    arm(container, 600, {"argv": ["true"]})
    facts = container.folder / "root/.gpuctl/machine/guard.json"
    first = json.loads(facts.read_text())["pid"]
    container.start("pkill -9 -f machine_agent").wait(10)
    assert until(lambda: json.loads(facts.read_text())["pid"] != first, 60)
    assert until(lambda: len(guards(container)) == 1, 20)
    assert account.ended == 0, "its lease goes on"


def test_a_container_that_comes_back_too_late_ends_at_once(
    container: Rented, account: OneInstance
) -> None:
    boot_container(container, account)
    arm(container, 2, {"argv": ["true"]})
    container.kill()
    assert until(lambda: False, 2.5) is False
    boot_container(container, account)
    assert until(lambda: account.ended > 0, 20)
