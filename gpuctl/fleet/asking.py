"""Who is asked for offers, and with whose credentials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from gpuctl.errors import GpuctlError, NoCredentials, NothingRentable, UsageError
from gpuctl.fleet.context import Fleet
from gpuctl.market import DEADLINE_SECONDS, Participants, Quote, QuoteError, ask, participants
from gpuctl.market_cache import YOUNG_SECONDS, OfferCache
from gpuctl.market_nearest import Near, in_any_number, nearest, relaxed
from gpuctl.policy import USUAL_TRAFFIC, Traffic
from providers.base import Offer, Provider, Want
from providers.registry import UnknownProvider, known_systems, names, reference_only

_ANSWERED = frozenset({"Unsupported", "NoCapacity"})  # a no is an answer
_FEW = 2
_NEAREST_SECONDS = 10.0  # a second question, for advice only


class NothingMatches(NothingRentable):
    """Nothing matches; ``near`` is what comes nearest."""

    near: tuple[Near, ...] = ()


def ask_market(
    fleet: Fleet,
    want: Want,
    named: Sequence[str],
    *,
    offline: bool = False,
    hours: float | None = None,
    budget: Decimal | None = None,
    traffic: Traffic = USUAL_TRAFFIC,
    fresh: bool = False,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> Quote:
    """Ask everybody who takes part; who has no credentials gives reference prices.

    Args:
        traffic: of every machine of a run.
        fresh: ask again, however young the last answer is.

    Raises:
        UsageError: nobody has one of the names.
    """
    chosen = taking_part(fleet, named)
    providers, errors = _made(fleet, chosen.providers, tolerant=not named)
    found = ask(
        providers,
        want,
        clock=fleet.clock,
        deadline_seconds=deadline_seconds,
        offline=offline,
        hours=hours,
        budget=budget,
        traffic=traffic,
        reference_only=chosen.reference_only,
        environ=fleet.environ,
        cache=_cache(fleet),
        young_seconds=0 if fresh else YOUNG_SECONDS,
    )
    return replace(found, errors=(*found.errors, *errors))


def _cache(fleet: Fleet) -> OfferCache:
    return OfferCache(fleet.home.path / "cache" / "offers", fleet.clock, fleet.environ)


def ask_rentable(
    fleet: Fleet, want: Want, named: Sequence[str], *, hours: float | None = None
) -> Quote:
    """Ask only those that something can be rented from now.

    Raises:
        UsageError: nobody has one of the names, or there is no adapter for it yet.
        NoCredentials: nobody who takes part has credentials.
    """
    wanted = list(named) if named else list(taking_part(fleet, ()).providers)
    providers, errors = _made(fleet, wanted, tolerant=not named)
    usable = [provider for provider in providers if provider.configured()]
    if not usable:
        asked = ", ".join(provider.name for provider in providers)
        raise NoCredentials(
            f"No usable credentials for {asked}" if asked else "No provider has credentials here",
            next="`gpuctl doctor` says what is missing; `--provider local` needs none.",
        )
    found = ask(
        usable,
        want,
        clock=fleet.clock,
        hours=hours,
        environ=fleet.environ,
        cache=_cache(fleet),  # for who is asked too often; what is rented is asked for now
    )
    return replace(found, errors=(*found.errors, *errors))


def taking_part(fleet: Fleet, named: Sequence[str]) -> Participants:
    """Say who takes part in a question.

    Raises:
        UsageError: nobody has one of the names.
    """
    by_name_only = {name: _waits_to_be_named(fleet, name) for name in names()}
    try:
        return participants(named, by_name_only, reference_only())
    except UnknownProvider as error:
        raise UsageError(str(error)) from error


def _waits_to_be_named(fleet: Fleet, name: str) -> bool:
    if name in known_systems():
        return known_systems()[name].by_name_only
    try:
        return fleet.provider(name).capabilities.by_name_only
    except UsageError:
        return False  # it cannot be made; whoever asks it says so


def nothing_found(
    fleet: Fleet,
    want: Want,
    named: Sequence[str],
    found: Quote,
    *,
    offline: bool = False,
    rentable: bool = False,
) -> GpuctlError:
    """Return why a quote is empty, or has nothing that is available, with what comes nearest.

    Args:
        offline: the quote asked nobody, and neither does this.
        rentable: the quote came from `ask_rentable`.
    """
    if found.offers and not any(offer.available for offer in found.offers):
        return _nothing_free(found.offers)
    error = why_empty(found.errors, _asked(fleet, named, rentable=rentable))
    if isinstance(error, NothingMatches):
        error.near = _nearest(fleet, want, named, offline)
        lines = [near.line() for near in error.near]
        error.next = "\n".join(["Nearest:", *lines]) if lines else "Ask for less, or elsewhere."
    return error


def _nearest(fleet: Fleet, want: Want, named: Sequence[str], offline: bool) -> tuple[Near, ...]:
    """Ask a wider question, of everybody: what is near may be somebody else's."""
    everybody: tuple[str, ...] = ()
    if named:
        others = taking_part(fleet, ())
        everybody = (*named, *others.providers, *others.reference_only)

    def ask_wider(question: Want, asked: Sequence[str] = everybody) -> tuple[Offer, ...]:
        return ask_market(
            fleet, question, asked, offline=offline, deadline_seconds=_NEAREST_SECONDS
        ).offers

    found = ask_wider(relaxed(want))
    near = nearest(want, found, providers=named)
    if want.gpus and not any(_is_same_here(one, named) for one in near):
        near = nearest(want, (*found, *ask_wider(in_any_number(want))), providers=named)
    if want.disk_gb > Want().disk_gb and not any(_is_asked(one, named) for one in near):
        # Last, since the price that is told has the wanted disk in it.
        smaller = ask_wider(replace(relaxed(want), disk_gb=1), named)
        near = nearest(want, (*found, *smaller), providers=named)
    return near


def _is_same_here(one: Near, named: Sequence[str]) -> bool:
    """Whether it is the same card at a provider that was asked, at no price of last year's."""
    return one.kind == "same" and one.offer.source == "live" and _is_asked(one, named)


def _is_asked(one: Near, named: Sequence[str]) -> bool:
    return not named or one.offer.provider in named


def _nothing_free(offers: Sequence[Offer]) -> NothingRentable:
    told = "; ".join(f"{one.id}: {one.note or 'not available'}" for one in offers[:3])
    return NothingRentable(
        f"What matches is not available now ({told})", next="Try again later, or elsewhere."
    )


def _asked(fleet: Fleet, named: Sequence[str], *, rentable: bool) -> int:
    chosen = taking_part(fleet, named)
    if not rentable:
        return len(chosen.providers) + len(chosen.reference_only)
    providers, errors = _made(fleet, chosen.providers, tolerant=True)
    return len(errors) + sum(provider.configured() for provider in providers)


def why_empty(errors: Sequence[QuoteError], asked: int) -> GpuctlError:
    """Say what it means that nothing was offered. Pure.

    Silence proves nothing: only when somebody answered is it known that nothing matches.
    """
    silent = [error for error in errors if error.kind not in _ANSWERED]
    told = "; ".join(error.message.removesuffix(".") for error in errors)
    if silent and len(silent) >= asked:
        if any(error.kind == "AuthFailed" for error in silent):
            return NoCredentials(
                f"No usable credentials for anything that was asked: {told}",
                next="`gpuctl doctor` says what is missing.",
            )
        if all(error.kind == "InvalidRequest" for error in silent):
            return UsageError(f"Nobody could be asked: {told}", next="Put that right.")
        return GpuctlError(f"Nobody could be asked: {told}", next="Try again in a minute.")
    if len(errors) > _FEW:  # each was told already
        told = f"{len(errors)} providers sell no such machine, or did not answer"
    return NothingMatches("Nothing rentable matches" + (f" ({told})" if told else ""))


def _made(
    fleet: Fleet, wanted: Sequence[str], *, tolerant: bool
) -> tuple[list[Provider], list[QuoteError]]:
    """Make the adapters; one that nobody named and that cannot be made costs only itself."""
    providers: list[Provider] = []
    errors: list[QuoteError] = []
    for name in dict.fromkeys(wanted):
        try:
            providers.append(fleet.provider(name))
        except UsageError as error:
            if not tolerant:
                raise
            errors.append(QuoteError(name, error.kind, error.message))
    return providers, errors
