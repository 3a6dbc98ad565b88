"""Servers as Hetzner describes them, and as `providers.base` does. Pure."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from ipaddress import IPv6Network
from typing import Any

from providers.base import Leftover, Machine, Mark, SshAccess, State
from providers.hetzner_boot import PYTHON, host_key_of
from providers.hetzner_offers import moment_of, region_of

Json = Mapping[str, Any]
_LOG = logging.getLogger(__name__)

OWNER, END, RUN = "gpuctl/owner", "gpuctl/end", "gpuctl/run"
MANAGED_BY, HOST_KEY = "gpuctl/managed-by", "gpuctl/host-key"

STATES: Mapping[str, State] = {
    "initializing": State.BOOTING,
    "starting": State.BOOTING,
    "running": State.READY,
    "migrating": State.BOOTING,  # moved to another host, with its disk
    "rebuilding": State.LOST,  # its disk is being overwritten
    "stopping": State.STOPPED,
    "off": State.STOPPED,  # and costs what it costs when it runs
    "deleting": State.STOPPED,  # not gone before it cannot be found any more
    "unknown": State.UNKNOWN,
}

_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?")


def state_of(status: str) -> State:
    """Return what a status string means; one that nobody has seen before is UNKNOWN."""
    state = STATES.get(status)
    if state is None:
        _LOG.warning("Hetzner gives a server a status that gpuctl does not know: %.60r", status)
        return State.UNKNOWN
    return state


def labels_of(mark: Mark, host_key: str | None = None) -> dict[str, str]:
    """Return the labels that carry a mark.

    Raises:
        ValueError: a part of it cannot be a label's value.
    """
    labels = {OWNER: mark.owner, END: str(int(mark.end.timestamp()))}
    if mark.run is not None:
        labels[RUN] = mark.run
    if mark.managed_by != "gpuctl":
        labels[MANAGED_BY] = mark.managed_by
    if host_key is not None:
        labels[HOST_KEY] = host_key
    for name, value in labels.items():
        if not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"{value!r} cannot be the value of the label {name}")
    return labels


def mark_of(labels: object) -> Mark | None:
    """Return the mark that labels carry; None when it is not ours, or not whole."""
    if not isinstance(labels, Mapping) or not labels.get(OWNER):
        return None
    try:
        end = datetime.fromtimestamp(int(str(labels.get(END))), UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return Mark(
        owner=str(labels[OWNER]),
        end=end,
        run=str(labels[RUN]) if labels.get(RUN) else None,
        managed_by=str(labels.get(MANAGED_BY) or "gpuctl"),
    )


def machine_of(server: Json, port: int, price_hour: Decimal | None) -> Machine:
    """Return a server as a machine.

    Args:
        port: of its sshd.
        price_hour: USD, where it is known.
    """
    labels = server.get("labels") or {}
    status = str(server.get("status") or "")
    state = state_of(status)
    return Machine(
        name=str(server.get("name") or ""),
        provider="hetzner",
        provider_id=str(server["id"]),
        state=state,
        status=status or "without a status",
        price_hour=price_hour,
        region=region_of(server.get("location") or {}),
        access=access_of(server, port) if state is State.READY else None,
        mark=mark_of(labels),
        created_at=moment_of(server.get("created")),
        # No self_end: off, it would cost what it costs now, and a token could delete the project.
    )


def access_of(server: Json, port: int) -> SshAccess | None:
    """Return how to reach a server: by IPv4, else by the first address of its IPv6 network."""
    net = server.get("public_net") or {}
    host = str((net.get("ipv4") or {}).get("ip") or "") or _first_host(net.get("ipv6") or {})
    if not host:
        return None
    key = host_key_of((server.get("labels") or {}).get(HOST_KEY))
    access = SshAccess(host, port, "root", host_keys=(key,) if key else ())
    if (server.get("image") or {}).get("type") != "system":
        return access  # a snapshot of somebody's, with a Python of its own choice
    return SshAccess(
        host,
        port,
        "root",
        host_keys=access.host_keys,
        env={"VIRTUAL_ENV": PYTHON, "PIP_USER": "0"},
        path=(f"{PYTHON}/bin",),
    )


def type_and_place(server: Json) -> tuple[Json, str]:
    """Return a server's type and the name of its location."""
    return server.get("server_type") or {}, str((server.get("location") or {}).get("name") or "")


def leftover_of(kind: str, thing: Json, price_month: Decimal | None) -> Leftover:
    """Return something beside a server as a leftover."""
    return Leftover(
        provider="hetzner",
        kind=kind,
        id=str(thing["id"]),
        name=str(thing.get("name") or thing.get("description") or ""),
        mark=mark_of(thing.get("labels")),
        price_month=price_month,
    )


def _first_host(ipv6: Json) -> str:
    try:
        return str(IPv6Network(str(ipv6.get("ip")), strict=False)[1])
    except (ValueError, IndexError):
        return ""
