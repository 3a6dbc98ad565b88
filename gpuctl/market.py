"""Ask every provider at once, keep what matches, cheapest first."""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_FLOOR, Decimal

from gpuctl.policy import CHECKPOINT_MINUTES, SETUP_MINUTES, expected_cost, offer_key
from providers.base import Clock, Offer, Provider, ProviderError, Unsupported, Want
from providers.gpus import all_gpus
from providers.matching import Requirement, satisfies, selectors, unmet
from providers.reference import current_entries, reference_offers
from providers.registry import KnownSystem, known_systems, unknown_provider

DEADLINE_SECONDS = 20.0
_NEAREST = 8  # lines at most
_MONEY = Decimal("0.0001")


@dataclass(frozen=True, slots=True)
class QuoteError:
    """Why one provider has no rows. ``kind`` is that of a provider error, Timeout or Failed."""

    provider: str
    kind: str
    message: str


@dataclass(frozen=True, slots=True)
class RunCost:
    """What one run costs on an offer, see `gpuctl.policy`, and how many a budget buys."""

    run_cost: Decimal | None  # USD; None: it would never end
    runs_in_budget: int | None  # None: no budget was named, or a run is free


@dataclass(frozen=True, slots=True)
class Quote:
    """What the market says: offers that match, cheapest first, and who did not answer."""

    offers: tuple[Offer, ...]
    errors: tuple[QuoteError, ...] = ()
    notes: tuple[str, ...] = ()  # who was skipped and why, for people
    run_costs: Mapping[str, RunCost] = field(default_factory=dict)  # by `offer_key`

    def run_cost(self, offer: Offer) -> RunCost | None:
        """What a run costs on one of the offers; None when no hours were named."""
        return self.run_costs.get(offer_key(offer))


@dataclass(frozen=True, slots=True)
class Participants:
    """Who takes part in a question: adapters to ask, and systems with reference prices only."""

    providers: tuple[str, ...]
    reference_only: tuple[str, ...]


def participants(
    named: Sequence[str],
    by_name_only: Mapping[str, bool],
    reference_systems: Collection[str] = (),
) -> Participants:
    """Decide who takes part.

    Args:
        named: the user's `--provider`; empty = everybody who does not wait to be named.
        by_name_only: that capability of every adapter there is, by name, in order.
        reference_systems: known systems without an adapter, in order.

    Raises:
        UnknownProvider: nobody has that name.
    """
    if not named:
        return Participants(
            tuple(name for name, alone in by_name_only.items() if not alone),
            tuple(reference_systems),
        )
    everybody = {*by_name_only, *reference_systems}
    for name in named:
        if name not in everybody:
            raise unknown_provider(name)
    wanted = dict.fromkeys(named)
    return Participants(
        tuple(name for name in wanted if name in by_name_only),
        tuple(name for name in wanted if name not in by_name_only),
    )


def ask(
    providers: Sequence[Provider],
    want: Want,
    *,
    clock: Clock,
    deadline_seconds: float = DEADLINE_SECONDS,
    offline: bool = False,
    hours: float | None = None,
    budget: Decimal | None = None,
    reference_only: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    setup_minutes: float = SETUP_MINUTES,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> Quote:
    """Ask all ``providers`` at the same time and rank what matches.

    A provider that fails, or does not answer within ``deadline_seconds`` of the whole question,
    costs its own rows and one entry in ``errors``. One without credentials, and every one when
    ``offline``, gives its reference rows. With ``hours`` the cheapest is what is expected to
    finish cheapest, else what costs least an hour.

    Args:
        providers: as `participants` chose them.
        want: what to look for.
        clock: for the deadline and the age of reference prices.
        deadline_seconds: for all of them together.
        offline: ask nobody.
        hours: of work, to reckon the cost of one run.
        budget: USD, to reckon how many runs it buys; needs ``hours``.
        reference_only: systems without an adapter whose reference rows to show.
        environ: for GPUCTL_EUR_USD.
        setup_minutes: before the work starts, on every machine.
        checkpoint_minutes: between two checkpoints.

    Raises:
        UnknownGpu: ``want`` names a GPU that does not exist.
    """
    selectors(want.gpus)  # a misspelt GPU is the asker's mistake, not each provider's
    answers = _ask_all(providers, want, clock, deadline_seconds, offline, environ)
    for name in reference_only:
        answers.append(_reference_answer(name, want, clock, environ, "no adapter yet"))
    offers = [offer for answer in answers for offer in answer.offers if satisfies(offer, want)]
    costs: dict[str, RunCost] = {}
    if hours is not None:
        for offer in offers:
            cost = expected_cost(
                offer, hours, setup_minutes=setup_minutes, checkpoint_minutes=checkpoint_minutes
            )
            costs[offer_key(offer)] = _run_cost(cost, budget)
    return Quote(
        offers=rank(offers, costs),
        errors=tuple(error for answer in answers for error in answer.errors),
        notes=tuple(note for answer in answers for note in answer.notes),
        run_costs=costs,
    )


def rank(offers: Iterable[Offer], costs: Mapping[str, RunCost] | None = None) -> tuple[Offer, ...]:
    """Sort: what can be had first, then the cheapest (to finish, where ``costs`` are known), then
    live before reference. Ties keep their order.
    """
    known = costs or {}

    def key(offer: Offer) -> tuple[bool, Decimal, Decimal, bool]:
        cost = known.get(offer_key(offer))
        if cost is None:
            first = offer.price_hour
        else:
            first = Decimal("Infinity") if cost.run_cost is None else cost.run_cost
        return (not offer.available, first, offer.price_hour, offer.source == "reference")

    return tuple(sorted(offers, key=key))


def _run_cost(cost: Decimal, budget: Decimal | None) -> RunCost:
    if not cost.is_finite():
        return RunCost(None, None if budget is None else 0)
    runs = None
    if budget is not None and cost > 0:
        runs = int((budget / cost).to_integral_value(ROUND_FLOOR))
    return RunCost(cost.quantize(_MONEY), runs)


# ---------------------------------------------------------------------------- asking


@dataclass(frozen=True, slots=True)
class _Answer:
    offers: tuple[Offer, ...] = ()
    errors: tuple[QuoteError, ...] = ()
    notes: tuple[str, ...] = ()


def _ask_all(
    providers: Sequence[Provider],
    want: Want,
    clock: Clock,
    deadline_seconds: float,
    offline: bool,
    environ: Mapping[str, str],
) -> list[_Answer]:
    """Return one answer a provider, in their order."""
    done: queue.SimpleQueue[tuple[int, _Answer]] = queue.SimpleQueue()

    def work(place: int, provider: Provider) -> None:
        done.put((place, _ask_one(provider, want, clock, offline, environ)))

    end = clock.monotonic() + deadline_seconds
    for place, provider in enumerate(providers):
        # Daemons: one that hangs must not keep the process from ending. What it was asked
        # only reads, so nothing is lost when it is left behind.
        threading.Thread(
            target=work, args=(place, provider), name=f"offers-{provider.name}", daemon=True
        ).start()
    answers: dict[int, _Answer] = {}
    while len(answers) < len(providers):
        try:
            place, answer = done.get(timeout=max(0.0, end - clock.monotonic()))
        except queue.Empty:
            break
        answers[place] = answer
    return [
        answers.get(place) or _too_late(provider.name, deadline_seconds)
        for place, provider in enumerate(providers)
    ]


def _ask_one(
    provider: Provider, want: Want, clock: Clock, offline: bool, environ: Mapping[str, str]
) -> _Answer:
    try:
        if offline or not provider.configured():
            why = "offline" if offline else "no credentials here"
            return _reference_answer(provider.name, want, clock, environ, why)
        if want.spot and not provider.capabilities.spot:
            return _unsupported(provider.name, _without_spot(provider))
        return _Answer(offers=tuple(provider.offers(want)))
    except ProviderError as error:
        return _Answer(errors=(QuoteError(provider.name, error.kind, str(error)),))
    except Exception as error:
        # A fault in one adapter must not cost the others their rows. Its text is not shown: it
        # may hold what was sent.
        return _Answer(errors=(QuoteError(provider.name, "Failed", _fault(provider.name, error)),))


def _reference_answer(
    name: str, want: Want, clock: Clock, environ: Mapping[str, str], why: str
) -> _Answer:
    """The reference rows of one system, and a word on why there is nothing better."""
    system = known_systems().get(name)
    if system is not None and want.spot and not system.spot:
        return _unsupported(name, f"{system.title} has no spot machines; it sells {system.sells}.")
    if system is not None and want.gpus and not system.gpus and not system.by_name_only:
        return _unsupported(name, f"{system.title} has no GPUs; it sells {system.sells}.")
    try:
        offers = reference_offers(want, provider=name, now=clock.now(), environ=environ)
    except ProviderError as error:
        return _Answer(errors=(QuoteError(name, error.kind, str(error)),))
    return _Answer(offers=tuple(offers), notes=(_reference_note(name, system, why, offers),))


def _reference_note(
    name: str, system: KnownSystem | None, why: str, offers: Sequence[Offer]
) -> str:
    if offers:
        return f"{name}: {why}; reference prices"
    if any(entry.system == name for entry in current_entries()):
        return f"{name}: {why}; no reference price matches"
    title = name if system is None else system.title
    return f"{name}: {why}; skipped, no reference prices of {title} are on record"


def _without_spot(provider: Provider) -> str:
    system = known_systems().get(provider.name)
    sells = "on-demand machines" if system is None else system.sells
    return f"{provider.name} has no spot machines; it sells {sells}."


def _unsupported(name: str, message: str) -> _Answer:
    return _Answer(errors=(QuoteError(name, Unsupported.kind, message),))


def _too_late(name: str, seconds: float) -> _Answer:
    message = f"{name} did not answer within {seconds:g} s; its offers are missing here."
    return _Answer(errors=(QuoteError(name, "Timeout", message),))


def _fault(name: str, error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return (
        f"The adapter of {name} failed ({type(error).__name__}{place}). "
        "This is a fault in the adapter; the others were asked all the same."
    )


# ---------------------------------------------------------------------------- the nearest


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
