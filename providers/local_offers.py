"""Which rows this computer makes in a list of offers. Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from providers import gpus
from providers.base import InvalidRequest, Offer, Want
from providers.nvidia_smi import Gpu

_ID = re.compile(r"^local:(?:cpu|(?P<count>[1-9][0-9]*)x(?P<gpu>[^\s:]+))(?::spot)?$")


def offer_id(gpu: str | None, count: int, *, spot: bool) -> str:
    """Return ``local:cpu``, ``local:2xRTX-4090`` and the like."""
    return f"local:{f'{count}x{gpu}' if gpu else 'cpu'}{':spot' if spot else ''}"


def read_offer_id(text: str) -> tuple[int, str | None]:
    """Return how many of which GPU an offer's id means; (0, None) for none.

    Raises:
        InvalidRequest: it is no offer of this provider.
    """
    found = _ID.match(text)
    if not found:
        raise InvalidRequest(f"{text!r} is no offer of the local provider.")
    return int(found["count"] or 0), found["gpu"]


def rows(want: Want, computer: Offer, cards: Sequence[Gpu]) -> list[Offer]:
    """Return what of this computer fits the want.

    Args:
        want: what is asked for.
        computer: all that is true of the computer, without id and GPU.
        cards: its GPUs; () when none is asked for.
    """
    if not _fits(want, computer):
        return []
    if not want.gpus:
        return [replace(computer, id=offer_id(None, 0, spot=computer.spot))]
    selectors = [gpus.parse_selector(text) for text in want.gpus]
    found = []
    for card, number in Counter((card.name, card.vram_gb) for card in cards).items():
        name, vram = card
        count = want.gpu_count or number
        if (
            number >= count
            and vram >= (want.min_vram_gb or 0)
            and any(selector.matches(name, vram) for selector in selectors)
        ):
            row_id = offer_id(name, count, spot=computer.spot)
            found.append(replace(computer, id=row_id, gpu=name, gpu_count=count, vram_gb=vram))
    return found


def _fits(want: Want, computer: Offer) -> bool:
    return (
        (computer.vcpus or 0) >= (want.cpus or 0)
        and (computer.ram_gb or 0) >= (want.memory_gb or 0)
        and (computer.disk_gb or 0) >= want.disk_gb
        and (not want.regions or computer.region in want.regions)
        and (want.max_price_hour is None or computer.price_hour <= want.max_price_hour)
    )
