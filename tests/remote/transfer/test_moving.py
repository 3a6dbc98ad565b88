"""Uploads and downloads against a real far side in a process of its own, links cut at will."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from gpuctl.errors import RemoteError, UsageError
from gpuctl.remote.transfer import crew
from gpuctl.remote.transfer.download import download
from gpuctl.remote.transfer.session import FarSideFailed, LinkBroken, NoPython
from gpuctl.remote.transfer.upload import upload
from tests.remote.transfer.pipes import DEAF, FULL_DISK, READ_ONLY, Fuse, PipeChannels
from tests.remote.transfer.trees import MIB, content, described, mixed, small_files

FAR = 0.05  # a round trip at which several streams are used


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)


def drafts(root: Path) -> list[Path]:
    return list(root.rglob(".gpuctl-part-*"))


@pytest.mark.parametrize("round_trip", [0.0, FAR])
def test_a_tree_goes_there_and_back(here: Path, there: Path, round_trip: float) -> None:
    mixed(here)
    channels = PipeChannels(there, round_trip=round_trip)
    sent = upload(channels, here, "tree")
    assert described(there / "tree") == described(here)
    assert sent.files == sum(entry[0] == "file" for entry in described(here).values())
    fetched = download(channels, "tree", here.parent / "back")
    assert described(here.parent / "back") == described(here)
    assert fetched.files == sent.files
    assert fetched.left_out == ()
    assert any(channels.opened) == (round_trip == FAR), "far links get more streams"
    again = upload(channels, here, "tree"), download(channels, "tree", here.parent / "back")
    assert (again[0].files, again[0].skipped) == (0, sent.files)
    assert (again[1].files, again[1].skipped) == (0, sent.files)
    assert not drafts(here.parent)


def test_holes_stay_holes(here: Path, there: Path) -> None:
    here.mkdir()
    with (here / "sparse").open("wb") as sparse:
        sparse.truncate(64 * MIB)
    channels = PipeChannels(there)
    upload(channels, here, "tree")
    download(channels, "tree", here.parent / "back")
    for copy in (there / "tree" / "sparse", here.parent / "back" / "sparse"):
        assert copy.stat().st_size == 64 * MIB
        assert copy.stat().st_blocks * 512 < MIB


@pytest.mark.parametrize(
    ("target", "arrives"),
    [("a/b", "a/b"), ("a/b/", "a/b/one.bin"), ("folder", "folder/one.bin")],
)
def test_where_one_file_lands(here: Path, there: Path, target: str, arrives: str) -> None:
    here.mkdir()
    (there / "folder").mkdir()
    for size in (10, 3 * MIB):
        (here / "one.bin").write_bytes(content(size, size))
        upload(PipeChannels(there), here / "one.bin", target)
        assert (there / arrives).read_bytes() == content(size, size)
        download(PipeChannels(there), arrives, here.parent / f"got-{size}")
        assert (here.parent / f"got-{size}").read_bytes() == content(size, size)
        (here.parent / f"into-{size}").mkdir()
        download(PipeChannels(there), arrives, here.parent / f"into-{size}")
        assert [path.name for path in (here.parent / f"into-{size}").iterdir()] == [
            Path(arrives).name
        ]


def test_ignored_files_stay_here(here: Path, there: Path) -> None:
    here.mkdir()
    (here / ".gitignore").write_text("*.log\n")
    (here / "a.log").write_text("no")
    (here / "a.txt").write_text("yes")
    upload(PipeChannels(there), here, "tree")
    assert sorted(path.name for path in (there / "tree").iterdir()) == [".gitignore", "a.txt"]


def change(name: str, root: Path) -> None:
    """What a second transfer of each workload has to carry over."""
    if name == "checkpoint":
        data = bytearray((root / "big").read_bytes())
        data[3 * MIB : 3 * MIB] = b"inserted"
        data[8 * MIB : 8 * MIB + 5000] = content(99, 5000)
        (root / "big").write_bytes(data)
    else:
        (root / "d0" / "e0" / "f0").write_bytes(b"changed")


def checkpoint(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "big").write_bytes(content(5, 12 * MIB))


def text(root: Path) -> None:
    root.mkdir(parents=True)
    line = b'{"text": "the quick brown fox", "n": %d}\n'
    (root / "data.jsonl").write_bytes(b"".join(line % n for n in range(250_000)))


def large(root: Path) -> None:
    root.mkdir(parents=True)
    (root / "x").write_bytes(content(7, 20 * MIB))


WORKLOADS: dict[str, Callable[[Path], None]] = {
    "small": small_files,
    "large": large,
    "mixed": mixed,
    "text": text,
    "checkpoint": checkpoint,
    "resync": small_files,
}
CHANGED = ("checkpoint", "resync")


@pytest.mark.parametrize("way", ["up", "down"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_cut_at_twenty_random_points(here: Path, there: Path, workload: str, way: str) -> None:
    chance = random.Random(workload + way)
    origin, goal = (here, there / "tree") if way == "up" else (there / "tree", here)
    before = goal.parent / "before"
    WORKLOADS[workload](origin)
    if workload in CHANGED:
        shutil.copytree(origin, before)
        change(workload, origin)
    whole = described(origin)

    def moved(round_trip: float, fuse: Fuse) -> PipeChannels:
        if goal.exists():
            if (goal / "closed").exists():
                (goal / "closed").chmod(0o755)
            shutil.rmtree(goal)
        if before.exists():
            shutil.copytree(before, goal)
        channels = PipeChannels(there, round_trip=round_trip, fuses=[fuse])
        move(way, channels, here)
        return channels

    for round_trip in (0.0, FAR):
        uncut = Fuse(1 << 40)
        moved(round_trip, uncut)
        for _ in range(10):
            fuse = Fuse(chance.randrange((1 << 40) - uncut._left))
            channels = moved(round_trip, fuse)
            torn = drafts(goal)  # a far side that is killed may leave the small file it was at
            assert len(torn) <= len(channels.opened)
            assert all(path.stat().st_size <= 4096 for path in torn)
            for path in torn:
                path.unlink()
            assert described(goal) == whole
            assert not fuse.blown or channels.opened.count(False) >= 2


@pytest.mark.parametrize("round_trip", [0.0, FAR])
def test_cut_again_and_again(here: Path, there: Path, round_trip: float) -> None:
    large(here)
    fuses = [Fuse(3 * MIB) for _ in range(6)]
    channels = PipeChannels(there, round_trip=round_trip, fuses=fuses)
    upload(channels, here, "tree")
    assert described(there / "tree") == described(here)
    assert not drafts(there)
    assert all(fuse.blown for fuse in fuses[:3])


def move(way: str, channels: PipeChannels, here: Path) -> None:
    if way == "up":
        upload(channels, here, "tree")
    else:
        download(channels, "tree", here)


def counted(channels: PipeChannels, fuse_size: int = 1 << 40) -> Fuse:
    fuse = Fuse(fuse_size)
    channels._fuses.append(fuse)
    return fuse


@pytest.mark.parametrize("way", ["up", "down"])
def test_only_changed_blocks_travel(here: Path, there: Path, way: str) -> None:
    origin = here if way == "up" else there / "tree"
    checkpoint(origin)
    move(way, PipeChannels(there), here)
    change("checkpoint", origin)
    channels = PipeChannels(there)
    fuse = counted(channels)
    move(way, channels, here)
    travelled = (1 << 40) - fuse._left
    assert (here / "big").read_bytes() == (there / "tree" / "big").read_bytes()
    assert travelled < MIB, "12 MiB with 5 kB changed and 8 bytes inserted"


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_resume_sends_only_the_rest(here: Path, there: Path, way: str) -> None:
    origin = here if way == "up" else there / "tree"
    WORKLOADS["large"](origin)
    channels = PipeChannels(there, fuses=[Fuse(15 * MIB)])
    last = counted(channels)
    move(way, channels, here)
    travelled = (1 << 40) - last._left
    assert (here / "x").read_bytes() == (there / "tree" / "x").read_bytes()
    assert 0 < travelled < 8 * MIB, "20 MiB, of which 15 had gone"


def test_a_link_that_never_holds_gives_up(here: Path, there: Path) -> None:
    checkpoint(here)
    channels = PipeChannels(there, fuses=[Fuse(0) for _ in range(100)])
    with pytest.raises(LinkBroken):
        upload(channels, here, "tree")
    assert len(channels.opened) <= crew._FRUITLESS + 1


@pytest.mark.parametrize("way", ["up", "down"])
def test_content_is_compared_when_asked(here: Path, there: Path, way: str) -> None:
    origin, goal = (here, there / "tree") if way == "up" else (there / "tree", here)
    origin.mkdir()
    for name in ("same", "other"):
        (origin / name).write_bytes(b"12345")
    move(way, PipeChannels(there), here)
    state = (origin / "other").stat()
    (origin / "other").write_bytes(b"54321")
    os.utime(origin / "other", ns=(state.st_atime_ns, state.st_mtime_ns))
    os.utime(origin / "same", ns=(5, 5))
    channels = PipeChannels(there)
    if way == "up":
        moved = upload(channels, here, "tree", checksum=True)
    else:
        moved = download(channels, "tree", here, checksum=True)
    assert (moved.files, moved.skipped) == (1, 1)
    assert described(goal) == described(origin), "times are set even where content is the same"


def test_a_full_disk_leaves_nothing_half(here: Path, there: Path) -> None:
    checkpoint(here)
    channels = PipeChannels(there, prelude=FULL_DISK.format(room=4 * MIB))
    with pytest.raises(FarSideFailed, match="No space left") as failed:
        upload(channels, here, "tree")
    assert failed.value.next
    assert list((there / "tree").iterdir()) == []
    assert len(channels.opened) == 1, "trying again would not help"


def test_permission_denied_names_the_place(here: Path, there: Path) -> None:
    small_files(here, 3)
    channels = PipeChannels(there, prelude=READ_ONLY)
    with pytest.raises(FarSideFailed, match=r"tree: Permission denied"):
        upload(channels, here, "tree")
    assert list(there.iterdir()) == []


def test_long_work_is_not_silent(here: Path, there: Path) -> None:
    """What hashes for long says so, else the link's idle deadline would end it."""
    for folder in (here, there / "tree"):
        folder.mkdir()
        with (folder / "x").open("wb") as out:
            out.truncate(200 * MIB)
    os.utime(there / "tree" / "x", (1, 1))
    channels = PipeChannels(there)
    assert upload(channels, here, "tree", checksum=True).skipped == 1
    assert download(channels, "tree", here, checksum=True).skipped == 1


def test_a_file_where_a_folder_should_be(here: Path, there: Path) -> None:
    small_files(here, 3)
    (there / "tree").write_text("a file")
    with pytest.raises(FarSideFailed, match="tree: File exists"):
        upload(PipeChannels(there), here, "tree")
    assert (there / "tree").read_text() == "a file"


def test_what_is_not_there(here: Path, there: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        upload(PipeChannels(there), here, "tree")
    with pytest.raises(RemoteError, match="nothing/here does not exist"):
        download(PipeChannels(there), "nothing/here", here)


def test_a_target_here_that_cannot_be_written(here: Path, there: Path) -> None:
    small_files(there / "tree", 3)
    here.write_text("a file")
    with pytest.raises(UsageError, match="here cannot be written: File exists"):
        download(PipeChannels(there), "tree", here)


def test_a_peer_that_stops_reading(here: Path, there: Path) -> None:
    checkpoint(here)
    channels = PipeChannels(there, prelude=DEAF, idle=0.3)
    with pytest.raises(RemoteError):
        upload(channels, here, "tree")


def test_no_python_there(here: Path, there: Path, tmp_path: Path) -> None:
    small_files(here, 1)
    fake = tmp_path / "python3"
    fake.write_text("#!/bin/sh\nexit 127\n")
    fake.chmod(0o755)
    with pytest.raises(NoPython):
        upload(PipeChannels(there, python=str(fake)), here, "tree")


def test_a_link_in_the_way_is_replaced_not_followed(here: Path, there: Path) -> None:
    (here / "data").mkdir(parents=True)
    (here / "data" / "x").write_text("mine")
    (there / "elsewhere").mkdir()
    (there / "tree").mkdir()
    (there / "tree" / "data").symlink_to(there / "elsewhere")
    upload(PipeChannels(there), here, "tree")
    assert list((there / "elsewhere").iterdir()) == []
    assert (there / "tree" / "data" / "x").read_text() == "mine"


def test_set_uid_stays_behind(here: Path, there: Path) -> None:
    here.mkdir()
    (here / "tool").write_text("x")
    (here / "tool").chmod(0o4755)
    upload(PipeChannels(there), here, "tree")
    assert stat.S_IMODE((there / "tree" / "tool").stat().st_mode) == 0o755


def test_old_leavings_are_swept(here: Path, there: Path) -> None:
    checkpoint(here)
    (there / "tree").mkdir()
    old = there / "tree" / ".gpuctl-part-0123456789abcdef-aaaa"
    old.write_bytes(b"x")
    os.utime(old, (1, 1))
    upload(PipeChannels(there), here, "tree")
    assert not drafts(there)


def test_progress_reaches_the_end(here: Path, there: Path) -> None:
    mixed(here)
    seen: list[tuple[int, int]] = []
    upload(PipeChannels(there), here, "tree", progress=lambda a, b: seen.append((a, b)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_file_that_grows_is_taken_as_it_was_listed(
    here: Path, there: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next transfer sees another time of change and carries the rest."""
    origin, goal = (here, there / "tree") if way == "up" else (there / "tree", here)
    origin.mkdir()
    (origin / "log").write_bytes(content(1, 2 * MIB))
    grown = {"done": False}

    def grow(done: int, total: int) -> None:
        if not grown["done"]:
            grown["done"] = True
            with (origin / "log").open("ab") as log:
                log.write(b"more")

    if way == "up":
        upload(PipeChannels(there), here, "tree", progress=grow)
    else:
        download(PipeChannels(there), "tree", here, progress=grow)
    assert (goal / "log").read_bytes() == content(1, 2 * MIB)
    move(way, PipeChannels(there), here)
    assert (goal / "log").read_bytes() == content(1, 2 * MIB) + b"more"


def test_the_far_side_leaves_nothing_but_the_tree(here: Path, there: Path) -> None:
    small_files(here, 5)
    upload(PipeChannels(there), here, "tree")
    assert [path.name for path in there.iterdir()] == ["tree"]
