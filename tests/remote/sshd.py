"""A real sshd on 127.0.0.1 for tests, run as whoever runs the tests."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from providers.base import SshAccess
from tests.waiting import until

_PLACES = "/usr/sbin:/usr/local/sbin:/sbin:/opt/homebrew/sbin"
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:{_PLACES}")
needs_sshd = pytest.mark.skipif(SSHD is None, reason="no sshd binary: install openssh-server")


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Sshd:
    """One server: own host key, own authorized_keys, own log.

    Attributes:
        folder: empty, its own.
        authorized: lines of its authorized_keys.
        config: more lines for its configuration.
    """

    folder: Path
    authorized: list[str] = field(default_factory=list)
    config: list[str] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def access(self) -> SshAccess:
        """How to reach it."""
        return SshAccess("127.0.0.1", self.port, getpass.getuser())

    @property
    def host_key(self) -> str:
        """Its public host key."""
        return (self.folder / "host_key.pub").read_text().strip()

    @property
    def log(self) -> str:
        """What it wrote so far."""
        return (self.folder / "log").read_text(errors="replace")

    def new_host_key(self) -> None:
        """Give it a host key that it did not have before."""
        key = self.folder / "host_key"
        key.unlink(missing_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)],
            check=True,
            input=b"y\n",
            timeout=30,
        )

    def start(self) -> None:
        """Start it and wait until it listens."""
        assert SSHD
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(parents=True, exist_ok=True)
        if not (self.folder / "host_key").exists():
            self.new_host_key()
        (self.folder / "authorized_keys").write_text("\n".join([*self.authorized, ""]))
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"AuthorizedKeysFile {self.folder}/authorized_keys",
            f"PidFile {self.folder}/pid",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin yes",
            "PrintMotd no",
            "UseDNS no",
            "LogLevel VERBOSE",
            "Subsystem sftp internal-sftp",
        ]
        # The first word counts in sshd_config, so what a test wants comes first.
        (self.folder / "config").write_text("\n".join([*self.config, *lines, ""]))
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", self.folder / "config", "-h", self.folder / "host_key"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        assert until(self._listens, 20), self.log

    def stop(self) -> None:
        """Stop listening and hang up on everybody."""
        if self.process is None:
            return
        for pid in children(self.process.pid):
            subprocess.run(["kill", "-KILL", str(pid)], check=False, capture_output=True, timeout=5)
        self.process.kill()
        self.process.wait(10)
        self.process = None

    def _listens(self) -> bool:
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def children(pid: int) -> list[int]:
    """The sessions of an sshd: its children and theirs, as long as they are sshd's."""
    listing = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,comm="], check=True, capture_output=True, timeout=10
    ).stdout.decode()
    rows = [line.split(None, 2) for line in listing.splitlines()]
    found = [pid]
    for _ in range(3):
        found += [
            int(row[0])
            for row in rows
            if int(row[1]) in found and "sshd" in row[2] and int(row[0]) not in found
        ]
    return found[1:]
