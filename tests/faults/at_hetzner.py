"""The rehearsals of `local`, on real machines behind the emulated Hetzner Cloud."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.clouds.hetzner_cloud import HetznerCloud, main_settings
from tests.faults.rehearsal import Rehearsal


@dataclass(frozen=True)
class HetznerRehearsal(Rehearsal):
    """One home, one job folder, and a project; what is left is asked of the cloud."""

    cloud: HetznerCloud = field(kw_only=True)
    provider = "hetzner"

    def machine_processes(self) -> list[int]:
        return []  # those of a server that is gone are gone with its namespace

    def machine_folders(self) -> list[str]:
        return sorted(self.cloud.bills().values())


@contextmanager
def at_hetzner(folder: Path) -> Iterator[HetznerRehearsal]:
    """A rehearsal in a project of its own; whatever is left is killed with its cloud."""
    with HetznerCloud(machines=folder / "servers") as cloud:
        made = HetznerRehearsal(folder, main_settings(cloud), cloud=cloud)
        try:
            yield made
        finally:
            made.kill_watchdog()
