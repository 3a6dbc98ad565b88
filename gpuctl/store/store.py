"""The store of one run: put entries in, find the newest whole one, get it back, forget old ones.

Everything here is the same for a folder and for S3; see docs/store-format.md for why it is
safe against crashes and concurrent writers.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gpuctl.errors import StoreError
from gpuctl.store.answers import BlobSource, Newest, PassedOver, Problem, Pruned, newest_first
from gpuctl.store.ending import MAX_ENDING_BYTES, Ending, ending_key, parse_ending
from gpuctl.store.entry import describe, read_piece
from gpuctl.store.manifest import (
    MAX_ATTEMPT,
    MAX_BLOB_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_SEQ,
    Blob,
    CorruptManifest,
    Kind,
    Manifest,
    NewerFormat,
    check_name,
    order_in_key,
    parse_manifest,
)
from gpuctl.store.objects import Missing, Objects, Stored
from gpuctl.store.parallel import in_order
from gpuctl.store.restore import CorruptEntry, Fetched, Progress, difference, restore
from gpuctl.store.retention import ORPHAN_AGE, Shipped, holes, plan, reusable
from providers.base import Clock, SystemClock

LONGEST_GRANT = timedelta(days=7)
READ_GRANT = timedelta(days=1)

_LOG = logging.getLogger(__name__)


class Store:
    """One run's checkpoints and outputs. Every method may raise `StoreError`."""

    def __init__(
        self,
        objects: Objects,
        run_id: str,
        *,
        clock: Clock | None = None,
        blob_bytes: int = MAX_BLOB_BYTES,
    ) -> None:
        self._objects = objects
        self._run = run_id
        self._clock = clock or SystemClock()
        self._blob_bytes = blob_bytes

    @property
    def location(self) -> str:
        """Where the run's data is, for a person: a path or an s3:// address."""
        return self._objects.location

    @property
    def folder(self) -> Path | None:
        """The run's folder, where the store is one on this computer; else None."""
        return self._objects.folder

    @property
    def reachable_from_machine(self) -> bool:
        """Whether a machine somewhere else can write here with a grant.

        False for a folder and for an S3 endpoint on this computer; a machine that is on this
        computer too reaches both.
        """
        return self._objects.reachable_from_machine

    # ------------------------------------------------------------------ reading

    def manifests(self) -> list[Manifest]:
        """Return every manifest that can be believed, newest first."""
        shipped, _ = self._survey()
        return [one.manifest for one in shipped]

    def corrupt(self) -> list[PassedOver]:
        """Return the manifests that cannot be believed, newest first."""
        _, corrupt = self._survey()
        return corrupt

    def is_whole(self, manifest: Manifest) -> bool:
        """Whether every blob is there with its size; reads none of them."""
        return not holes(manifest, self._sizes())

    def verify(self, manifest: Manifest) -> list[Problem]:
        """Read and hash everything; an empty list means that a restore will succeed."""
        found: list[Problem] = []
        results = in_order(manifest.blobs(), self._try_blob)
        for file in manifest.files:
            whole = hashlib.sha256()
            wrong: list[str] = []
            for _ in file.blobs:
                content, why = next(results)
                whole.update(content)
                del content  # else it would be held while the next ones are fetched
                wrong += [why] if why else []
            if not wrong and whole.hexdigest() != file.sha256:
                wrong.append("its blobs are right, the file they make is not")
            found += [Problem(file.path, why) for why in wrong]
        return found

    def newest_whole(
        self,
        kind: Kind = "checkpoint",
        *,
        verify: bool = True,
        older_than: Manifest | None = None,
    ) -> Newest:
        """Return the newest entry that is whole, and what was passed over.

        Args:
            kind: checkpoints or outputs.
            verify: hash everything; else only presence and sizes are looked at.
            older_than: look only below this one, when its restore has failed.
        """
        shipped, passed = self._survey()
        sizes = self._sizes()
        if older_than is not None:
            passed = [one for one in passed if (order_in_key(one.key) or (0, 0)) < older_than.order]
        for one in shipped:
            manifest = one.manifest
            if manifest.kind != kind or (older_than and manifest.order >= older_than.order):
                continue
            why = self._what_is_wrong(manifest, sizes, verify=verify)
            if why is None:
                passed = [p for p in passed if (order_in_key(p.key) or (0, 0)) > manifest.order]
                return Newest(manifest, newest_first(passed))
            passed.append(PassedOver(manifest.key, manifest.name, why))
        return Newest(None, newest_first(passed))

    def ending(self, attempt: int) -> Ending | None:
        """Return how an attempt ended; None when its agent has not left (all of) it here."""
        try:
            content = self._objects.read(ending_key(attempt), MAX_ENDING_BYTES)
        except Missing:
            return None
        return parse_ending(bytes(content), self._run, attempt)

    def read_blob(self, blob: Blob) -> bytes | bytearray:
        """Return a blob's bytes, checked.

        Raises:
            CorruptEntry: it is missing, has another size or another hash.
        """
        content, why = self._try_blob(blob)
        if why:
            raise CorruptEntry(
                f"{self.location}: {why}", next="The checkpoint before it may be whole."
            )
        return content

    def fetch(
        self,
        manifest: Manifest,
        dest: Path,
        *,
        progress: Progress | None = None,
    ) -> Fetched:
        """Restore an entry to ``dest``, verified; it appears whole or not at all.

        What is already there and not in the entry stays; the rest is replaced, file by file,
        once everything has been verified.

        Links that lead out of the entry are left out and named in the answer. Permissions
        come without set-uid, set-gid and sticky bits.

        Raises:
            CorruptEntry: something is missing or wrong; take `newest_whole(older_than=…)`.
        """
        return restore(manifest, dest, self.read_blob, progress=progress)

    # ------------------------------------------------------------------ writing

    def put_entry(
        self,
        entry: Path,
        *,
        attempt: int,
        seq: int,
        kind: Kind,
        name: str,
        version: int,
        step: int | None,
        at: datetime,
        progress: Progress | None = None,
    ) -> Manifest:
        """Store a file or folder of this computer. ``seq`` is never used twice in an attempt."""
        check_name(kind, name)
        if not (1 <= attempt <= MAX_ATTEMPT and 1 <= seq <= MAX_SEQ):
            raise StoreError(f"Attempt {attempt}, number {seq} is beyond what a store can hold")
        described = describe(entry, self._blob_bytes)
        for path in described.special:
            _LOG.warning("%s: %s is neither file, folder nor link; it is left out", entry, path)
        manifest = Manifest(
            run=self._run,
            attempt=attempt,
            seq=seq,
            kind=kind,
            name=name,
            version=version,
            step=step,
            at=at,
            bytes=sum(file.size for file in described.files),
            files=described.files,
            dirs=described.dirs,
            links=described.links,
        )
        parse_manifest(manifest.to_json())  # what is shipped must be what every reader accepts
        self._ship(manifest, lambda blob: read_piece(described.pieces[blob], blob), progress)
        return manifest

    def import_from(
        self, source: BlobSource, manifest: Manifest, *, progress: Progress | None = None
    ) -> None:
        """Copy an entry of this run from elsewhere: the blobs that are missing, then the manifest.

        Can be repeated after a break: what has arrived is not sent again.

        Raises:
            CorruptEntry: the source's bytes are not what the manifest says; nothing appears here.
        """
        if manifest.run != self._run:
            raise StoreError(f"The manifest is of run {manifest.run}, the store of {self._run}")

        def checked(blob: Blob) -> bytes | bytearray:
            content = source.read_blob(blob)
            if why := difference(blob, content):
                raise CorruptEntry(f"The copy of {manifest.name} cannot be trusted: {why}")
            return content

        self._ship(manifest, checked, progress)

    def lacking(self, manifest: Manifest) -> list[Blob]:
        """Return the blobs that `import_from` would read; none when the entry is here already."""
        if self._is_there(manifest):
            return []
        shipped, _ = self._survey()
        blobs = self._objects.listing("blobs")
        there = reusable(shipped, blobs, attempt=manifest.attempt, now=self._clock.now())
        return [b for b in dict.fromkeys(manifest.blobs()) if there.get(b.key) != b.size]

    def import_ending(self, attempt: int, content: bytes) -> bool:
        """Take over an agent's word of how an attempt ended; False when it cannot be believed.

        It goes last: where it is, everything that the attempt shipped is too.
        """
        if parse_ending(content, self._run, attempt) is None:
            return False
        self._objects.write(ending_key(attempt), content)
        return True

    def write_grant(self, expires: datetime | None = None) -> dict[str, Any] | None:
        """Return what the agent needs to write here, or None where the store cannot give it.

        Without ``expires`` it lives for seven days, the longest that S3 allows. On S3 it dies
        with the credentials that signed it, if they are temporary.
        """
        return self._objects.write_grant(expires or self._clock.now() + LONGEST_GRANT)

    def read_urls(self, manifest: Manifest, expires: datetime | None = None) -> dict[str, str]:
        """Return a presigned URL for each blob, by SHA-256; without ``expires`` for a day.

        Raises:
            StoreError: the store is a folder, or refuses presigned URLs.
        """
        keys = {blob.key: blob.sha256 for blob in manifest.blobs()}
        until = expires or self._clock.now() + READ_GRANT
        return {keys[key]: url for key, url in self._objects.read_urls(keys, until).items()}

    # ----------------------------------------------------------------- forgetting

    def prune(self, keep: int) -> Pruned:
        """Remove all but the ``keep`` newest whole checkpoints, and what died half written.

        The newest whole checkpoint always stays, and so do outputs. A crash in between leaves
        garbage that a later prune removes, never a manifest with holes.

        Raises:
            NewerFormat: a newer gpuctl wrote here; nothing was removed.
        """
        blobs = self._objects.listing("blobs")  # before the manifests: see `plan`
        shipped, _ = self._survey(refuse_newer=True)
        now = self._clock.now()
        going = plan(shipped, blobs, keep=keep, now=now)
        gone = [one for one in going.manifests if self._objects.remove(one.stored)]
        stays = {
            blob.key
            for one in going.manifests
            if one not in gone  # written again meanwhile, so what it names stays too
            for blob in one.manifest.blobs()
        }
        unnamed = [stored for stored in going.blobs if stored.key not in stays]
        results = zip(unnamed, in_order(unnamed, self._objects.remove), strict=True)
        removed = [stored for stored, done in results if done]
        return Pruned(
            tuple(one.manifest for one in gone),
            len(removed),
            sum(stored.size for stored in removed),
            self._objects.sweep_unfinished(now - ORPHAN_AGE),
        )

    def abort_stale_uploads(self, older_than: datetime) -> int:
        """Remove what writers left half written before then; returns how many."""
        return self._objects.sweep_unfinished(older_than)

    # ------------------------------------------------------------------- inside

    def _survey(self, *, refuse_newer: bool = False) -> tuple[list[Shipped], list[PassedOver]]:
        listed = [one for one in self._objects.listing("manifests") if order_in_key(one.key)]
        listed.sort(key=lambda stored: stored.key, reverse=True)
        shipped: list[Shipped] = []
        corrupt: list[PassedOver] = []
        for stored, read in zip(listed, in_order(listed, self._read_manifest), strict=True):
            if isinstance(read, NewerFormat) and refuse_newer:
                raise read
            if isinstance(read, StoreError):
                corrupt.append(PassedOver(stored.key, None, read.message))
            elif read is not None:
                shipped.append(Shipped(read, stored))
        return shipped, corrupt

    def _read_manifest(self, stored: Stored) -> Manifest | CorruptManifest | NewerFormat | None:
        try:
            manifest = parse_manifest(bytes(self._objects.read(stored.key, MAX_MANIFEST_BYTES)))
        except Missing:
            return None  # pruned since it was listed
        except (CorruptManifest, NewerFormat) as error:
            return error
        if manifest.key != stored.key or manifest.run != self._run:
            return CorruptManifest("The manifest cannot be believed: it belongs elsewhere")
        return manifest

    def _sizes(self) -> dict[str, int]:
        return {stored.key: stored.size for stored in self._objects.listing("blobs")}

    def _what_is_wrong(
        self, manifest: Manifest, sizes: Mapping[str, int], *, verify: bool
    ) -> str | None:
        if missing := holes(manifest, sizes):
            return f"{len(missing)} of its blobs are missing or have the wrong size"
        problems = self.verify(manifest) if verify else []
        return f"{problems[0].path or manifest.name}: {problems[0].why}" if problems else None

    def _try_blob(self, blob: Blob) -> tuple[bytes | bytearray, str | None]:
        try:
            content = self._objects.read(blob.key, blob.size)
        except Missing:
            return b"", f"the blob {blob.sha256} is missing"
        return content, difference(blob, content)

    def _ship(
        self,
        manifest: Manifest,
        read: Callable[[Blob], bytes | bytearray],
        progress: Progress | None,
    ) -> None:
        if self._is_there(manifest):
            return
        wanted = set(self.lacking(manifest))

        def send(blob: Blob) -> int:
            if blob in wanted:
                self._objects.write(blob.key, read(blob))
            return blob.size

        done = 0
        for size in in_order(dict.fromkeys(manifest.blobs()), send):
            done += size
            if progress is not None:
                progress(min(done, manifest.bytes), manifest.bytes)
        if not self._objects.create(manifest.key, manifest.to_json()) and not self._is_there(
            manifest
        ):
            # What was there could not be believed, so it is not there: it may be replaced.
            self._objects.write(manifest.key, manifest.to_json())

    def _is_there(self, manifest: Manifest) -> bool:
        try:
            present = self._objects.read(manifest.key, MAX_MANIFEST_BYTES)
            other = parse_manifest(bytes(present))
        except (Missing, CorruptManifest):
            return False
        if other != manifest:
            raise StoreError(
                f"{self.location} holds another {manifest.key} ({other.name})",
                next="See that only one gpuctl and one machine work on this attempt.",
            )
        return True
