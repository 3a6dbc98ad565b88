"""Hetzner's price lists, and the offers that they make. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any

from providers.base import Ambiguous, InvalidRequest, Offer, Unsupported, Want
from providers.matching import satisfies
from providers.reference.exchange import Rate
from providers.reference.hetzner_cloud import BILL_STEP_SECONDS

Json = Mapping[str, Any]
_MICRO = Decimal("0.000001")
_ID = re.compile(r"hetzner:(?P<type>[a-z0-9-]{1,40}):(?P<location>[a-z0-9-]{1,40})")

NO_GPUS = (
    "Hetzner Cloud has no server types with a GPU; it sells CPU machines (`--gpu none`), 1 to 48 "
    "vCPUs. Hetzner's GPUs are dedicated servers, by the month and with a setup fee; gpuctl does "
    "not order those."
)
NO_SPOT = "Hetzner has no spot machines; without --spot it sells on-demand CPU machines."


@dataclass(frozen=True, slots=True)
class Prices:
    """What an account pays, net, in its currency."""

    currency: str
    vat_rate: str  # percent
    servers: Mapping[tuple[str, str], Decimal]  # (type, location) -> an hour
    ipv4: Mapping[str, Decimal]  # location -> an hour

    def server(self, kind: str, location: str, rate: Rate) -> Decimal | None:
        """USD an hour of a server with its IPv4 address; None when it is not sold there."""
        net = self.servers.get((kind, location))
        return None if net is None else self.with_address(net, location, rate)

    def with_address(self, net: Decimal, location: str, rate: Rate) -> Decimal:
        """USD an hour of a server at a net price, with its IPv4 address."""
        total = net + self.ipv4.get(location, Decimal(0))
        return (total * self.usd(rate)).quantize(_MICRO)

    def usd(self, rate: Rate) -> Decimal:
        """USD for one of the account's currency. Raises Unsupported for one we cannot convert."""
        if self.currency == "USD":
            return Decimal(1)
        if self.currency == "EUR":
            return rate.usd
        raise Unsupported(
            f"This Hetzner account is charged in {self.currency}; gpuctl converts EUR only."
        )


def read_prices(pricing: Json) -> Prices:
    """Read what /pricing says. Raises Ambiguous where it is not what is documented."""
    try:
        addresses = [x for x in pricing.get("primary_ips") or () if x["type"] == "ipv4"]
        return Prices(
            currency=str(pricing["currency"]),
            vat_rate=str(pricing.get("vat_rate") or "0"),
            servers={
                (str(kind["name"]), str(price["location"])): _net(price)
                for kind in pricing["server_types"]
                for price in kind["prices"]
            },
            ipv4={str(p["location"]): _net(p) for x in addresses for p in x["prices"]},
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Ambiguous(
            f"Hetzner's price list cannot be read ({type(error).__name__}: {error})."
        ) from None


def net_hour(server_type: Json, location: str) -> Decimal | None:
    """Return the price of a type in a location as a server tells it, or None."""
    for price in server_type.get("prices") or ():
        try:
            if price["location"] == location:
                return _net(price)
        except (KeyError, TypeError, ValueError):
            return None
    return None


def offer_id(kind: str, location: str) -> str:
    """Return ``hetzner:ccx23:fsn1`` and the like."""
    return f"hetzner:{kind}:{location}"


def read_offer_id(text: str) -> tuple[str, str]:
    """Return type and location. Raises InvalidRequest."""
    found = _ID.fullmatch(text)
    if found is None:
        raise InvalidRequest(f"{text!r} is no offer of Hetzner's; it looks like hetzner:cx23:fsn1.")
    return found["type"], found["location"]


def region_of(location: Json) -> str:
    """Return ``eu-central fsn1 DE``: any of the three can be asked for with --region."""
    words = (location.get("network_zone"), location.get("name"), location.get("country"))
    return " ".join(str(word) for word in words if word)


def offers(
    server_types: Sequence[Json],
    locations: Sequence[Json],
    prices: Prices,
    want: Want,
    rate: Rate,
    now: datetime,
) -> list[Offer]:
    """Return what matches, cheapest first."""
    regions = {str(place.get("name")): region_of(place) for place in locations}
    made = [
        _offer(kind, place, regions, prices, rate, now)
        for kind in server_types
        for place in kind.get("locations") or ()
        if not _withdrawn(place, now)
    ]
    fitting = [offer for offer in made if offer is not None and satisfies(offer, want)]
    return sorted(fitting, key=lambda offer: (offer.price_hour, offer.id))


def _offer(
    kind: Json, place: Json, regions: Mapping[str, str], prices: Prices, rate: Rate, now: datetime
) -> Offer | None:
    name, location = str(kind.get("name")), str(place.get("name"))
    price = prices.server(name, location, rate)
    identity = offer_id(name, location)
    if price is None or not _ID.fullmatch(identity):
        return None
    in_euros = prices.currency == "EUR"
    return Offer(
        provider="hetzner",
        id=identity,
        gpu=None,
        gpu_count=0,
        vram_gb=None,
        spot=False,
        price_hour=price,
        region=regions.get(location, location),
        vcpus=_number(kind.get("cores")),
        ram_gb=_number(kind.get("memory")),
        disk_gb=_number(kind.get("disk")),
        available=place.get("available") is not False,
        as_of=now,
        bill_step_seconds=BILL_STEP_SECONDS,
        fx_rate=rate.usd if in_euros else None,
        fx_date=rate.day if in_euros else None,
        note=_note(name, kind, prices),
    )


def _note(name: str, kind: Json, prices: Prices) -> str:
    parts = [
        f"{name}, {kind.get('cpu_type')} CPU",
        f"net in {prices.currency}, {_vat(prices)} % VAT not included",
        "every started hour is charged",
    ]
    if kind.get("architecture") == "arm":
        parts.append("its CPU is arm64")
    return "; ".join(parts)


def _vat(prices: Prices) -> str:
    try:
        return f"{Decimal(prices.vat_rate).normalize():f}"
    except InvalidOperation:
        return prices.vat_rate


def _withdrawn(place: Json, now: datetime) -> bool:
    """Whether it is not sold there any more."""
    after = (place.get("deprecation") or {}).get("unavailable_after")
    moment = moment_of(after)
    return moment is not None and moment <= now


def moment_of(text: object) -> datetime | None:
    """Return an RFC 3339 time, or None where it is none."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else None


def _net(price: Json) -> Decimal:
    """Return the net price of an hour. Raises ValueError."""
    text = str(price["price_hourly"]["net"])
    try:
        found = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no price") from None
    if not found.is_finite() or found < 0:
        raise ValueError(f"{text!r} is no price")
    return found


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
