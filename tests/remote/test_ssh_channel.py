"""A channel against a peer that does anything at any time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.remote.ssh_channel import WINDOW, Broken, CommandChannel, Refused, signal_code
from tests.waiting import until


@dataclass
class Wire:
    """What the channel sends."""

    payloads: list[bytes] = field(default_factory=list)
    data: list[tuple[int, bytes]] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)

    def send_payload(self, payload: bytes) -> None:
        self.payloads.append(payload)

    def send_data(self, channel: int, data: memoryview, packet: int) -> None:
        self.data.append((channel, bytes(data)))

    def forget(self, number: int) -> None:
        self.forgotten.append(number)

    def how_it_broke(self) -> str:
        return "the wire was cut"

    @property
    def granted(self) -> int:
        """Bytes that the peer was given back."""
        return sum(int.from_bytes(p[5:9], "big") for p in self.payloads if p[0] == 0x5D)


def opened(window: int = 1 << 20) -> tuple[CommandChannel, Wire]:
    wire = Wire()
    channel = CommandChannel(wire, 5)
    channel._set_remote_channel(9, window, 32 << 10)
    return channel, wire


def soon() -> float:
    return time.monotonic() + 5


NOW = 0.0


@given(st.lists(st.binary(min_size=1, max_size=9000), max_size=40), st.integers(1, 20_000))
def test_output_comes_as_it_was_and_its_window_is_given_back(
    chunks: list[bytes], size: int
) -> None:
    channel, wire = opened()
    for chunk in chunks:
        assert channel.on_data(memoryview(chunk))
    channel.on_eof()
    got = bytearray()
    while data := channel.read(size, soon()):
        assert len(data) <= size
        got += data
    assert bytes(got) == b"".join(chunks)
    assert wire.granted <= len(got)
    assert channel.at_end


@given(st.lists(st.integers(1, WINDOW // 3), max_size=30))
def test_a_reader_that_reads_all_never_starves_the_peer(sizes: list[int]) -> None:
    channel, wire = opened()
    sent = 0
    for size in sizes:
        allowed = WINDOW + wire.granted - sent
        assert allowed >= WINDOW * 7 // 8
        assert channel.on_data(bytes(size))
        sent += size
        left = size
        while left:
            left -= len(channel.read(left, soon()))


def test_a_peer_that_ignores_the_window_is_caught() -> None:
    channel, _ = opened()
    assert channel.on_data(bytes(WINDOW))
    assert not channel.on_data(b"x")


def test_a_window_of_single_bytes_costs_no_more() -> None:
    channel, _ = opened()
    for _ in range(100_000):
        channel.on_data(b"x")
    assert len(channel._output.chunks) < 10
    assert channel.read(200_000, soon()) == b"x" * 100_000


def test_only_the_end_of_stderr_is_kept_and_the_window_goes_on() -> None:
    channel, wire = opened()
    for number in range(3000):
        assert channel.on_stderr(b"%04d" % number * 256)
    assert channel.stderr().endswith(b"2999")
    assert len(channel.stderr()) == 8192
    assert channel.stderr_total == 3000 * 1024
    assert wire.granted >= 3000 * 1024 - WINDOW


def test_output_that_is_there_is_read_before_a_break_is_told() -> None:
    channel, _ = opened()
    channel.on_data(b"last words")
    channel._unlink()
    assert channel.read(100, NOW) == b"last words"
    with pytest.raises(Broken, match="the wire was cut"):
        channel.read(100, NOW)
    with pytest.raises(Broken, match="the wire was cut"):
        channel.wait_exit(NOW)


def test_an_exit_code_outlives_the_link() -> None:
    channel, _ = opened()
    channel.on_exit(3)
    channel._unlink()
    assert channel.wait_exit(NOW) == 3


def test_a_writer_waits_for_room_that_is_worth_it_but_not_for_ever() -> None:
    channel, wire = opened(window=0)
    channel.on_window(8000)
    channel.write(memoryview(bytes(8000)), 5)
    wire.data.clear()
    writer = threading.Thread(target=channel.write, args=(memoryview(bytes(4000)), 5))
    writer.start()
    channel.on_window(100)  # not worth a packet yet, and all that ever comes for a while
    assert until(lambda: wire.data == [(9, bytes(100))], 5)
    channel.on_window(3900)
    writer.join(5)
    assert wire.data == [(9, bytes(100)), (9, bytes(3900))]


def test_deadlines() -> None:
    channel, _ = opened(window=0)
    with pytest.raises(TimeoutError):
        channel.read(1, NOW)
    with pytest.raises(TimeoutError):
        channel.wait_exit(NOW)
    with pytest.raises(TimeoutError):
        channel.write(memoryview(b"x"), 0.01)
    with pytest.raises(TimeoutError):
        CommandChannel(Wire(), 1).wait_open(NOW)


def test_refusals() -> None:
    channel = CommandChannel(Wire(), 1)
    channel.on_refused("no room")
    with pytest.raises(Refused, match="no room"):
        channel.wait_open(NOW)


def test_the_end_without_an_exit_code_is_told() -> None:
    channel, wire = opened()
    channel.on_close()
    assert channel.read(1, NOW) == b""
    with pytest.raises(Broken, match="without an exit code"):
        channel.wait_exit(NOW)
    assert wire.payloads[-1][0] == 0x61
    assert wire.forgotten == [5]


def test_nothing_is_written_after_the_end() -> None:
    channel, wire = opened()
    channel.write(memoryview(b"abc"), 1)
    channel.close_write()
    channel.close_write()
    with pytest.raises(Broken):
        channel.write(memoryview(b"d"), 1)
    assert wire.data == [(9, b"abc")]
    assert [payload[0] for payload in wire.payloads] == [0x60]


def test_closing_twice_sends_one_close_and_output_is_dropped() -> None:
    channel, wire = opened()
    channel.close()
    channel.close()
    assert channel.on_data(bytes(WINDOW))
    assert channel.on_data(bytes(WINDOW))
    channel.on_close()
    assert [payload[0] for payload in wire.payloads] == [0x61]
    assert not channel._output.chunks


def test_a_channel_closed_before_it_opened_is_closed_when_it_does() -> None:
    wire = Wire()
    channel = CommandChannel(wire, 5)
    channel.close()
    channel._set_remote_channel(9, 1000, 1000)
    assert [payload[0] for payload in wire.payloads] == [0x61]


def test_signals() -> None:
    assert signal_code("KILL") == 137
    assert signal_code("TERM") == 143
    assert signal_code("\x1b[2J") == 255
