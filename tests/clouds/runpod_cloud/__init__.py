"""RunPod, emulated: REST v2, what is left of v1 and GraphQL, real machines behind the pods.

It follows contracts/runpod.md: a real HTTP server, its own clock, its own books, and every fault
of the contract as a switch (`switches.py`).
"""

from __future__ import annotations

from pathlib import Path

from tests.clouds.runpod_cloud.cloud import RunpodCloud
from tests.clouds.runpod_cloud.pods import Times
from tests.clouds.runpod_cloud.switches import Switches


def by_hand(folder: Path, *, machines: bool) -> RunpodCloud:
    """Return a cloud to try things on; not started yet.

    Args:
        folder: for its machines.
        machines: whether there are any behind its pods.
    """
    return RunpodCloud(machines=folder if machines else None, times=Times(2, 4, 8))


def main_settings(cloud: RunpodCloud) -> dict[str, str]:
    """Return what to export so that gpuctl works against this cloud."""
    return {"RUNPOD_API_URL": cloud.url, "RUNPOD_API_KEY": cloud.key}


__all__ = ["RunpodCloud", "Switches", "Times", "by_hand", "main_settings"]
