"""What comes nearest to a question that nothing matches. Pure.

The same card comes first: elsewhere, at another provider, in the other market, in another number.
Then the next size up of its family, then the cheapest card that is at least as big.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Literal

from gpuctl.policy import offer_key
from providers.base import Offer, Want
from providers.gpus import Gpu, all_gpus
from providers.matching import Requirement, selectors, unmet

Kind = Literal["same", "family", "bigger"]

_MOST = {"same": 4, "family": 2, "bigger": 2}  # lines
_PROVIDER = "provider"  # beside the requirements: not one of those that were asked
_ORDER: tuple[str, ...] = (
    Requirement.PRICE,
    Requirement.SPOT,
    Requirement.REGION,
    _PROVIDER,
    Requirement.RELIABILITY,
    Requirement.COUNT,
    Requirement.CPUS,
    Requirement.MEMORY,
    Requirement.DISK,
)
"""What an offer may fail, the least first. One that fails anything else is not near."""


@dataclass(frozen=True, slots=True)
class Near:
    """An offer that is not what was wanted, and how it differs."""

    offer: Offer
    kind: Kind  # the same card, a bigger one of its family, another one that is as big
    difference: str  # in words

    def line(self) -> str:
        """Return it as a person reads it."""
        one = self.offer
        what = f"{one.gpu_count}x {one.gpu}" if one.gpu else "no GPU"
        dated = f", reference price of {one.as_of:%Y-%m-%d}" if one.source == "reference" else ""
        where = f" in {one.region}" if one.region not in ("", "any") else ""
        price = f"{one.price_hour:.4f} USD/h"
        return f"{self.difference}: {what} at {one.provider}{where}, {price}{dated}"


def relaxed(want: Want) -> Want:
    """Return what to ask for when nothing matches, so that `nearest` has something to show:
    the same cards or any that are at least as big, on any machine, at any price, anywhere, spot
    or not.
    """
    cards = _wanted(want)
    least = min((gpu.vram_gb for gpu in cards), default=None)
    # By name too: a market that shows only so many offers may hide the bigger ones of the family
    # behind cheaper cards of that size.
    family = [
        gpu.name
        for gpu in all_gpus()
        if least is not None
        and gpu.family in {card.family for card in cards}
        and gpu.vram_gb > least
        and gpu not in cards
    ]
    bigger = () if least is None else (*family, f"{least:g}GB+")
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


def in_any_number(want: Want) -> Want:
    """Return the question for the same cards on machines with any number of them: some clouds
    sell a card only by eight.
    """
    return replace(relaxed(want), gpus=want.gpus, gpu_count=0)


def nearest(
    want: Want, offers: Iterable[Offer], *, providers: Collection[str] = ()
) -> tuple[Near, ...]:
    """Return what comes nearest to ``want`` among offers that do not match it, the nearest first.

    Of each kind of difference the cheapest (live before reference), and nothing that differs in
    more without being cheaper.

    Args:
        providers: those that were asked; empty: all of them.
    """
    family_of = {gpu.name: gpu.family for gpu in all_gpus()}
    families = {gpu.family for gpu in _wanted(want)}
    least = _least_vram(want)
    found: dict[Kind, list[_Found]] = {"same": [], "family": [], "bigger": []}
    for offer in offers:
        failed = {str(one) for one in unmet(offer, want)}
        if providers and offer.provider not in providers:
            failed.add(_PROVIDER)
        other_card = Requirement.GPU in failed
        failed.discard(Requirement.GPU)
        if not offer.available or not failed <= set(_ORDER) or not (failed or other_card):
            continue
        if not other_card:
            found["same"].append(_Found(offer, frozenset(failed)))
        elif offer.vram_gb is not None and offer.vram_gb >= least:
            kind: Kind = "family" if family_of.get(offer.gpu or "") in families else "bigger"
            found[kind].append(_Found(offer, frozenset(failed)))
    next_size = min((one.offer.vram_gb or 0.0 for one in found["family"]), default=0.0)
    found["family"] = [one for one in found["family"] if one.offer.vram_gb == next_size]
    return tuple(
        Near(one.offer, kind, _words(kind, one, least))
        for kind in found
        for one in _best(found[kind])[: _MOST[kind]]
    )


# ------------------------------------------------------------------------------- inside


@dataclass(frozen=True, slots=True)
class _Found:
    offer: Offer
    failed: frozenset[str]  # besides the card

    def price(self) -> tuple[bool, Decimal]:
        return self.offer.source == "reference", self.offer.price_hour

    def place(self) -> tuple[bool, Decimal, str]:
        return (*self.price(), offer_key(self.offer))

    def rank(self) -> tuple[int, list[int]]:
        return len(self.failed), sorted(_ORDER.index(one) for one in self.failed)


def _best(found: Sequence[_Found]) -> list[_Found]:
    """The cheapest of each difference; none that differs in more and costs no less."""
    cheapest: dict[frozenset[str], _Found] = {}
    for one in sorted(found, key=_Found.place):
        cheapest.setdefault(one.failed, one)
    kept: list[_Found] = []
    for one in sorted(cheapest.values(), key=_Found.rank):
        if not any(nearer.failed < one.failed and nearer.price() <= one.price() for nearer in kept):
            kept.append(one)
    return kept


def _wanted(want: Want) -> tuple[Gpu, ...]:
    """The cards that were asked for by name."""
    names = frozenset[str]().union(*(one.names for one in selectors(want.gpus)))
    return tuple(gpu for gpu in all_gpus() if gpu.name in names)


def _least_vram(want: Want) -> float:
    """GB of the smallest card that was asked for; 0 when sizes do not matter."""
    sizes = [gpu.vram_gb for gpu in _wanted(want)]
    sizes += [one.min_vram_gb for one in selectors(want.gpus) if one.min_vram_gb is not None]
    return max(min(sizes, default=0.0), want.min_vram_gb or 0.0)


def _words(kind: Kind, one: _Found, least: float) -> str:
    if kind == "same" and one.failed == {Requirement.PRICE}:
        return "just above the price cap"
    if kind == "same" and one.failed == {Requirement.SPOT}:
        return f"the same, but {_word(Requirement.SPOT, one.offer)}"
    first = {"same": "the same", "family": "the next size up", "bigger": f"{least:g} GB or more"}
    told = [_word(name, one.offer) for name in _ORDER if name in one.failed]
    return ", ".join([first[kind], *told])


def _word(failed: str, offer: Offer) -> str:
    """One difference."""
    cpus = "an unknown number of" if offer.vcpus is None else f"{offer.vcpus:g}"
    ram = "an unknown amount" if offer.ram_gb is None else f"{offer.ram_gb:g} GB"
    words: dict[str, str] = {
        Requirement.PRICE: "above the price cap",
        Requirement.SPOT: "spot" if offer.spot else "on-demand",
        Requirement.REGION: "elsewhere",
        _PROVIDER: "at another provider",
        Requirement.RELIABILITY: f"less reliable ({offer.reliability})",
        Requirement.COUNT: f"with {offer.gpu_count} GPU{'' if offer.gpu_count == 1 else 's'}",
        Requirement.CPUS: f"with {cpus} CPUs",
        Requirement.MEMORY: f"with {ram} of memory",
        Requirement.DISK: f"with {offer.disk_gb or 0:g} GB of disk",
    }
    return words[failed]
