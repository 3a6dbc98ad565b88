"""What the emulated EC2 sells: prices that move, capacity that runs out, quotas, scores."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from providers.reference.ec2 import EC2

LINUX = "Linux/UNIX"
SPOT, ON_DEMAND = "spot", "on-demand"
_CPU_HOUR = {"c": "0.044625", "m": "0.0504", "r": "0.06615", "t": "0.0416"}  # a vCPU
_CPU_COUNT = {"nano": 2, "micro": 2, "small": 2, "medium": 2, "large": 2, "xlarge": 4}
_SPOT_PART = Decimal("0.4")
GP3_MONTH = Decimal("0.08")  # USD for a GB
ADDRESS_HOUR = Decimal("0.005")
_SCORED_AT_MOST = 10
_DAY = timedelta(hours=24)

QUOTAS = {  # code -> (name, default of the emulation)
    "L-3819A6DF": ("All G and VT Spot Instance Requests", 256.0),
    "L-DB2E81BA": ("Running On-Demand G and VT instances", 256.0),
    "L-7212CCBC": ("All P4, P3 and P2 Spot Instance Requests", 384.0),
    "L-C4BD4855": ("All P5 Spot Instance Requests", 384.0),
    "L-417A185B": ("Running On-Demand P instances", 384.0),
    "L-34B43A08": ("All Standard (A, C, D, H, I, M, R, T, Z) Spot Instance Requests", 9999.0),
    "L-1216C47A": ("Running On-Demand Standard (A, C, D, H, I, M, R, T, Z) instances", 9999.0),
}


def quota_code(type_name: str, market: str) -> str:
    """The quota that a machine counts against."""
    spot = market == SPOT
    if type_name.startswith(("g", "vt")):
        return "L-3819A6DF" if spot else "L-DB2E81BA"
    if type_name.startswith(("p5", "p6")):
        return "L-C4BD4855" if spot else "L-417A185B"
    if type_name.startswith("p"):
        return "L-7212CCBC" if spot else "L-417A185B"
    return "L-34B43A08" if spot else "L-1216C47A"


@dataclass
class Market:
    """Switches that tests turn.

    Attributes:
        on_demand: type -> USD an hour, in every region; what is missing has a default.
        spot: (type, zone) -> changes of its price as (when, price), in order of time. An empty
            list: not sold as spot there. What is missing is two fifths of on-demand.
        capacity: (type, zone or "*", market) -> how many are left. What is missing is unlimited.
        quotas: (region, code) -> vCPUs.
        scores: zone id -> placement score.
        score_limit: configurations that placement scores may be asked for within a day; one that
            was asked for already may be asked for again.
    """

    on_demand: dict[str, Decimal | None] = field(default_factory=dict)
    spot: dict[tuple[str, str], list[tuple[datetime, Decimal]]] = field(default_factory=dict)
    capacity: dict[tuple[str, str, str], int] = field(default_factory=dict)
    quotas: dict[tuple[str, str], float] = field(default_factory=dict)
    scores: dict[str, int] = field(default_factory=dict)
    score_limit: int | None = None
    scored: dict[tuple[str, ...], datetime] = field(default_factory=dict)

    def on_demand_price(self, type_name: str) -> Decimal | None:
        """USD an hour; None where it is not sold."""
        if type_name in self.on_demand:
            return self.on_demand[type_name]
        if type_name in _GPU_PRICES:
            return _GPU_PRICES[type_name]
        family, _, size = type_name.partition(".")
        number = size.removesuffix("xlarge")
        count = _CPU_COUNT.get(size) or (4 * int(number) if number.isdecimal() else 0)
        if family[:1] not in _CPU_HOUR or "metal" in size or not count:
            return None
        return Decimal(_CPU_HOUR[family[0]]) * count

    def spot_changes(self, type_name: str, zone: str) -> list[tuple[datetime, Decimal]]:
        """Every change of a pool's price, in order; the first one is as old as the world."""
        if (type_name, zone) in self.spot:
            return self.spot[type_name, zone]
        price = self.on_demand_price(type_name)
        if price is None:
            return []
        nudge = Decimal(sum(zone.encode()) % 7) / 100  # zones differ, always the same way
        return [(_BEGINNING, (price * (_SPOT_PART + nudge)).quantize(Decimal("0.0001")))]

    def spot_price(self, type_name: str, zone: str, now: datetime) -> Decimal | None:
        """The price in force."""
        changes = [price for when, price in self.spot_changes(type_name, zone) if when <= now]
        return changes[-1] if changes else None

    def take(self, type_name: str, zone: str, market: str) -> bool:
        """Take one from a pool; False when it is empty."""
        for place in (zone, "*"):
            key = (type_name, place, market)
            if key in self.capacity:
                if self.capacity[key] <= 0:
                    return False
                self.capacity[key] -= 1
        return True

    def give_back(self, type_name: str, zone: str, market: str, count: int) -> None:
        """Put back what was taken for a launch that came to nothing."""
        for place in (zone, "*"):
            if (type_name, place, market) in self.capacity:
                self.capacity[type_name, place, market] += count

    def may_score(self, asked_for: tuple[str, ...], now: datetime) -> bool:
        """Whether placement scores may be asked for; notes that they were."""
        self.scored = {k: when for k, when in self.scored.items() if now - when < _DAY}
        if asked_for not in self.scored and len(self.scored) == self.score_limit:
            return False
        self.scored.setdefault(asked_for, now)
        return True

    def quota(self, region: str, code: str) -> float:
        """VCPUs that an account may have."""
        return self.quotas.get((region, code), QUOTAS[code][1])

    def placement_scores(self, zones: dict[str, str], types: list[str]) -> list[dict[str, Any]]:
        """Scores of zone ids (id -> region); low for fewer than three types."""
        rows = [
            {
                "region": region,
                "availabilityZoneId": zone,
                "score": self.scores.get(zone, 7) if len(types) >= 3 else 1,
            }
            for zone, region in zones.items()
        ]
        return sorted(rows, key=lambda row: -int(str(row["score"])))[:_SCORED_AT_MOST]

    def products(self, wanted: dict[str, list[str]], types: list[str]) -> list[str]:
        """What GetProducts answers: JSON texts of every row that the filters leave.

        There are many more rows than the one that anybody means: of other systems and tenancies,
        with software, for reserved capacity, and some that cost nothing.
        """
        region = wanted["regionCode"][0]
        if wanted.get("productFamily") == ["Storage"]:
            facts = {"regionCode": region, "volumeApiName": "gp3"}
            return [_product("Storage", facts, GP3_MONTH, "GB-Mo")]
        found = []
        for name in wanted.get("instanceType", types):
            price = self.on_demand_price(name)
            for change, factor in _ROWS if price is not None else ():
                facts = {**_PLAIN, "regionCode": region, "instanceType": name, **change}
                known = {**facts, "productFamily": "Compute Instance", "serviceCode": "AmazonEC2"}
                if all(known.get(key, "") in values for key, values in wanted.items()):
                    assert price is not None
                    found.append(_product("Compute Instance", facts, price * factor, "Hrs"))
        return found


_PLAIN = {
    "operatingSystem": "Linux",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
    "tenancy": "Shared",
}
_ROWS: tuple[tuple[dict[str, str], Decimal], ...] = (  # what differs, and how much it costs more
    ({}, Decimal(0)),
    ({}, Decimal(1)),
    ({"operatingSystem": "Windows"}, Decimal("1.5")),
    ({"operatingSystem": "RHEL"}, Decimal("1.1")),
    ({"preInstalledSw": "SQL Std"}, Decimal("2.1")),
    ({"tenancy": "Dedicated"}, Decimal("1.06")),
    ({"tenancy": "Host"}, Decimal(0)),
    ({"capacitystatus": "UnusedCapacityReservation"}, Decimal("0.9")),
    ({"capacitystatus": "AllocatedCapacityReservation"}, Decimal(0)),
    ({"marketoption": "CapacityBlock"}, Decimal("0.5")),
)
_GPU_PRICES = {entry.name: entry.price for entry in EC2}
_BEGINNING = datetime.fromisoformat("2020-01-01T00:00:00+00:00")


def _product(family: str, attributes: dict[str, str], price: Decimal, unit: str) -> str:
    dimension = {"unit": unit, "pricePerUnit": {"USD": f"{price:.10f}"}}
    terms = {"OnDemand": {"X.JRTC": {"priceDimensions": {"X.JRTC.6YS6": dimension}}}}
    sku = f"SKU{abs(hash((tuple(attributes.items()), price))):x}"
    product = {"sku": sku, "productFamily": family, "attributes": attributes}
    return json.dumps({"product": product, "serviceCode": "AmazonEC2", "terms": terms})
