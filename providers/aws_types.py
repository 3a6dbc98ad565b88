"""What an EC2 instance type is: its GPUs, its quota, its image. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from providers.gpus import UnknownGpu, find, identify
from providers.reference.ec2 import EC2

GPU_TYPES = ("g*", "p*")
CPU_TYPES = ("c7i.*", "c7a.*", "m7i.*", "m7a.*", "r7i.*", "t3.*")
_SXM = ("p3", "p4", "p5", "p6")  # EC2 tells no form; these families have SXM boards
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Kind:
    """One instance type, as far as it matters to us."""

    name: str
    gpu: str | None  # canonical
    gpu_count: int
    vram_gb: float | None  # nominal, per GPU
    vcpus: int
    ram_gb: float
    arch: str
    spot: bool  # whether it is sold so at all
    on_demand: bool


def read_kind(row: Mapping[str, Any]) -> Kind | None:
    """Read a row of DescribeInstanceTypes; None for what we cannot or will not rent.

    Left out: metal (it takes a quarter of an hour to boot), AMD and Inferentia, and cards that
    nobody can name with certainty.
    """
    name = str(row["InstanceType"])
    usage = row.get("SupportedUsageClasses", ())
    if "metal" in name:
        return None
    gpus = row.get("GpuInfo", {}).get("Gpus", [])
    card = _card(name, gpus)
    if card is None and (gpus or name.startswith(("g", "p"))):
        return None
    arches = row.get("ProcessorInfo", {}).get("SupportedArchitectures", ["x86_64"])
    gpu, count = card or (None, 0)
    return Kind(
        name=name,
        gpu=gpu,
        gpu_count=count,
        vram_gb=find(gpu).vram_gb if gpu else None,
        vcpus=int(row["VCpuInfo"]["DefaultVCpus"]),
        ram_gb=round(row["MemoryInfo"]["SizeInMiB"] * _MIB / 1e9, 1),
        arch="arm64" if "arm64" in arches else "x86_64",
        spot="spot" in usage,
        on_demand="on-demand" in usage,
    )


def _card(name: str, gpus: list[Mapping[str, Any]]) -> tuple[str, int] | None:
    known = _known().get(name)
    if known is not None:
        return known
    if not gpus or gpus[0].get("Manufacturer") != "NVIDIA":
        return None
    first = gpus[0]
    count = int(first.get("Count") or 0)
    if count == 0:
        return None  # a slice that is in no table of ours
    form = " SXM" if name.startswith(_SXM) else ""
    memory = first.get("MemoryInfo", {}).get("SizeInMiB", 0) / 1024
    gpu = identify(f"{first.get('Name', '')}{form}", memory or None)
    return None if gpu is None else (gpu.name, count)


@cache
def _known() -> Mapping[str, tuple[str, int]]:
    """The types on record. EC2's own data once named a GPU "NVIDIA" and miscounted another."""
    found = {}
    for entry in EC2:
        try:
            found[entry.name] = (find(str(entry.gpu)).name, entry.gpu_count)
        except UnknownGpu:
            continue
    return found


def card_of(type_name: str) -> tuple[str | None, int]:
    """Return the GPUs of a type on record; (None, 0) for others."""
    return _known().get(type_name, (None, 0))


def quota_of(type_name: str, *, spot: bool) -> tuple[str, str]:
    """Return the vCPU quota that a type counts against: its code and its family in words.

    For P6 on spot the sources disagree; there the code is "".
    """
    if type_name.startswith(("g", "vt")):
        return ("L-3819A6DF", "G and VT spot") if spot else ("L-DB2E81BA", "G and VT on-demand")
    if type_name.startswith("p"):
        if not spot:
            return "L-417A185B", "P on-demand"
        if type_name.startswith("p6"):
            return "", "P6 spot"
        return ("L-C4BD4855", "P5 spot") if type_name[1] == "5" else ("L-7212CCBC", "P4/P3 spot")
    return ("L-34B43A08", "standard spot") if spot else ("L-1216C47A", "standard on-demand")


QUOTAS: Mapping[str, str] = {
    code: words
    for name in ("g5.xlarge", "p4d.24xlarge", "p5.4xlarge")
    for code, words in (quota_of(name, spot=True), quota_of(name, spot=False))
}
"""Code -> family in words, of all quotas that GPUs count against."""
