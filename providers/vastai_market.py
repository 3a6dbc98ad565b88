"""Searching Vast.ai's market: page by page, and no search more than it takes.

A search shows 64 rows at most, and ten searches a minute are allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from providers.base import Clock, Offer, Want
from providers.vastai_machines import Row, number
from providers.vastai_offers import (
    PAGE,
    Terms,
    cheapest_first,
    offers_in,
    ordered,
    price_column,
    searches,
)

_MOST_PAGES = 3  # of one search in one order

Ask = Callable[[Mapping[str, Any]], Sequence[Row]]
"""Makes one search. Raises ProviderError."""


def offers(ask: Ask, want: Want, terms: Terms, clock: Clock) -> list[Offer]:
    """Return what is listed now, cheapest first; bids as well unless only on-demand is wanted.

    A row tells the prices of both markets, so where all rows of a search are seen, another order
    of them shows nothing new.

    Raises:
        UnknownGpu: ``want`` names a GPU that does not exist.
        ProviderError: a search failed.
    """
    markets = (False, True) if want.spot is None else (want.spot,)
    found: list[Offer] = []
    for search in searches(want, terms):
        complete = False
        for spot in markets:
            rows, complete, seen = _rows(ask, search.body, want, terms, clock, spot=spot)
            for market in markets if complete else (spot,):
                found += offers_in(rows, want, terms, spot=market, now=seen)
            if complete:
                break
        if complete and search.widest:
            break
    return cheapest_first(found)


def _rows(
    ask: Ask, body: Mapping[str, Any], want: Want, terms: Terms, clock: Clock, *, spot: bool
) -> tuple[list[Row], bool, datetime]:
    """The rows of one search, page by page until there are enough that fit.

    Returns:
        Them, whether that is all that it finds, and when the first ones were true.
    """
    rows: list[Row] = []
    fitting: set[str] = set()
    above: float | None = None
    seen: datetime | None = None
    for _ in range(_MOST_PAGES):
        page = ask(ordered(body, spot=spot, above=above))
        seen = seen or clock.now()
        rows += page
        if len(page) < PAGE:
            return rows, True, seen
        prices = (number(row.get(price_column(spot))) for row in page)
        last = max((price for price in prices if price), default=None)
        if last is None or (above is not None and last <= above):
            break  # more rows of one price than a page has
        if want.max_price_hour is not None and last > want.max_price_hour:
            break  # what follows is dearer still
        fitting |= {offer.id for offer in offers_in(page, want, terms, spot=spot, now=seen)}
        if len(fitting) >= PAGE:
            break
        above = last
    return rows, False, seen or clock.now()
