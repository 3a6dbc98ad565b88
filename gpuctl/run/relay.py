"""Passing on between a machine and a store that it cannot reach: a folder here, above all.

The agent keeps what it would ship in an outbox on its machine. This computer fetches it from
there, checks it and puts it into the store; to resume, it sends the checkpoint the other way.
Both work only while this computer is there; with a store that machines reach nothing is relayed.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from gpuctl.buckets.trip import passing_through
from gpuctl.errors import GpuctlError, RemoteError, StoreError, UsageError
from gpuctl.remote.connection import Connection
from gpuctl.run.work import Live, Work, scratch
from gpuctl.store import Blob, CorruptEntry, CorruptManifest, Manifest, parse_manifest
from gpuctl.store.manifest import manifest_key, order_in_key
from providers.base import LocalAccess, Machine

OUTBOX_KEEP = 2  # checkpoints that wait on the machine; older ones are obsolete
_TIMEOUT_SECONDS = 120.0
_PAUSE_SECONDS = 2.0
_TRIES = 3
_GONE = 3

# Gives blobs a second name each, so that what the agent trims meanwhile stays until it is here.
_GATHER = f"""
import json, os, sys
outbox, target = sys.argv[1:]
os.makedirs(target, mode=0o700)
try:
    for sha in json.load(sys.stdin):
        os.link(os.path.join(outbox, "blobs", sha[:2], sha), os.path.join(target, sha))
except FileNotFoundError:
    sys.exit({_GONE})
"""


class Trimmed(GpuctlError):
    """An entry left the outbox before it was fetched: there is a newer one."""

    kind = "Trimmed"


def needs_relay(work: Work, machine: Machine) -> bool:
    """Whether a machine cannot write to the run's store itself."""
    here = isinstance(machine.access, LocalAccess)
    if not here and not work.store.reachable_from_machine:
        return True
    return work.store.write_grant() is None


def outbox_of(agent_directory: str) -> str:
    """Return where an agent keeps what is relayed, below its own folder."""
    return f"{agent_directory}/outbox"


class Relay:
    """Brings what is in a machine's outbox into the run's store, in a thread of its own."""

    def __init__(self, work: Work, live: Live, outbox: str) -> None:
        self._work, self._live, self._outbox = work, live, outbox
        self._changed = threading.Condition()
        self._waiting: set[int] = set()
        self._arrived: set[int] = set()
        self._closed = False
        self.trouble: str | None = None
        """Why the last try failed; None while it works."""
        self._thread = threading.Thread(target=self._carry, name="relay", daemon=True)
        self._thread.start()

    def offer(self, seq: int) -> None:
        """Note that an entry is in the outbox."""
        with self._changed:
            if seq not in self._arrived:
                self._waiting.add(seq)
                self._changed.notify()

    def has_arrived(self, seq: int) -> bool:
        """Whether an entry is in the store."""
        with self._changed:
            return seq in self._arrived

    def close(self) -> None:
        """Take nothing new. What is under way comes to its end, or is begun anew another time."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def finish(self, deadline: datetime) -> bool:
        """Bring all that is left, and last the agent's word of how the job ended.

        Args:
            deadline: when there is no machine any more.

        Returns whether all of it is in the store; else `trouble` says why not.
        """
        clock = self._work.fleet.clock
        self.close()
        self._thread.join(max((deadline - clock.now()).total_seconds(), 0))
        if self._thread.is_alive():
            return False
        try:
            for attempt in Retrying(
                retry=retry_if_exception_type((RemoteError, StoreError)),
                stop=stop_after_attempt(_TRIES),
                wait=wait_random_exponential(multiplier=_PAUSE_SECONDS / 2, max=_PAUSE_SECONDS),
                sleep=clock.sleep,
                reraise=True,
            ):
                with attempt:
                    self._bring_the_rest()
        except (RemoteError, StoreError) as error:
            self.trouble = error.message
            return False
        self.trouble = None
        return True

    # ------------------------------------------------------------------ the thread

    def _carry(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                seq = max(self._waiting)
            try:
                self._bring(seq)
                self.trouble = None
            except (Trimmed, CorruptManifest) as error:
                # It stays what it is; the others must not wait for it. `finish` tells of it.
                self.trouble = None if isinstance(error, Trimmed) else error.message
                with self._changed:
                    self._waiting.discard(seq)
            except (RemoteError, StoreError) as error:
                self.trouble = error.message
                with self._changed:
                    self._changed.wait(_PAUSE_SECONDS)

    def _bring_the_rest(self) -> None:
        """Bring what is in the outbox; its ending only when all of that has arrived."""
        corrupt: CorruptManifest | None = None
        for seq in self._listed():
            try:
                self._bring(seq)
            except Trimmed:
                continue  # there is a newer one
            except CorruptManifest as error:
                corrupt = error  # the others are brought all the same
        if corrupt is not None:
            raise corrupt
        ending = self._read_out(["cat", f"{self._outbox}/ends/a{self._live.number:04d}.json"])
        if ending:
            self._work.store.import_ending(self._live.number, ending)

    def _listed(self) -> list[int]:
        listed = self._read_out(["ls", f"{self._outbox}/manifests"]).decode(errors="replace")
        orders = (order_in_key(f"manifests/{name}") for name in listed.split())
        return sorted(seq for attempt, seq in filter(None, orders) if attempt == self._live.number)

    # ------------------------------------------------------------------ one entry

    def _bring(self, seq: int) -> None:
        """Bring one entry: its blobs, then its manifest.

        Raises:
            RemoteError: the machine does not answer.
            StoreError: the store does not take it, or what came is not what it should be.
            Trimmed: it is not in the outbox any more.
        """
        if not self.has_arrived(seq):
            manifest = self._manifest(seq)
            lacking = self._work.store.lacking(manifest)
            with passing_through(scratch(self._work)) as here:
                if lacking:
                    self._fetch(lacking, here)
                self._work.store.import_from(_Folder(here), manifest)
        with self._changed:
            self._arrived.add(seq)
            self._waiting.discard(seq)

    def _manifest(self, seq: int) -> Manifest:
        key = manifest_key(self._live.number, seq)
        content = self._read_out(["cat", f"{self._outbox}/{key}"])
        if not content:
            raise Trimmed(f"{key} is not in the outbox any more")
        manifest = parse_manifest(content)
        if manifest.key != key:
            raise CorruptManifest(f"The machine's {key} is one of something else")
        return manifest

    def _fetch(self, blobs: list[Blob], here: Path) -> None:
        there = f"{self._outbox}/.relay-{secrets.token_hex(4)}"
        connection = self._live.connection
        try:
            done = connection.run(
                [self._live.agent.python, "-I", "-c", _GATHER, self._outbox, there],
                stdin=json.dumps([blob.sha256 for blob in blobs]).encode(),
                timeout=_TIMEOUT_SECONDS,
            )
            if done.exit_code == _GONE:
                raise Trimmed("the entry is not in the outbox any more")
            if done.exit_code:
                raise RemoteError(
                    f"The outbox on the machine cannot be read (exit code {done.exit_code})",
                    machine=self._live.machine,
                )
            try:
                connection.get(there, here)
            except UsageError as error:  # no room here for now: the entry waits for its turn
                raise StoreError(error.message, next=error.next) from error
        finally:
            _remove_there(connection, there)

    def _read_out(self, command: list[str]) -> bytes:
        """The output of a command there; nothing when what it reads is not there."""
        done = self._live.connection.run(command, timeout=_TIMEOUT_SECONDS)
        return done.stdout if done.exit_code == 0 else b""


@dataclass(frozen=True, slots=True)
class _Folder:
    """Blobs in a folder here, by hash. Implements `gpuctl.store.BlobSource`."""

    folder: Path

    def read_blob(self, blob: Blob) -> bytes:
        try:
            return (self.folder / blob.sha256).read_bytes()
        except OSError as error:
            raise CorruptEntry(f"The machine did not send the blob {blob.sha256}") from error


def send_checkpoint(
    work: Work,
    connection: Connection,
    manifest: Manifest,
    there: str,
    progress: Callable[[int, int], None],
) -> None:
    """Send the blobs of a checkpoint to a folder of the machine, laid out like a store.

    Raises:
        CorruptEntry: one is missing, or is not what the manifest says.
        RemoteError: the machine does not take them.
    """
    with passing_through(scratch(work)) as here:
        # What a .gitignore above says is about other things.
        (here / ".gpuctlignore").write_text("!*\n")
        for blob in dict.fromkeys(manifest.blobs()):
            file = here / blob.key
            file.parent.mkdir(parents=True, exist_ok=True)
            if not _linked(work.store.folder, blob, file):
                file.write_bytes(work.store.read_blob(blob))
        connection.put(here, f"{there}/", progress=progress)


def remove_checkpoint(connection: Connection, there: str) -> None:
    """Remove what `send_checkpoint` sent, once it is in its place."""
    _remove_there(connection, there)


def _linked(folder: Path | None, blob: Blob, file: Path) -> bool:
    """Whether a blob could be given a second name; the machine checks its content."""
    if folder is None:
        return False
    try:
        os.link(folder / blob.key, file, follow_symlinks=False)
    except OSError:
        return False  # another file system, or missing: reading it will tell
    return True


def _remove_there(connection: Connection, path: str) -> None:
    # A machine that does not answer takes it with it when it ends.
    with contextlib.suppress(RemoteError):
        connection.run(["rm", "-rf", "--", path], timeout=_TIMEOUT_SECONDS)
