"""What every kind of store must do. A test file subclasses `StoreConformance`.

It needs two fixtures: ``objects_of`` (run id → fresh `Objects` of a place that the test has to
itself) and ``clock``, which `Store.prune` goes by.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gpuctl.errors import StoreError
from gpuctl.store import Blob, CorruptEntry, Manifest, NewerFormat, Store
from gpuctl.store.objects import Missing, Objects
from providers.base import Clock
from tests.waiting import until

RUN = "demo-1a2b3c"
AT = datetime(2026, 11, 21, 13, 0, 0, 123456, tzinfo=UTC)
SMALL = 1000  # bytes a blob, so that small files have several

ObjectsOf = Callable[[str], Objects]


class Shifted:
    """The system's clock, some hours on."""

    def __init__(self, hours: float) -> None:
        self._by = timedelta(hours=hours)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._by

    def monotonic(self) -> float:
        raise AssertionError("not used here")

    def sleep(self, seconds: float) -> None:
        raise AssertionError("nothing here sleeps")


class Counting:
    """A source of blobs that counts, and breaks when told to."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.read: list[str] = []
        self.breaks_after: int | None = None

    def read_blob(self, blob: Blob) -> bytes | bytearray:
        if self.breaks_after is not None and len(self.read) >= self.breaks_after:
            raise StoreError("the connection broke")
        self.read.append(blob.sha256)
        return self.store.read_blob(blob)


def put(
    store: Store,
    entry: Path,
    seq: int,
    *,
    attempt: int = 1,
    kind: str = "checkpoint",
    at: datetime = AT,
) -> Manifest:
    """Store an entry under its own name."""
    return store.put_entry(
        entry,
        attempt=attempt,
        seq=seq,
        kind="output" if kind == "output" else "checkpoint",
        name=entry.name,
        version=1,
        step=seq,
        at=at,
    )


def next_second() -> None:
    """Let the second pass in which S3 would say that everything so far was written."""
    this = int(time.time())
    assert until(lambda: int(time.time()) > this, 5)


def make_tree(root: Path) -> Path:
    """A folder with everything that can be in one."""
    (root / "empty").mkdir(parents=True)
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "model.bin").write_bytes(os.urandom(3 * SMALL + 7))
    (root / "nothing").write_bytes(b"")
    (root / "sub" / "config ü.json").write_text("{}")
    (root / "sub" / "deep" / "run.sh").write_text("#!/bin/sh\n")
    (root / "sub" / "deep" / "run.sh").chmod(0o750)
    (root / "latest").symlink_to("sub/deep")
    (root / "sub" / "up").symlink_to("../model.bin")
    os.utime(root / "model.bin", (1763730000.5, 1763730000.5))
    (root / "sub").chmod(0o500)
    return root


def picture(root: Path) -> dict[str, object]:
    """What a tree is, to compare two."""
    found: dict[str, object] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        info = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISLNK(info.st_mode):
            found[name] = str(path.readlink())
        elif stat.S_ISDIR(info.st_mode):
            found[name] = stat.S_IMODE(info.st_mode)
        else:
            found[name] = (
                stat.S_IMODE(info.st_mode),
                path.read_bytes(),
                round(info.st_mtime, 1),
            )  # manifests keep it as a float
    return found


class StoreConformance:
    """The tests. ``make`` opens a store, ``objects_of`` what lies beneath it."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Shifted(0)

    @pytest.fixture
    def objects(self, objects_of: ObjectsOf) -> Objects:
        return objects_of(RUN)

    @pytest.fixture
    def store(self, objects: Objects, clock: Clock) -> Store:
        return Store(objects, RUN, clock=clock, blob_bytes=SMALL)

    @pytest.fixture
    def entry(self, tmp_path: Path) -> Path:
        entry = tmp_path / "in" / "epoch-1"
        entry.parent.mkdir()
        entry.write_bytes(os.urandom(3 * SMALL + 1))
        return entry

    # ------------------------------------------------------------ what lies beneath

    def test_an_object_is_written_read_listed_and_removed(self, objects: Objects) -> None:
        objects.write("blobs/ab/one", b"12345")
        objects.write("manifests/two", b"")
        assert objects.read("blobs/ab/one", 100) == b"12345"
        assert objects.read("blobs/ab/one", 3) == b"1234"
        assert objects.read("manifests/two", 0) == b""
        (listed,) = objects.listing("blobs")
        assert (listed.key, listed.size) == ("blobs/ab/one", 5)
        assert abs(datetime.now(UTC) - listed.modified) < timedelta(minutes=1)
        assert objects.remove(listed)
        assert objects.remove(listed)
        assert list(objects.listing("blobs")) == []
        with pytest.raises(Missing):
            objects.read("blobs/ab/one", 100)

    def test_writing_replaces_and_creating_does_not(self, objects: Objects) -> None:
        assert objects.create("manifests/x", b"first")
        assert not objects.create("manifests/x", b"second")
        assert objects.read("manifests/x", 100) == b"first"
        objects.write("manifests/x", bytearray(b"third"))
        assert objects.read("manifests/x", 100) == b"third"

    def test_what_was_written_again_since_the_listing_stays(self, objects: Objects) -> None:
        objects.write("blobs/ab/x", b"1")
        (listed,) = objects.listing("blobs")
        earlier = type(listed)(listed.key, listed.size, listed.modified - timedelta(seconds=5))
        assert not objects.remove(earlier)
        assert objects.read("blobs/ab/x", 10) == b"1"

    def test_one_run_does_not_see_another_whose_name_begins_alike(
        self, objects_of: ObjectsOf
    ) -> None:
        objects_of("demo-1").write("blobs/ab/x", b"1")
        assert list(objects_of("demo").listing("blobs")) == []
        assert len(objects_of("demo-1").listing("blobs")) == 1

    # ------------------------------------------------------------------ there and back

    def test_a_tree_comes_back_as_it_was(self, store: Store, tmp_path: Path) -> None:
        tree = make_tree(tmp_path / "in" / "epoch-1")
        manifest = put(store, tree, 1)
        assert (
            manifest.bytes
            == sum(p.stat().st_size for p in tree.rglob("*") if p.is_file())
            - (tree / "model.bin").stat().st_size
        )  # "up" leads to it, so is_file counts it twice
        assert store.manifests() == [manifest]
        assert store.verify(manifest) == []
        seen: list[tuple[int, int]] = []
        fetched = store.fetch(
            manifest, tmp_path / "out" / "back", progress=lambda done, of: seen.append((done, of))
        )
        assert picture(fetched.path) == picture(tree)
        assert fetched.links_left_out == ()
        assert seen[-1] == (manifest.bytes, manifest.bytes)
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["back"]

    def test_a_plain_file_comes_back_as_it_was(self, store: Store, tmp_path: Path) -> None:
        file = tmp_path / "in-3.pt"
        file.write_bytes(os.urandom(SMALL))
        file.chmod(0o640)
        manifest = put(store, file, 1)
        assert manifest.is_file
        fetched = store.fetch(manifest, tmp_path / "out.pt")
        assert fetched.path.read_bytes() == file.read_bytes()
        assert stat.S_IMODE(fetched.path.stat().st_mode) == 0o640

    def test_newest_first_by_attempt_then_number(self, store: Store, entry: Path) -> None:
        for attempt, seq in [(1, 2), (2, 1), (1, 10), (10, 1)]:
            put(store, entry, seq, attempt=attempt)
        assert [m.order for m in store.manifests()] == [(10, 1), (2, 1), (1, 10), (1, 2)]

    def test_an_empty_store_has_nothing(self, store: Store) -> None:
        assert store.manifests() == []
        assert store.newest_whole().manifest is None
        assert store.prune(1).blobs == 0

    def test_the_same_shipped_twice_is_one_and_another_is_refused(
        self, store: Store, entry: Path
    ) -> None:
        manifest = put(store, entry, 1)
        assert put(store, entry, 1) == manifest
        entry.write_bytes(b"other")
        with pytest.raises(StoreError, match="holds another"):
            put(store, entry, 1)
        assert store.manifests() == [manifest]

    # ------------------------------------------------------------------------ damage

    def test_damage_is_found_and_the_one_before_is_taken(
        self, store: Store, objects: Objects, tmp_path: Path
    ) -> None:
        whole = put(store, self.fresh(tmp_path, "epoch-1"), 1)
        flipped = put(store, self.fresh(tmp_path, "epoch-2"), 2)
        shortened = put(store, self.fresh(tmp_path, "epoch-3"), 3)
        unreadable = put(store, self.fresh(tmp_path, "epoch-4"), 4)
        blob = flipped.files[0].blobs[0]
        objects.write(blob.key, bytes(blob.size))
        objects.write(shortened.files[0].blobs[1].key, b"short")
        objects.write(unreadable.key, unreadable.to_json()[:-10])

        newest = store.newest_whole()
        assert newest.manifest == whole
        assert [(p.key, p.name) for p in newest.passed_over] == [
            (unreadable.key, None),
            (shortened.key, "epoch-3"),
            (flipped.key, "epoch-2"),
        ]
        assert "wrong size" in newest.passed_over[1].why
        assert "other bytes" in newest.passed_over[2].why
        assert store.newest_whole(verify=False).manifest == flipped
        assert store.newest_whole(verify=False, older_than=flipped).manifest == whole
        assert [c.key for c in store.corrupt()] == [unreadable.key]
        assert store.is_whole(flipped)
        assert not store.is_whole(shortened)
        assert len(store.verify(flipped)) == 1

        dest = tmp_path / "out" / "x"
        for manifest in (flipped, shortened):
            with pytest.raises(CorruptEntry):
                store.fetch(manifest, dest)
        assert list(dest.parent.iterdir()) == []

    def test_a_blob_that_is_gone_is_said(
        self, store: Store, objects: Objects, entry: Path, tmp_path: Path
    ) -> None:
        manifest = put(store, entry, 1)
        for stored in objects.listing("blobs"):
            if stored.key == manifest.files[0].blobs[2].key:
                objects.remove(stored)
        assert not store.is_whole(manifest)
        assert "missing" in store.verify(manifest)[0].why
        with pytest.raises(CorruptEntry, match="missing"):
            store.fetch(manifest, tmp_path / "x")

    def test_a_manifest_under_a_key_that_is_not_its_own_is_not_there(
        self, store: Store, objects: Objects, entry: Path
    ) -> None:
        manifest = put(store, entry, 1)
        objects.write("manifests/a0009-000001.json", manifest.to_json())
        objects.write("manifests/readme.txt", b"somebody else's")
        assert store.manifests() == [manifest]
        assert [c.key for c in store.corrupt()] == ["manifests/a0009-000001.json"]

    def test_a_manifest_that_cannot_be_believed_is_replaced_by_its_writer(
        self, store: Store, objects: Objects, entry: Path
    ) -> None:
        manifest = put(store, entry, 1)
        objects.write(manifest.key, b"{")
        assert put(store, entry, 1) == manifest
        assert store.manifests() == [manifest]

    # -------------------------------------------------------------------------- copies

    def test_a_copy_that_broke_off_goes_on_where_it_was(
        self, store: Store, objects_of: ObjectsOf, clock: Clock, entry: Path
    ) -> None:
        manifest = put(store, entry, 1)
        target = Store(objects_of("other"), RUN, clock=clock, blob_bytes=SMALL)
        source = Counting(store)
        source.breaks_after = 2
        with pytest.raises(StoreError, match="broke"):
            target.import_from(source, manifest)
        assert target.manifests() == []
        source.breaks_after = None
        target.import_from(source, manifest)
        assert target.manifests() == [manifest]
        assert target.verify(manifest) == []
        assert sorted(source.read) == sorted(b.sha256 for b in manifest.blobs())
        target.import_from(source, manifest)
        assert len(source.read) == 4

    def test_a_copy_of_wrong_bytes_never_appears(
        self, store: Store, objects_of: ObjectsOf, clock: Clock, entry: Path
    ) -> None:
        manifest = put(store, entry, 1)

        class Liar:
            def read_blob(self, blob: Blob) -> bytes:
                return bytes(blob.size)

        target = Store(objects_of("other"), RUN, clock=clock)
        with pytest.raises(CorruptEntry, match="cannot be trusted"):
            target.import_from(Liar(), manifest)
        assert target.manifests() == []
        with pytest.raises(StoreError, match="of run"):
            Store(objects_of("third"), "third", clock=clock).import_from(store, manifest)

    # ----------------------------------------------------------------------- retention

    def test_prune_keeps_the_newest_whole_and_every_output(
        self, store: Store, objects: Objects, tmp_path: Path
    ) -> None:
        output = put(store, self.fresh(tmp_path, "adapter"), 1, kind="output")
        old = [put(store, self.fresh(tmp_path, f"epoch-{n}"), n) for n in (2, 3)]
        kept = put(store, self.fresh(tmp_path, "epoch-4"), 4)
        broken = put(store, self.fresh(tmp_path, "epoch-5"), 5)
        next_second()
        newest = put(store, self.fresh(tmp_path, "epoch-6"), 6)
        objects.write(broken.files[0].blobs[0].key, b"")

        pruned = store.prune(2)

        assert list(pruned.manifests) == old
        assert pruned.blobs == 4
        assert pruned.bytes == sum(m.bytes for m in old)
        assert store.manifests() == [newest, broken, kept, output]
        assert all(store.verify(m) == [] for m in (newest, kept, output))
        named = {b.key for m in store.manifests() for b in m.blobs()}
        assert {s.key for s in objects.listing("blobs")} == named
        assert store.prune(2).manifests == ()

    def test_a_blob_that_another_checkpoint_needs_stays(self, store: Store, tmp_path: Path) -> None:
        tree = tmp_path / "epoch"
        tree.mkdir()
        (tree / "frozen").write_bytes(os.urandom(SMALL))
        manifests = []
        for seq in (1, 2, 3):
            if seq == 3:
                next_second()
            (tree / "head").write_bytes(os.urandom(SMALL))
            manifests.append(put(store, tree, seq))
        assert store.prune(1).blobs == 2
        assert store.verify(manifests[-1]) == []

    def test_an_orphan_goes_after_a_day_and_not_before(
        self, store: Store, objects: Objects, entry: Path
    ) -> None:
        manifest = put(store, entry, 1)
        objects.write("blobs/ab/" + "ab" * 32, b"of a writer that died")
        assert store.prune(1).blobs == 0
        tomorrow = Store(objects, RUN, clock=Shifted(25), blob_bytes=SMALL)
        assert tomorrow.prune(1).blobs == 1
        assert store.verify(manifest) == []

    def test_prune_does_not_touch_what_a_newer_gpuctl_wrote(
        self, store: Store, objects: Objects, tmp_path: Path
    ) -> None:
        manifests = [put(store, self.fresh(tmp_path, f"epoch-{n}"), n) for n in (1, 2)]
        document: dict[str, Any] = json.loads(manifests[0].to_json())
        document |= {"format": 2, "more": []}
        objects.write("manifests/a0001-000003.json", json.dumps(document).encode())
        with pytest.raises(NewerFormat, match="format 2"):
            store.prune(1)
        assert store.manifests() == manifests[::-1]

    # ---------------------------------------------------------------------------- help

    def fresh(self, tmp_path: Path, name: str) -> Path:
        entry = tmp_path / "in" / name
        entry.parent.mkdir(exist_ok=True)
        entry.write_bytes(os.urandom(SMALL + 10))
        return entry
