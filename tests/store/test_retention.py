"""Retention: whatever happens, the newest whole checkpoint is still whole after a prune."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from gpuctl.store import Manifest, Store
from gpuctl.store.manifest import Blob
from gpuctl.store.retention import Shipped, plan
from tests.conformance.store_suite import AT, RUN
from tests.store.memory_objects import Crash, ManualClock, MemoryObjects

BLOB = 4  # bytes


def put(
    store: Store,
    folder: Path,
    seq: int,
    body: bytes,
    *,
    attempt: int = 1,
    kind: str = "checkpoint",
) -> Manifest:
    """Ship one entry with these bytes."""
    entry = folder / f"epoch-{seq}"
    entry.write_bytes(body)
    return store.put_entry(
        entry,
        attempt=attempt,
        seq=seq,
        kind="output" if kind == "output" else "checkpoint",
        name=entry.name,
        version=1,
        step=seq,
        at=AT,
    )


@dataclass
class Agent:
    """The one writer of an attempt, somewhere in the middle of shipping a checkpoint."""

    attempt: int
    manifest: Manifest | None = None  # on its way
    content: dict[str, bytes] = field(default_factory=dict)
    to_send: list[Blob] = field(default_factory=list)
    newest: frozenset[str] = frozenset()  # what its newest checkpoint names: not sent again


class Retention(RuleBasedStateMachine):
    """Puts, damage, crashes and prunes in any order, also while an agent ships."""

    @initialize()
    def start(self) -> None:
        self.clock = ManualClock()
        self.objects = MemoryObjects(self.clock)
        self.store = Store(self.objects, RUN, clock=self.clock, blob_bytes=BLOB)
        self.seq = 0
        self.attempt = 1
        self.agent: Agent | None = None
        self.damaged: dict[str, int] = {}  # key → how many writes there were before

    def described(self, letters: str, kind: str) -> tuple[Manifest, dict[str, bytes]]:
        """A manifest in which each letter is a blob of its own, made by a store of its own."""
        self.seq += 1
        elsewhere = MemoryObjects(self.clock)
        with tempfile.TemporaryDirectory() as folder:
            body = b"".join(letter.encode() * BLOB for letter in letters)
            manifest = put(
                Store(elsewhere, RUN, clock=self.clock, blob_bytes=BLOB),
                Path(folder),
                self.seq,
                body,
                attempt=self.attempt,
                kind=kind,
            )
        return manifest, {key: body for key, (body, _) in elsewhere.held.items()}

    def is_damaged(self, manifest: Manifest) -> bool:
        """Whether a blob was damaged by `damage_a_blob`, and not written since."""
        return any(
            blob.key in self.damaged
            and blob.key not in self.objects.writes[self.damaged[blob.key] :]
            for blob in manifest.blobs()
        )

    @rule(letters=st.text("abcde", max_size=4), kind=st.sampled_from(["checkpoint", "output"]))
    @precondition(lambda self: self.agent is None)
    def import_one(self, letters: str, kind: str) -> None:
        manifest, content = self.described(letters, kind)

        class Source:
            def read_blob(self, blob: Blob) -> bytes:
                return content[blob.key]

        self.store.import_from(Source(), manifest)
        assert self.store.is_whole(manifest)
        # Bytes that were flipped in place look whole, so a copy may count on them.
        assert self.store.verify(manifest) == [] or self.is_damaged(manifest)

    @rule(letters=st.text("abcde", min_size=1, max_size=4))
    @precondition(lambda self: self.agent is None or self.agent.manifest is None)
    def agent_begins(self, letters: str) -> None:
        if self.agent is None:
            self.attempt += 1
            self.agent = Agent(self.attempt)
        manifest, self.agent.content = self.described(letters, "checkpoint")
        self.agent.manifest = manifest
        blobs = dict.fromkeys(manifest.blobs())
        self.agent.to_send = [blob for blob in blobs if blob.key not in self.agent.newest]

    @rule()
    @precondition(lambda self: self.agent is not None and self.agent.manifest is not None)
    def agent_sends(self) -> None:
        agent = self.agent
        assert agent is not None
        assert agent.manifest is not None
        if agent.to_send:
            key = agent.to_send.pop().key
            self.objects.write(key, agent.content[key])
            return
        self.objects.write(agent.manifest.key, agent.manifest.to_json())
        assert self.store.verify(agent.manifest) == [] or self.is_damaged(agent.manifest)
        agent.newest = frozenset(blob.key for blob in agent.manifest.blobs())
        agent.manifest = None

    @rule()
    def the_machine_is_lost(self) -> None:
        self.attempt += 1
        self.agent = None

    @rule(seconds=st.sampled_from([0.3, 1, 3600, 30_000]))
    @precondition(lambda self: self.agent is None or self.agent.manifest is None)
    def time_passes(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    @rule()
    def a_moment_passes(self) -> None:
        self.clock.sleep(1)

    @rule(data=st.data(), how=st.sampled_from(["flip", "truncate", "delete"]))
    @precondition(lambda self: self.objects.listing("blobs"))
    def damage_a_blob(self, data: st.DataObject, how: str) -> None:
        key = data.draw(st.sampled_from(sorted(s.key for s in self.objects.listing("blobs"))))
        body, modified = self.objects.held[key]
        self.damaged[key] = len(self.objects.writes)
        if how == "delete":
            del self.objects.held[key]
        else:
            broken = bytes(len(body)) if how == "flip" else body[:-1]
            self.objects.held[key] = (broken, modified)

    @rule(data=st.data())
    @precondition(lambda self: self.objects.listing("manifests"))
    def damage_a_manifest(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(s.key for s in self.objects.listing("manifests"))))
        body, modified = self.objects.held[key]
        self.objects.held[key] = (body[:-1], modified)

    @rule(keep=st.integers(1, 3), crash_after=st.none() | st.integers(0, 4))
    def prune(self, keep: int, crash_after: int | None) -> None:
        before = self.store.manifests()
        checkpoints = [m for m in before if m.kind == "checkpoint"]
        whole = [m for m in checkpoints if self.store.is_whole(m)]
        perfect = [m for m in before if self.store.verify(m) == []]
        self.objects.removals_left = crash_after
        try:
            self.store.prune(keep)
        except Crash:
            crashed = True
        else:
            crashed = False
        finally:
            self.objects.removals_left = None
        after = self.store.manifests()

        stays = whole[:keep] + [m for m in before if m.kind == "output"]
        assert all(m in after for m in stays)
        assert all(self.store.is_whole(m) for m in whole[:keep])
        assert all(self.store.verify(m) == [] for m in stays if m in perfect)
        if before:
            assert after[0] == before[0]
        goes = checkpoints[checkpoints.index(whole[keep - 1]) + 1 :] if len(whole) >= keep else []
        assert set(before) - set(after) <= set(goes)
        if not crashed:
            assert set(before) - set(after) == set(goes)


TestRetention = Retention.TestCase
TestRetention.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_keeping_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        plan([], [], keep=0, now=AT)


def test_bytes_that_a_writer_has_sent_again_stay(tmp_path: Path) -> None:
    clock = ManualClock()
    objects = MemoryObjects(clock)
    store = Store(objects, RUN, clock=clock, blob_bytes=BLOB)
    old = put(store, tmp_path, 1, b"aaaa")
    clock.sleep(10)
    put(store, tmp_path, 2, b"bbbb")
    clock.sleep(10)
    (blob,) = old.files[0].blobs
    objects.write(blob.key, b"aaaa")  # for a third, whose manifest is still to come
    pruned = store.prune(1)
    assert (list(pruned.manifests), pruned.blobs) == ([old], 0)
    third = put(store, tmp_path, 3, b"aaaa")
    assert store.verify(third) == []


def test_a_blob_written_between_the_look_and_the_removal_stays(tmp_path: Path) -> None:
    clock = ManualClock()
    objects = MemoryObjects(clock)
    store = Store(objects, RUN, clock=clock, blob_bytes=BLOB)
    old = put(store, tmp_path, 1, b"aaaa")
    clock.sleep(1)
    put(store, tmp_path, 2, b"bbbb")
    shipped = [
        Shipped(m, next(s for s in objects.listing("manifests") if s.key == m.key))
        for m in store.manifests()
    ]
    going = plan(shipped, objects.listing("blobs"), keep=1, now=clock.now())
    assert [one.manifest for one in going.manifests] == [old]
    clock.sleep(1)
    objects.write(going.blobs[0].key, b"aaaa")
    assert not objects.remove(going.blobs[0])


def test_what_is_unchanged_is_not_sent_again(tmp_path: Path) -> None:
    clock = ManualClock()
    objects = MemoryObjects(clock)
    store = Store(objects, RUN, clock=clock, blob_bytes=BLOB)
    put(store, tmp_path, 1, b"aaaabbbb")
    clock.sleep(timedelta(hours=20).total_seconds())
    objects.writes.clear()
    put(store, tmp_path, 2, b"aaaacccc")
    assert len([key for key in objects.writes if key.startswith("blobs/")]) == 1
    clock.sleep(1)
    objects.writes.clear()
    put(store, tmp_path, 3, b"bbbb")  # not in the newest: it could be on its way out
    assert len([key for key in objects.writes if key.startswith("blobs/")]) == 1
