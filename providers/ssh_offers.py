"""Which rows a host of the `ssh` provider makes in a list of offers. Pure functions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from providers.base import Ambiguous, Finding, InvalidRequest, Offer, Want
from providers.matching import satisfies, selectors
from providers.nvidia_smi import Gpu, NotReadable, read_cards
from providers.ssh_claims import whose
from providers.ssh_hosts import HostEntry

_ID = re.compile(r"^ssh:(?P<host>[^:]+):(?:cpu|(?P<count>[1-9][0-9]*)x(?P<gpu>[^\s:]+))$")
_OLDEST_PYTHON = (3, 8)
_LITTLE_DISK_GB = 5


def offer_id(host: str, gpu: str | None, count: int) -> str:
    """Return ``ssh:gpubox:2xRTX-4090`` and the like."""
    return f"ssh:{host}:{f'{count}x{gpu}' if gpu else 'cpu'}"


def read_offer_id(text: str) -> tuple[str, str | None, int]:
    """Return the host, the GPU and how many of it.

    Raises:
        InvalidRequest: it is no offer of this provider.
    """
    found = _ID.match(text)
    if not found:
        raise InvalidRequest(f"{text!r} is no offer of the ssh provider.")
    return found["host"], found["gpu"], int(found["count"] or 0)


def rows(want: Want, host: HostEntry, said: Mapping[str, Any], now: datetime) -> list[Offer]:
    """Return what of a host fits the want.

    A row that somebody else has now, or whose cards are in use, is there and not available.

    Args:
        want: what is asked for.
        host: the host.
        said: its answer to a look at its hardware.
        now: the moment of the answer.
    """
    if why_unusable(said):
        return []
    taken = whose(said["claim"]) if said["claim"] else ""

    def row(gpu: str | None, count: int, vram: float | None, why_not: str) -> Offer:
        return Offer(
            provider="ssh",
            id=offer_id(host.name, gpu, count),
            gpu=gpu,
            gpu_count=count,
            vram_gb=vram,
            spot=False,
            price_hour=host.price_hour,
            region=host.region or host.name,
            vcpus=float(said["cores"]),
            ram_gb=round(said["memory"] / 1e9, 1),
            disk_gb=round(said["disk_free"] / 1e9, 1),
            available=not why_not,
            as_of=now,
            note="; ".join(part for part in (why_not, _load(said)) if part),
        )

    if not want.gpus:
        found = [row(None, 0, None, taken)]
    else:
        cards = cards_of(said)
        numbers = Counter(card.name for card in cards)
        found = [
            row(name, count, vram, taken or _in_use(cards, name, count))
            for name, vram in dict.fromkeys((card.name, card.vram_gb) for card in cards)
            if numbers[name] >= (count := want.gpu_count or numbers[name])
            and any(selector.matches(name, vram) for selector in selectors(want.gpus))
        ]
    return [offer for offer in found if satisfies(offer, want)]


def cards_of(said: Mapping[str, Any]) -> tuple[Gpu, ...]:
    """Return a host's GPUs.

    Raises:
        Ambiguous: its nvidia-smi does not tell.
    """
    answer = said["nvidia_smi"]
    try:
        if "error" in answer:
            raise NotReadable(str(answer["error"]))
        return read_cards(answer["said"])
    except NotReadable as error:
        raise Ambiguous(f"The GPUs of a host cannot be told: {str(error)[:200]}.") from error


def why_unusable(said: Mapping[str, Any]) -> str:
    """Return what keeps a host from being used at all; "" for nothing."""
    version = str(said["python"])
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _OLDEST_PYTHON:
        return f"its python is {version}, and 3.8 or newer is needed"
    if not said["writable"]:
        return "its folder cannot be written"
    return ""


def finding(host: HostEntry, said: Mapping[str, Any]) -> Finding:
    """Return a line of `doctor` about a host that answers."""
    try:
        hardware = _hardware(said)
    except Ambiguous as error:
        return Finding(host.name, False, str(error))
    why = why_unusable(said)
    parts = [
        why or "answers",
        hardware,
        _load(said),
        whose(said["claim"]) if said["claim"] else "free",
    ]
    ok = not why and said["disk_free"] / 1e9 >= _LITTLE_DISK_GB
    return Finding(host.name, ok, "; ".join(parts))


def summary(host: HostEntry, said: Mapping[str, Any]) -> str:
    """Return what a host has, in a few words."""
    try:
        return f"{host.name} has {_hardware(said)}, at ${host.price_hour}/h"
    except Ambiguous as error:
        return f"{host.name}: {error}"


def _hardware(said: Mapping[str, Any]) -> str:
    cards = ", ".join(card.name for card in cards_of(said)) or "no NVIDIA GPU"
    free, memory = said["disk_free"] / 1e9, said["memory"] / 1e9
    return f"{cards}, {said['cores']} cores, {memory:.0f} GB memory, {free:.1f} GB disk free"


def _in_use(cards: Sequence[Gpu], name: str, count: int) -> str:
    idle = sum(card.name == name and not card.busy for card in cards)
    return "" if idle >= count else f"{idle} of its {name} idle, the others are in use"


def _load(said: Mapping[str, Any]) -> str:
    return f"load {said['load']:.1f} on {said['cores']} cores"
