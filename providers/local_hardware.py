"""What this computer has: GPUs, cores, memory, disk."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from providers.nvidia_smi import QUERY, Gpu, NotReadable, read_cards

_TIMEOUT_SECONDS = 15  # a driver that has to wake up takes a few


def local_gpus() -> tuple[Gpu, ...]:
    """Return this computer's NVIDIA GPUs; none where there is no nvidia-smi.

    Raises:
        NotReadable: nvidia-smi failed, or did not answer in time.
    """
    if shutil.which(QUERY[0]) is None:
        return ()
    try:
        said = subprocess.run(
            QUERY, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True
        ).stdout
    except subprocess.TimeoutExpired as error:
        raise NotReadable(f"nvidia-smi did not answer within {_TIMEOUT_SECONDS} s") from error
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stdout", "") or str(error)
        raise NotReadable(f"nvidia-smi failed: {output.strip()}") from error
    return read_cards(said)


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
