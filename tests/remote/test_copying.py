"""Comparing content, and a limit, on machines that are a folder."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gpuctl.remote.local import LocalConnection
from providers.base import LocalAccess


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "machine").mkdir()
    return tmp_path / "machine"


@pytest.fixture
def machine(root: Path) -> LocalConnection:
    return LocalConnection(LocalAccess(str(root), (), {"PATH": os.environ["PATH"]}))


def same_time(one: Path, other: Path) -> None:
    state = one.stat()
    os.utime(other, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("tree", [True, False])
def test_content_is_compared_when_asked(
    machine: LocalConnection, root: Path, tmp_path: Path, tree: bool
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"one")
    what, into = (source, "there") if tree else (source / "file", "there/")
    machine.put(what, into)
    (root / "there/file").write_bytes(b"eno")
    same_time(source / "file", root / "there/file")
    assert machine.put(what, into).skipped == 1
    assert machine.put(what, into, checksum=True).files == 1
    assert (root / "there/file").read_bytes() == b"one"

    (source / "file").touch()  # newer, and the same
    again = machine.put(what, into, checksum=True)
    assert (again.files, again.skipped) == (0, 1)
    assert machine.put(what, into).skipped == 1  # its time was taken over

    back = machine.get("there" if tree else "there/file", source, checksum=True)
    assert (back.files, back.skipped) == (0, 1)


def test_a_limit(machine: LocalConnection, root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 << 20))
    began = time.monotonic()
    machine.put(tmp_path / "file", "file", rate=8 << 20)
    machine.get("file", tmp_path / "back", rate=8 << 20)
    # The first MiB of each goes at once.
    assert 0.6 < time.monotonic() - began < 10
    assert (tmp_path / "back").read_bytes() == bytes(4 << 20)
