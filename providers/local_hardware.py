"""What this computer has: GPUs, cores, memory, disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from providers import gpus

_NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=uuid,name,memory.total",
    "--format=csv,noheader,nounits",
)
_TIMEOUT_SECONDS = 15  # a driver that has to wake up takes a few
_MIB_IN_A_GIB = 1024


class NotReadable(Exception):
    """nvidia-smi is there and does not tell. The text says what it said."""


@dataclass(frozen=True, slots=True)
class LocalGpu:
    """One GPU of this computer."""

    uuid: str
    name: str  # canonical where the card is known
    vram_gb: float  # nominal


def local_gpus() -> tuple[LocalGpu, ...]:
    """Return this computer's NVIDIA GPUs; none where there is no nvidia-smi.

    Raises:
        NotReadable: nvidia-smi failed, or did not answer in time.
    """
    if shutil.which(_NVIDIA_SMI[0]) is None:
        return ()
    try:
        said = subprocess.run(
            _NVIDIA_SMI, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise NotReadable(f"nvidia-smi did not answer within {_TIMEOUT_SECONDS} s") from error
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stdout", "") or str(error)
        raise NotReadable(f"nvidia-smi failed: {output.strip()}") from error
    return read_nvidia_smi(said)


def read_nvidia_smi(said: str) -> tuple[LocalGpu, ...]:
    """Read lines of ``uuid, name, MiB``.

    Raises:
        NotReadable: they look different.
    """
    found = []
    for line in said.splitlines():
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split(",")]
        try:
            uuid, product, mebibytes = fields
            reported = float(mebibytes) / _MIB_IN_A_GIB
        except ValueError as error:
            raise NotReadable(f"nvidia-smi said {line!r}") from error
        card = gpus.identify(product, reported)
        name = card.name if card else product.replace("NVIDIA ", "").replace(" ", "-")
        found.append(LocalGpu(uuid, name, card.vram_gb if card else float(round(reported))))
    return tuple(found)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gb() -> float:
    """Memory in GB (10^9)."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9


def disk_free_gb(folder: Path) -> float:
    """Free disk in GB (10^9) where the folder is, or will be."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free / 1e9
