"""The rehearsals of `local`, on real machines behind the emulated RunPod."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.clouds.runpod_cloud import RunpodCloud, Times, main_settings
from tests.faults.rehearsal import Rehearsal

QUICK = Times(starting=0.1, running=0.2, ready=0.5)


@dataclass(frozen=True)
class RunpodRehearsal(Rehearsal):
    """One home, one job folder, one account; what is left is asked of the cloud's own books."""

    cloud: RunpodCloud = field(kw_only=True)
    hasty: str = field(default="", kw_only=True)
    provider = "runpod"

    def machine_processes(self) -> list[int]:
        """The machines that run, by their ports."""
        hosts = [pod.host for pod in list(self.cloud.account.pods.values()) if pod.host]
        return [host.port or 0 for host in hosts if host.rented.alive]

    def machine_folders(self) -> list[str]:
        """What bills, and the disks that are still there."""
        machines = self.cloud.account.machines
        assert machines is not None
        disks = [entry.name for entry in machines.iterdir()] if machines.exists() else []
        return [*self.cloud.books.open().values(), *disks]


@contextmanager
def at_runpod(folder: Path, *, hasty: str = "") -> Iterator[RunpodRehearsal]:
    """A rehearsal on an account of its own; whatever is left is killed with its cloud.

    Args:
        hasty: Python that shortens waits in gpuctl's own process.
    """
    (folder / "machines").mkdir()
    with RunpodCloud(machines=folder / "machines", times=QUICK) as cloud:
        settings = {**main_settings(cloud), "HOME": str(folder)}
        made = RunpodRehearsal(folder, settings, cloud=cloud, hasty=hasty)
        try:
            yield made
        finally:
            made.kill_watchdog()
