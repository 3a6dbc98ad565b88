"""Whether an offer is what somebody asked for. Pure.

Adapters use it too: not every cloud honours every filter that it is sent.
"""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache

from providers.base import Offer, Want
from providers.gpus import Selector, parse_selector


class Requirement(StrEnum):
    """One thing that a `Want` can ask for."""

    GPU = "gpu"
    COUNT = "count"
    VRAM = "vram"
    SPOT = "spot"
    REGION = "region"
    CPUS = "cpus"
    MEMORY = "memory"
    DISK = "disk"
    RELIABILITY = "reliability"
    PRICE = "price"


def unmet(offer: Offer, want: Want) -> frozenset[Requirement]:
    """Return what ``offer`` fails of ``want``; empty when it fits.

    A number that an offer does not tell fails what asks for it, with two exceptions: a disk
    (None means that it is made in the wanted size) and reliability (only marketplaces of
    strangers' computers measure it; a cloud that runs its own does not publish one).
    The number of GPUs is exact: a job for one GPU does not get a machine with eight.

    Raises:
        UnknownGpu: ``want`` names a GPU that does not exist.
    """
    failed: set[Requirement] = set()
    if want.gpus:
        if want.gpu_count not in (0, offer.gpu_count):
            failed.add(Requirement.COUNT)
        if offer.gpu_count == 0 or not any(
            selector.matches(offer.gpu, offer.vram_gb) for selector in selectors(want.gpus)
        ):
            failed.add(Requirement.GPU)
    checks = (
        (Requirement.VRAM, _below(offer.vram_gb, want.min_vram_gb)),
        (Requirement.SPOT, want.spot is not None and offer.spot != want.spot),
        (Requirement.REGION, not in_regions(offer.region, want.regions)),
        (Requirement.CPUS, _below(offer.vcpus, want.cpus)),
        (Requirement.MEMORY, _below(offer.ram_gb, want.memory_gb)),
        (Requirement.DISK, offer.disk_gb is not None and offer.disk_gb < want.disk_gb),
        (
            Requirement.RELIABILITY,
            offer.reliability is not None and _below(offer.reliability, want.min_reliability),
        ),
        (
            Requirement.PRICE,
            want.max_price_hour is not None and offer.price_hour > want.max_price_hour,
        ),
    )
    failed.update(requirement for requirement, fails in checks if fails)
    return frozenset(failed)


def satisfies(offer: Offer, want: Want) -> bool:
    """Whether ``offer`` is all that ``want`` asks for."""
    return not unmet(offer, want)


@lru_cache(maxsize=64)
def selectors(texts: tuple[str, ...]) -> tuple[Selector, ...]:
    """Read the selectors of a `Want`. Raises `UnknownGpu`."""
    return tuple(parse_selector(text) for text in texts)


def in_regions(region: str, wanted: tuple[str, ...]) -> bool:
    """Whether a region is one of those wanted; none wanted means any.

    ``eu`` and ``us-east-1`` match what starts with them (``eu-central-1``, ``us-east-1a``), and
    ``US`` matches ``Texas, US``. Case does not matter.
    """
    if not wanted:
        return True
    own = region.casefold()
    words = re.split(r"[,\s]+", own)
    return any(own.startswith(text.casefold()) or text.casefold() in words for text in wanted)


def _below(value: float | None, least: float | None) -> bool:
    return least is not None and (value is None or value < least)
