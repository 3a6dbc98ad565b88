"""What comes nearest to a question that nothing matches. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal

from gpuctl.policy import offer_key
from providers.base import Offer, Want
from providers.gpus import all_gpus
from providers.matching import Requirement, selectors, unmet

_NEAREST = 8  # lines at most


def relaxed(want: Want) -> Want:
    """Return what to ask for when nothing matches, so that `nearest` has something to show:
    the same cards or any that are at least as big, on any machine, at any price, anywhere, spot
    or not.
    """
    sizes = [
        gpu.vram_gb
        for selector in selectors(want.gpus)
        for gpu in all_gpus()
        if gpu.name in selector.names
    ]
    bigger = (f"{min(sizes):g}GB+",) if sizes else ()
    return replace(
        want,
        gpus=(*want.gpus, *bigger),
        spot=None,
        regions=(),
        cpus=None,
        memory_gb=None,
        max_price_hour=None,
        min_reliability=None,
    )


_NEAR = (
    (frozenset({Requirement.PRICE}), "just above the price cap"),
    (frozenset({Requirement.SPOT}), "the same, but {market}"),
    (frozenset({Requirement.REGION}), "the same, elsewhere"),
    (frozenset({Requirement.REGION, Requirement.SPOT}), "the same, elsewhere and {market}"),
    (frozenset({Requirement.SPOT, Requirement.PRICE}), "{market}, above the price cap"),
    (frozenset({Requirement.REGION, Requirement.PRICE}), "elsewhere, above the price cap"),
    (frozenset({Requirement.RELIABILITY}), "less reliable ({reliability})"),
    (frozenset({Requirement.COUNT}), "with {gpu_count} GPUs"),
    (frozenset({Requirement.CPUS}), "with {vcpus} CPUs"),
    (frozenset({Requirement.MEMORY}), "with {ram} of memory"),
    (frozenset({Requirement.DISK}), "with {disk} of disk"),
    (frozenset({Requirement.GPU}), "the next card up"),
    (frozenset({Requirement.GPU, Requirement.SPOT}), "the next card up, {market}"),
    (frozenset({Requirement.GPU, Requirement.PRICE}), "the next card up, above the price cap"),
    (frozenset({Requirement.GPU, Requirement.COUNT}), "the next card up, {gpu_count} of them"),
)
"""What an offer fails, and how to say it; the nearest first."""


def nearest(want: Want, offers: Iterable[Offer]) -> tuple[str, ...]:
    """Return lines that say what comes nearest to ``want`` among offers that do not match it.

    One line a kind of difference: the cheapest offer that differs in that only. Of bigger
    cards, the smallest.
    """
    best: dict[frozenset[Requirement], Offer] = {}
    least = _least_vram(want)
    for offer in offers:
        failed = unmet(offer, want)
        if not failed or not offer.available:
            continue
        if Requirement.GPU in failed and (offer.vram_gb is None or offer.vram_gb < least):
            continue  # a smaller card does not do the job
        known = best.get(failed)
        if known is None or _distance(offer, failed) < _distance(known, failed):
            best[failed] = offer
    lines = [_line(best[failed], words) for failed, words in _NEAR if failed in best]
    if not lines and best:
        failed = min(best, key=lambda failed: (len(failed), _distance(best[failed], failed)))
        lines = [_line(best[failed], f"another {' and '.join(sorted(failed))}")]
    return tuple(lines[:_NEAREST])


def _distance(offer: Offer, failed: frozenset[Requirement]) -> tuple[float, Decimal, str]:
    size = offer.vram_gb or 0.0
    return (size if Requirement.GPU in failed else 0.0, offer.price_hour, offer_key(offer))


def _least_vram(want: Want) -> float:
    """GB of the smallest card that was asked for; 0 when sizes do not matter."""
    chosen = selectors(want.gpus)
    names = frozenset[str]().union(*(selector.names for selector in chosen))
    sizes = [gpu.vram_gb for gpu in all_gpus() if gpu.name in names]
    sizes += [selector.min_vram_gb for selector in chosen if selector.min_vram_gb is not None]
    return max(min(sizes, default=0.0), want.min_vram_gb or 0.0)


def _line(offer: Offer, words: str) -> str:
    difference = words.format(
        market="spot" if offer.spot else "on-demand",
        reliability=offer.reliability,
        gpu_count=offer.gpu_count,
        vcpus="an unknown number of" if offer.vcpus is None else f"{offer.vcpus:g}",
        ram="an unknown amount" if offer.ram_gb is None else f"{offer.ram_gb:g} GB",
        disk=f"{offer.disk_gb or 0:g} GB",
    )
    what = f"{offer.gpu_count}x {offer.gpu}" if offer.gpu else "no GPU"
    dated = f", reference price of {offer.as_of:%Y-%m-%d}" if offer.source == "reference" else ""
    where = f" in {offer.region}" if offer.region not in ("", "any") else ""
    return f"{difference}: {what} at {offer.provider}{where}, {offer.price_hour:.4f} USD/h{dated}"
