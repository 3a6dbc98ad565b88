"""SSH packets at the speed of the link: many packets a send, many a receive, few copies.

Stock paramiko sends every packet of 32 KiB on its own, receives in two calls a packet and copies
the content once a layer. Under AES-GCM this seals a batch of packets into one buffer and opens
them straight from the receive buffer; before encryption, and with other ciphers, everything goes
through paramiko's own code. Only public and protected names of `paramiko.Packetizer` are used.
"""

from __future__ import annotations

import errno
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from cryptography.exceptions import InvalidTag
from paramiko.message import Message
from paramiko.packet import NeedRekeyException, Packetizer
from paramiko.ssh_exception import SSHException

from gpuctl.remote.ssh_sealing import BLOCK, DATA, DATA_HEAD, LENGTH, TAG, Nonce, Sealer

WINDOW_ADJUST = 93  # SSH_MSG_CHANNEL_WINDOW_ADJUST, RFC 4254
_MAX_PACKET = 256 << 10  # as OpenSSH's PACKET_MAX_SIZE
_RECEIVE = 1 << 20
_LINE_LIMIT = 8192  # as OpenSSH's SSH_MAX_BANNER_LEN
_BANNER_LIMIT = 64 << 10

Deliver = Callable[[int, memoryview], bool]
"""Takes the data of a channel; False when it is not this one's business."""
Adjust = Callable[[int, int], bool]
"""Takes how much more a channel's peer reads; False when it is not this one's business."""


class FastPacketizer(Packetizer):  # type: ignore[misc]  # paramiko has no types
    """A `paramiko.Packetizer` with a fast path for AES-GCM and a deadline on everything.

    Attributes:
        REKEY_BYTES: new keys after 64 GiB, as OpenSSH does for ciphers with blocks of 16 bytes.
        BATCH: bytes of channel data in one send; small enough that a command is not kept waiting
            behind it on a slow link.
        deliver, adjust: take channel data and windows before the transport sees them.
        stall_seconds: how long the peer may take nothing of what is sent.
        silent_seconds: how long nothing at all may come although it was asked for.
    """

    REKEY_BYTES = 1 << 36
    BATCH = 256 << 10

    def __init__(self, link: socket.socket) -> None:
        super().__init__(link)
        self.deliver: Deliver | None = None
        self.adjust: Adjust | None = None
        self.stall_seconds = 60.0
        self.silent_seconds = 45.0
        self.banner_at: float | None = None  # time.monotonic() when the version line was there
        self.received_at = time.monotonic()
        self._link = link
        self._buffer = memoryview(bytearray(_RECEIVE))
        self._start = self._end = 0  # what of the buffer is received and not yet used
        self._banner_bytes = 0
        self._sending = threading.RLock()
        self._out: Sealer | None = None
        self._in: Any = None  # an AESGCM
        self._in_nonce = Nonce(bytes(12))
        self._in_bytes = self._out_bytes = 0  # under the present keys
        self._in_packets = self._out_packets = 0
        self._overdue_bytes = 0  # received since new keys were asked for
        self._ping: Callable[[], None] | None = None
        self._ping_seconds = 0.0
        self._pinged_at = time.monotonic()

    # ------------------------------------------------------------------ keys

    def set_outbound_cipher(self, *args: Any, **kwargs: Any) -> None:
        """Take new keys for what is sent."""
        aead, engine = kwargs.get("aead", False), kwargs.get("block_engine")
        with self._sending:
            super().set_outbound_cipher(*args, **kwargs)
            if self._out is not None and not aead:
                raise SSHException("The cipher changed its kind in the middle of a session")
            self._out = Sealer(engine, Nonce(kwargs["iv_out"])) if aead else None
            self._out_bytes = self._out_packets = 0

    def set_inbound_cipher(self, *args: Any, **kwargs: Any) -> None:
        """Take new keys for what is received."""
        super().set_inbound_cipher(*args, **kwargs)
        aead = kwargs.get("aead", False)
        if self._in is not None and not aead:
            raise SSHException("The cipher changed its kind in the middle of a session")
        self._in = kwargs.get("block_engine") if aead else None
        if aead:
            self._in_nonce = Nonce(kwargs["iv_in"])
        self._in_bytes = self._in_packets = self._overdue_bytes = 0

    # ------------------------------------------------------------------ sending

    def send_message(self, data: Message) -> None:
        """Send one message. Raises EOFError when the link is gone or stalls."""
        with self._sending:
            if self._out is None:
                super().send_message(data)
                return
            self.write_all(self._out.message(data.asbytes()))
            self._sent(1)

    def send_data(self, channel: int, data: memoryview, packet: int) -> None:
        """Send channel data, several packets at once.

        Args:
            channel: the peer's number for it.
            data: no more than the window allows.
            packet: the most bytes of data that the peer takes in one packet.

        Raises:
            EOFError: the link is gone or stalls.
        """
        packet = min(packet, _MAX_PACKET - 1024)
        batch = packet * max(1, self.BATCH // packet)
        while data:
            with self._sending:
                if self._out is None:
                    self._send_plainly(channel, data[:packet])
                    data = data[packet:]
                else:
                    self.write_all(self._out.data(channel, data[:batch], packet))
                    self._sent(-(-min(len(data), batch) // packet))
                    data = data[batch:]

    def write_all(self, out: bytes | memoryview) -> None:
        """Send bytes as they are.

        Raises:
            EOFError: the link is gone, or the peer took nothing for `stall_seconds`.
        """
        left = memoryview(out)
        self._out_bytes += len(left)
        deadline = time.monotonic() + self.stall_seconds
        while left:
            try:
                sent = self._link.send(left)
            except TimeoutError:
                sent = 0
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    raise EOFError(f"the link broke: {error.strerror or error}") from error
                sent = 0
            left = left[sent:]
            if sent:
                deadline = time.monotonic() + self.stall_seconds
            elif self.closed:
                raise EOFError("the link was closed")
            elif time.monotonic() > deadline:
                raise EOFError(f"the machine took nothing for {self.stall_seconds:g} s")

    def _send_plainly(self, channel: int, data: memoryview) -> None:
        message = Message()
        message.add_byte(bytes([DATA]))
        message.add_int(channel)
        message.add_string(bytes(data))
        super().send_message(message)

    def _sent(self, packets: int) -> None:
        self._out_packets += packets
        if not self.need_rekey() and (
            self._out_bytes >= self.REKEY_BYTES or self._out_packets >= self.REKEY_PACKETS
        ):
            self._overdue_bytes = 0
            self._trigger_rekey()

    # ------------------------------------------------------------------ receiving

    def read_all(self, n: int, check_rekey: bool = False) -> bytes:
        """Return exactly ``n`` bytes, which are at most a packet.

        Raises:
            SSHException: that would be more than any packet has.
            NeedRekeyException: the transport should ask for new keys.
            EOFError: the link is gone.
        """
        if n > _MAX_PACKET + 1024:
            raise SSHException(f"it sent a packet of an impossible length ({n})")
        taken = bytearray()
        while len(taken) < n:
            self._need(1, rekey=check_rekey and not taken)
            size = min(n - len(taken), self._end - self._start)
            taken += self._buffer[self._start : self._start + size]
            self._start += size
        return bytes(taken)

    def readline(self, timeout: float) -> str:
        """Return a line of the greeting.

        Raises:
            SSHException: a line, or the whole greeting, is too long.
            TimeoutError: it did not come within ``timeout`` seconds.
            EOFError: the link is gone.
        """
        deadline = time.monotonic() + timeout
        line = bytearray()
        while not line.endswith(b"\n"):
            self._need(1, deadline=deadline)
            held = bytes(self._buffer[self._start : self._end])
            piece = held[: held.find(b"\n") + 1] or held
            line += piece
            self._start += len(piece)
            self._banner_bytes += len(piece)
            if len(line) > _LINE_LIMIT or self._banner_bytes > _BANNER_LIMIT:
                raise SSHException("it sent an endless greeting instead of an SSH version")
        self.banner_at = time.monotonic()
        return line.rstrip(b"\r\n").decode()

    def read_message(self) -> tuple[int, Message]:
        """Return the next message and its type; channel data may be delivered on the way.

        Raises:
            SSHException: it is malformed or was altered.
            NeedRekeyException: the transport should ask for new keys.
            EOFError: the link is gone.
        """
        if self._in is None:
            answer: tuple[int, Message] = super().read_message()
            return answer
        while True:
            plain, end = self._open_next()
            if plain[1] not in (DATA, WINDOW_ADJUST) or not self._delivered(plain, end):
                message = Message(plain[2:end])
                message.seqno = self._in_packets & 0xFFFFFFFF
                return plain[1], message
            if self.need_rekey():
                raise NeedRekeyException

    def set_keepalive(self, interval: float, callback: Callable[[], None]) -> None:
        """Call back after ``interval`` seconds in which nothing came, and again."""
        self._ping, self._ping_seconds = callback, interval

    def _open_next(self) -> tuple[bytes, int]:
        """Return a decrypted packet and where its payload, which begins at 1, ends."""
        self._need(4, rekey=True)
        head = bytes(self._buffer[self._start : self._start + 4])
        (length,) = LENGTH.unpack(head)
        if not BLOCK <= length <= _MAX_PACKET or length % BLOCK:
            raise SSHException(f"it sent a packet of an impossible length ({length})")
        whole = 4 + length + TAG
        self._need(whole)
        sealed = self._buffer[self._start + 4 : self._start + whole]
        try:
            plain: bytes = self._in.decrypt(self._in_nonce.next(), sealed, head)
        except InvalidTag as error:
            raise SSHException("a packet was altered on the way") from error
        self._start += whole
        end = length - plain[0]
        if plain[0] < 4 or end < 2:
            raise SSHException("it sent a packet with impossible padding")
        self._received(whole)
        return plain, end

    def _delivered(self, plain: bytes, end: int) -> bool:
        if end < DATA_HEAD.size:
            return False
        _, kind, channel, size = DATA_HEAD.unpack_from(plain)
        if kind == WINDOW_ADJUST:
            return self.adjust is not None and self.adjust(channel, size)
        if self.deliver is None:
            return False
        if DATA_HEAD.size + size > end:
            raise SSHException("it sent a packet that claims more data than it has")
        return self.deliver(channel, memoryview(plain)[DATA_HEAD.size : DATA_HEAD.size + size])

    def _received(self, size: int) -> None:
        self._in_bytes += size
        self._in_packets += 1
        if self.need_rekey():
            self._overdue_bytes += size
            if self._overdue_bytes > self.REKEY_BYTES_OVERFLOW_MAX:
                raise SSHException("it ignores requests for new keys")
        elif self._in_bytes >= self.REKEY_BYTES or self._in_packets >= self.REKEY_PACKETS:
            self._overdue_bytes = 0
            self._trigger_rekey()

    def _need(self, size: int, *, rekey: bool = False, deadline: float | None = None) -> None:
        """Have at least ``size`` bytes in the buffer."""
        if self._end - self._start >= size:
            return
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start + size > len(self._buffer):
            held = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, len(held)
            self._buffer[: self._end] = held
        while self._end - self._start < size:
            if self._received_some():
                continue
            if self.closed or self.handshake_timed_out():
                raise EOFError("the link was closed")
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError("nothing came in time")
            if rekey and self.need_rekey() and self._start == self._end:
                raise NeedRekeyException
            self._look_alive()

    def _received_some(self) -> bool:
        try:
            size = self._link.recv_into(self._buffer[self._end :])
        except TimeoutError:
            return False
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR):
                return False
            raise EOFError(f"the link broke: {error.strerror or error}") from error
        if not size:
            raise EOFError("the machine closed the link")
        self._end += size
        self.received_at = time.monotonic()
        return True

    def _look_alive(self) -> None:
        """Ask a silent peer for a sign; give up when none comes."""
        if not self._ping or not self._ping_seconds or self.need_rekey():
            return
        now = time.monotonic()
        silent = now - self.received_at
        if silent > self.silent_seconds and self._pinged_at > self.received_at:
            raise EOFError(f"nothing came from the machine for {silent:.0f} s")
        if now - max(self.received_at, self._pinged_at) > self._ping_seconds:
            self._pinged_at = now
            self._ping()
