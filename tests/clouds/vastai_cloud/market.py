"""The offers: hosts with GPUs in slices, and what a search finds among them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

Row = dict[str, Any]
HOURS_A_MONTH = 720
_DAYS_LISTED = 90


@dataclass
class Host:
    """One physical machine. Prices are for one GPU an hour."""

    id: int
    gpu_name: str = "RTX 4090"
    product: str = "NVIDIA GeForce RTX 4090"  # what nvidia-smi says there
    gpu_ram: int = 24564  # MiB
    gpus: int = 1
    price: Decimal = Decimal("0.40")
    min_bid: Decimal = Decimal("0.20")
    storage_cost: Decimal = Decimal("0.15")  # a GB and month
    inet_down_cost: Decimal = Decimal("0.002")
    inet_up_cost: Decimal = Decimal("0.004")
    cpu_cores: int = 32
    cpu_ram: int = 128902  # MB, all of it
    disk: float = 800.0  # GB free, all of it
    geolocation: str | None = "Sweden, SE"
    verification: str = "verified"
    reliability: float = 0.9951
    datacenter: bool = False
    cuda: float = 12.8
    driver: str = "570.124.06"
    compute_capability: str = "8.9"
    direct_ports: int = 99
    days_left: float = _DAYS_LISTED

    def slices(self) -> list[tuple[int, ...]]:
        """The GPUs of each offer: powers of two, and all of them."""
        sizes = [2**n for n in range(8) if 2**n < self.gpus] + [self.gpus]
        return [
            tuple(range(first, first + size))
            for size in sizes
            for first in range(0, self.gpus - size + 1, size)
        ]


@dataclass(frozen=True)
class Ask:
    """One offer: some GPUs of a host."""

    id: int
    host: Host
    gpu_ids: tuple[int, ...]

    @property
    def share(self) -> float:
        """Of the host."""
        return len(self.gpu_ids) / max(self.host.gpus, 1)


def asks_of(hosts: Iterable[Host]) -> list[Ask]:
    """Every offer of the hosts, under ids that stay."""
    return [
        Ask(host.id * 100 + number, host, gpu_ids)
        for host in hosts
        for number, gpu_ids in enumerate(host.slices())
    ]


def offer_row(ask: Ask, *, now: float, disk: float, floor: Decimal, rented: bool) -> Row:
    """One row of a search, with what the contract says must add up.

    Args:
        disk: GB that the price is for.
        floor: the least bid an hour for the whole offer.
    """
    host, count = ask.host, len(ask.gpu_ids)
    base = float(host.price * count)
    storage = float(host.storage_cost) * disk / HOURS_A_MONTH
    total = base + storage
    dlperf = 100.0 * count
    end = now + host.days_left * 86400
    split = {
        "gpuCostPerHour": base,
        "diskHour": storage,
        "slaPremiumPerHour": 0,
        "totalHour": total,
        "discountTotalHour": 0,
        "discountedTotalPerHour": total,
    }
    return {
        "id": ask.id,
        "ask_contract_id": ask.id,
        "machine_id": host.id,
        "host_id": host.id + 5000,
        "bundle_id": host.id + 9000,
        "gpu_ids": list(ask.gpu_ids),
        "num_gpus": count,
        "gpu_frac": ask.share,
        "gpu_name": host.gpu_name,
        "gpu_arch": "nvidia",
        "gpu_ram": host.gpu_ram,
        "gpu_total_ram": host.gpu_ram * count,
        "dph_base": base,
        "dph_total": total,
        "dph_total_adj": total + 2 * float(host.inet_down_cost),
        "storage_cost": float(host.storage_cost),
        "storage_total_cost": storage,
        "min_bid": float(floor),
        "discounted_dph_total": total,
        "discounted_hourly": 0.0,
        "discount_rate": 0.4,
        "credit_discount_max": 0.4,
        "search": split,
        "instance": {**split, "gpuCostPerHour": 0, "totalHour": storage},
        "inet_up": 900.5,
        "inet_down": 638.4,
        "inet_up_cost": float(host.inet_up_cost),
        "inet_down_cost": float(host.inet_down_cost),
        "internet_up_cost_per_tb": float(host.inet_up_cost) * 1024,
        "internet_down_cost_per_tb": float(host.inet_down_cost) * 1024,
        "cpu_cores": host.cpu_cores,
        "cpu_cores_effective": host.cpu_cores * ask.share,
        "cpu_ram": int(host.cpu_ram * ask.share),
        "cpu_ghz": 3.7,
        "cpu_name": "EPYC 7702",
        "cpu_arch": "amd64",
        "disk_space": host.disk * ask.share,
        "disk_bw": 2400.0,
        "disk_name": "",
        "dlperf": dlperf,
        "dlperf_per_dphtotal": dlperf / total if total else 0.0,
        "total_flops": 82.0 * count,
        "flops_per_dphtotal": 82.0 * count / total if total else 0.0,
        "vram_costperhour": base / (host.gpu_ram / 1024) if host.gpu_ram else 0.0,
        "score": 400.0 + dlperf / total if total else 0.0,
        "reliability": host.reliability,
        "reliability2": host.reliability,
        "reliability_mult": 1.0,
        "expected_reliability": host.reliability,
        "verification": host.verification,
        "vericode": int(host.verification == "verified"),
        "hosting_type": int(host.datacenter),
        "geolocation": host.geolocation,
        "geolocode": 36345,
        "duration": end - now,
        "start_date": now - 86400,
        "end_date": end,
        "static_ip": host.datacenter,
        "direct_port_count": int(host.direct_ports * ask.share),
        "public_ipaddr": "127.0.0.1",
        "hostname": None,
        "cuda_max_good": host.cuda,
        "driver_version": host.driver,
        "driver_vers": _driver_number(host.driver),
        "compute_cap": int(float(host.compute_capability) * 100),
        "rentable": not rented,
        "rented": rented,
        "is_bid": False,
        "external": False,
        "vms_enabled": False,
        "resource_type": "gpu",
        "gpu_lanes": 16,
        "gpu_mem_bw": 1008.0,
        "gpu_max_power": 450.0,
        "gpu_max_temp": 90.0,
        "gpu_display_active": False,
        "bw_nvlink": 0.0,
        "pci_gen": 4.0,
        "pcie_bw": 24.5,
        "has_avx": 1,
        "mobo_name": "ROMED8-2T",
        "os_version": "22.04",
        "time_remaining": "",
        "time_remaining_isbid": "",
        "cluster_id": None,
        "logo": "/static/logos/vastai_small2.png",
        "webpage": None,
    }


def _driver_number(version: str) -> int:
    first, second, third = (int(part) for part in version.split("."))
    return first * 10**6 + second * 10**3 + third


# ---------------------------------------------------------------------------- searching

_CONTROL = frozenset(
    {
        *("order", "type", "limit", "allocated_storage", "disable_bundling", "template_id"),
        *("target_reliability", "extra_ids", "has_avx", "gpu_option", "show_incompatible"),
        "sort_option",
    }
)
_ALIASES = {
    "reliability2": "reliability",
    "dphtotal": "dph_total",
    "gpu_totalram": "gpu_total_ram",
    "driver_version": "driver_vers",
    "ubuntu_version": "os_version",
}
_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "gt": operator.gt,
    "lt": operator.lt,
    "gte": operator.ge,
    "lte": operator.le,
    "in": lambda have, want: have in want,
    "notin": lambda have, want: have not in want,
    "nin": lambda have, want: have not in want,
}


class BadQuery(ValueError):
    """Not a search that the server understands."""


def found(
    rows: Iterable[Row], query: Mapping[str, Any], *, defaults: bool, ignored: frozenset[str]
) -> list[Row]:
    """The rows that a search finds, in its order, before any limit."""
    filters = {k: v for k, v in query.items() if k not in _CONTROL}
    if defaults:
        filters = {
            "verified": {"eq": True},
            "rentable": {"eq": True},
            "rented": {"eq": False},
            **filters,
        }
    chosen = [row for row in rows if _passes(row, filters, ignored)]
    order = query.get("order") or [["score", "desc"]]
    for column, direction in reversed([(str(o[0]), str(o[1])) for o in order]):
        known = _ALIASES.get(column, column)
        chosen.sort(key=lambda row: (row.get(known) is None, row.get(known) or 0))
        if direction == "desc":
            chosen.reverse()
    return chosen


def _passes(row: Row, filters: Mapping[str, Any], ignored: frozenset[str]) -> bool:
    for column, tests in filters.items():
        if column in ignored or (column == "rented" and isinstance(tests, dict) and tests["eq"]):
            continue  # rented = true means: also where I rent already
        if isinstance(tests, bool):
            tests = {"eq": tests}
        if not isinstance(tests, dict):
            raise BadQuery(column)
        have = _value(row, column)
        for name, want in tests.items():
            if name not in _OPERATORS:
                raise BadQuery(f"{column} {name}")
            if not _compare(name, have, want):
                return False
    return True


def _value(row: Row, column: str) -> Any:
    known = _ALIASES.get(column, column)
    if known == "id":
        return None  # a filter by it matches nothing; ask_contract_id does
    if known == "verified":
        return bool(row["vericode"])
    if known == "datacenter":
        return bool(row["hosting_type"])
    if known == "geolocation":
        return (row["geolocation"] or "").rpartition(", ")[2]
    if known.endswith("_GB"):
        return row[known.removesuffix("_GB")] / 1000
    return row.get(known)


def _compare(name: str, have: Any, want: Any) -> bool:
    """Numbers arrive as texts from the official client."""
    if isinstance(want, list):
        return bool(_OPERATORS[name](have, [_like(have, one) for one in want]))
    want = _like(have, want)
    if have is None:
        return want is None if name == "eq" else name == "neq" and want is not None
    try:
        return bool(_OPERATORS[name](have, want))
    except TypeError:
        return False


def _like(have: Any, want: Any) -> Any:
    if isinstance(have, bool):
        return want in (True, 1, "true", "True", "1") if isinstance(want, str | int) else want
    if isinstance(have, int | float) and isinstance(want, str):
        try:
            return float(want)
        except ValueError:
            return want
    return want
