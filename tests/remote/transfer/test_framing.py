"""Frames, payloads and the decision to compress."""

from __future__ import annotations

import io
import json
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.remote.transfer.framing import (
    HEADER,
    MAX_FRAME,
    MAX_JSON,
    PLAIN,
    ZLIB,
    Broken,
    Frames,
    Packing,
    Tally,
    parse_json,
    unpack,
)
from tests.remote.transfer.trees import content


def frames_of(data: bytes) -> Frames:
    return Frames(io.BytesIO(data).read, lambda _: None)


def written(send: object) -> bytes:
    out = io.BytesIO()
    send(Frames(lambda _: b"", out.write))  # type: ignore[operator]
    return out.getvalue()


@given(st.lists(st.tuples(st.sampled_from([b"R", b"B", b"x"]), st.binary(max_size=70_000))))
def test_frames_come_as_they_went(sent: list[tuple[bytes, bytes]]) -> None:
    def send(frames: Frames) -> None:
        for kind, payload in sent:
            frames.send(kind, payload[:3], payload[3:])

    frames = frames_of(written(send))
    assert [frames.receive() for _ in sent] == sent
    assert frames.receive() is None


@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_the_end_or_broken(data: bytes) -> None:
    frames = frames_of(data)
    try:
        while frames.receive() is not None:
            pass
    except Broken:
        return


def test_a_frame_that_is_too_long_is_not_read() -> None:
    with pytest.raises(Broken, match="bytes"):
        frames_of(HEADER.pack(ord("R"), MAX_FRAME + 1)).receive()


names = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)


@given(st.lists(names, max_size=300))
def test_json_keeps_every_name(value: list[str]) -> None:
    frame = frames_of(written(lambda frames: frames.send_json(b"M", value))).receive()
    assert frame
    assert parse_json(frame[1]) == value


@pytest.mark.parametrize(
    "payload", [b"", b"{", b"\x78", b"\x78\x01broken", b"[" * 100_000, b"\xff"]
)
def test_json_that_is_none(payload: bytes) -> None:
    with pytest.raises(Broken):
        parse_json(payload)


def test_a_json_bomb() -> None:
    bomb = zlib.compress(b" " * (MAX_JSON + 1) + b"1", 1)
    with pytest.raises(Broken, match="too long"):
        parse_json(bomb)


def test_data_that_unpack_to_more_than_they_said() -> None:
    with pytest.raises(Broken, match="announced"):
        unpack(ZLIB, zlib.compress(bytes(10_000_000)), 1000)
    with pytest.raises(Broken, match="announced"):
        unpack(PLAIN, b"123", 4)
    with pytest.raises(Broken, match="codec"):
        unpack(9, b"123", 3)
    with pytest.raises(Broken, match="unpack"):
        unpack(ZLIB, b"not zlib", 3)


def test_tallies_agree_only_on_the_same_pieces() -> None:
    ours, theirs = Tally(), Tally()
    for tally in (ours, theirs):
        tally.add(1, 100, 42)
        tally.add(1, 50, 43)
    assert theirs.check(ours.mark(1, 0)) == (1, 0)
    ours.add(1, 100, 42)
    with pytest.raises(Broken, match="incomplete"):
        theirs.check(ours.mark(1, 0))


class Clock:
    """Each look at it takes so long."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


TEXT = json.dumps([{"n": n, "text": "some words"} for n in range(10_000)]).encode()[: 512 << 10]


def moved(packing: Packing, data: bytes, rate: float, pieces: int = 200) -> int:
    """Move pieces over a link that takes so many bytes a second; the codec in the end."""
    for _ in range(pieces):
        codec, packed = packing.pack(data)
        assert unpack(codec, packed, len(data)) == data
        packing.sent(len(packed) / rate)
    return codec


@pytest.mark.parametrize(
    ("rate", "data", "codec"),
    [
        (1e6, TEXT, ZLIB),  # a slow link, text
        (12e6, TEXT, ZLIB),
        (12e6, content(1, 512 << 10), PLAIN),  # weights
        (600e6, TEXT, PLAIN),  # a fast link
    ],
)
def test_packing_follows_link_and_data(rate: float, data: bytes, codec: int) -> None:
    packing = Packing(clock=Clock(len(data) / 60e6))
    assert packing.pack(data)[0] == PLAIN, "nothing is known of the link yet"
    assert moved(packing, data, rate) == codec


def test_what_is_expected_counts_until_more_is_known() -> None:
    packing = Packing(expected=12e6, clock=Clock(len(TEXT) / 60e6))
    assert packing.pack(TEXT)[0] == ZLIB
    assert moved(packing, TEXT, 900e6) == PLAIN


def test_a_slow_processor_packs_only_for_slow_links() -> None:
    def packs(rate: float) -> bool:
        packing = Packing(expected=rate, clock=Clock(len(TEXT) / 5e6))  # 5 MB/s
        return moved(packing, TEXT, rate) == ZLIB

    assert packs(1e6)
    assert not packs(20e6)
