"""Transfers over a real sshd: bad networks, and machines without python3."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuctl.remote.ssh import SshConnection
from gpuctl.remote.transfer.download import download
from gpuctl.remote.transfer.session import FarSideFailed
from gpuctl.remote.transfer.upload import upload
from tests.remote.relay import Relay
from tests.remote.transfer.trees import MIB, content, described, mixed

Connect = Callable[..., SshConnection]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "there"
    folder.mkdir()
    yield folder
    for path in folder.rglob("closed"):
        path.chmod(0o755)


def test_a_tree_over_ssh(connect: Connect, here: Path, there: Path) -> None:
    mixed(here)
    channels = connect().channels()
    upload(channels, here, f"{there}/tree")
    assert described(there / "tree") == described(here)
    download(channels, f"{there}/tree", here.parent / "back")
    assert described(here.parent / "back") == described(here)


def test_several_links_on_a_far_network(
    connect: Connect, relay: Relay, here: Path, there: Path
) -> None:
    here.mkdir()
    (here / "x").write_bytes(content(1, 24 * MIB))
    relay.round_trip = 0.02
    channels = connect(relay).channels()
    upload(channels, here, f"{there}/tree")
    download(channels, f"{there}/tree", here.parent / "back")
    assert described(there / "tree") == described(here.parent / "back") == described(here)
    assert relay.connections > 1


@pytest.mark.parametrize("way", ["up", "down"])
def test_cuts_over_ssh(connect: Connect, relay: Relay, here: Path, there: Path, way: str) -> None:
    origin, goal = (here, there / "tree") if way == "up" else (there / "tree", here)
    origin.mkdir()
    (origin / "x").write_bytes(content(1, 8 * MIB))
    chance = random.Random(way)
    channels = connect(relay).channels()
    for _ in range(3):
        (goal / "x").unlink(missing_ok=True)
        relay.cut_after = relay.moved + chance.randrange(20_000, 8 * MIB)
        if way == "up":
            upload(channels, here, f"{there}/tree")
        else:
            download(channels, f"{there}/tree", here)
        assert described(goal) == described(origin)


@pytest.fixture
def plain(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> SshConnection:
    """A connection to a machine where there is no python3."""
    command = ["python3-that-is-not-there"]
    monkeypatch.setattr("gpuctl.remote.transfer.session.command", lambda: command)
    return connect()


def test_without_python_by_sftp(plain: SshConnection, here: Path, there: Path) -> None:
    mixed(here)
    Path(os.fsdecode(os.fsencode(here) + b"/not-utf8-\xff")).unlink()
    for path in here.rglob("*"):
        if path.is_file() and not path.is_symlink():
            seconds = int(path.stat().st_mtime)

            os.utime(path, (seconds, seconds))
    sent = upload(plain.channels(), here, f"{there}/tree", sftp=plain.sftp)
    assert described(there / "tree") == described(here)
    again = upload(plain.channels(), here, f"{there}/tree", sftp=plain.sftp)
    assert (again.files, again.skipped) == (0, sent.files)
    fetched = download(plain.channels(), f"{there}/tree", here.parent / "back", sftp=plain.sftp)
    assert described(here.parent / "back") == described(here)
    assert fetched.files == sent.files


def test_one_file_by_sftp(plain: SshConnection, here: Path, there: Path) -> None:
    here.mkdir()
    (here / "one").write_bytes(content(1, 3 * MIB))
    (there / "folder").mkdir()
    upload(plain.channels(), here / "one", f"{there}/folder", sftp=plain.sftp)
    upload(plain.channels(), here / "one", f"{there}/new/name", sftp=plain.sftp)
    download(plain.channels(), f"{there}/folder/one", here.parent / "back", sftp=plain.sftp)
    for copy in (there / "folder" / "one", there / "new" / "name", here.parent / "back"):
        assert copy.read_bytes() == content(1, 3 * MIB)


def test_links_that_lead_out_stay_out_by_sftp(
    plain: SshConnection, here: Path, there: Path
) -> None:
    (there / "passwd").symlink_to("/etc/passwd")
    (there / "x").write_text("x")
    fetched = download(plain.channels(), str(there), here, sftp=plain.sftp)
    assert fetched.left_out == ("passwd: a link that could lead out of the folder (/etc/passwd)",)
    assert [path.name for path in here.iterdir()] == ["x"]


def test_what_is_not_there_by_sftp(plain: SshConnection, here: Path, there: Path) -> None:
    with pytest.raises(FarSideFailed, match="No such file"):
        download(plain.channels(), f"{there}/nothing", here, sftp=plain.sftp)


def test_names_that_are_not_utf8_by_sftp(plain: SshConnection, here: Path, there: Path) -> None:
    Path(os.fsdecode(os.fsencode(there) + b"/not-utf8-\xff")).write_text("x")
    with pytest.raises(FarSideFailed, match="not UTF-8"):
        download(plain.channels(), str(there), here, sftp=plain.sftp)
