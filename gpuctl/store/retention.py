"""What `prune` may remove: pure decisions, so that they can be tested without a store.

Three rules, from docs/store-format.md:

1. Everything from the newest manifest down to the ``keep``-th newest whole checkpoint stays,
   whole or not; so does every output. So the newest whole checkpoint can never go, nor the
   newest manifest, from which its writer skips blobs.
2. A blob of a manifest that goes, goes with it, if no manifest that stays names it and nobody
   has written it again since.
3. A blob that nothing names goes once it is a day old: until then it may belong to a
   checkpoint whose manifest is still to come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from gpuctl.store.manifest import Blob, Manifest
from gpuctl.store.objects import Stored

ORPHAN_AGE = timedelta(days=1)
REUSE_AGE = timedelta(hours=12)
"""A blob without a manifest is counted on only while it is far from being an orphan."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """A manifest and the object it was read from."""

    manifest: Manifest
    stored: Stored


@dataclass(frozen=True, slots=True)
class Plan:
    """What goes: manifests first, then blobs."""

    manifests: tuple[Shipped, ...]  # oldest first
    blobs: tuple[Stored, ...]


def holes(manifest: Manifest, sizes: Mapping[str, int]) -> list[Blob]:
    """Return the blobs that are missing or have another size; ``sizes`` is bytes by key."""
    return [blob for blob in manifest.blobs() if sizes.get(blob.key) != blob.size]


def plan(
    shipped: Sequence[Shipped], blobs: Collection[Stored], *, keep: int, now: datetime
) -> Plan:
    """Decide what goes. ``blobs`` must have been listed before the manifests were.

    Args:
        shipped: every manifest that can be believed.
        blobs: every blob.
        keep: how many whole checkpoints stay, at least 1.
        now: by the store's clock, or near it.
    """
    if keep < 1:
        raise ValueError("at least one checkpoint must be kept")
    sizes = {stored.key: stored.size for stored in blobs}
    going = _going(shipped, sizes, keep)
    gone = {one.manifest.order for one in going}
    named = _keys(one for one in shipped if one.manifest.order not in gone)
    last_named: dict[str, datetime] = {}
    for one in going:
        for blob in one.manifest.blobs():
            earlier = last_named.get(blob.key, one.stored.modified)
            last_named[blob.key] = max(earlier, one.stored.modified)
    latest = max((one.stored.modified for one in shipped), default=now)
    return Plan(
        tuple(going),
        tuple(
            stored
            for stored in blobs
            if stored.key not in named
            and (
                (
                    stored.key in last_named
                    and stored.modified <= last_named[stored.key]
                    # S3 tells whole seconds: what was sent again in the manifest's own second
                    # looks as old as it, but never older than the newest manifest.
                    and stored.modified < latest
                )
                or now - stored.modified > ORPHAN_AGE
            )
        ),
    )


def reusable(
    shipped: Sequence[Shipped], blobs: Iterable[Stored], *, attempt: int, now: datetime
) -> dict[str, int]:
    """Return the blobs (key → bytes) that a writer of this attempt need not send again.

    Those of the newest manifest, when this attempt shipped it, as no prune touches them; and
    those written after every manifest, as only an import that broke off can have left them.
    """
    newest = max(shipped, key=lambda one: one.manifest.order, default=None)
    latest = max((one.stored.modified for one in shipped), default=None)
    own = _keys([newest]) if newest and newest.manifest.attempt == attempt else frozenset[str]()
    return {
        stored.key: stored.size
        for stored in blobs
        if stored.key in own
        or (now - stored.modified < REUSE_AGE and (latest is None or stored.modified > latest))
    }


def _going(shipped: Sequence[Shipped], sizes: Mapping[str, int], keep: int) -> list[Shipped]:
    checkpoints = [one for one in shipped if one.manifest.kind == "checkpoint"]
    checkpoints.sort(key=lambda one: one.manifest.order, reverse=True)
    whole = [one.manifest.order for one in checkpoints if not holes(one.manifest, sizes)]
    if len(whole) < keep:
        return []
    return [one for one in reversed(checkpoints) if one.manifest.order < whole[keep - 1]]


def _keys(shipped: Iterable[Shipped]) -> frozenset[str]:
    return frozenset(blob.key for one in shipped for blob in one.manifest.blobs())
