"""The store in a folder: the shared suite, and what only a folder can get wrong."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gpuctl.errors import StoreError
from gpuctl.store import CorruptEntry, Store, open_store
from gpuctl.store.folder import FolderObjects
from gpuctl.store.objects import Objects
from tests.conformance.store_suite import AT, RUN, SMALL, ObjectsOf, StoreConformance, put
from tests.store.memory_objects import ManualClock, MemoryObjects


class TestFolder(StoreConformance):
    @pytest.fixture
    def objects_of(self, tmp_path: Path) -> ObjectsOf:
        return lambda run: FolderObjects(tmp_path / "store", run)


class TestMemory(StoreConformance):
    """The double that the state machine runs on keeps the same contract."""

    @pytest.fixture
    def objects_of(self) -> ObjectsOf:
        held: dict[str, Objects] = {}

        class Now(ManualClock):
            def now(self) -> datetime:
                return datetime.now(UTC)

        return lambda run: held.setdefault(run, MemoryObjects(Now()))


@pytest.fixture
def objects(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path / "store", RUN)


def all_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir()]


def test_only_the_owner_can_read_it(objects: FolderObjects) -> None:
    objects.write("blobs/ab/x", b"1")
    found = [objects.folder.parent, *objects.folder.parent.rglob("*")]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in found}
    assert modes == {0o700, 0o600}


def test_a_full_disk_is_said_and_leaves_nothing(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    objects.folder.mkdir(parents=True)
    (objects.folder / "manifests").mkdir()
    with pytest.raises(StoreError, match="No space left") as caught:
        objects.write("manifests/x", b"1")
    assert "room" in (caught.value.next or "")
    assert all_files(objects.folder) == []


def test_a_file_where_the_folder_should_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("not a folder")
    store = open_store(str(tmp_path / "store"), RUN, environ={})
    (tmp_path / "epoch-1").write_bytes(b"1")
    with pytest.raises(StoreError, match="Not a directory"):
        put(store, tmp_path / "epoch-1", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_ours_is_said(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="Permission denied") as caught:
        FolderObjects(tmp_path / "store", RUN).write("blobs/ab/x", b"1")
    assert "yours" in (caught.value.next or "")


def test_a_writer_that_is_killed_leaves_only_hidden_files(tmp_path: Path) -> None:
    objects = FolderObjects(tmp_path / "store", RUN)
    script = (
        "import os, sys; from pathlib import Path; from gpuctl.store import folder\n"
        "folder.os.fsync = lambda handle: os._exit(9)\n"  # dies with the bytes half written
        "Path(sys.argv[1], 'blobs', 'ab').mkdir(parents=True)\n"
        "folder.FolderObjects(Path(sys.argv[1]).parent, sys.argv[2]).write('blobs/ab/x', b'12')\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", script, str(objects.folder), RUN], check=False, timeout=30
    )
    assert killed.returncode == 9
    assert list(objects.listing("blobs")) == []
    assert len(all_files(objects.folder)) == 1
    assert objects.sweep_unfinished(datetime.now(UTC) - timedelta(days=1)) == 0
    assert objects.sweep_unfinished(datetime.now(UTC) + timedelta(seconds=1)) == 1
    assert all_files(objects.folder) == []


def test_links_pipes_and_folders_in_place_of_objects_are_not_followed(
    objects: FolderObjects, tmp_path: Path
) -> None:
    objects.write("blobs/ab/real", b"1")
    secret = tmp_path / "secret"
    secret.write_text("not yours")
    (objects.folder / "blobs/ab/link").symlink_to(secret)
    (objects.folder / "blobs/out").symlink_to(tmp_path)
    os.mkfifo(objects.folder / "blobs/ab/pipe")
    assert [stored.key for stored in objects.listing("blobs")] == ["blobs/ab/real"]
    with pytest.raises(StoreError):
        objects.read("blobs/ab/link", 100)
    assert objects.read("blobs/ab/pipe", 100) == b""


def test_without_hard_links_a_manifest_still_appears_once(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert objects.create("manifests/x", b"1")
    assert not objects.create("manifests/x", b"2")
    assert objects.read("manifests/x", 9) == b"1"


def test_of_many_writers_of_one_manifest_one_wins(objects: FolderObjects) -> None:
    start = threading.Barrier(8)
    won: list[bytes] = []

    def write(body: bytes) -> None:
        start.wait(10)
        if objects.create("manifests/x", body):
            won.append(body)

    race(write)
    assert [objects.read("manifests/x", 9)] == won


def test_an_object_written_during_its_removal_survives(
    objects: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects.write("blobs/ab/x", b"1")
    (listed,) = objects.listing("blobs")
    real = Path.rename

    def write_first(path: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", real)
        later = datetime.now(UTC).timestamp() + 5
        objects.write("blobs/ab/x", b"1")
        os.utime(path, (later, later))
        return real(path, target)

    monkeypatch.setattr(Path, "rename", write_first)
    assert not objects.remove(listed)
    assert objects.read("blobs/ab/x", 9) == b"1"
    assert len(all_files(objects.folder)) == 1


def test_a_reader_never_sees_half_while_a_writer_ships_and_another_prunes(
    tmp_path: Path, objects: FolderObjects
) -> None:
    """Whatever is listed as the newest whole checkpoint can be restored, at any moment."""
    store = Store(objects, RUN, blob_bytes=SMALL)
    entry = tmp_path / "epoch"
    entry.write_bytes(os.urandom(2 * SMALL))
    put(store, entry, 1)
    done = threading.Event()
    failures: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            while not done.is_set():
                work()
        except BaseException as error:
            failures.append(error)

    def read() -> None:
        newest = store.newest_whole()
        assert newest.manifest is not None
        try:
            store.fetch(newest.manifest, tmp_path / f"out-{threading.get_ident()}")
        except CorruptEntry:
            # Two newer ones were shipped and it was pruned meanwhile: then it is not listed.
            assert newest.manifest not in store.manifests()
        else:
            restored.append(newest.manifest.seq)

    restored: list[int] = []
    others = [
        threading.Thread(target=guarded, args=(work,)) for work in (read, lambda: store.prune(2))
    ]
    for thread in others:
        thread.start()
    for seq in range(2, 25):
        entry.write_bytes(os.urandom(2 * SMALL))
        put(store, entry, seq, at=AT)
    done.set()
    for thread in others:
        thread.join(30)
    assert failures == []
    assert restored == sorted(restored)
    assert restored
    newest = store.newest_whole().manifest
    assert newest is not None
    assert newest.seq == 24


def race(write: Callable[[bytes], None]) -> None:
    threads = [threading.Thread(target=write, args=(str(n).encode(),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
