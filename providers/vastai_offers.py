"""What to search for, what the rows mean, and what to bid. Pure.

The server hides what is not asked for (64 rows a search, defaults of its own) and does not honour
every filter, so a search says everything, cheapest first, and each row is checked again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_UP, Decimal
from typing import Any

from providers.base import InvalidRequest, Offer, Want
from providers.gpus import Gpu, all_gpus, identify
from providers.matching import satisfies, selectors
from providers.vastai_machines import Row, gpu_name, money, number, region
from providers.vastai_names import API_NAMES

PAGE = 64  # rows of a search, whatever is asked for
LEAST_DISK_GB = 8.0
_HOURS_A_MONTH = 720
_OFF_BY = 0.12  # of nominal memory, as `providers.gpus` allows
_LESS_BY = 0.07  # of a size that is asked for
_MICRO = Decimal("0.000001")
_LEAST_BID, _MOST_BID = Decimal("0.001"), Decimal(128)
_CUDA = re.compile(r"(?:cuda[-_]?|cu)(\d{2})[.]?(\d)(?!\d)|cuda[-_]?(\d{2})\.(\d)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Terms:
    """How this account rents.

    Attributes:
        margin: added to the lowest bid that would be taken; 0.1 is 10 %.
        verified_only: leave out hosts that Vast.ai has not tested.
    """

    margin: Decimal = Decimal("0.1")
    verified_only: bool = True


# ---------------------------------------------------------------------------- asking


@dataclass(frozen=True, slots=True)
class Search:
    """One search, without order and page. ``widest``: what it finds holds all that the others
    find, so where a page is enough for it, they need not be made.
    """

    body: Mapping[str, Any]
    widest: bool = False


def searches(want: Want, terms: Terms) -> list[Search]:
    """Return the searches that together find everything wanted.

    Raises:
        UnknownGpu: ``want`` names a GPU that does not exist.
    """
    common = _common(want, terms)
    if not want.gpus:
        return [Search(common)]
    chosen = selectors(want.gpus)
    common["num_gpus"] = {"eq": want.gpu_count} if want.gpu_count else {"gte": 1}
    made = []
    cards = [gpu for gpu in all_gpus() if any(gpu.name in one.names for one in chosen)]
    sizes = [gpu.vram_gb for gpu in cards]
    floor = _mib(want.min_vram_gb or 0, _LESS_BY)
    if names := sorted({name for gpu in cards for name in api_names(gpu)}):
        from_mib = max(floor, _mib(min(sizes), _OFF_BY))
        memory = {"gte": from_mib, "lte": _mib(max(sizes), -_OFF_BY)}
        made.append(Search({**common, "gpu_name": {"in": names}, "gpu_ram": memory}))
    if least := [one.min_vram_gb for one in chosen if one.min_vram_gb is not None]:
        holds_all = bool(names) and min(sizes) >= min(least)
        from_mib = _mib(min(least), _OFF_BY if holds_all else _LESS_BY)
        memory = {"gte": max(floor, from_mib)}
        made.insert(0, Search({**common, "gpu_ram": memory}, widest=holds_all))
    return made


def _mib(gb: float, less_by: float) -> int:
    return round(gb * (1 - less_by) * 1024)


def ordered(search: Mapping[str, Any], *, spot: bool, above: float | None) -> dict[str, Any]:
    """Complete a search: one market, cheapest first, one page of it.

    Args:
        above: the price where the page before ended, None for the first.
    """
    column = "min_bid" if spot else "dph_total"
    made = {
        **search,
        "type": "bid" if spot else "on-demand",
        "order": [[column, "asc"]],
        "limit": PAGE,
    }
    if above is not None:
        made[column] = {**made.get(column, {}), "gte": above}
    return made


def price_column(spot: bool) -> str:
    """The column that a search is ordered by."""
    return "min_bid" if spot else "dph_total"


def _common(want: Want, terms: Terms) -> dict[str, Any]:
    disk = max(want.disk_gb, LEAST_DISK_GB)
    made: dict[str, Any] = {
        "rentable": {"eq": True},
        "rented": {"eq": False},
        "disk_space": {"gte": disk},
        "allocated_storage": disk,
    }
    if terms.verified_only:  # without the key, both kinds are found
        made["verified"] = {"eq": True}
    if want.cpus:
        made["cpu_cores_effective"] = {"gte": want.cpus}
    if want.memory_gb:
        made["cpu_ram"] = {"gte": want.memory_gb * 1000}
    if want.min_vram_gb:
        made["gpu_ram"] = {"gte": _mib(want.min_vram_gb, _LESS_BY)}
    if countries := _countries(want.regions):
        made["geolocation"] = {"in": countries}
    if want.min_reliability:
        made["reliability"] = {"gte": want.min_reliability}
    if cuda := cuda_of(want.image):
        made["cuda_max_good"] = {"gte": cuda}
    return made


def _countries(regions: Sequence[str]) -> list[str]:
    """The codes of countries, where nothing but codes was asked for: the server knows no others."""
    if not all(re.fullmatch(r"[A-Za-z]{2}", region) for region in regions):
        return []
    return [region.upper() for region in regions]


def api_names(gpu: Gpu) -> list[str]:
    """What Vast.ai calls a card; several where it has several words for it."""
    return [name for name in API_NAMES if identify(name, gpu.vram_gb) == gpu]


def cuda_of(image: str | None) -> float | None:
    """The CUDA version that an image's tag names: a host with an older driver cannot start it."""
    tag = (image or "").rpartition(":")[2] if ":" in (image or "") else ""
    found = _CUDA.search(tag)
    if found is None:
        return None
    major, minor = (found[1], found[2]) if found[1] else (found[3], found[4])
    return float(f"{major}.{minor}")


# ---------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True)
class Priced:
    """What an offer costs, USD an hour for all of it."""

    base: Decimal  # on-demand, without disk
    floor: Decimal | None  # the lowest bid that is taken now
    storage: Decimal

    def bid(self, margin: Decimal) -> Decimal | None:
        """What to bid: above the floor, but never above what on-demand costs; None where no bid
        is taken."""
        if self.floor is None or self.floor > _MOST_BID:
            return None
        wanted = (self.floor * (1 + margin)).quantize(_MICRO, ROUND_UP)
        return max(self.floor, min(wanted, self.base), _LEAST_BID)


def priced(row: Row, disk_gb: float) -> Priced | None:
    """Read the prices of an offer for a disk; None where they cannot be read."""
    base, monthly = money(row.get("dph_base")), money(row.get("storage_cost"))
    if base is None or monthly is None:
        return None
    hours = Decimal(str(max(disk_gb, LEAST_DISK_GB))) / _HOURS_A_MONTH
    storage = (monthly * hours).quantize(_MICRO)
    return Priced(base, money(row.get("min_bid")), storage)


def offers_in(
    rows: Iterable[Row], want: Want, terms: Terms, *, spot: bool, now: datetime
) -> list[Offer]:
    """Return the rows that are what is wanted; one that cannot be read costs only itself."""
    made = (_offer(row, want, terms, spot=spot, now=now) for row in rows)
    return [offer for offer in made if offer is not None and satisfies(offer, want)]


def _offer(row: Row, want: Want, terms: Terms, *, spot: bool, now: datetime) -> Offer | None:
    id, prices, count = ask_id(row), priced(row, want.disk_gb), row.get("num_gpus")
    if id is None or prices is None or isinstance(count, bool) or not isinstance(count, int):
        return None
    if row.get("rentable") is False or row.get("rented") is True or count < 0:
        return None
    if terms.verified_only and row.get("verification") not in (None, "verified"):
        return None
    cuda, least = number(row.get("cuda_max_good")), cuda_of(want.image)
    if cuda is not None and least is not None and cuda < least:
        return None
    rate = prices.bid(terms.margin) if spot else prices.base
    name = gpu_name(row) if count else None
    if rate is None or (count and name is None):
        return None
    return Offer(
        provider="vastai",
        id=offer_id(id, spot=spot),
        gpu=name,
        gpu_count=count,
        vram_gb=_vram(row) if count else None,
        spot=spot,
        price_hour=rate + prices.storage,
        region=region(row),
        vcpus=_own_cpus(row),
        ram_gb=_in_thousands(row.get("cpu_ram")),
        disk_gb=number(row.get("disk_space")),
        reliability=_reliability(row),
        as_of=now,
        gb_in_price=money(row.get("inet_down_cost")) or Decimal(0),
        gb_out_price=money(row.get("inet_up_cost")) or Decimal(0),
        note=_note(row),
    )


def ask_id(row: Row) -> int | None:
    """The offer's own number."""
    id = row.get("ask_contract_id") or row.get("id")
    return id if isinstance(id, int) and not isinstance(id, bool) and id > 0 else None


def offer_id(ask: int, *, spot: bool) -> str:
    """Our name for an offer; the same GPUs can be rented and bid for."""
    return f"{ask}/bid" if spot else str(ask)


def read_offer_id(text: str, *, spot: bool) -> int:
    """Take such a name apart.

    Raises:
        InvalidRequest: it is none, or of the other market.
    """
    number_part, _, market = text.partition("/")
    if not re.fullmatch(r"[0-9]{1,18}", number_part) or market != ("bid" if spot else ""):
        raise InvalidRequest(f"Vast.ai has no offer {text!r}; `gpuctl quote` shows what there is.")
    return int(number_part)


def _vram(row: Row) -> float | None:
    ram = number(row.get("gpu_ram"))
    if not ram:
        return None
    known = identify(str(row.get("gpu_name")), ram / 1024)
    return known.vram_gb if known else round(ram / 1024, 1)


def _own_cpus(row: Row) -> float | None:
    """Our share: the plain column counts the whole computer's."""
    own = number(row.get("cpu_cores_effective"))
    if own:
        return own
    cores, share = number(row.get("cpu_cores")), number(row.get("gpu_frac"))
    return round(cores * share, 2) if cores and share else None


def _in_thousands(value: object) -> float | None:
    made = number(value)
    return None if made is None else made / 1000


def _reliability(row: Row) -> float | None:
    found = number(row.get("reliability2"))
    found = number(row.get("reliability")) if found is None else found
    return found if found is not None and 0 <= found <= 1 else None


def _note(row: Row) -> str:
    parts = ["data centre" if row.get("hosting_type") == 1 else "somebody's own computer"]
    if row.get("verification") not in (None, "verified"):
        parts.append("not verified")
    down, up = money(row.get("inet_down_cost")), money(row.get("inet_up_cost"))
    if down or up:
        parts.append(f"traffic ${down or 0:f}/GB in and ${up or 0:f}/GB out: in a run's cost only")
    days = number(row.get("duration"))
    if days is not None and days < 7 * 86400:
        parts.append(f"for {max(days, 0) / 3600:.0f} h at most")
    return "; ".join(parts)


def cheapest_first(offers: Sequence[Offer]) -> list[Offer]:
    """Each offer once, by price."""
    unique = {offer.id: offer for offer in offers}
    return sorted(unique.values(), key=lambda offer: (offer.price_hour, offer.id))


def is_same(row: Row, offer: Offer) -> bool:
    """Whether a row is still what was offered: the same card, as many of them."""
    count = row.get("num_gpus")
    return count == offer.gpu_count and (not count or gpu_name(row) == offer.gpu)
