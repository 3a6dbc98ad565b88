"""Blocks of one version found in another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuctl.remote.transfer.delta import Found, Matcher, gaps, joined
from gpuctl.remote.transfer.reading import open_plain, signatures
from tests.remote.transfer.trees import content

BLOCK = 512


def compare(folder: Path, theirs: bytes, ours: bytes, *, moves: bool = True) -> list[Found]:
    (folder / "theirs").write_bytes(theirs)
    (folder / "ours").write_bytes(ours)
    signed, at_hand = open_plain(str(folder / "theirs")), open_plain(str(folder / "ours"))
    try:
        matcher = Matcher(at_hand, len(ours), len(theirs), BLOCK, moves)
        return [one for batch in signatures(signed, BLOCK) for one in matcher.feed(batch)]
    finally:
        os.close(signed)
        os.close(at_hand)


def rebuilt(theirs: bytes, ours: bytes, found: list[Found]) -> bytes:
    result = bytearray(len(ours))
    for one in found:
        result[one.ours : one.ours + one.length] = theirs[one.theirs : one.theirs + one.length]
    for start, end in gaps([(one.ours, one.length) for one in found], len(ours)):
        result[start:end] = ours[start:end]
    return bytes(result)


edits = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "replace"]),
        st.integers(0, 30_000),
        st.integers(0, 3000),
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 30_000), changes=edits, moves=st.booleans())
def test_what_was_found_and_the_rest_make_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    size: int,
    changes: list[tuple[str, int, int]],
    moves: bool,
) -> None:
    theirs = content(size, size)
    ours = bytearray(theirs)
    for number, (what, at, length) in enumerate(changes):
        fresh = content(number, length)
        ours[at : at + (0 if what == "insert" else length)] = b"" if what == "delete" else fresh
    found = compare(tmp_path_factory.mktemp("delta"), theirs, bytes(ours), moves=moves)
    assert rebuilt(theirs, bytes(ours), found) == bytes(ours)
    assert rebuilt(theirs, bytes(ours), joined(found)) == bytes(ours)
    if not moves:
        assert all(one.theirs == one.ours for one in found)


@pytest.mark.parametrize("moved", [1, 7, 100_000])
@pytest.mark.parametrize("what", ["insert", "delete"])
def test_a_move_costs_little(tmp_path: Path, what: str, moved: int) -> None:
    whole = content(1, 1 << 20)
    short = whole[:200_000] + whole[200_000 + moved :]
    theirs, ours = (short, whole) if what == "insert" else (whole, short)
    found = compare(tmp_path, theirs, ours)
    matched = sum(one.length for one in found)
    new = moved if what == "insert" else 0
    assert len(ours) - matched <= new + 12 * BLOCK
    assert len(joined(found)) <= 3


def test_zeros_are_everywhere_and_do_not_slow_it(tmp_path: Path) -> None:
    theirs = bytes(1 << 20)
    ours = content(1, 5000) + bytes((1 << 20) - 4000)
    found = compare(tmp_path, theirs, ours)
    assert rebuilt(theirs, ours, found) == ours


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 50)), max_size=10))
def test_gaps_are_what_is_left(ranges: list[tuple[int, int]]) -> None:
    at, found = 0, []
    for skip, length in ranges:
        found.append((at + skip, length))
        at += skip + length
    left = {byte for start, end in gaps(found, at + 5) for byte in range(start, end)}
    taken = {byte for start, length in found for byte in range(start, start + length)}
    assert left | taken == set(range(at + 5))
    assert not left & taken
