"""What a claim on a host of the `ssh` provider says, and which hosts this home may still hold."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from providers.base import Mark, Order, State
from providers.ssh_host import TMP
from providers.ssh_hosts import HostEntry

_MAKING_SECONDS = 90  # a claim whose machine is not made by then will never be


@dataclass(frozen=True, slots=True)
class Claim:
    """One machine that has a host, as we wrote it there."""

    name: str
    mark: Mark
    created_at: datetime
    folder: str  # absolute, on the host
    tmp: str
    gpu: str | None
    gpu_uuids: tuple[str, ...]


class Book:
    """Which hosts may hold machines of this home: one empty file for each, in one folder a host.

    Args:
        folder: made on first use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, host: str, machine: str) -> None:
        """Note a claim that is about to be tried. Raises OSError."""
        place = self._folder / host
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        (place / machine).touch()

    def close(self, host: str, machine: str) -> None:
        """Note that the host itself said that there is no such claim (any more)."""
        (self._folder / host / machine).unlink(missing_ok=True)
        with suppress(OSError):  # others are open there
            (self._folder / host).rmdir()

    def drop(self, host: str) -> None:
        """Note that the host itself is gone, and with it whatever was claimed there."""
        shutil.rmtree(self._folder / host, ignore_errors=True)

    def holds(self, host: str) -> bool:
        """Whether a claim on that host may be there."""
        return (self._folder / host).is_dir()

    def hosts(self) -> Sequence[str]:
        """The hosts on which claims may be there."""
        return sorted(place.name for place in self._folder.iterdir()) if self.is_open() else []

    def is_open(self) -> bool:
        """Whether there is any."""
        return self._folder.is_dir() and any(self._folder.iterdir())


def new_record(
    order: Order, host: HostEntry, gpu: str | None, uuids: Sequence[str], now: datetime
) -> dict[str, Any]:
    """Return what is written on the host for a new machine."""
    mark = order.mark
    return {
        "name": order.name,
        "mark": {
            "owner": mark.owner,
            "end": int(mark.end.timestamp()),
            "run": mark.run,
            "managed_by": mark.managed_by,
        },
        "created_at": now.timestamp(),
        "gpu": gpu,
        "gpu_uuids": list(uuids),
        "host": host.name,
    }


def read(claim: Mapping[str, Any], login: int) -> Claim | None:
    """Return a claim that we can have written; None for anything else: it is not ours.

    Args:
        claim: what the host says.
        login: the number of the user that we are there: only that one's claims count.
    """
    found = mark(claim)
    if found is None or claim.get("uid") != login:
        return None
    try:
        folder = str(claim["folder"])
        return Claim(
            name=str(claim["name"]),
            mark=found,
            created_at=datetime.fromtimestamp(float(claim["created_at"]), UTC),
            folder=folder,
            tmp=str(claim["short_tmp"] or f"{folder}/{TMP}"),
            gpu=None if claim["gpu"] is None else str(claim["gpu"]),
            gpu_uuids=tuple(map(str, claim["gpu_uuids"])),
        )
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def mark(record: Mapping[str, Any]) -> Mark | None:
    """Return the mark in a record; None when there is none that can be read."""
    try:
        said = record["mark"]
        run = said["run"]
        return Mark(
            owner=str(said["owner"]),
            end=datetime.fromtimestamp(int(said["end"]), UTC),
            run=None if run is None else str(run),
            managed_by=str(said["managed_by"]),
        )
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return None


def describe(claim: Mapping[str, Any], boot: str, age_seconds: float | None) -> tuple[State, str]:
    """Return the state of a machine and the word for it.

    Args:
        claim: what the host says.
        boot: the host's present start.
        age_seconds: since the claim; None when that cannot be read.
    """
    if claim.get("boot") != boot:
        return State.LOST, "its host was restarted"
    if claim.get("made") is True:
        return State.READY, "running"
    young = age_seconds is not None and age_seconds < _MAKING_SECONDS
    return (State.BOOTING, "being made") if young else (State.LOST, "never finished")


def whose(claim: Mapping[str, Any]) -> str:
    """Say who has a host, and until when at most."""
    found = mark(claim)
    end = f", until {found.end:%Y-%m-%d %H:%M} UTC at most" if found else ""
    return f"{str(claim.get('name'))[:80]!r} has it{end}"
