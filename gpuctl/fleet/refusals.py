"""What was refused a moment ago is tried last: a pool that is empty stays so for a while."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from gpuctl.fleet.context import Fleet
from providers.base import Offer

REMEMBERED = timedelta(minutes=10)


def refused_last(fleet: Fleet, offers: Iterable[Offer]) -> list[Offer]:
    """Move the offers that were refused lately, by whichever command, behind the others."""
    refused = fleet.ledger.refused_since(fleet.clock.now() - REMEMBERED)
    return sorted(offers, key=lambda offer: (offer.provider, offer.id) in refused)
