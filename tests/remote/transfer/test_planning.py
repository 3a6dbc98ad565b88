"""Decisions of a transfer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.remote.selection import File
from gpuctl.remote.transfer.pace import Meter, Pace
from gpuctl.remote.transfer.planning import (
    BUNDLE_BYTES,
    BUNDLE_FILES,
    MAX_STREAMS,
    PART_BYTES,
    Differing,
    base,
    bundles,
    differing_locally,
    is_draft,
    leads_out,
    parts,
    streams_wanted,
)

GIB, MIB = 1 << 30, 1 << 20


@pytest.mark.parametrize(
    ("size", "round_trip", "streams"),
    [
        (GIB, 0.0002, 1),  # the processor is the limit
        (GIB, 0.05, 4),
        (GIB, 0.2, MAX_STREAMS),
        (10 * 1024, 0.2, 1),
        (20 * MIB, 0.05, 2),
        (20 * MIB, 0.2, 2),
    ],
)
def test_streams(size: int, round_trip: float, streams: int) -> None:
    assert streams_wanted(size, round_trip) == streams


@given(size=st.integers(0, 1 << 45), round_trip=st.floats(0, 10))
def test_there_is_always_a_stream_and_never_too_many(size: int, round_trip: float) -> None:
    assert 1 <= streams_wanted(size, round_trip) <= MAX_STREAMS


@given(st.integers(0, 1 << 30))
def test_parts_are_the_whole(size: int) -> None:
    at = 0
    for offset, length in parts(size):
        assert offset == at
        assert 0 < length <= PART_BYTES
        at += length
    assert at == size


@given(st.lists(st.integers(0, 700_000), max_size=600))
def test_bundles_hold_every_file_once(sizes: list[int]) -> None:
    files = [File(str(n), size, 0, 0o644) for n, size in enumerate(sizes)]
    groups = list(bundles(files))
    assert [file for group in groups for file in group] == files
    for group in groups:
        assert len(group) <= BUNDLE_FILES
        assert len(group) == 1 or sum(file.size for file in group) <= BUNDLE_BYTES


def test_what_is_compared_block_by_block() -> None:
    file = File("x", 100 * MIB, 0, 0o644)
    assert base(Differing(file, -1)) is None
    assert base(Differing(file, 1 * MIB)) is None
    assert base(Differing(file, 99 * MIB)) == "target"
    assert base(Differing(file, 99 * MIB, draft=True)) == "draft"


def test_same_size_and_time_is_the_same() -> None:
    file = File("x", 5, 1_000_000_001, 0o644)
    assert differing_locally([file], {}) == [file]
    assert differing_locally([file], {"x": (5, 1_000_000_001)}) == []
    assert differing_locally([file], {"x": (6, 1_000_000_001)}) == [file]
    assert differing_locally([file], {"x": (5, 1_000_000_000)}) == [file]
    assert differing_locally([file], {"x": (5, 1_000_000_000)}, coarse=True) == []


names = st.lists(st.sampled_from(["a", "b", "..", ".", ""]), min_size=1, max_size=5)


@given(path=st.lists(st.sampled_from("ab"), min_size=1, max_size=4), target=names)
def test_no_link_that_stays_in_reaches_out(path: list[str], target: list[str]) -> None:
    link, to = "/".join(path), "/".join(target)
    if to and not leads_out(link, to):
        root = Path("/root/of/tree")
        reached = os.path.normpath((root / link).parent / to)
        assert reached == str(root) or reached.startswith(f"{root}/")


@pytest.mark.parametrize("target", ["/etc", "../x", "a/../../x", "a/../b"])
def test_links_that_lead_out(target: str) -> None:
    assert leads_out("link", target)
    assert not leads_out("deep/link", "../x")


def test_drafts_are_known() -> None:
    assert is_draft("a/.gpuctl-part-0123-abc")
    assert not is_draft("a/b.gpuctl")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@given(st.lists(st.integers(1, 1_000_000), min_size=2, max_size=50))
def test_a_limit_is_kept(sizes: list[int]) -> None:
    clock = Clock()
    pace = Pace(1e6, clock=clock, sleep=clock.sleep)
    for size in sizes:
        pace.wait(size)
    assert clock.slept == pytest.approx(sum(sizes[:-1]) / 1e6)


def test_no_limit_never_waits() -> None:
    clock = Clock()
    Pace(None, clock=clock, sleep=clock.sleep).wait(1 << 40)
    assert clock.slept == 0
    with pytest.raises(ValueError, match="above 0"):
        Pace(0)


def test_rate_and_time_left() -> None:
    clock = Clock()
    seen: list[tuple[int, int]] = []
    meter = Meter(lambda done, total: seen.append((done, total)), clock=clock)
    meter.expect(1000)
    assert meter.rate is None
    assert meter.seconds_left is None
    for _ in range(4):
        clock.now += 1
        meter.add(100)
    assert meter.rate == pytest.approx(100)
    assert meter.seconds_left == pytest.approx(6)
    assert seen[-1] == (400, 1000)
    assert (meter.restarted().done, meter.moved) == (0, 400)
