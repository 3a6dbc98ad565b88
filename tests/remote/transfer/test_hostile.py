"""Downloads from a machine that lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuctl.remote.selection import File
from gpuctl.remote.transfer import pull
from gpuctl.remote.transfer.download import download
from gpuctl.remote.transfer.framing import PIECE, Broken
from gpuctl.remote.transfer.parts import Large, Part
from gpuctl.remote.transfer.pull import _within
from gpuctl.remote.transfer.session import FarSideFailed
from gpuctl.remote.transfer.upload import upload
from tests.remote.transfer.pipes import PipeChannels

LYING = """
import json
_real = json.dumps
def _dumps(value, **options):
    {lie}
    return _real(value, **options)
json.dumps = _dumps
"""


def listing_of(*entries: list[object]) -> str:
    lie = f"if isinstance(value, dict) and 'entries' in value: value['entries'] = {entries!r}"
    return LYING.format(lie=lie)


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there"
    (folder / "tree").mkdir(parents=True)
    (folder / "tree" / "x").write_text("content")
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "down" / "target"


def outside(tmp_path: Path, target: Path) -> set[str]:
    return {
        str(path.relative_to(tmp_path))
        for path in tmp_path.rglob("*")
        if not path.is_relative_to(target) and not path.is_relative_to(tmp_path / "there")
    } - {"there", "deep", "deep/down"}


@pytest.mark.parametrize(
    "path",
    ["../evil", "/tmp/evil", "a/../../evil", "a//b", "./a", "a/.", "..", "nul\0", "", "a/"],
)
@pytest.mark.parametrize("kind", ["f", "d", "l"])
def test_names_that_lead_out(
    there: Path, target: Path, tmp_path: Path, path: str, kind: str
) -> None:
    entry: list[object] = {
        "f": ["f", path, 3, 0, 0o644],
        "d": ["d", path, 0o755],
        "l": ["l", path, "x"],
    }[kind]
    with pytest.raises(FarSideFailed, match="cannot be believed"):
        download(PipeChannels(there, prelude=listing_of(entry)), "tree", target)
    assert outside(tmp_path, target) == set()


@pytest.mark.parametrize(
    "entry",
    [
        ["f", "x", -1, 0, 0o644],
        ["f", "x", "3", 0, 0o644],
        ["f", 7, 3, 0, 0o644],
        ["f", "x"],
        ["s", "x", 1],
        ["l", "x", ""],
        "f",
        None,
    ],
)
def test_listings_that_are_none(there: Path, target: Path, entry: object) -> None:
    channels = PipeChannels(there, prelude=listing_of(entry))  # type: ignore[arg-type]
    with pytest.raises(FarSideFailed, match="its listing"):
        download(channels, "tree", target)


def test_a_link_is_not_written_through(there: Path, target: Path, tmp_path: Path) -> None:
    """First a link that leads out, then a file below it."""
    (tmp_path / "victim").mkdir()
    (there / "tree" / "d").mkdir()
    (there / "tree" / "d" / "y").write_text("content")
    prelude = listing_of(
        ["l", "d", str(tmp_path / "victim")], ["f", "d/y", 7, 0, 0o644], ["l", "e", "../../x"]
    )
    fetched = download(PipeChannels(there, prelude=prelude), "tree", target)
    assert [told.partition(": ")[0] for told in fetched.left_out] == ["d", "e"]
    assert "(../../x)" in fetched.left_out[1]
    assert list((tmp_path / "victim").iterdir()) == []
    assert not (target / "d").is_symlink()


def test_a_link_that_lies_here_is_not_written_through(
    there: Path, target: Path, tmp_path: Path
) -> None:
    (tmp_path / "victim").mkdir()
    (there / "tree" / "d").mkdir()
    (there / "tree" / "d" / "y").write_text("content")
    target.mkdir(parents=True)
    (target / "d").symlink_to(tmp_path / "victim")
    (target / "x").symlink_to(tmp_path / "victim" / "x")
    download(PipeChannels(there), "tree", target)
    assert list((tmp_path / "victim").iterdir()) == []
    assert (target / "x").read_text() == (target / "d" / "y").read_text() == "content"


def test_a_link_in_place_of_a_folder_with_content(there: Path, target: Path) -> None:
    """The same name twice: never a folder replaced by a link while files go below it."""
    prelude = listing_of(["d", "d", 0o755], ["l", "d", "x"], ["f", "x", 7, 0, 0o644])
    with pytest.raises(Exception, match="cannot be written"):
        download(PipeChannels(there, prelude=prelude), "tree", target)
    assert not (target / "d").is_symlink()


def test_small_files_that_nobody_asked_for(there: Path, target: Path) -> None:
    lie = "if isinstance(value, list) and value and isinstance(value[0], list): value[0][0] = 'z'"
    with pytest.raises(FarSideFailed, match="nobody asked for"):
        download(PipeChannels(there, prelude=LYING.format(lie=lie)), "tree", target)
    assert [path.name for path in target.iterdir()] == []


def test_escapes_for_the_terminal_are_shown_not_obeyed(there: Path, target: Path) -> None:
    prelude = listing_of(["f", "../\x1b]0;owned\x07\x1b[2J", 3, 0, 0o644])
    with pytest.raises(FarSideFailed) as failed:
        download(PipeChannels(there, prelude=prelude), "tree", target)
    assert "\x1b" not in failed.value.message


def test_left_out_links_are_printable(there: Path, target: Path) -> None:
    prelude = listing_of(["l", "\x1b[2Jname\n", "/etc/\x1b[2Jpasswd"])
    fetched = download(PipeChannels(there, prelude=prelude), "tree", target)
    assert fetched.left_out[0].isprintable()


def test_an_endless_listing(there: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pull, "_MOST_ENTRIES", 50)
    entries: list[list[object]] = [["f", f"f{n}", 1, 0, 0o644] for n in range(100)]
    with pytest.raises(FarSideFailed, match="more than 50 entries"):
        download(PipeChannels(there, prelude=listing_of(*entries)), "tree", target)


def test_noise_instead_of_frames(there: Path, target: Path) -> None:
    noise = "import sys, os\nos.write(1, b'Welcome to the machine! ' * 1000)"
    with pytest.raises(FarSideFailed, match="cannot be believed") as failed:
        download(PipeChannels(there, prelude=noise), "tree", target)
    assert failed.value.next
    assert ".bashrc" in failed.value.next


@pytest.mark.parametrize(
    ("number", "offset", "length"), [(1, 100, 10), (0, 99, 10), (0, 195, 10), (0, 1 << 60, 1)]
)
def test_pieces_that_nobody_asked_for(number: int, offset: int, length: int) -> None:
    part = Part(Large(0, File("x", 1000, 0, 0o644), 1000), 100, 100)
    with pytest.raises(Broken, match="nobody asked"):
        _within(PIECE.pack(number, offset, length, 0, 0), part)


def test_a_machine_that_miscounts(there: Path, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "a").write_text("a")
    lie = "if isinstance(value, list) and value == [1, 1]: value = [2, 1]"
    with pytest.raises(FarSideFailed, match="it counts 2 files"):
        upload(PipeChannels(there, prelude=LYING.format(lie=lie)), tmp_path / "here", "up")
