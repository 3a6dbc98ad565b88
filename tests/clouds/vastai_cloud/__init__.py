"""An emulated Vast.ai: `VastCloud`. See contracts/vastai.md for what it emulates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from tests.clouds.vastai_cloud.cloud import VastCloud
from tests.clouds.vastai_cloud.contract import Contract
from tests.clouds.vastai_cloud.market import Host
from tests.clouds.vastai_cloud.switches import Switches, Times

__all__ = [
    "Contract",
    "Host",
    "Switches",
    "Times",
    "VastCloud",
    "by_hand",
    "main_settings",
    "usual_hosts",
]


@contextlib.contextmanager
def by_hand(folder: Path, *, machines: bool) -> Iterator[VastCloud]:
    """One for trying things out: a small market, credit, the documented limits."""
    folder.mkdir(parents=True, exist_ok=True)
    with VastCloud(machines=folder if machines else None) as cloud:
        cloud.contracts.hosts = usual_hosts()
        cloud.contracts.credit = Decimal(100)
        cloud.switches.pacing = 1
        yield cloud


def main_settings(cloud: VastCloud) -> dict[str, str]:
    """The environment that leads gpuctl, and the vastai command, to this cloud."""
    return {"VAST_URL": cloud.url, "VAST_API_KEY": cloud.key}


def usual_hosts() -> list[Host]:
    """A small market: several cards, slices of one host, 40 and 80 GB, a host nobody verified."""
    a100 = "NVIDIA A100-SXM4-{}GB"
    return [
        Host(101),
        Host(102, price=Decimal("0.44"), geolocation="Texas, US", reliability=0.97),
        Host(103, gpus=4, price=Decimal("0.36"), min_bid=Decimal("0.15"), cpu_cores=128),
        Host(104, price=Decimal("0.11"), verification="unverified", geolocation=None),
        Host(
            105,
            "A100 SXM4",
            a100.format(40),
            40960,
            gpus=2,
            price=Decimal("0.80"),
            min_bid=Decimal("0.45"),
            compute_capability="8.0",
        ),
        Host(
            106,
            "A100 SXM4",
            a100.format(80),
            81920,
            price=Decimal("1.10"),
            min_bid=Decimal("0.60"),
            compute_capability="8.0",
        ),
        Host(
            107,
            "H100 SXM",
            "NVIDIA H100 80GB HBM3",
            81559,
            gpus=4,
            price=Decimal("1.7333333"),
            min_bid=Decimal("1.7333333"),
            storage_cost=Decimal("0.2"),
            compute_capability="9.0",
        ),
        Host(
            108,
            "RTX 3090",
            "NVIDIA GeForce RTX 3090",
            24576,
            price=Decimal("0.18"),
            min_bid=Decimal("0.08"),
            compute_capability="8.6",
        ),
    ]
