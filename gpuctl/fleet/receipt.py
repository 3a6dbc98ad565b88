"""What a teardown returns: who confirmed that the machine is gone, when, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from providers.base import Leftover


@dataclass(frozen=True, slots=True)
class Confirmation:
    """One successful answer of the provider in which the machine was absent or terminal."""

    call: str
    at: datetime
    answer: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """The end of one machine, or how far it got."""

    name: str
    provider: str
    provider_id: str | None
    confirmed: bool
    confirmed_by: tuple[Confirmation, ...]
    cost_usd: Decimal
    cost_source: str  # the provider's call that said so, or "computed"
    leftovers: tuple[Leftover, ...] = ()
