"""What an emulated cloud knows: what existed when, and what it cost. Tests ask these books."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

_SECONDS_AN_HOUR = 3600


@dataclass
class Span:
    """A time at one price."""

    begin: datetime
    price_hour: Decimal  # USD (or the account's currency) an hour
    end: datetime | None = None

    def cost(self, now: datetime) -> Decimal:
        """What it cost until then."""
        seconds = Decimal(str(((self.end or now) - self.begin).total_seconds()))
        return max(seconds, Decimal(0)) * self.price_hour / _SECONDS_AN_HOUR


@dataclass
class Thing:
    """Something that bills: a machine, a volume, an address."""

    kind: str
    id: str
    name: str
    spans: list[Span] = field(default_factory=list)
    gone: datetime | None = None
    charges: list[tuple[datetime, Decimal]] = field(default_factory=list)  # besides time: traffic

    def cost(self, now: datetime) -> Decimal:
        """What all of it cost until then."""
        once = sum((amount for at, amount in self.charges if at <= now), Decimal(0))
        return once + sum((span.cost(now) for span in self.spans), Decimal(0))


class Books:
    """One account."""

    def __init__(self) -> None:
        self.things: dict[str, Thing] = {}

    def begin(self, kind: str, id: str, name: str, price_hour: Decimal, at: datetime) -> None:
        """Something begins to bill."""
        assert id not in self.things, f"{id} is there already"
        self.things[id] = Thing(kind, id, name, [Span(at, price_hour)])

    def reprice(self, id: str, price_hour: Decimal, at: datetime) -> None:
        """It costs something else from now on: stopped, for instance."""
        thing = self.things[id]
        thing.spans[-1].end = at
        thing.spans.append(Span(at, price_hour))

    def charge(self, id: str, amount: Decimal, at: datetime) -> None:
        """It costs this much besides, once."""
        self.things[id].charges.append((at, amount))

    def end(self, id: str, at: datetime) -> None:
        """It bills no more. Ending it twice changes nothing."""
        thing = self.things[id]
        if thing.gone is None:
            thing.spans[-1].end = thing.gone = at

    def open(self, kind: str | None = None) -> Mapping[str, str]:
        """Id -> name of what bills now."""
        return {
            thing.id: thing.name
            for thing in self.things.values()
            if thing.gone is None and kind in (None, thing.kind)
        }

    def billed(self, id: str, now: datetime) -> Decimal:
        """What one thing cost until then."""
        return self.things[id].cost(now)

    def total(self, now: datetime) -> Decimal:
        """What everything cost until then."""
        return sum((thing.cost(now) for thing in self.things.values()), Decimal(0))
