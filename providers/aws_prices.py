"""What EC2 costs now: spot per zone, on-demand per region, disks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

from providers.aws_client import Aws
from providers.aws_errors import said
from providers.aws_notes import Notes

LINUX = "Linux/UNIX"
HOURS_A_MONTH = 730
ADDRESS_HOUR = Decimal("0.005")
"""USD an hour for a public IPv4 address, since February 2024, everywhere."""
PRICES_KEPT = timedelta(hours=12)
_GP3_WITHOUT_LIST = Decimal("0.10")  # more than in most regions: rather a cent too much
_PAGE = 100
_FILTER_MAX = 1000  # characters of a filter's value
_ON_DEMAND = {
    "serviceCode": "AmazonEC2",
    "preInstalledSw": "NA",
    "operatingSystem": "Linux",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
    "tenancy": "Shared",
    "productFamily": "Compute Instance",
}


def spot_prices(
    aws: Aws, region: str, types: Sequence[str], now: datetime
) -> dict[tuple[str, str], Decimal]:
    """Return (type, zone) -> USD an hour of every pool that is sold. Raises ProviderError."""
    found: dict[tuple[str, str], tuple[datetime, Decimal]] = {}
    if not types:
        return {}
    with said(f"AWS did not tell the spot prices in {region}"):
        pages = aws.ec2(region).get_paginator("describe_spot_price_history")
        rows: Iterable[Mapping[str, Any]] = (
            row
            for page in pages.paginate(
                InstanceTypes=list(types), ProductDescriptions=[LINUX], StartTime=now
            )
            for row in page["SpotPriceHistory"]
        )
        for row in rows:
            price = usd(row["SpotPrice"])
            pool = (str(row["InstanceType"]), str(row["AvailabilityZone"]))
            if price is not None and (pool not in found or row["Timestamp"] > found[pool][0]):
                found[pool] = (row["Timestamp"], price)
    return {pool: price for pool, (_, price) in found.items()}


def on_demand_prices(
    aws: Aws, notes: Notes, region: str, types: Sequence[str], *, fresh: bool = False
) -> dict[str, tuple[datetime, Decimal]]:
    """Return type -> (as of, USD an hour) of what is sold in a region. Raises ProviderError.

    Args:
        fresh: ask again, whatever is remembered.
    """
    kept = timedelta(0) if fresh else PRICES_KEPT
    known = {name: notes.get("prices", f"{region} {name}", kept) for name in types}
    missing = [name for name in types if known[name] is None or fresh]
    if missing:
        asked = dict.fromkeys(missing) | _ask_list(aws, region, missing)
        # What a list of types did not bring is asked for one by one, once.
        left = [name for name in missing if asked[name] is None]
        if len(missing) > 1:
            for found in aws.each(lambda one: _ask_list(aws, region, [one]), left):
                asked |= found
        texts = {f"{region} {name}": str(p) if p else None for name, p in asked.items()}
        when = notes.put("prices", texts)
        known |= {name: (when, texts[f"{region} {name}"]) for name in missing}
    return {
        name: (entry[0], Decimal(entry[1]))
        for name, entry in known.items()
        if entry is not None and entry[1] is not None
    }


def disk_month(aws: Aws, notes: Notes, region: str) -> Decimal:
    """Return USD a month for a GB of gp3. Raises ProviderError."""
    if known := notes.get("prices", f"{region} gp3", PRICES_KEPT):
        return Decimal(known[1])
    wanted = {"volumeApiName": "gp3", "productFamily": "Storage", "regionCode": region}
    prices = [price for _, price in _rows(aws, region, wanted)]
    price = min(prices, default=_GP3_WITHOUT_LIST)
    notes.put("prices", {f"{region} gp3": str(price)})
    return price


def beside_hour(disk_gb: float, month: Decimal) -> Decimal:
    """Return USD an hour of what a machine needs besides: its disk and its address."""
    return Decimal(str(disk_gb)) * month / HOURS_A_MONTH + ADDRESS_HOUR


def _ask_list(aws: Aws, region: str, types: Sequence[str]) -> dict[str, Decimal | None]:
    found: dict[str, Decimal | None] = {}
    for part in _parts(types):
        several = "ANY_OF" if len(part) > 1 else "TERM_MATCH"
        wanted = {**_ON_DEMAND, "regionCode": region, "instanceType": ",".join(part)}
        for name, price in _rows(aws, region, wanted, {"instanceType": several}):
            found[name] = min(price, found.get(name) or price)
    return found


def _parts(types: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for name in types:
        if len(",".join([*parts[-1], name])) > _FILTER_MAX:
            parts.append([])
        parts[-1].append(name)
    return parts


def _rows(
    aws: Aws, region: str, wanted: Mapping[str, str], kinds: Mapping[str, str] | None = None
) -> list[tuple[str, Decimal]]:
    filters = [
        {"Type": (kinds or {}).get(field, "TERM_MATCH"), "Field": field, "Value": value}
        for field, value in wanted.items()
    ]
    with said(f"AWS did not tell the prices of {region}"):
        pages = aws.pricing(region).get_paginator("get_products")
        texts = [
            text
            for page in pages.paginate(ServiceCode="AmazonEC2", Filters=filters, MaxResults=_PAGE)
            for text in page["PriceList"]
        ]
    return [row for text in texts for row in read_product(text)]


def read_product(text: str) -> list[tuple[str, Decimal]]:
    """Read a row of the price list: (instance type or "", USD) for each price above zero."""
    try:
        row = json.loads(text)
        name = str(row["product"]["attributes"].get("instanceType", ""))
        dimensions = [
            dimension
            for term in row["terms"]["OnDemand"].values()
            for dimension in term["priceDimensions"].values()
        ]
        prices = [usd(dimension["pricePerUnit"].get("USD")) for dimension in dimensions]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return [(name, price) for price in prices if price]


def usd(text: object) -> Decimal | None:
    """Read a price; None for what is none, or below zero."""
    try:
        price = Decimal(str(text))
    except InvalidOperation:
        return None
    return price if price.is_finite() and price >= 0 else None
