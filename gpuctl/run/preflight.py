"""Whether a rented machine is what the job needs. Pure: facts in, complaints out."""

from __future__ import annotations

from dataclasses import dataclass

from gpuctl.agent.client import Probe
from providers.gpus import identify

_VRAM_SLACK = 0.9  # cards report a little less than their nominal size


@dataclass(frozen=True, slots=True)
class Needs:
    """What the hardware must have; ``None`` and 0 mean no requirement."""

    gpu_count: int = 0
    min_vram_gb: float | None = None
    bf16: bool = False
    cuda: bool = False
    disk_free_gb: float | None = None
    cpus: int | None = None
    memory_gb: float | None = None


def unmet(needs: Needs, found: Probe) -> list[str]:
    """Return one sentence for each need that the machine does not meet: found and needed."""
    complaints: list[str] = []
    if len(found.gpus) < needs.gpu_count:
        complaints.append(f"found {len(found.gpus)} GPUs, needed {needs.gpu_count}")
    wants_gpu = needs.gpu_count > 0 or needs.min_vram_gb is not None or needs.bf16
    if wants_gpu and not found.gpus and needs.gpu_count == 0:
        complaints.append("found no GPU, needed one")
    for gpu in found.gpus:
        complaints += _unmet_by_card(needs, gpu.name, gpu.vram_gb, gpu.compute_capability)
    if (needs.cuda or needs.bf16) and found.gpus and found.cuda is None:
        complaints.append("found no CUDA driver, needed one")
    if needs.disk_free_gb is not None and found.disk_free_gb < needs.disk_free_gb:
        complaints.append(
            f"found {found.disk_free_gb:.1f} GB of free disk, needed {needs.disk_free_gb:g} GB"
        )
    if needs.cpus is not None and found.cpus < needs.cpus:
        complaints.append(f"found {found.cpus} CPUs, needed {needs.cpus}")
    if needs.memory_gb is not None and found.ram_gb < needs.memory_gb * _VRAM_SLACK:
        complaints.append(f"found {found.ram_gb:.1f} GB of memory, needed {needs.memory_gb:g} GB")
    return complaints


def _unmet_by_card(
    needs: Needs, name: str, vram_gb: float, compute_capability: str | None
) -> list[str]:
    complaints: list[str] = []
    if needs.min_vram_gb is not None and vram_gb < needs.min_vram_gb * _VRAM_SLACK:
        complaints.append(
            f"found {vram_gb:.1f} GB of GPU memory ({name}), needed {needs.min_vram_gb:g} GB"
        )
    if needs.bf16 and not _has_bf16(name, vram_gb, compute_capability):
        capability = compute_capability or "unknown"
        complaints.append(
            f"found {name} without bf16 (compute capability {capability}), needed bf16 (8.0)"
        )
    return complaints


def _has_bf16(name: str, vram_gb: float, compute_capability: str | None) -> bool:
    if compute_capability:
        try:
            return float(compute_capability) >= 8.0
        except ValueError:
            return False
    known = identify(name, vram_gb)
    return known is not None and known.bf16
