"""A host whose key is handed over in a file is reached with that key, and with no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from providers.base import AuthFailed, Want
from tests.clouds.ssh_hosts import Hosts
from tests.remote.sshd import needs_sshd

pytestmark = needs_sshd


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """A host whose key is expected in a file of its own."""
    made = Hosts(tmp_path)
    made.add("one", known_hosts=str(tmp_path / "pinned"))
    yield made
    made.servers["one"].stop()


def pin(hosts: Hosts, line: str) -> None:
    (hosts.folder / "pinned").write_text(f"{line}\n")


def test_the_key_under_its_name_lets_us_in(hosts: Hosts) -> None:
    pin(hosts, f"one {hosts.servers['one'].host_key}")
    [offer] = hosts.provider().offers(Want(disk_gb=1))
    assert offer.available
    assert not (hosts.home() / "known_hosts" / "ssh-hosts").exists()


@pytest.mark.parametrize("name", ["other", "[127.0.0.1]"])
def test_no_key_no_way_in(hosts: Hosts, name: str) -> None:
    pin(hosts, f"{name} {hosts.servers['one'].host_key}")
    with pytest.raises(AuthFailed, match="host key"):
        hosts.provider().offers(Want(disk_gb=1))


def test_another_key_is_somebody_else(hosts: Hosts) -> None:
    pin(hosts, f"one {hosts.servers['one'].host_key}")
    server = hosts.servers["one"]
    server.stop()
    server.new_host_key()
    server.start()
    with pytest.raises(AuthFailed, match="not the host that it was"):
        hosts.provider().offers(Want(disk_gb=1))
