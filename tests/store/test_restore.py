"""Restoring: whole or not at all, never outside its place, whatever the manifest says."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuctl.errors import StoreError
from gpuctl.store import Blob, CorruptEntry, Manifest
from gpuctl.store.manifest import DirRecord, FileRecord, LinkRecord
from gpuctl.store.restore import ReadBlob, leads_out, restore


def manifest_of(
    files: dict[str, bytes],
    *,
    dirs: tuple[DirRecord, ...] = (DirRecord("", 0o755),),
    links: tuple[LinkRecord, ...] = (),
    mode: int = 0o644,
) -> Manifest:
    """A manifest of small files."""
    records = tuple(
        FileRecord(path, mode, 1763730000.5, len(body), sha(body), blobs_of(body))
        for path, body in files.items()
    )
    return Manifest(
        run="r",
        attempt=1,
        seq=1,
        kind="output",
        name="x",
        version=1,
        step=None,
        at=datetime(2026, 11, 21, tzinfo=UTC),
        bytes=sum(record.size for record in records),
        files=records,
        dirs=dirs,
        links=links,
    )


def sha(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def blobs_of(body: bytes) -> tuple[Blob, ...]:
    return (Blob(sha(body), len(body)),) if body else ()


def reader(*bodies: bytes) -> dict[str, bytes]:
    return {sha(body): body for body in bodies}


def always(body: bytes) -> ReadBlob:
    return lambda _: body


def test_into_a_folder_that_is_there_it_moves_file_by_file(tmp_path: Path) -> None:
    dest = tmp_path / "artifacts"
    (dest / "sub").mkdir(parents=True)
    dest.chmod(0o750)
    (dest / "mine.txt").write_text("mine")
    (dest / "sub" / "a").write_text("old")
    manifest = manifest_of(
        {"sub/a": b"new", "sub/deep/b": b"b"},
        dirs=(DirRecord("", 0o755), DirRecord("sub", 0o755), DirRecord("sub/deep", 0o500)),
        links=(LinkRecord("l", "sub/a"),),
    )
    bodies = reader(b"new", b"b")
    for deep_mode in (0o500, 0o700):  # what is there the second time keeps its own
        restore(manifest, dest, lambda blob: bodies[blob.sha256])
        assert (dest / "mine.txt").read_text() == "mine"
        assert (dest / "sub" / "a").read_text() == "new"
        assert (dest / "l").read_text() == "new"
        assert stat.S_IMODE(dest.stat().st_mode) == 0o750
        assert stat.S_IMODE((dest / "sub/deep").stat().st_mode) == deep_mode
        (dest / "sub/deep").chmod(0o700)
    assert [path.name for path in tmp_path.iterdir()] == ["artifacts"]


def test_what_is_in_the_way_is_said_before_anything_moves(tmp_path: Path) -> None:
    dest = tmp_path / "out"
    dest.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (dest / "sub").symlink_to(elsewhere)
    manifest = manifest_of(
        {"sub/a": b"new", "b": b"b"}, dirs=(DirRecord("", 0o755), DirRecord("sub", 0o755))
    )
    with pytest.raises(StoreError, match="in the way"):
        restore(manifest, dest, always(b""))
    assert [path.name for path in dest.iterdir()] == ["sub"]
    assert list(elsewhere.iterdir()) == []
    with pytest.raises(StoreError, match="in the way"):
        restore(manifest_of({"": b"1"}, dirs=()), dest, always(b"1"))


def test_a_link_where_a_file_goes_is_replaced_not_followed(tmp_path: Path) -> None:
    dest = tmp_path / "out"
    dest.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (dest / "a").symlink_to(victim)
    restore(manifest_of({"a": b"new"}), dest, always(b"new"))
    assert victim.read_text() == "untouched"
    assert (dest / "a").read_bytes() == b"new"
    assert not (dest / "a").is_symlink()


def test_special_bits_are_not_restored(tmp_path: Path) -> None:
    restored = restore(manifest_of({"a": b"x"}, mode=0o6755), tmp_path / "o", always(b"x"))
    assert stat.S_IMODE((restored.path / "a").stat().st_mode) == 0o755


def test_a_file_that_is_wrong_as_a_whole_is_corrupt(tmp_path: Path) -> None:
    one, two = Blob(sha(b"1"), 1), Blob(sha(b"2"), 1)
    record = FileRecord("a", 0o644, 0, 2, sha(b"21"), (one, two))
    manifest = manifest_of({})
    manifest = type(manifest)(
        **{name: getattr(manifest, name) for name in manifest.__slots__}
        | {"files": (record,), "bytes": 2}
    )
    bodies = reader(b"1", b"2")
    with pytest.raises(CorruptEntry, match="not what was stored"):
        restore(manifest, tmp_path / "out", lambda blob: bodies[blob.sha256])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StoreError("the network is gone")])
def test_whatever_breaks_it_nothing_is_left(tmp_path: Path, error: BaseException) -> None:
    manifest = manifest_of({"a": b"1", "b": b"2"})

    def read(blob: Blob) -> bytes:
        if blob.sha256 == sha(b"2"):
            raise error
        return b"1"

    with pytest.raises(type(error)):
        restore(manifest, tmp_path / "out", read)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_said_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)

    def read(blob: Blob) -> bytes:
        raise AssertionError("nothing is read")

    with pytest.raises(StoreError, match="GB") as caught:
        restore(manifest_of({"a": b"12"}), tmp_path / "out", read)
    assert "room" in (caught.value.next or "")


def test_a_disk_that_fills_up_is_said_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        restore(manifest_of({"a": b"1"}), tmp_path / "out", always(b"1"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_restore_left_is_swept_after_a_day(tmp_path: Path) -> None:
    old = tmp_path / ".out.gpuctl-part-1234"
    young = tmp_path / ".out.gpuctl-part-5678"
    for part in (old, young):
        (part / "sub").mkdir(parents=True)
        (part / "sub").chmod(0o500)
    os.utime(old, (0, 0))
    restore(manifest_of({"a": b"1"}), tmp_path / "out", always(b"1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [young.name, "out"]
    (young / "sub").chmod(0o700)


def test_links_that_lead_out_are_left_out_and_named(tmp_path: Path) -> None:
    bad = (LinkRecord("key", "/etc/passwd"), LinkRecord("up", "../other"))
    good = LinkRecord("ok", "a")
    fetched = restore(manifest_of({"a": b"1"}, links=(*bad, good)), tmp_path / "out", always(b"1"))
    assert fetched.links_left_out == bad
    assert sorted(path.name for path in fetched.path.iterdir()) == ["a", "ok"]


FOLDERS = ["", "a", "a/b", "c"]
link_paths = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(["l", "m", "n"])).map(
    lambda parts: "/".join(filter(None, parts))
)
targets = st.lists(
    st.sampled_from(["..", ".", "a", "b", "c", "l", "m", "n", ""]), min_size=1, max_size=6
).map("/".join)


@settings(deadline=None, max_examples=300)
@given(st.dictionaries(link_paths, targets, max_size=8))
def test_no_set_of_links_that_is_let_in_leads_out(links: dict[str, str]) -> None:
    records = [LinkRecord(path, target) for path, target in links.items() if target]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve() / "x" / "y" / "root"
        for name in FOLDERS:
            (root / name).mkdir(parents=True, exist_ok=True)
        let_in = [record for record in records if not leads_out(record)]
        for record in let_in:
            (root / record.path).symlink_to(record.target)
        for record in let_in:
            try:
                led_to = (root / record.path).resolve(strict=True)
            except (OSError, RuntimeError):
                continue  # leads to nothing, or round and round
            assert led_to == root or root in led_to.parents
