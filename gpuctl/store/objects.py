"""The few verbs that a store is built from; a folder and an S3 bucket both have them.

The comments here are the contract. ``tests/conformance/store_suite.py`` checks both against it.
Keys are relative to one run, use ``/``, and are those of docs/store-format.md. Every call may
raise `StoreError`: the store cannot be reached, read or written, said for a person.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from gpuctl.errors import StoreError


class Missing(StoreError):
    """There is nothing under this key; a successful answer said so."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One object as a listing shows it."""

    key: str
    size: int  # bytes
    modified: datetime  # when it was last written, by the store's clock, UTC; S3: whole seconds


class Objects(Protocol):
    """What lies under one run's prefix."""

    @property
    def location(self) -> str:
        """Where that is, for a person: a path or an s3:// address, with the run's id."""

    @property
    def folder(self) -> Path | None:
        """The run's folder, where the store is one on this computer."""

    @property
    def reachable_from_machine(self) -> bool:
        """Whether a machine somewhere else can write here with a grant."""

    def listing(self, folder: str) -> Sequence[Stored]:
        """Everything under ``blobs`` or ``manifests``, never partial, in no order.

        What is half written is not there. What comes or goes meanwhile may or may not be.
        """

    def read(self, key: str, limit: int) -> bytes | bytearray:
        """The first ``limit`` + 1 bytes, so that a caller sees what is longer than it should be.

        Raises `Missing`. An answer that ends early is never taken for the whole.
        """

    def write(self, key: str, body: bytes | bytearray) -> None:
        """Put an object there, replacing what was: whole or not at all, durable on return."""

    def create(self, key: str, body: bytes | bytearray) -> bool:
        """Put an object where nothing is. False, and nothing is changed, where something is."""

    def remove(self, stored: Stored) -> bool:
        """Remove what the listing showed. Already gone counts as removed.

        False, and it stays, when it was written again since.
        """

    def sweep_unfinished(self, before: datetime) -> int:
        """Remove what writers that died left half written before then; returns how many."""

    def write_grant(self, expires: datetime) -> dict[str, Any] | None:
        """What the agent needs to write here until then, or None where that cannot be had."""

    def read_urls(self, keys: Iterable[str], expires: datetime) -> dict[str, str]:
        """An address by key that anybody can read until then. `StoreError`: there can be none."""
