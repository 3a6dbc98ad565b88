"""What a store answers, and what it takes blobs from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from gpuctl.store.manifest import Blob, Manifest


class BlobSource(Protocol):
    """Where blobs come from: another store, or an outbox on a machine."""

    def read_blob(self, blob: Blob) -> bytes | bytearray:
        """The bytes of a blob. Raises `CorruptEntry` when they are missing or wrong."""


@dataclass(frozen=True, slots=True)
class PassedOver:
    """A manifest that was not taken."""

    key: str
    name: str | None  # of the entry, where the manifest can be read
    why: str


def newest_first(passed: Iterable[PassedOver]) -> tuple[PassedOver, ...]:
    """Sort by age."""
    return tuple(sorted(passed, key=lambda one: one.key, reverse=True))


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest whole entry, if there is one, and what was passed over to find it."""

    manifest: Manifest | None
    passed_over: tuple[PassedOver, ...]  # newest first


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as a manifest says."""

    path: str  # of the file in the entry; "" when the entry is the file
    why: str


@dataclass(frozen=True, slots=True)
class Pruned:
    """What a `Store.prune` removed."""

    manifests: tuple[Manifest, ...]
    blobs: int
    bytes: int
    unfinished: int  # half-written files or uploads of writers that died
