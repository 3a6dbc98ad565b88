"""Dated reference prices: what `quote` shows where no live price can be had.

Every price has a source and a date, and every offer made from one says so. Nothing is ever
rented at a reference price.
"""

from providers.reference.entry import Entry, Unit
from providers.reference.exchange import Rate, eur_usd
from providers.reference.offers import current_entries, entries, plans, reference_offers

__all__ = [
    "Entry",
    "Rate",
    "Unit",
    "current_entries",
    "entries",
    "eur_usd",
    "plans",
    "reference_offers",
]
