"""Frames, their payloads, and whether compressing one pays.

Standard library only, Python >= 3.8: it runs on both ends of a transfer (docs/transfer.md).
"""

from __future__ import annotations

import json
import struct
import threading
import time
import zlib
from typing import Any, Callable, Optional, Tuple, Union

PROTOCOL = 1
HEADER = struct.Struct(">BI")  # kind, length of the payload
PIECE = struct.Struct(">IQIIB")  # file, offset, length, crc32 (both of the plain bytes), codec
ACK = struct.Struct(">IQQI")  # file, offset of the part, bytes, crc32 over its pieces
PIECE_HEAD = HEADER.size + PIECE.size  # what stands before a piece's data
SIGNED = struct.Struct(">IB")  # file, whether these signatures were its last
BUNDLE = struct.Struct(">IB")  # length of the JSON table when unpacked, codec
BEAT = b"n"  # answers a ping; also sent unasked during long work, so that it is not silent
MAX_FRAME = 16 << 20
MAX_JSON = 64 << 20
PIECE_BYTES = 512 << 10
BUNDLE_BYTES = 256 << 10
BUNDLE_FILES = 256
PLAIN, ZLIB, ZEROS = 0, 1, 2
Data = Union[bytes, bytearray, memoryview]


class Broken(Exception):
    """The other end does not speak as agreed, or is gone."""


class Truncated(Broken):
    """The other end stopped in the middle of a frame."""


class Frames:
    """Frames over two byte streams; sending is safe from several threads.

    Args:
        read: returns exactly so many bytes, fewer only at the end.
        write: sends all of it.
    """

    def __init__(self, read: Callable[[int], Data], write: Callable[[Data], object]) -> None:
        self._read, self._write = read, write
        self._lock = threading.Lock()

    def send(self, kind: bytes, *parts: Data) -> None:
        """Send one frame."""
        head = HEADER.pack(kind[0], sum(map(len, parts)))
        with self._lock:
            if len(parts) > 1 or len(parts[-1]) < 1 << 16:
                self._write(b"".join((head, *parts)))
            else:
                self._write(head)
                self._write(parts[-1])

    def send_piece(self, head: bytes, frame: memoryview) -> None:
        """Send a plain piece as it lies in memory, behind `PIECE_HEAD` bytes for its head."""
        HEADER.pack_into(frame, 0, ord("R"), len(frame) - HEADER.size)
        frame[HEADER.size : PIECE_HEAD] = head
        with self._lock:
            self._write(frame)

    def send_json(self, kind: bytes, value: object) -> None:
        """Send one frame of JSON, compressed when it is long."""
        raw = json.dumps(value, separators=(",", ":")).encode()
        self.send(kind, raw if len(raw) < 1024 else zlib.compress(raw, 1))

    def receive(self) -> Optional[Tuple[bytes, Data]]:
        """The next frame, valid until the one after it, or None at the end. Raises Broken."""
        head = self._read(HEADER.size)
        if not head:
            return None
        if len(head) < HEADER.size:
            raise Truncated("ended inside a frame")
        kind, length = HEADER.unpack(head)
        if length > MAX_FRAME:
            raise Broken("a frame of %d bytes" % length)
        payload: Data = self._read(length) if length else b""
        if len(payload) < length:
            raise Truncated("ended inside a frame")
        return bytes((kind,)), payload


def parse_json(payload: Data) -> Any:
    """The value of a JSON frame. Raises Broken."""
    try:
        if payload[:1] == b"\x78":
            opened = zlib.decompressobj()
            payload = opened.decompress(payload, MAX_JSON)
            if not opened.eof:
                raise Broken("a JSON frame that is too long")
        return json.loads(bytes(payload))
    except (ValueError, zlib.error, RecursionError) as error:
        raise Broken("a JSON frame that is none: %s" % error) from error


def unpack(codec: int, data: Data, length: int) -> Data:
    """Plain bytes, exactly ``length`` of them. Raises Broken."""
    if codec == ZLIB:
        opened = zlib.decompressobj()
        try:
            plain = opened.decompress(data, length + 1)
        except zlib.error as error:
            raise Broken("data that do not unpack: %s" % error) from error
        data = plain
    elif codec == ZEROS and not len(data) and length <= MAX_FRAME:
        return bytes(length)
    elif codec != PLAIN:
        raise Broken("an unknown codec %d" % codec)
    if len(data) != length:
        raise Broken("%d bytes where %d were announced" % (len(data), length))
    return data


class Tally:
    """What was sent or received of a part of a file; both ends must come to the same."""

    def __init__(self) -> None:
        self._bytes = self._crc = 0

    def add(self, number: int, length: int, crc: int) -> None:
        """One piece more."""
        self._bytes += length
        self._crc = zlib.crc32(struct.pack(">III", number, length, crc), self._crc)

    def mark(self, number: int, offset: int) -> bytes:
        """The payload of an ``A`` frame; the tally starts anew."""
        packed = ACK.pack(number, offset, self._bytes, self._crc)
        self._bytes = self._crc = 0
        return packed

    def check(self, payload: Data) -> Tuple[int, int]:
        """Compare with the other end's mark; returns file and offset. Raises Broken."""
        if len(payload) != ACK.size:
            raise Broken("a mark of a wrong length")
        number, offset, _, _ = ACK.unpack(payload)
        if self.mark(number, offset) != payload:
            raise Broken("a part of a file arrived incomplete")
        return number, offset


# ------------------------------------------------------------------------- compression


class Packing:
    """Decides piece by piece, from the link's speed, whether compression pays, and which.

    Args:
        expected: bytes a second that one stream is thought to move, until it is known; None when
            nothing is known.
    """

    LEARN_BYTES = 4 << 20  # the link's own buffers take the first ones at any speed
    SAMPLE = 32 << 10
    EVERY = 8  # pieces between two looks at what pays
    # level, strategy, bytes a second that are usual, and at most of the link to be thought of
    WAYS = (
        (1, zlib.Z_HUFFMAN_ONLY, 150e6, 150e6),
        (1, zlib.Z_DEFAULT_STRATEGY, 75e6, 75e6),
        (6, zlib.Z_DEFAULT_STRATEGY, 30e6, 15e6),
    )

    def __init__(
        self,
        expected: Optional[float] = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._expected, self._clock = expected, clock
        self._bytes = self._seconds = 0.0
        self._speed = 1.0  # of this processor, compared with what is usual
        self._way: Any = None
        self._keep = 0  # pieces still to go before the next look

    def pack(self, plain: Data) -> Tuple[int, Data]:
        """The codec and what to send."""
        if not self._keep:
            self._way, self._keep = self._best(memoryview(plain)), self.EVERY
        self._keep -= 1
        if self._way is None:
            return PLAIN, plain
        started = self._clock()
        packed = _packed(self._way, plain)
        rate = len(plain) / max(1e-6, self._clock() - started)
        self._speed += (rate / self._way[2] - self._speed) / 4
        return (ZLIB, packed) if len(packed) < len(plain) else (PLAIN, plain)

    def _best(self, plain: memoryview) -> Any:
        """The way that moves such data the fastest, or None for as they are."""
        link = self._link_rate()
        if link is None:
            return None
        middle = max(0, len(plain) // 2 - self.SAMPLE // 2)
        sample = plain[middle : middle + self.SAMPLE]
        best, least = None, 0.95 / link
        for way in self.WAYS:
            if link < way[3]:
                ratio = len(_packed(way, sample)) / max(1, len(sample))
                cost = 1 / (way[2] * self._speed) + ratio / link
                if cost < least:
                    best, least = way, cost
        return best

    def _link_rate(self) -> Optional[float]:
        if self._bytes < self.LEARN_BYTES:
            return self._expected
        return self._bytes / max(1e-6, self._seconds)

    def sent(self, size: int, seconds: float) -> None:
        """So many bytes took so long to send."""
        self._bytes += size
        self._seconds += seconds
        if self._bytes > 32 << 20:  # older experience counts half
            self._bytes, self._seconds = self._bytes / 2, self._seconds / 2


def _packed(way: Any, plain: Data) -> bytes:
    packer = zlib.compressobj(way[0], zlib.DEFLATED, 15, 9, way[1])
    return packer.compress(plain) + packer.flush()
