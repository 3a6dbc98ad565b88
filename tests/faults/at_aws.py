"""The rehearsals of `local`, on real machines behind the emulated AWS."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.clouds.aws_cloud import AwsCloud, main_settings
from tests.clouds.aws_cloud.rentals import Times
from tests.faults.rehearsal import Rehearsal


@dataclass(frozen=True)
class AwsRehearsal(Rehearsal):
    """One home, one job folder, one account; what is left is asked of the cloud's own books."""

    cloud: AwsCloud = field(kw_only=True)
    provider = "aws"
    hasty = (
        "from providers import aws; "
        "aws.SETTLE_SECONDS, aws.SHOWN_SECONDS, aws.POLL_SECONDS = 1.0, 2.0, 0.3"
    )

    def machine_processes(self) -> list[int]:
        return []  # those of an instance that has ended are gone with its namespace

    def machine_folders(self) -> list[str]:
        """What bills."""
        return sorted(self.cloud.books.open())


@contextmanager
def at_aws(folder: Path) -> Iterator[AwsRehearsal]:
    """A rehearsal on an account of its own; whatever is left is killed with its cloud."""
    with AwsCloud(folder=folder / "machines", machines=True) as cloud:
        cloud.rentals.times = Times(boot=0.3, end=0.3)
        cloud.documented_limits = True
        made = AwsRehearsal(folder, main_settings(cloud), cloud=cloud)
        try:
            yield made
        finally:
            made.kill_watchdog()
