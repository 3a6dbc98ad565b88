"""Hosts of one's own: real sshd on this computer, each with a claim and a folder of its own.

Their books are the claim files, read by the test itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuctl.remote.keys import public_key
from providers.base import SystemClock
from providers.ssh import SshProvider
from tests.remote.sshd import Sshd


@dataclass
class Hosts:
    """Some hosts, and homes that use them."""

    folder: Path
    servers: dict[str, Sshd] = field(default_factory=dict)

    options: dict[str, dict[str, object]] = field(default_factory=dict)

    def add(self, name: str, *, config: tuple[str, ...] = (), **options: object) -> Sshd:
        """Start a host."""
        place = self.folder / name
        (place / "sshd").mkdir(parents=True)
        self.home().mkdir(exist_ok=True)
        key = public_key(self.home())
        server = Sshd(place / "sshd", authorized=[key], config=list(config))
        server.start()
        self.servers[name] = server
        self.options[name] = options
        self.write()
        return server

    def home(self, name: str = "home") -> Path:
        """A GPUCTL_HOME with a key that the hosts take."""
        home = self.folder / name
        if name != "home" and not home.exists():
            (home / "ssh").mkdir(parents=True)
            for part in ("id_ed25519", "id_ed25519.pub"):
                source = self.folder / "home" / "ssh" / part
                (home / "ssh" / part).write_bytes(source.read_bytes())
                (home / "ssh" / part).chmod(0o600)
        return home

    def claim(self, name: str) -> Path:
        """Where the claim on a host is."""
        return self.folder / name / "claim"

    def base(self, name: str) -> Path:
        """Where the machines of a host are."""
        return self.folder / name / "machines"

    def write(self) -> None:
        """Write the hosts file."""
        entries = [
            {
                "name": name,
                "host": "127.0.0.1",
                "port": server.port,
                "user": server.access.user,
                "claim": str(self.claim(name)),
                "folder": str(self.base(name)),
                **self.options[name],
            }
            for name, server in self.servers.items()
        ]
        # JSON is YAML.
        (self.folder / "hosts.yaml").write_text(json.dumps({"hosts": entries}))

    def environ(self) -> dict[str, str]:
        """The settings of a gpuctl that knows the hosts, and nothing of the user's own ssh."""
        config = self.folder / "ssh_config"
        config.touch()
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "GPUCTL_SSH_HOSTS": str(self.folder / "hosts.yaml"),
            "GPUCTL_SSH_CONFIG": str(config),
        }

    def provider(self, home: str = "home") -> SshProvider:
        """A provider that knows them all."""
        return SshProvider.from_environment(
            self.environ(), home=self.home(home), clock=SystemClock()
        )

    def books(self) -> Mapping[str, str]:
        """What the hosts themselves say, by their claim files."""
        found = {}
        for name in self.servers:
            if self.claim(name).exists():
                record = json.loads(self.claim(name).read_text())
                found[f"{name}/{record['name']}"] = record["name"]
        return found
