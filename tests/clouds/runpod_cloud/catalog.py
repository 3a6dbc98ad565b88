"""What the emulated RunPod sells. Prices are illustrations: contracts/runpod.md dates them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

DATA_CENTERS = {
    "US-KS-2": "US Kansas 2",
    "EU-RO-1": "EU Romania 1",
    "US-TX-3": "US Texas 3",
    "EUR-IS-1": "Europe Iceland 1",
}
CUDA = [12, 8]  # of every host
LEVELS = ("HIGH", "MEDIUM", "LOW")
SPOT_SHARE = Decimal("0.6")  # of the list price: the lowest bid, while there was spot


@dataclass(frozen=True)
class GpuRow:
    """One GPU type; a price of None: not sold in that cloud."""

    id: str
    name: str
    memory: int
    secure: Decimal | None
    community: Decimal | None = None
    most: int = 8

    @property
    def manufacturer(self) -> str:
        """Who made it."""
        return "AMD" if self.id.startswith("AMD") else "NVIDIA"

    def price(self, cloud: str) -> Decimal | None:
        """USD an hour for one."""
        return self.secure if cloud == "SECURE" else self.community


def _row(
    id: str, name: str, memory: int, secure: str, community: str = "", most: int = 8
) -> GpuRow:
    return GpuRow(
        id,
        name,
        memory,
        Decimal(secure) if secure else None,
        Decimal(community) if community else None,
        most,
    )


_PRO = "NVIDIA RTX PRO 6000 Blackwell"
GPUS = {
    row.id: row
    for row in (
        _row("AMD Instinct MI300X OAM", "MI300X", 192, "2.69"),
        _row("NVIDIA A100 80GB PCIe", "A100 PCIe", 80, "1.39", "1.19"),
        _row("NVIDIA A100-SXM4-80GB", "A100 SXM", 80, "1.59"),
        _row("NVIDIA A30", "A30", 24, "0.32"),
        _row("NVIDIA A40", "A40", 48, "0.44"),
        _row("NVIDIA B200", "B200", 180, "6.79"),
        _row("NVIDIA B300 SXM6 AC", "B300", 288, "7.99"),
        _row("NVIDIA GeForce RTX 3070", "RTX 3070", 8, "", "0.13", 4),
        _row("NVIDIA GeForce RTX 3080", "RTX 3080", 10, "", "0.17", 4),
        _row("NVIDIA GeForce RTX 3080 Ti", "RTX 3080 Ti", 12, "", "0.18", 4),
        _row("NVIDIA GeForce RTX 3090", "RTX 3090", 24, "0.43", "0.30"),
        _row("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti", 24, "", "0.35", 4),
        _row("NVIDIA GeForce RTX 4070 Ti", "RTX 4070 Ti", 12, "", "0.19", 4),
        _row("NVIDIA GeForce RTX 4080", "RTX 4080", 16, "", "0.27", 4),
        _row("NVIDIA GeForce RTX 4080 SUPER", "RTX 4080 SUPER", 16, "", "0.28", 4),
        _row("NVIDIA GeForce RTX 4090", "RTX 4090", 24, "0.74", "0.44"),
        _row("NVIDIA GeForce RTX 5080", "RTX 5080", 16, "", "0.39", 4),
        _row("NVIDIA GeForce RTX 5090", "RTX 5090", 32, "0.89", "0.69"),
        _row("NVIDIA H100 80GB HBM3", "H100 SXM", 80, "3.29", "2.69"),
        _row("NVIDIA H100 NVL", "H100 NVL", 94, "2.79"),
        _row("NVIDIA H100 PCIe", "H100 PCIe", 80, "2.39"),
        _row("NVIDIA H200", "H200 SXM", 141, "3.99"),
        _row("NVIDIA H200 NVL", "NVIDIA H200 NVL", 143, "3.69"),
        _row("NVIDIA L4", "L4", 24, "0.39"),
        _row("NVIDIA L40", "L40", 48, "0.69"),
        _row("NVIDIA L40S", "L40S", 48, "0.79"),
        _row("NVIDIA RTX 2000 Ada Generation", "RTX 2000 Ada", 16, "0.24"),
        _row("NVIDIA RTX 4000 Ada Generation", "RTX 4000 Ada", 20, "0.26"),
        _row("NVIDIA RTX 4000 SFF Ada Generation", "RTX 4000 Ada SFF", 20, "0.26"),
        _row("NVIDIA RTX 5000 Ada Generation", "RTX 5000 Ada", 32, "0.49"),
        _row("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada", 48, "0.84"),
        _row("NVIDIA RTX A2000", "RTX A2000", 6, "", "0.12", 4),
        _row("NVIDIA RTX A4000", "RTX A4000", 16, "0.25", "0.17"),
        _row("NVIDIA RTX A4500", "RTX A4500", 20, "0.25", "0.19"),
        _row("NVIDIA RTX A5000", "RTX A5000", 24, "0.27", "0.16"),
        _row("NVIDIA RTX A6000", "RTX A6000", 48, "0.53", "0.33"),
        _row("NVIDIA RTX PRO 4500 Blackwell", "RTX PRO 4500", 32, "0.72"),
        _row(f"{_PRO} Max-Q Workstation Edition", "RTX PRO 6000 MaxQ", 96, "1.69"),
        _row(f"{_PRO} Server Edition MIG 1g.24gb", "PRO 6000 MIG 24GB", 24, "0.49", most=1),
        _row(f"{_PRO} Server Edition MIG 2g.48gb", "PRO 6000 MIG 48GB", 48, "0.95", most=1),
        _row(f"{_PRO} Server Edition", "RTX PRO 6000", 96, "1.79"),
        _row(f"{_PRO} Workstation Edition", "RTX PRO 6000 WK", 96, "1.79"),
        _row("Tesla V100-PCIE-16GB", "Tesla V100", 16, "0.19"),
        _row("Tesla V100-SXM2-16GB", "V100 SXM2", 16, "0.23"),
        _row("Tesla V100-SXM2-32GB", "V100 SXM2 32GB", 32, "0.29"),
    )
}


@dataclass(frozen=True)
class CpuRow:
    """One CPU flavour."""

    id: str
    name: str
    group: str
    ram_per_vcpu: float
    price_per_vcpu: Decimal
    most: int = 32


CPUS = {
    row.id: row
    for row in (
        CpuRow("cpu3c", "Compute-Optimized", "Gen 3", 2, Decimal("0.03")),
        CpuRow("cpu3g", "General Purpose", "Gen 3", 4, Decimal("0.04")),
        CpuRow("cpu3m", "Memory-Optimized", "Gen 3", 8, Decimal("0.055")),
        CpuRow("cpu5c", "Compute-Optimized", "Gen 5", 2, Decimal("0.035")),
        CpuRow("cpu5g", "General Purpose", "Gen 5", 4, Decimal("0.045")),
        CpuRow("cpu5m", "Memory-Optimized", "Gen 5", 8, Decimal("0.06")),
    )
}


def cuda(version: str) -> list[int]:
    """A version in numbers that compare."""
    return [int(part) for part in version.split(".")]


def data_centers_of(id: str) -> dict[str, str]:
    """Data center -> stock level of a GPU or CPU type, by default."""
    start = sum(id.encode()) % len(DATA_CENTERS)
    places = list(DATA_CENTERS)
    chosen = [places[(start + step) % len(places)] for step in range(3)]
    return dict(zip(chosen, LEVELS, strict=True))


def gpu_json(row: GpuRow, cloud: str, places: dict[str, str] | None) -> dict[str, Any]:
    """One GPU type as the catalogue has it.

    Args:
        places: data center -> level, when availability was asked for.
    """
    said: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "pool": None,
        "manufacturer": row.manufacturer,
        "memory": row.memory,
        "secure": row.secure is not None,
        "community": row.community is not None,
        "price": {"secure": float(row.secure or 0), "community": float(row.community or 0)},
        "maxCount": {
            "secure": row.most if row.secure is not None else 0,
            "community": row.most if row.community is not None else 0,
        },
    }
    if places is not None:
        said |= _availability(places if row.price(cloud) is not None else {})
        if row.manufacturer == "NVIDIA":
            said["cudaVersions"] = [{"version": "12.8", "available": bool(places)}]
    return said


def cpu_json(row: CpuRow, places: dict[str, str] | None) -> dict[str, Any]:
    """One CPU flavour as the catalogue has it."""
    said: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "group": row.group,
        "vcpu": {"min": 2, "max": row.most},
        "ramGbPerVcpu": row.ram_per_vcpu,
        "price": {
            "securePerVcpu": float(row.price_per_vcpu),
            "serverlessPerVcpu": float(row.price_per_vcpu),
        },
    }
    return said if places is None else said | _availability(places)


def data_centers_json(levels: dict[str, dict[str, str]] | None) -> list[dict[str, Any]]:
    """The data centers.

    Args:
        levels: GPU id -> data center -> stock, when it was asked for.
    """
    found = []
    for place, name in DATA_CENTERS.items():
        said: dict[str, Any] = {
            "id": place,
            "name": name,
            "region": "NORTH_AMERICA" if place.startswith("US") else "EUROPE",
            "globalNetwork": True,
            "networkVolumeTypes": ["STANDARD"],
            "compliance": [],
        }
        if levels is not None:
            said["gpuAvailability"] = [
                {"id": id, "name": GPUS[id].name, "availability": where[place]}
                for id, where in levels.items()
                if place in where
            ]
        found.append(said)
    return found


def _availability(places: dict[str, str]) -> dict[str, Any]:
    free = {place: level for place, level in places.items() if level != "NONE"}
    if not free:
        return {"availability": "NONE"}  # and no dataCenters at all
    return {
        "availability": next(level for level in LEVELS if level in free.values()),
        "dataCenters": [
            {"id": place, "name": DATA_CENTERS[place], "availability": level}
            for place, level in places.items()
        ],
    }
