"""Taking an entry apart."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import pytest

from gpuctl.errors import StoreError
from gpuctl.store.entry import describe, read_piece


def test_a_file_is_cut_into_blobs_in_order(tmp_path: Path) -> None:
    file = tmp_path / "f"
    content = os.urandom(25)
    file.write_bytes(content)
    described = describe(file, 10)
    (record,) = described.files
    assert [blob.size for blob in record.blobs] == [10, 10, 5]
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert b"".join(read_piece(described.pieces[b], b) for b in record.blobs) == content


def test_the_same_bytes_are_one_blob(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for name in "ab":
        (tmp_path / "d" / name).write_bytes(bytes(20))
    described = describe(tmp_path / "d", 10)
    assert len(described.pieces) == 1
    assert len(described.files) == 2


def test_a_file_that_changes_is_not_stored(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(b"before")
    described = describe(file, 10)
    file.write_bytes(b"after!")
    (blob,) = described.files[0].blobs
    with pytest.raises(StoreError, match="changed while"):
        read_piece(described.pieces[blob], blob)


def test_special_files_are_left_out_and_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    described = describe(tmp_path, 10)
    assert described.special == ("pipe",)
    assert described.files == ()


def test_what_is_neither_file_nor_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="neither"):
        describe(tmp_path / "link", 10)
    with pytest.raises(StoreError, match="No such file"):
        describe(tmp_path / "nothing", 10)


@pytest.mark.skipif(sys.platform != "linux", reason="macOS refuses such names itself")
def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).write_bytes(b"1")
    with pytest.raises(StoreError, match="UTF-8"):
        describe(tmp_path, 10)
