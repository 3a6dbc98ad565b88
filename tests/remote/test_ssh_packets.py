"""Two packetizers that talk to each other over a socket pair, one of them paramiko's own."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st
from paramiko.message import Message
from paramiko.packet import Packetizer
from paramiko.ssh_exception import SSHException

from gpuctl.remote.ssh_packets import WINDOW_ADJUST, FastPacketizer
from gpuctl.remote.ssh_sealing import DATA
from tests.waiting import until

KEY, IV = bytes(range(16)), bytes(range(12))


def outbound(packetizer: Packetizer) -> None:
    packetizer.set_outbound_cipher(
        block_engine=AESGCM(KEY),
        block_size=16,
        mac_engine=None,
        mac_size=16,
        mac_key=None,
        aead=True,
        iv_out=IV,
    )


def inbound(packetizer: Packetizer) -> None:
    packetizer.set_inbound_cipher(
        block_engine=AESGCM(KEY),
        block_size=16,
        mac_engine=None,
        mac_size=16,
        mac_key=None,
        aead=True,
        iv_in=IV,
    )


class Ends:
    """A sender and a receiver."""

    def __init__(self, sender: type[Packetizer], receiver: type[Packetizer]) -> None:
        self.near, self.far = socket.socketpair()
        for end in (self.near, self.far):
            end.settimeout(0.05)
        self.sender, self.receiver = sender(self.near), receiver(self.far)
        outbound(self.sender)
        inbound(self.receiver)

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        self.near.close()
        self.far.close()


def sending(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@settings(deadline=None, max_examples=40)
@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=8))
def test_paramiko_reads_our_messages_and_we_its(payloads: list[bytes]) -> None:
    for kinds in ((FastPacketizer, Packetizer), (Packetizer, FastPacketizer)):
        with Ends(*kinds) as ends:

            def send(ends: Ends = ends) -> None:
                for payload in payloads:
                    ends.sender.send_message(Message(b"\x50" + payload))

            thread = sending(send)
            for payload in payloads:
                kind, message = ends.receiver.read_message()
                assert (kind, message.asbytes()) == (0x50, payload)
            thread.join(5)


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 700_000), packet=st.integers(1024, 300_000))
def test_data_arrives_in_order_in_packets_that_are_not_too_large(size: int, packet: int) -> None:
    content = os.urandom(size)
    with Ends(FastPacketizer, FastPacketizer) as ends:
        got: list[bytes] = []

        def take(channel: int, data: memoryview) -> bool:
            assert channel == 7
            assert len(data) <= packet
            got.append(bytes(data))
            return True

        def send() -> None:
            ends.sender.send_data(7, memoryview(content), packet)
            ends.sender.send_message(Message(b"\x60end"))

        ends.receiver.deliver = take
        thread = sending(send)
        assert ends.receiver.read_message()[0] == 0x60
        thread.join(5)
        assert b"".join(got) == content


def test_data_that_nobody_takes_goes_the_usual_way() -> None:
    with Ends(FastPacketizer, FastPacketizer) as ends:
        ends.receiver.deliver = lambda _channel, _data: False
        ends.sender.send_data(3, memoryview(b"abc"), 1000)
        kind, message = ends.receiver.read_message()
        assert (kind, message.get_int(), message.get_binary()) == (DATA, 3, b"abc")


def test_windows_are_told_at_once_or_go_the_usual_way() -> None:
    with Ends(FastPacketizer, FastPacketizer) as ends:
        told: list[tuple[int, int]] = []
        ends.receiver.adjust = lambda channel, more: told.append((channel, more)) or channel == 3
        for channel in (3, 4):
            payload = bytes([WINDOW_ADJUST]) + struct.pack(">II", channel, 1 << 21)
            ends.sender.send_message(Message(payload))
        kind, message = ends.receiver.read_message()
        assert (kind, message.get_int(), message.get_int()) == (WINDOW_ADJUST, 4, 1 << 21)
        assert told == [(3, 1 << 21), (4, 1 << 21)]


@settings(deadline=None, max_examples=60)
@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_no_altered_byte_gets_through(at: int, flip: int) -> None:
    with Ends(FastPacketizer, FastPacketizer) as ends:
        ends.sender.send_data(1, memoryview(b"x" * 200), 1000)
        sealed = bytearray(ends.far.recv(10_000))
        sealed[at % len(sealed)] ^= flip
        ends.near.sendall(sealed)
        ends.near.shutdown(socket.SHUT_WR)
        with pytest.raises((SSHException, EOFError)):
            ends.receiver.read_message()


@settings(deadline=None, max_examples=60)
@given(st.binary(min_size=1, max_size=400))
def test_garbage_is_refused(content: bytes) -> None:
    with Ends(FastPacketizer, FastPacketizer) as ends:
        ends.near.sendall(content)
        ends.near.shutdown(socket.SHUT_WR)
        with pytest.raises((SSHException, EOFError)):
            ends.receiver.read_message()


def test_a_packet_cannot_be_replayed() -> None:
    with Ends(FastPacketizer, FastPacketizer) as ends:
        ends.sender.send_message(Message(b"\x50once"))
        sealed = ends.far.recv(10_000)
        ends.near.sendall(sealed + sealed)
        assert ends.receiver.read_message()[1].asbytes() == b"once"
        with pytest.raises(SSHException, match="altered"):
            ends.receiver.read_message()


def test_new_keys_are_asked_for_in_time() -> None:
    with Ends(FastPacketizer, FastPacketizer) as ends:
        ends.sender.REKEY_BYTES = 100_000
        ends.sender.send_data(1, memoryview(bytes(90_000)), 30_000)
        assert not ends.sender.need_rekey()
        assert ends.far.recv(1 << 20)  # makes room
        ends.sender.send_data(1, memoryview(bytes(20_000)), 30_000)
        assert ends.sender.need_rekey()


def test_a_peer_that_takes_nothing_is_given_up() -> None:
    with Ends(FastPacketizer, FastPacketizer) as ends:
        ends.sender.stall_seconds = 0.2
        with pytest.raises(EOFError, match=r"took nothing for 0\.2 s"):
            ends.sender.send_data(1, memoryview(bytes(8 << 20)), 30_000)


def test_a_silent_peer_is_asked_and_given_up() -> None:
    with Ends(FastPacketizer, FastPacketizer) as ends:
        asked: list[int] = []
        ends.receiver.silent_seconds = 0.5
        ends.receiver.set_keepalive(0.1, lambda: asked.append(1))
        with pytest.raises(EOFError, match="nothing came from the machine"):
            ends.receiver.read_message()
        assert len(asked) >= 2


def test_closing_ends_a_read() -> None:
    with Ends(FastPacketizer, FastPacketizer) as ends:
        ended: list[str] = []

        def read() -> None:
            try:
                ends.receiver.read_message()
            except EOFError as error:
                ended.append(str(error))

        sending(read)
        ends.receiver.close()
        assert until(lambda: ended, 5)
