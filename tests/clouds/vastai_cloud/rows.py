"""An instance as the API shows it."""

from __future__ import annotations

from typing import Any

from tests.clouds.vastai_cloud.contract import Contract
from tests.clouds.vastai_cloud.market import offer_row
from tests.clouds.vastai_cloud.switches import Switches

_NOBODY = 1  # a port where nothing listens


def instance_row(contract: Contract, switches: Switches, *, now: float) -> dict[str, Any]:
    """One instance, with all columns."""
    ask = contract.ask
    offered = offer_row(ask, now=now, disk=contract.disk, floor=ask.host.min_bid, rented=True)
    base, storage = float(contract.base), float(contract.storage)
    split = {**offered["search"], "gpuCostPerHour": base, "totalHour": base + storage}
    running = contract.cur == "running"
    row = {
        **{name: value for name, value in offered.items() if name not in _OFFER_ONLY},
        **_where(contract, switches),
        "id": contract.id,
        "label": contract.label,
        "actual_status": contract.actual,
        "intended_status": contract.intended,
        "cur_state": contract.cur,
        "next_state": contract.next,
        "status_msg": contract.status_msg,
        "template_id": None,
        "template_hash_id": contract.body.get("template_hash_id"),
        "template_name": None,
        "image_uuid": contract.body.get("image") or "",
        "image_args": contract.body.get("args") or [],
        "image_runtype": "ssh " + str(contract.body.get("runtype") or "ssh_proxy"),
        "extra_env": [[str(k), str(v)] for k, v in _env(contract).items()],
        "onstart": contract.body.get("onstart") or "",
        "jupyter_token": "0" * 64,
        "start_date": contract.created.timestamp(),
        "end_date": contract.end_date,
        "duration": contract.end_date - now,
        "uptime_mins": None,
        "cpu_util": 0.0,
        "mem_limit": None,
        "mem_usage": None,
        "vmem_usage": None,
        "gpu_totalram": offered["gpu_total_ram"],
        "gpu_util": 0.0 if contract.actual == "running" else None,
        "gpu_temp": 38.0 if contract.actual == "running" else None,
        "disk_space": contract.disk,
        "disk_usage": -1.0,
        "disk_util": -1.0,
        "dph_base": base,
        "dph_total": base + storage,
        "min_bid": float(ask.host.min_bid * len(ask.gpu_ids)),
        "is_bid": contract.bid is not None,
        "storage_total_cost": storage,
        "search": split,
        "instance": split if running else _stopped(split, float(contract.rate)),
        "credit_balance": None,
        "credit_discount": None,
        "time_remaining": "12 Mon 24 D 16 Hr",
        "time_remaining_isbid": "",
        "country_code": (ask.host.geolocation or "").rpartition(", ")[2],
        "volume_info": [],
        "webpage": None,
        "rentable": False,
    }
    return {name: None if name in switches.odd_rows else value for name, value in row.items()}


_OFFER_ONLY = {
    *("ask_contract_id", "rented", "gpu_ids", "gpu_total_ram"),
    *("dph_total_adj", "discounted_dph_total"),
}


def _stopped(split: dict[str, Any], storage: float) -> dict[str, Any]:
    """What a stopped one costs now: its disk alone."""
    return {**split, "gpuCostPerHour": 0, "diskHour": storage, "totalHour": storage}


def _env(contract: Contract) -> dict[str, Any]:
    given = contract.body.get("env")
    return given if isinstance(given, dict) else {}


def _where(contract: Contract, switches: Switches) -> dict[str, Any]:
    """How to reach it, directly and through the proxy."""
    machine, proxy = contract.machine, contract.proxy
    real = machine is not None and machine.alive
    ssh_port = proxy.port if proxy else 10000 + contract.id % 50000
    direct = str(machine.port) if real and machine is not None else str(20000 + contract.id % 9999)
    if not switches.direct_works:
        direct = str(_NOBODY)
    if not switches.proxy_works:
        ssh_port = _NOBODY
    host = "127.0.0.1" if real else "203.0.113.7"
    return {
        "ssh_host": "127.0.0.1" if real else "ssh4.vast.ai",
        "ssh_idx": "4",
        "ssh_port": ssh_port,
        "machine_dir_ssh_port": ssh_port,
        "public_ipaddr": f"{host} \n",
        "local_ipaddrs": "10.2.202.31 172.17.0.1 \n",
        "ports": _ports(contract, direct) if contract.ports else None,
        "direct_port_start": -1,
        "direct_port_end": -1,
    }


def _ports(contract: Contract, direct: str) -> dict[str, list[dict[str, str]]]:
    inside = {"22/tcp"} | {
        f"{key.split(':')[-1]}/tcp" for key in _env(contract) if str(key).startswith("-p ")
    }
    return {name: [{"HostIp": "0.0.0.0", "HostPort": direct}] for name in sorted(inside)}  # noqa: S104
