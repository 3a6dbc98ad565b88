"""What a server can leave behind: addresses, volumes, snapshots. All of them bill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from providers.base import InvalidRequest, Leftover
from providers.hetzner_client import Api
from providers.hetzner_errors import Refusal
from providers.hetzner_offers import Prices
from providers.hetzner_servers import OWNER, leftover_of
from providers.reference.exchange import Rate

Json = dict[str, Any]
_HOURS_A_MONTH = 624  # Hetzner's own: the price of a month is that of so many hours
_CENT = Decimal("0.01")

_PATHS = {"address": "primary_ips", "volume": "volumes", "snapshot": "images"}


def find_leftovers(
    rows: Callable[[str, Mapping[str, Any]], Sequence[Json]], prices: Prices | None, rate: Rate
) -> Sequence[Leftover]:
    """Return what carries our mark and belongs to no server.

    Args:
        rows: lists things of a kind.
        prices: for what an address costs; None when they are not known.
    """
    marked = {"label_selector": OWNER}
    found = [
        leftover_of("address", one, _address_month(one, prices, rate))
        for one in rows("primary_ips", marked)
        if one.get("assignee_id") is None
    ]
    found += [
        leftover_of("volume", one, None)
        for one in rows("volumes", marked)
        if one.get("server") is None
    ]
    snapshots = rows("images", {**marked, "type": "snapshot"})
    found += [leftover_of("snapshot", one, None) for one in snapshots]
    return [one for one in found if one.mark is not None and one.mark.managed_by == "gpuctl"]


def remove_leftover(api: Api, leftover: Leftover) -> None:
    """Delete it. That it is absent already counts as done."""
    path = _PATHS.get(leftover.kind)
    if path is None or not leftover.id.isdecimal():
        raise InvalidRequest(f"Hetzner has no {leftover.kind} {leftover.id!r} that gpuctl made.")
    try:
        api.write("DELETE", f"/{path}/{leftover.id}")
    except Refusal as refusal:
        if refusal.code != "not_found":
            raise refusal.error(f"the deletion of the {leftover.kind} {leftover.id}") from None


def _address_month(address: Json, prices: Prices | None, rate: Rate) -> Decimal | None:
    if address.get("type") != "ipv4":
        return Decimal(0)
    place = str((address.get("location") or {}).get("name") or "")
    if prices is None or place not in prices.ipv4:
        return None
    return (prices.ipv4[place] * _HOURS_A_MONTH * prices.usd(rate)).quantize(_CENT)
