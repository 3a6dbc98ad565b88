"""Instances as Vast.ai describes them, read as machines: states, marks, ways in. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from providers.base import Machine, Mark, SelfEnd, SshAccess, State
from providers.gpus import identify

Row = Mapping[str, Any]

STATES: Mapping[str, State] = {
    "created": State.BOOTING,
    "loading": State.BOOTING,
    "rebooting": State.BOOTING,
    "recycling": State.BOOTING,
    "running": State.READY,
    "stopped": State.STOPPED,
    "exited": State.STOPPED,
    "frozen": State.STOPPED,  # paused in memory; even its GPUs are billed
    "unknown": State.LOST,  # no heartbeat
    "offline": State.LOST,
}
"""`actual_status`, all that are documented. Null is an instance that is being provisioned."""

_LONGEST_LABEL = 256
_PORTS_SECONDS = 120.0  # `running` without ports passes, or there will be none
_FAILED = re.compile(
    r"OCI runtime create failed|manifest unknown|pull access denied|unauthorized:|no such image",
    re.IGNORECASE,
)
# A machine is thrown away, so what pip installs may go among its system's packages.
_EVERYWHERE = {"PIP_BREAK_SYSTEM_PACKAGES": "1"}
# Where Vast.ai's own images and PyTorch's have their Python. SSH sessions without a terminal do
# not get the image's PATH.
_PYTHONS = ("/venv/main/bin", "/opt/conda/bin")
_MICRO = Decimal("0.000001")
_NO_PRICE = 1e9


def read_state(status: str) -> State:
    """Read an `actual_status`; one that nobody has seen before is UNKNOWN."""
    return STATES.get(status, State.UNKNOWN)


# ---------------------------------------------------------------------------- marks


def label(name: str, mark: Mark) -> str:
    """Write a machine's name and mark as the label that the cloud keeps."""
    words = [name, f"end={int(mark.end.timestamp())}", f"owner={mark.owner}"]
    if mark.run:
        words.append(f"run={mark.run}")
    if mark.managed_by != "gpuctl":
        words.append(f"by={mark.managed_by}")
    return " ".join(words)[:_LONGEST_LABEL]


def read_label(text: object) -> tuple[str, Mark | None]:
    """Return the name in a label, and the mark; None for the mark of what is not ours."""
    words = text.split() if isinstance(text, str) else []
    facts = dict(word.split("=", 1) for word in words[1:] if "=" in word)
    end = facts.get("end", "")
    if not words or not re.fullmatch(r"\d{1,11}", end) or not facts.get("owner"):
        return (text if isinstance(text, str) else ""), None
    mark = Mark(
        owner=facts["owner"],
        end=datetime.fromtimestamp(int(end), UTC),
        run=facts.get("run"),
        managed_by=facts.get("by", "gpuctl"),
    )
    return words[0], mark


# ---------------------------------------------------------------------------- machines


def machine(row: Row, *, provider: str, now: datetime, port: int, self_end: SelfEnd) -> Machine:
    """Read one instance. A column that is missing or odd costs what it tells, never the row.

    Args:
        port: of sshd inside.
    """
    name, mark = read_label(row.get("label"))
    id = str(row["id"])
    gpu, count = _gpu(row)
    is_bid = row.get("is_bid") is True
    access = _access(row, port)
    state, status = _state(row, access, now)
    return Machine(
        name=name or f"vastai-{id}",
        provider=provider,
        provider_id=id,
        state=state,
        status=status,
        gpu=gpu,
        gpu_count=count,
        spot=is_bid,
        price_hour=_price(row),
        region=region(row),
        access=access,
        mark=mark,
        created_at=_moment(row.get("start_date")),
        # Nobody at our end stops instances: a bid that is stopped was outbid.
        reason="interrupted" if is_bid and state is State.STOPPED else None,
        self_end=self_end,
    )


def _state(row: Row, access: SshAccess | None, now: datetime) -> tuple[State, str]:
    """The state, and the cloud's own word for it.

    `cur_state` is what the contract is in: stopped there, GPUs are not ours whatever the
    container says; the storage bills on.
    """
    actual, current = row.get("actual_status"), row.get("cur_state")
    told = actual if isinstance(actual, str) else "provisioning"
    if current == "unloaded":
        return State.GONE, "unloaded"
    state = State.BOOTING if actual is None else read_state(told)
    if state in (State.LOST, State.UNKNOWN):
        return state, told
    if current == "stopped":
        waits = row.get("next_state") == "running" or row.get("intended_status") == "running"
        return State.STOPPED, f"{told}, waiting for its GPUs" if waits else f"{told}, stopped"
    message = row.get("status_msg")
    if state is State.BOOTING and isinstance(message, str) and _FAILED.search(message):
        return State.LOST, f"{told}: {' '.join(message.split())[:120]}"
    if state is State.READY and (access is None or _ports_may_come(row, now)):
        return State.BOOTING, f"{told}, no ports yet"
    return state, told


def _ports_may_come(row: Row, now: datetime) -> bool:
    started = _moment(row.get("start_date"))
    young = started is not None and (now - started).total_seconds() < _PORTS_SECONDS
    return not row.get("ports") and young


def _gpu(row: Row) -> tuple[str | None, int]:
    count = row.get("num_gpus")
    count = count if isinstance(count, int) and count > 0 else 0
    return (gpu_name(row) or "unknown", count) if count else (None, 0)


def gpu_name(row: Row) -> str | None:
    """The card's canonical name; what the cloud calls it where that is nobody we know."""
    text, ram = row.get("gpu_name"), number(row.get("gpu_ram"))
    if not isinstance(text, str) or not text.strip():
        return None
    known = identify(text, ram / 1024 if ram else None)
    return known.name if known else re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")


def _price(row: Row) -> Decimal | None:
    """USD an hour, now: of a contract that is stopped, its disk alone."""
    if row.get("cur_state") == "stopped":
        now = row.get("instance")
        told = money(now.get("totalHour")) if isinstance(now, Mapping) else None
        return money(row.get("storage_total_cost")) if told is None else told
    return money(row.get("dph_total"))


# ---------------------------------------------------------------------------- ways in


def _access(row: Row, port: int) -> SshAccess | None:
    """Directly where the instance has its port open, else (and besides) through the proxy."""
    ways = [way for way in (_direct(row, port), _proxy(row) if port == 22 else None) if way]
    if not ways:
        return None
    first, *others = ways
    return replace(_way(first), alternatives=tuple(_way(way) for way in others))


def _way(way: tuple[str, int]) -> SshAccess:
    return SshAccess(way[0], way[1], "root", env=_EVERYWHERE, path=_PYTHONS)


def _direct(row: Row, port: int) -> tuple[str, int] | None:
    ports = row.get("ports")
    bound = ports.get(f"{port}/tcp") if isinstance(ports, dict) else None
    first = bound[0] if isinstance(bound, list) and bound and isinstance(bound[0], dict) else {}
    host = row.get("public_ipaddr")
    outside = _port(first.get("HostPort"))
    if not isinstance(host, str) or not host.split() or outside is None:
        return None
    return host.split()[0], outside


def _proxy(row: Row) -> tuple[str, int] | None:
    host, outside = row.get("ssh_host"), _port(row.get("ssh_port"))
    if not isinstance(host, str) or not host.strip() or outside is None:
        return None
    jupyter = "jupyter" in str(row.get("image_runtype"))
    return host.strip(), outside + 1 if jupyter else outside


def _port(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = str(value).strip()
    return int(text) if text.isascii() and text.isdigit() and 0 < int(text) < 65535 else None


# ---------------------------------------------------------------------------- values


def region(row: Row) -> str:
    """Where it is, as the cloud says it."""
    place = row.get("geolocation") or row.get("country_code")
    text = place.strip(" ,") if isinstance(place, str) else ""
    return text or "unknown"


def number(value: object) -> float | None:
    """A finite number, or None; numbers written as texts count."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        made = float(value)
    except ValueError:
        return None
    return made if math.isfinite(made) else None


def money(value: object) -> Decimal | None:
    """USD to the millionth; None for what is none, and for what nobody could mean."""
    made = number(value)
    return (
        None if made is None or not 0 <= made < _NO_PRICE else Decimal(str(made)).quantize(_MICRO)
    )


def _moment(value: object) -> datetime | None:
    seconds = number(value)
    if seconds is None or not 0 < seconds < 1e11:
        return None
    return datetime.fromtimestamp(seconds, UTC)
