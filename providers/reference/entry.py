"""One price that somebody published."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Literal

Unit = Literal["USD/hour", "EUR/hour", "USD/month"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A dated price for one thing, or a claim about one that turned out to be false."""

    system: str  # provider or other system: aws, runpod, azure, colab, ...
    name: str  # the system's own name for it where there is one
    gpu: str | None  # canonical; None = no GPU, or none that the plan names
    gpu_count: int
    spot: bool
    price: Decimal | None  # whole machine, before tax; the upper end of a range; None = unknown
    unit: Unit
    as_of: date  # the first day of the time that the source names
    source: str
    low: Decimal | None = None  # where the source gives a range
    high: Decimal | None = None
    dated: str = ""  # how the source gives the date where that is not a day
    region: str = ""  # "" = the source names none
    vcpus: float | None = None
    ram_gb: float | None = None  # 10^9 bytes
    disk_gb: float | None = None  # a disk whose size cannot be chosen; None = it can
    storage_included: bool = False  # the price pays for the disk too
    per_gpu: bool = False  # the price is for one GPU, and machines with up to 8 are sold
    product: str = ""  # what a newer price must share to supersede this one; "" = the name
    retracted: str | None = None  # why the claim is false; then it never becomes an offer
    not_hourly: str | None = None  # why it cannot be rented by the hour at this price
    note: str = ""
    superseded_by: str | None = None  # date and price of the newer one; filled in by `entries`

    @property
    def key(self) -> tuple[str, str, str, bool, str]:
        """What two entries share when the newer one counts."""
        return (self.system, self.product or self.name, self.region, self.spot, self.unit)

    @property
    def id(self) -> str:
        """The id of the offer made from it; stable."""
        market = "spot" if self.spot else "on-demand"
        return f"ref:{self.system}:{self.name}:{self.region or 'any'}:{market}"
