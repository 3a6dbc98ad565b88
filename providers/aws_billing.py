"""What a machine cost, by AWS's own prices. Pure, but for asking for their history.

AWS tells a bill a day later, and not per machine. It does tell what each spot pool cost when: a
machine is charged, for each hour of its own, the price at which that hour began.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from providers.aws_client import Aws
from providers.aws_errors import said
from providers.aws_machines import tags_of
from providers.aws_prices import LINUX, usd
from providers.base import Clock

SPOT_SOURCE = "computed from AWS's spot price history"
LIST_SOURCE = "computed from AWS's list price"
_HOUR = timedelta(hours=1)
_SOON = timedelta(seconds=10)
_MICRO = Decimal("0.000001")

Changes = Sequence[tuple[datetime, Decimal]]
"""When a pool's price changed, and to what, in order of time."""


@dataclass(frozen=True, slots=True)
class Stay:
    """What counts for the price of one machine."""

    region: str
    spot: bool
    type_name: str
    zone: str
    launched: datetime
    price_hour: Decimal  # USD, the whole machine, when it was launched


def stay_of(row: Mapping[str, Any], region: str) -> Stay | None:
    """Read an instance; None for one whose price nobody noted."""
    price = usd(tags_of(row).get("gpuctl:price"))
    launched = row.get("LaunchTime")
    zone = str((row.get("Placement") or {}).get("AvailabilityZone", ""))
    if price is None or not zone or not isinstance(launched, datetime):
        return None
    spot, kind = row.get("InstanceLifecycle") == "spot", str(row.get("InstanceType", ""))
    return Stay(region, spot, kind, zone, launched.astimezone(UTC), price)


def changes_of(aws: Aws, stay: Stay, until: datetime) -> Changes:
    """Ask how the price of a pool moved. Raises ProviderError."""
    with said(f"AWS did not tell the spot prices of {stay.zone}"):
        pages = aws.ec2(stay.region).get_paginator("describe_spot_price_history")
        rows = [
            row
            for page in pages.paginate(
                InstanceTypes=[stay.type_name],
                AvailabilityZone=stay.zone,
                ProductDescriptions=[LINUX],
                StartTime=stay.launched,
                EndTime=until,
            )
            for row in page["SpotPriceHistory"]
        ]
    found = [(row["Timestamp"], usd(row["SpotPrice"])) for row in rows]
    return sorted((when.astimezone(UTC), price) for when, price in found if price is not None)


class Histories:
    """How the prices of pools moved, asked for once for the machines that end together."""

    def __init__(self, aws: Aws, clock: Clock) -> None:
        self._aws = aws
        self._clock = clock
        self._kept: dict[tuple[str, str, str], tuple[datetime, datetime, Changes]] = {}

    def of(self, stay: Stay, ended: datetime) -> Changes:
        """Return every change of a stay's price, from before it until its end.

        Raises:
            ProviderError: as `changes_of`.
        """
        pool = (stay.region, stay.type_name, stay.zone)
        now = self._clock.now()
        kept = self._kept.get(pool)
        if kept is not None:
            since, asked, changes = kept
            if since <= stay.launched and ended <= asked and now - asked < _SOON:
                return changes
        changes = changes_of(self._aws, stay, now)
        self._kept[pool] = (stay.launched, now, changes)
        return changes


def charged(stay: Stay, changes: Changes, ended: datetime) -> Decimal:
    """Return USD for a stay: what else it needs costs the same all the time. Pure."""
    total = stay.price_hour * _hours(ended - stay.launched)
    first = _price_at(changes, stay.launched)
    begins = stay.launched
    while begins < ended:
        ends = min(begins + _HOUR, ended)
        total += (_price_at(changes, begins) - first) * _hours(ends - begins)
        begins = ends
    return max(total, Decimal(0)).quantize(_MICRO)


def _price_at(changes: Changes, moment: datetime) -> Decimal:
    before = [price for when, price in changes if when <= moment]
    if before:
        return before[-1]
    return changes[0][1] if changes else Decimal(0)


def _hours(span: timedelta) -> Decimal:
    return Decimal(str(max(span.total_seconds(), 0))) / 3600
