"""The machines behind the emulated clouds are real: reached, used, cut off and killed here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuctl.errors import RemoteError
from gpuctl.remote.keys import public_key
from gpuctl.remote.ssh import SshConnection
from gpuctl.remote.ssh_login import Patience
from providers.base import SshAccess
from tests.clouds.rented import Card, Rented, needs_machines
from tests.waiting import until

pytestmark = needs_machines
BRIEF = Patience(connect=3, login=5, command=5, reconnect=3, keep_alive=0.3, silent=1.5, idle=3)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


@pytest.fixture
def rented(tmp_path: Path, home: Path) -> Iterator[Rented]:
    machine = Rented(
        tmp_path / "machine",
        env={"CLOUD_KEY": "scoped"},
        card=Card("NVIDIA A100-SXM4-40GB", 40960, count=2, compute_capability="8.0"),
        keys=[public_key(home)],
    )
    machine.boot()
    yield machine
    machine.remove()


def connected(machine: Rented, home: Path) -> SshConnection:
    access = SshAccess("127.0.0.1", machine.port, "root")
    return SshConnection(access, home=home, machine="m", environ={}, patience=BRIEF)


def test_it_is_a_machine_of_its_own(rented: Rented, home: Path) -> None:
    with pytest.raises(RemoteError):  # it runs, and its sshd does not yet
        connected(rented, home).run(["true"], timeout=5)
    rented.start_sshd()
    connection = connected(rented, home)
    assert until(lambda: answers(connection), 10)
    said = connection.run(
        "echo $$ $CLOUD_KEY; pwd; ls /root/.pyenv 2>&1; echo mine > /var/tmp/x; ps -A -o args= | "
        "grep -c .; nvidia-smi --query-gpu=uuid,name,memory.total --format=csv,noheader,nounits",
        timeout=10,
    ).stdout.decode()
    lines = said.splitlines()
    pid, key = lines[0].split()
    assert int(pid) < 1000
    assert key == "scoped"
    assert lines[1] == "/root"
    assert "No such file" in lines[2]
    assert int(lines[3]) < 20  # only its own processes are there
    assert lines[4:] == [
        "GPU-0, NVIDIA A100-SXM4-40GB, 40960",
        "GPU-1, NVIDIA A100-SXM4-40GB, 40960",
    ]
    assert not Path("/var/tmp/x").exists()
    assert (
        rented.public_host_key.split()[:2]
        == ((home / "known_hosts" / "m").read_text().split()[1:3])
    )
    connection.close()


def answers(connection: SshConnection) -> bool:
    try:
        return connection.run(["true"], timeout=5).exit_code == 0
    except RemoteError:
        return False


def test_killed_is_dead_whatever_ran_there(rented: Rented) -> None:
    rented.start("setsid nohup sleep 4321 & sleep 4322")
    assert until(lambda: len([c for c in rented.processes() if "sleep 432" in c]) >= 2, 10)
    rented.kill()
    assert not rented.alive
    commands = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                commands.append((entry / "cmdline").read_bytes().replace(b"\0", b" "))
            except OSError:
                continue  # it has ended
    assert not [command for command in commands if b"sleep 432" in command]


def test_a_partition_is_silence_and_heals(rented: Rented, home: Path) -> None:
    rented.start_sshd()
    connection = connected(rented, home)
    assert until(lambda: answers(connection), 10)
    rented.partition()
    with pytest.raises(RemoteError):
        connection.run(["true"], timeout=3)
    rented.heal()
    assert until(lambda: answers(connection), 20)
    connection.close()
