"""Hetzner Cloud's machines. None has a GPU.

Source: Hetzner's price feed of 2026-09-29, Europe, before tax, without IPv4. The hourly price is
the monthly one divided by 624, which fits every published pair; a primary IPv4 is 0.0008 EUR an
hour on top. Prices moved four times in 2026.
"""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from providers.reference.entry import Entry

BILL_STEP_SECONDS = 3600
"""Every started hour is charged (docs.hetzner.com, Cloud billing FAQ)."""

_IPV4_HOUR = Decimal("0.0008")
_HOURS_A_MONTH = 624

# type, vCPUs, RAM in GB, disk in GB, EUR a month
_TYPES = """
cx23 2 4 40 5.49
cx33 4 8 80 8.49
cx43 8 16 160 15.99
cx53 16 32 320 29.49
cax11 2 4 40 5.99
cax21 4 8 80 10.49
cax31 8 16 160 20.99
cax41 16 32 320 40.99
cpx12 1 2 40 11.49
cpx22 2 4 80 19.49
cpx32 4 8 160 35.49
cpx42 8 16 320 69.49
cpx52 12 24 480 100.49
cpx62 16 32 640 129.99
ccx13 2 8 80 42.99
ccx23 4 16 160 85.99
ccx33 8 32 240 138.49
ccx43 16 64 360 275.99
ccx53 32 128 600 533.49
ccx63 48 192 960 853.49
"""


def _entry(row: str) -> Entry:
    name, vcpus, ram, disk, month = row.split()
    hour = (Decimal(month) / _HOURS_A_MONTH).quantize(Decimal("0.0001")) + _IPV4_HOUR
    return Entry(
        system="hetzner",
        name=name,
        gpu=None,
        gpu_count=0,
        spot=False,
        price=hour,
        unit="EUR/hour",
        as_of=date(2026, 9, 29),
        source="Hetzner's price feed, net, with IPv4",
        region="eu",
        vcpus=float(vcpus),
        ram_gb=float(ram),
        disk_gb=float(disk),
        storage_included=True,
        note="every started hour is charged"
        + ("; its CPU is arm64" if name.startswith("cax") else ""),
    )


HETZNER_CLOUD: tuple[Entry, ...] = tuple(_entry(row) for row in _TYPES.split("\n") if row)
