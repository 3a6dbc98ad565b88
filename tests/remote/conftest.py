"""A real sshd, and connections to it that nothing of the user's own leaks into."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuctl.remote.keys import public_key
from gpuctl.remote.ssh import SshConnection
from gpuctl.remote.ssh_login import Patience
from tests.remote.relay import Relay
from tests.remote.sshd import SSHD, Sshd

MACHINE = "gpuctl-test-abcdef-01234567"
BRIEF = Patience(connect=5, login=10, command=10, reconnect=10, keep_alive=0.3, silent=1.5, idle=3)

Connect = Callable[..., SshConnection]


@pytest.fixture
def gpuctl_home(tmp_path: Path) -> Path:
    """A GPUCTL_HOME."""
    home = tmp_path / "gpuctl-home"
    home.mkdir(mode=0o700)
    return home


@pytest.fixture
def sshd(tmp_path: Path, gpuctl_home: Path) -> Iterator[Sshd]:
    """A running sshd that takes the home's key."""
    if SSHD is None:
        pytest.skip("no sshd binary: install openssh-server")
    folder = tmp_path / "sshd"
    folder.mkdir()
    server = Sshd(folder, authorized=[public_key(gpuctl_home)])
    server.start()
    yield server
    server.stop()


@pytest.fixture
def relay(sshd: Sshd) -> Iterator[Relay]:
    """A network in front of the sshd."""
    with Relay(sshd.port) as network:
        yield network


@pytest.fixture
def connect(sshd: Sshd, gpuctl_home: Path) -> Iterator[Connect]:
    """Makes connections to the sshd, or through a relay, that are closed at the end."""
    with contextlib.ExitStack() as closing:

        def make(through: Relay | None = None, **options: Any) -> SshConnection:
            access = options.pop("access", sshd.access)
            if through is not None:
                access = replace(access, port=through.port)
            settings = {
                "home": gpuctl_home,
                "machine": MACHINE,
                "environ": {},
                "patience": BRIEF,
                **options,
            }
            connection = SshConnection(access, **settings)
            closing.callback(connection.close)
            return connection

        yield make
