"""From entries to offers: the newest of each, never a retracted one, always labelled."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, time
from decimal import Decimal
from functools import cache

from providers.base import Offer, Want
from providers.gpus import find
from providers.matching import satisfies
from providers.reference.ec2 import EC2, EGRESS_GB
from providers.reference.entry import Entry
from providers.reference.exchange import Rate, eur_usd
from providers.reference.hetzner_cloud import BILL_STEP_SECONDS, HETZNER_CLOUD
from providers.reference.prices import FOUND_ONE_BY_ONE

_MOST_GPUS = 8  # of a machine whose price is per GPU
_MICRO = Decimal("0.000001")


@cache
def entries() -> tuple[Entry, ...]:
    """Every price on record, the old and the retracted too; newest first within a product."""
    known = sorted(
        (*FOUND_ONE_BY_ONE, *EC2, *HETZNER_CLOUD), key=lambda entry: entry.as_of, reverse=True
    )
    newest: dict[tuple[str, str, str, bool, str], Entry] = {}
    marked = []
    for entry in known:
        newer = newest.get(entry.key)
        if newer is not None:
            entry = replace(entry, superseded_by=f"{newer.price} as of {newer.as_of}")
        elif entry.retracted is None and entry.price is not None:
            newest[entry.key] = entry
        marked.append(entry)
    return tuple(sorted(marked, key=lambda entry: (entry.system, entry.product or entry.name)))


def current_entries() -> tuple[Entry, ...]:
    """The entries that count and can be rented by the hour."""
    return tuple(
        entry
        for entry in entries()
        if entry.price is not None
        and entry.superseded_by is None
        and entry.retracted is None
        and entry.not_hourly is None
    )


def plans() -> tuple[Entry, ...]:
    """What is sold by the month."""
    return tuple(entry for entry in entries() if entry.unit == "USD/month")


def reference_offers(
    want: Want,
    *,
    provider: str | None = None,
    now: datetime,
    environ: Mapping[str, str] = os.environ,
) -> list[Offer]:
    """Return what matches ``want`` at reference prices, cheapest first.

    Args:
        want: a price without a region matches no region that is asked for.
        provider: one system's only; of any system else.
        now: for the age in each note.
        environ: for GPUCTL_EUR_USD.

    Raises:
        UnknownGpu: ``want`` names a GPU that does not exist.
        InvalidRequest: GPUCTL_EUR_USD is malformed.
    """
    rate = eur_usd(environ)
    made = (
        _offer(entry, _count(entry, want), rate, now)
        for entry in current_entries()
        if provider in (None, entry.system)
    )
    return sorted(
        (offer for offer in made if satisfies(offer, want)),
        key=lambda offer: (offer.price_hour, offer.id),
    )


def _count(entry: Entry, want: Want) -> int:
    """GPUs of the machine to offer: where a price is for one GPU, as many as wanted."""
    if entry.per_gpu and want.gpus and 1 <= want.gpu_count <= _MOST_GPUS:
        return want.gpu_count
    return entry.gpu_count


def _offer(entry: Entry, count: int, rate: Rate, now: datetime) -> Offer:
    if entry.price is None:
        raise ValueError(f"{entry.id} has no price and cannot be offered")
    price = entry.price * count if entry.per_gpu else entry.price
    in_euros = entry.unit == "EUR/hour"
    return Offer(
        provider=entry.system,
        id=entry.id,
        gpu=entry.gpu,
        gpu_count=count,
        vram_gb=find(entry.gpu).vram_gb if entry.gpu else None,
        spot=entry.spot,
        price_hour=(price * rate.usd).quantize(_MICRO) if in_euros else price,
        region=entry.region or "any",
        vcpus=entry.vcpus,
        ram_gb=entry.ram_gb,
        disk_gb=entry.disk_gb,
        source="reference",
        as_of=datetime.combine(entry.as_of, time(), UTC),
        bill_step_seconds=BILL_STEP_SECONDS if entry.system == "hetzner" else 0,
        gb_out_price=EGRESS_GB if entry.system == "aws" else Decimal(0),
        fx_rate=rate.usd if in_euros else None,
        fx_date=rate.day if in_euros else None,
        note=_note(entry, count, now),
    )


def _note(entry: Entry, count: int, now: datetime) -> str:
    age = max(0, (now.astimezone(UTC).date() - entry.as_of).days)
    said = entry.dated or entry.as_of.isoformat()
    parts = [f"reference price ({said}), {age} days old, from {entry.source}"]
    if entry.low is not None:
        parts.append(f"range {entry.low} to {entry.high}, the upper end counts")
    if entry.per_gpu and count > 1:
        parts.append(f"{count} times the price of one GPU")
    if not entry.storage_included:
        parts.append("disk not included")
    if entry.note:
        parts.append(entry.note)
    return "; ".join(parts)
