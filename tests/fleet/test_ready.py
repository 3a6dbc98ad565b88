"""From rented to reached, over a real sshd, and what the ledger keeps of the way in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gpuctl.errors import UsageError
from gpuctl.fleet.access import access_facts, ssh_access
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper
from gpuctl.fleet.ready import NotReady, Ready, make_ready
from gpuctl.fleet.release import release
from gpuctl.home import Home
from gpuctl.ledger import Event, Ledger, MachineRow
from gpuctl.remote.keys import key_path, public_key
from providers.base import LocalAccess, SshAccess, SystemClock
from tests.clouds.memory_cloud import MemoryCloud
from tests.clouds.ssh_cloud import SshCloud
from tests.fleet.conftest import OWNER
from tests.remote.sshd import SSHD, Sshd, free_port

NEED = Need(middle="demo", lease_seconds=600, purpose="provision")
WAY = SshAccess(
    "h",
    2222,
    "me",
    ("ssh-ed25519 AAAA",),
    ("/keys/a",),
    ("ssh", "-W", "h:22", "jump"),
    folder="/data/ours",
    env={"TOKEN": "canary"},
    path=("/venv/bin",),
    alternatives=(SshAccess("proxy", 7, "root", env={"TOKEN": "canary"}),),
)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    """A running sshd that lets nobody in yet."""
    if SSHD is None:
        pytest.skip("no sshd binary: install openssh-server")
    folder = tmp_path / "sshd"
    folder.mkdir()
    server = Sshd(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def fleet(tmp_path: Path, sshd: Sshd) -> Iterator[Fleet]:
    """A fleet on the real clock whose one cloud rents out the sshd."""
    clock = SystemClock()
    with Ledger.open(tmp_path / "ledger.db", clock=clock) as ledger:
        fleet = Fleet(Home(tmp_path, OWNER), ledger, clock, {})
        fleet.use(SshCloud(clock, sshd, settle_seconds=0.05))
        yield fleet


def ready(fleet: Fleet, keeper: Keeper, cloud: MemoryCloud) -> tuple[MachineRow, Ready]:
    """A machine that answers, and is let go at the end of the test's process."""
    row, machine = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    answer = make_ready(fleet, row, machine, answer_seconds=5)
    found = fleet.ledger.machine(row.name)
    assert found is not None
    return found, answer


def cloud_of(fleet: Fleet) -> SshCloud:
    cloud = fleet.provider("memory")
    assert isinstance(cloud, SshCloud)
    return cloud


def last(fleet: Fleet, kind: str) -> Event:
    return [event for event in fleet.ledger.events() if event.kind == kind][-1]


def test_each_step_of_the_way_has_its_time(fleet: Fleet, keeper: Keeper) -> None:
    row, answer = ready(fleet, keeper, cloud_of(fleet))
    steps = last(fleet, "ready").facts["steps"]
    assert set(steps) == {"boot", "wait", "tcp", "banner", "login", "answer"}
    assert all(0 <= seconds < 10 for seconds in steps.values())
    assert steps["login"] > 0
    assert row.access is not None
    assert "identity" not in row.access  # it took the home's own key
    answer.connection.close()


def test_the_time_lost_on_a_late_sshd_is_waiting(fleet: Fleet, keeper: Keeper, sshd: Sshd) -> None:
    import threading

    sshd.stop()
    starting = threading.Timer(0.5, sshd.start)
    starting.start()
    _, answer = ready(fleet, keeper, cloud_of(fleet))
    starting.join()
    steps = last(fleet, "ready").facts["steps"]
    assert steps["wait"] > 0.3
    assert steps["tcp"] < 0.3
    answer.connection.close()


def test_a_key_of_the_user_is_recorded_when_it_was_taken(
    fleet: Fleet, keeper: Keeper, sshd: Sshd, tmp_path: Path
) -> None:
    named = tmp_path / "lab"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(named)], check=True, timeout=30
    )
    cloud = SshCloud(
        fleet.clock, sshd, way=lambda access: replace(access, identities=(str(named),))
    )
    fleet.use(cloud)
    row, machine = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    (sshd.folder / "authorized_keys").write_text(named.with_suffix(".pub").read_text())
    answer = make_ready(fleet, row, machine, answer_seconds=5)
    assert last(fleet, "ready").facts["access"]["identity"] == str(named)
    answer.connection.close()


def test_a_machine_that_never_answers_leaves_nothing_open(
    fleet: Fleet, keeper: Keeper, sshd: Sshd, tmp_path: Path
) -> None:
    note = tmp_path / "proxies"
    script = f'import os; open({str(note)!r}, "a").write(f"{{os.getpid()}} ")'
    proxy = (sys.executable, "-I", "-c", script)
    cloud = SshCloud(fleet.clock, sshd, way=lambda access: replace(access, proxy=proxy))
    fleet.use(cloud)
    row, machine = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    with pytest.raises(NotReady, match="does not answer"):
        make_ready(fleet, row, machine, answer_seconds=0.5)
    tried = note.read_text().split()
    assert len(tried) >= 2
    alive = subprocess.run(["ps", "-o", "pid=", "-p", ",".join(tried)], capture_output=True)
    assert not alive.stdout.strip()


def test_the_order_carries_the_homes_key(fleet: Fleet, keeper: Keeper, sshd: Sshd) -> None:
    acquire(fleet, cloud_of(fleet).offer(), NEED, keeper, guard=lambda: None)
    given = (sshd.folder / "authorized_keys").read_text()
    assert public_key(fleet.home.path) in given


def test_a_key_that_cannot_be_used_leaves_no_intent(fleet: Fleet, keeper: Keeper) -> None:
    file = key_path(fleet.home.path)
    file.parent.mkdir(parents=True)
    file.write_text("no key")
    file.chmod(0o600)
    with pytest.raises(UsageError, match="not a usable SSH key"):
        acquire(fleet, cloud_of(fleet).offer(), NEED, keeper, guard=lambda: None)
    assert not fleet.ledger.events()
    assert cloud_of(fleet).books() == (0, 0, 0)


def test_the_host_key_is_forgotten_with_the_machine(fleet: Fleet, keeper: Keeper) -> None:
    row, answer = ready(fleet, keeper, cloud_of(fleet))
    answer.connection.close()
    pinned = fleet.home.path / "known_hosts" / row.name
    assert pinned.exists()
    assert release(fleet, row, why="test").confirmed
    assert not pinned.exists()


def test_facts_lead_back_to_the_same_way_in_without_its_environment() -> None:
    facts = access_facts(WAY)
    assert facts is not None
    bare = replace(WAY.alternatives[0], env={})
    assert ssh_access(facts) == replace(WAY, env={}, path=(), alternatives=(bare,))
    assert "canary" not in repr(facts)
    assert "identity" not in facts
    named = access_facts(WAY, identity="/keys/a")
    assert named is not None
    assert named["identity"] == "/keys/a"


def test_facts_of_older_ledgers_and_of_other_machines() -> None:
    old = {"kind": "ssh", "host": "h", "port": 22, "user": "me", "host_keys": []}
    assert ssh_access(old) == SshAccess("h", 22, "me")
    assert ssh_access(access_facts(LocalAccess("/m", (), {}))) is None
    assert ssh_access(access_facts(None)) is None


def test_a_port_that_nobody_listens_on_is_not_ready(
    fleet: Fleet, keeper: Keeper, sshd: Sshd
) -> None:
    cloud = SshCloud(fleet.clock, sshd, way=lambda access: replace(access, port=free_port()))
    fleet.use(cloud)
    row, machine = acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
    with pytest.raises(NotReady, match="Connection refused"):
        make_ready(fleet, row, machine, answer_seconds=0.5)
