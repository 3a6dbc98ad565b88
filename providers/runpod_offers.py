"""RunPod's catalogue as offers. Pure.

The catalogue orders candidates and reserves nothing: stock that it shows may be gone at the
create. It tells no CPUs and no memory of machines with GPUs. An offer's id holds RunPod's own name
of the card, so nothing has to be translated back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any
from urllib.parse import quote_plus, unquote_plus

from providers.base import InvalidRequest, Offer, Want
from providers.gpus import identify
from providers.matching import satisfies

SECURE, COMMUNITY = "SECURE", "COMMUNITY"
HOURS_A_MONTH = 730
DISK_MONTH = Decimal("0.10")  # USD a GB, while it runs; docs.runpod.io, pods pricing, 2026-08
STOPPED_DISK_MONTH = Decimal("0.20")  # of a volume; a container's disk is erased
ANYWHERE = "any"

_MEMORY_GB = {"NVIDIA GeForce RTX 3080": 10, "NVIDIA RTX A2000": 6}  # their names leave it open
_ID = re.compile(
    r"^runpod:(?P<cloud>SECURE|COMMUNITY):(?P<place>[A-Za-z0-9-]+):"
    r"(?P<count>[1-9][0-9]{0,3})(?P<unit>[xv]):(?P<kind>[^\s:]+)$"
)
_CENTS = Decimal("0.000001")


@dataclass(frozen=True, slots=True)
class Choice:
    """What an offer's id stands for."""

    cloud: str
    place: str | None  # a data center; None: the scheduler chooses
    kind: str  # RunPod's id of the GPU type or CPU flavour
    count: int  # GPUs, or vCPUs
    has_gpu: bool

    @property
    def offer_id(self) -> str:
        """The id."""
        unit = "x" if self.has_gpu else "v"
        place = self.place or ANYWHERE
        return f"runpod:{self.cloud}:{place}:{self.count}{unit}:{quote_plus(self.kind)}"


def read_offer_id(text: str) -> Choice:
    """Return what an offer's id stands for.

    Raises:
        InvalidRequest: it is none of RunPod's.
    """
    found = _ID.match(text)
    if found is None:
        raise InvalidRequest(f"{text!r} is no offer of RunPod; `gpuctl quote` lists them.")
    return Choice(
        cloud=found["cloud"],
        place=None if found["place"] == ANYWHERE else found["place"],
        kind=unquote_plus(found["kind"]),
        count=int(found["count"]),
        has_gpu=found["unit"] == "x",
    )


def canonical(gpu_id: str, memory_gb: float | None = None) -> tuple[str, float | None]:
    """Return the canonical name of a card by RunPod's id, and its nominal GB where known.

    The name depends on the id alone: a pod does not tell its card's memory.
    """
    gpu = identify(gpu_id, _MEMORY_GB.get(gpu_id))
    if gpu is None:
        return re.sub(r"\s+", "-", gpu_id.replace("NVIDIA ", "").strip()), memory_gb
    return gpu.name, gpu.vram_gb


def disk_of(wanted_gb: float) -> int:
    """Return the size of the disk that is made for what is wanted, in GB."""
    return max(1, math.ceil(wanted_gb))


def price_of(compute: Decimal, disk_gb: Decimal | int, volume_gb: Decimal | int = 0) -> Decimal:
    """Return USD an hour for a pod that runs: its `cost` leaves the disks out."""
    return (compute + (disk_gb + volume_gb) * DISK_MONTH / HOURS_A_MONTH).quantize(_CENTS)


def price_stopped(volume_gb: Decimal | int) -> Decimal:
    """Return USD an hour for a pod that is stopped: its container's disk is erased."""
    return (volume_gb * STOPPED_DISK_MONTH / HOURS_A_MONTH).quantize(_CENTS)


def gpu_offers(
    rows: Iterable[Mapping[str, Any]], cloud: str, want: Want, now: datetime
) -> list[Offer]:
    """Return what one cloud (secure or community) has of what is wanted."""
    count = (want.gpu_count if want.gpus else 0) or 1
    found: list[Offer] = []
    for row in rows:
        gpu_id = row.get("id")
        price = money(_of(row, "price", cloud.lower()))
        most = _of(row, "maxCount", cloud.lower())
        if (
            not isinstance(gpu_id, str)
            or gpu_id == "unknown"  # a sentinel
            or row.get("manufacturer") == "AMD"  # our agent and RunPod's image are for CUDA
            or price is None
            or row.get(cloud.lower()) is False
            or (isinstance(most, int) and count > most)
        ):
            continue
        memory = money(row.get("memory"))
        name, vram = canonical(gpu_id, float(memory) if memory else None)
        for place, level in _places(row, cloud):
            choice = Choice(cloud, place, gpu_id, count, has_gpu=True)
            found.append(
                Offer(
                    provider="runpod",
                    id=choice.offer_id,
                    gpu=name,
                    gpu_count=count,
                    vram_gb=vram,
                    spot=False,
                    price_hour=price_of(price * count, disk_of(want.disk_gb)),
                    region=_region(choice),
                    available=level != "NONE",
                    as_of=now,
                    note=_note(cloud, level),
                )
            )
    return [offer for offer in found if satisfies(offer, want)]


def cpu_offers(rows: Iterable[Mapping[str, Any]], want: Want, now: datetime) -> list[Offer]:
    """Return the machines without a GPU: of each flavour the smallest that is enough."""
    found: list[Offer] = []
    for row in rows:
        kind, price = row.get("id"), money(_of(row, "price", "securePerVcpu"))
        ram = money(row.get("ramGbPerVcpu"))
        most = _of(row, "vcpu", "max")
        if not isinstance(kind, str) or price is None or ram is None or not isinstance(most, int):
            continue
        count = vcpus_for(want, float(ram), least=_of(row, "vcpu", "min"))
        if count > most:
            continue
        for place, level in _places(row, SECURE):
            choice = Choice(SECURE, place, kind, count, has_gpu=False)
            found.append(
                Offer(
                    provider="runpod",
                    id=choice.offer_id,
                    gpu=None,
                    gpu_count=0,
                    vram_gb=None,
                    spot=False,
                    price_hour=price_of(price * count, disk_of(want.disk_gb)),
                    region=_region(choice),
                    vcpus=float(count),
                    ram_gb=float(ram * count),
                    available=level != "NONE",
                    as_of=now,
                    note=_note(SECURE, level),
                )
            )
    return [offer for offer in found if satisfies(offer, want)]


def vcpus_for(want: Want, ram_per_vcpu: float, *, least: object = 2) -> int:
    """Return the smallest power of two that gives the CPUs and the memory that are wanted."""
    count = 2
    floor = least if isinstance(least, int) else 2
    while count < 1024 and (
        count < floor
        or count < (want.cpus or 0)
        or (want.memory_gb is not None and count * ram_per_vcpu < want.memory_gb)
    ):
        count *= 2
    return count


def cheapest_first(offers: Sequence[Offer]) -> list[Offer]:
    """Sort by price; of the same price, what is more in stock first."""
    levels = {"HIGH": 0, "MEDIUM": 1, "LOW": 2}

    def key(offer: Offer) -> tuple[Decimal, bool, int, str]:
        level = offer.note.rpartition(" ")[2]
        return offer.price_hour, not offer.available, levels.get(level, 3), offer.id

    return sorted(offers, key=key)


def money(value: object) -> Decimal | None:
    """Return a positive number of the API, exactly as it was written; None when it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        return None
    return number if number.is_finite() and number > 0 else None


def _places(row: Mapping[str, Any], cloud: str) -> list[tuple[str | None, str]]:
    """Where it can be placed, and how much of it is there."""
    overall = str(row.get("availability") or "unknown")
    centers = row.get("dataCenters")
    if cloud == SECURE and isinstance(centers, list):
        told = [
            (one["id"], str(one.get("availability") or "unknown"))
            for one in centers
            if isinstance(one, Mapping)
            and isinstance(one.get("id"), str)
            and re.fullmatch(r"[A-Za-z0-9-]+", one["id"])
        ]
        stocked = [(place, level) for place, level in told if level != "NONE"]
        if stocked:
            return [*stocked]
    return [(None, overall)]  # community machines stand anywhere


def _of(row: Mapping[str, Any], outer: str, inner: str) -> Any:
    value = row.get(outer)
    return value.get(inner) if isinstance(value, Mapping) else None


def _region(choice: Choice) -> str:
    return choice.place or ("community" if choice.cloud == COMMUNITY else ANYWHERE)


def _note(cloud: str, level: str) -> str:
    return f"{cloud.lower()} cloud, stock {level}"
