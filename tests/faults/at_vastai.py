"""The rehearsals of `local`, on real machines behind the emulated Vast.ai."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from tests.clouds.vastai_cloud import Times, VastCloud, main_settings, usual_hosts
from tests.faults.rehearsal import Rehearsal

QUICK = Times(provision=0.1, load=0.2, sshd=0.2)
_HASTY = (
    "from providers import vastai; "
    "vastai.SETTLE_SECONDS, vastai.SHOWN_SECONDS = 1.0, 2.0; "
    "vastai.POLL_SECONDS, vastai.PACE_FACTOR = 0.3, 0.0"
)


@dataclass(frozen=True)
class VastRehearsal(Rehearsal):
    """One home, one job folder, one account; what is left is asked of the cloud's own books."""

    cloud: VastCloud = field(kw_only=True)
    hasty: str = field(kw_only=True)
    provider = "vastai"

    def machine_processes(self) -> list[int]:
        """The machines that run, by their ports."""
        contracts = list(self.cloud.contracts.all.values())
        return [one.machine.port for one in contracts if one.machine and one.machine.alive]

    def machine_folders(self) -> list[str]:
        """What bills, and the disks that are still there."""
        disks = [entry.name for entry in (self.folder / "machines").iterdir()]
        return [*self.cloud.contracts.books.open().values(), *disks]


@contextmanager
def at_vastai(folder: Path, *, patient: bool = False, hasty: str = "") -> Iterator[VastRehearsal]:
    """A rehearsal on an account of its own; whatever is left is killed with its cloud.

    Args:
        patient: keep the pace that is documented.
        hasty: more Python that shortens waits in gpuctl's own process.
    """
    (folder / "machines").mkdir()
    with VastCloud(machines=folder / "machines") as cloud:
        cloud.contracts.hosts = usual_hosts()
        cloud.contracts.credit = Decimal(1000)
        cloud.switches.times = QUICK
        settings = {**main_settings(cloud), "HOME": str(folder)}
        hasty = "\n".join(["" if patient else _HASTY, hasty]).strip()
        made = VastRehearsal(folder, settings, cloud=cloud, hasty=hasty)
        try:
            yield made
        finally:
            made.kill_watchdog()
