"""The rehearsals of `local`, over real SSH on a host of one's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from providers.processes import carriers
from providers.ssh_host import MARKER
from tests.clouds.ssh_hosts import Hosts
from tests.faults.rehearsal import Rehearsal


@dataclass(frozen=True)
class SshRehearsal(Rehearsal):
    """One home, one job folder, and hosts; what is left is asked of the hosts and the system."""

    hosts: Hosts = field(kw_only=True)
    provider = "ssh"

    def machine_processes(self) -> list[int]:
        """Processes that carry the name of one of this home's machines."""
        names = {event.machine for event in self.events() if event.machine}
        return sorted(pid for name in names for pid in carriers({MARKER: name}))

    def machine_folders(self) -> list[str]:
        """Claims, and what is in the folders where machines are made."""
        folders = (self.hosts.base(name) for name in self.hosts.servers)
        left = [entry.name for base in folders if base.exists() for entry in base.iterdir()]
        return sorted([*self.hosts.books(), *left])


def over_ssh(hosts: Hosts) -> SshRehearsal:
    """Return a rehearsal on hosts."""
    settings = {k: v for k, v in hosts.environ().items() if k.startswith("GPUCTL_")}
    return SshRehearsal(hosts.folder, settings, hosts=hosts)
