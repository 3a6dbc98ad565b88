"""What was refused a moment ago is tried last: a pool that is empty stays so for a while.

So is what was rented and never answered. And a provider that refuses the account itself is not
asked for its other offers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta

from gpuctl.errors import GpuctlError
from gpuctl.fleet.context import Fleet
from providers.base import AuthFailed, InsufficientFunds, Offer, PriceChanged, ProviderError

REMEMBERED = timedelta(minutes=10)
_OF_THE_ACCOUNT = (AuthFailed, InsufficientFunds)
_ENOUGH = 2  # such refusals: one may be of a single region or right

Refusal = tuple[Offer, ProviderError | GpuctlError]
"""An offer that did not lead to a usable machine, and why."""


def refused_last(fleet: Fleet, offers: Iterable[Offer]) -> list[Offer]:
    """Move the offers that were refused lately, by whichever command, behind the others."""
    refused = fleet.ledger.refused_since(fleet.clock.now() - REMEMBERED)
    return sorted(offers, key=lambda offer: (offer.provider, offer.id) in refused)


def may_say_yes(offer: Offer, refusals: Sequence[Refusal]) -> bool:
    """Whether an offer is worth a try, after what its provider has said to others of its own."""
    of_the_account = [
        refused
        for refused, why in refusals
        if refused.provider == offer.provider and isinstance(why, _OF_THE_ACCOUNT)
    ]
    return len(of_the_account) < _ENOUGH


def telling(refusals: Sequence[Refusal]) -> ProviderError | GpuctlError | None:
    """Return the refusal that says most: a price above the cap, which can be helped; else the
    last one.
    """
    last: ProviderError | GpuctlError | None = None
    for _, why in refusals:
        if isinstance(why, PriceChanged) or not isinstance(last, PriceChanged):
            last = why
    return last
