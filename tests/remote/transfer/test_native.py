"""The C libraries that make transfers quicker, and transfers without them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.remote.transfer import framing, native
from gpuctl.remote.transfer.download import download
from gpuctl.remote.transfer.framing import ZSTD, Broken, check_of, unpack
from gpuctl.remote.transfer.native import find_xxh3, find_zstd
from gpuctl.remote.transfer.upload import upload
from tests.remote.transfer.pipes import PipeChannels
from tests.remote.transfer.trees import MIB, content, described

NO_LIBRARIES = "import sys; sys.modules['ctypes'] = None"
FAR = 0.05
needs_zstd = pytest.mark.skipif(find_zstd() is None, reason="there is no libzstd here")
needs_xxh3 = pytest.mark.skipif(find_xxh3() is None, reason="there is no libxxhash here")


@needs_zstd
@given(data=st.binary(max_size=5000), level=st.sampled_from([1, 3, 9]))
def test_what_is_packed_unpacks(data: bytes, level: int) -> None:
    library = find_zstd()
    assert library
    for plain in (data, bytearray(data), memoryview(data), memoryview(bytearray(data))):
        packed = library.pack(plain, level)
        assert unpack(ZSTD, packed, len(data)) == data
        assert unpack(ZSTD, memoryview(packed), len(data)) == data


@needs_zstd
@given(data=st.binary(max_size=200))
def test_any_bytes_unpack_or_are_broken(data: bytes) -> None:
    try:
        assert len(unpack(ZSTD, data, 10)) == 10
    except Broken:
        return


@needs_zstd
def test_more_than_announced_is_broken() -> None:
    library = find_zstd()
    assert library
    with pytest.raises(Broken):
        unpack(ZSTD, library.pack(bytes(10_000_000), 1), 1000)
    with pytest.raises(Broken):
        unpack(ZSTD, library.pack(bytes(10), 1), 1 << 31)


@needs_xxh3
def test_the_quick_check_is_xxh3() -> None:
    assert check_of(b"", True) == 0x38D394C2  # of 2d06800538d394c2, from its authors' own tests
    views = (b"abc" * 999, bytearray(b"abc" * 999), memoryview(bytearray(b"abc" * 999)))
    assert len({check_of(view, True) for view in views}) == 1
    assert check_of(b"abd" * 999, True) != check_of(b"abc" * 999, True)


def test_without_libraries_here_their_data_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(framing, "find_zstd", lambda: None)
    monkeypatch.setattr(framing, "find_xxh3", lambda: None)
    with pytest.raises(Broken):
        unpack(ZSTD, b"data", 10)
    with pytest.raises(Broken):
        check_of(b"data", True)


def test_a_library_that_is_not_there() -> None:
    assert native._loaded("no-such-library", 1, {}) is None


@pytest.mark.parametrize("prelude", ["", NO_LIBRARIES])
def test_text_and_weights_go_there_and_back(tmp_path: Path, prelude: str) -> None:
    """With the libraries on both ends, and with none on the machine."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    text = b"".join(b'{"id": %d, "text": "some words"}\n' % n for n in range(60_000))
    (here / "text").write_bytes(text)
    (here / "weights").write_bytes(content(1, 5 * MIB))
    (here / "small").write_bytes(text[:10_000])
    channels = PipeChannels(there, prelude=prelude, round_trip=FAR)
    upload(channels, here, "tree")
    download(channels, "tree", tmp_path / "back")
    assert described(there / "tree") == described(tmp_path / "back") == described(here)
