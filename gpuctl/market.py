"""Ask every provider at once, keep what matches, cheapest first."""

from __future__ import annotations

import os
import queue
import threading
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_FLOOR, Decimal

from gpuctl.market_cache import STAND_IN_SECONDS, OfferCache
from gpuctl.policy import (
    CHECKPOINT_MINUTES,
    SETUP_MINUTES,
    USUAL_TRAFFIC,
    Traffic,
    expected_cost,
    offer_key,
)
from providers.base import Clock, Offer, Provider, ProviderError, RateLimited, Unsupported, Want
from providers.matching import satisfies, selectors
from providers.reference import current_entries, reference_offers
from providers.registry import KnownSystem, known_systems, unknown_provider

DEADLINE_SECONDS = 20.0
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
    traffic: Traffic = USUAL_TRAFFIC,
    cache: OfferCache | None = None,
    young_seconds: float = 0,
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
        traffic: of every machine of a run.
        cache: keeps answers, and stands in for a provider that was asked too often.
        young_seconds: an answer in the cache that is no older is taken instead of asking.

    Raises:
        UnknownGpu: ``want`` names a GPU that does not exist.
    """
    selectors(want.gpus)  # a misspelt GPU is the asker's mistake, not each provider's
    remembered = _Remembered(cache, young_seconds)
    answers = _ask_all(providers, want, clock, deadline_seconds, offline, environ, remembered)
    for name in reference_only:
        answers.append(_reference_answer(name, want, clock, environ, "no adapter yet"))
    offers = [offer for answer in answers for offer in answer.offers if satisfies(offer, want)]
    costs: dict[str, RunCost] = {}
    if hours is not None:
        for offer in offers:
            cost = expected_cost(
                offer,
                hours,
                setup_minutes=setup_minutes,
                checkpoint_minutes=checkpoint_minutes,
                traffic=traffic,
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


@dataclass(frozen=True, slots=True)
class _Remembered:
    """Asking a provider, with what it answered before at hand."""

    cache: OfferCache | None
    young_seconds: float

    def offers(self, provider: Provider, want: Want) -> _Answer:
        """Ask, unless there is a young answer. Raises ProviderError."""
        cache = None if provider.capabilities.by_name_only else self.cache
        if cache and self.young_seconds:
            known = cache.young(provider.name, want, self.young_seconds)
            if known is not None:
                return _Answer(offers=known)
        try:
            found = tuple(provider.offers(want))
        except RateLimited as error:
            known = cache.young(provider.name, want, STAND_IN_SECONDS) if cache else None
            if known is None:
                raise
            note = f"{provider.name}: {error} What it answered a few minutes ago is shown."
            return _Answer(offers=known, notes=(note,))
        if cache:
            cache.keep(provider.name, want, found)
        return _Answer(offers=found)


def _ask_all(
    providers: Sequence[Provider],
    want: Want,
    clock: Clock,
    deadline_seconds: float,
    offline: bool,
    environ: Mapping[str, str],
    remembered: _Remembered,
) -> list[_Answer]:
    """Return one answer a provider, in their order."""
    done: queue.SimpleQueue[tuple[int, _Answer]] = queue.SimpleQueue()

    def work(place: int, provider: Provider) -> None:
        done.put((place, _ask_one(provider, want, clock, offline, environ, remembered)))

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
    provider: Provider,
    want: Want,
    clock: Clock,
    offline: bool,
    environ: Mapping[str, str],
    remembered: _Remembered,
) -> _Answer:
    try:
        if offline or not provider.configured():
            why = "offline" if offline else "no credentials here"
            return _reference_answer(provider.name, want, clock, environ, why)
        if want.spot and not provider.capabilities.spot:
            return _unsupported(provider.name, _without_spot(provider))
        return remembered.offers(provider, want)
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
    if system is None:
        return f"{provider.name} has no spot machines; it sells on-demand machines."
    return f"{system.title} has no spot machines; it sells {system.sells}."


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
