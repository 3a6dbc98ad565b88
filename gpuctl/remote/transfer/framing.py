"""Frames, their payloads, and whether compressing one pays.

Standard library only, Python >= 3.8: it runs on both ends of a transfer (docs/transfer.md).
"""

from __future__ import annotations

import json
import struct
import threading
import time
import zlib
from typing import Any, Callable, List, Optional, Tuple, Union

from gpuctl.remote.transfer.native import find_xxh3, find_zstd

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
PLAIN, ZLIB, ZEROS, ZSTD = 0, 1, 2, 3
XXH3 = 128  # added to the codec of a piece whose check is that, not crc32
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
    elif codec == ZSTD and length <= MAX_FRAME:
        library = find_zstd()
        try:
            data = library.unpack(data, length) if library else b""
        except ValueError as error:
            raise Broken("data that do not unpack: %s" % error) from error
    elif codec == ZEROS and not len(data) and length <= MAX_FRAME:
        return bytes(length)
    elif codec != PLAIN:
        raise Broken("an unknown codec %d" % codec)
    if len(data) != length:
        raise Broken("%d bytes where %d were announced" % (len(data), length))
    return data


def check_of(data: Data, quick: bool) -> int:
    """The 32 bits that a piece is checked by. Raises Broken."""
    if not quick:
        return zlib.crc32(data)
    xxh3 = find_xxh3()
    if xxh3 is None:
        raise Broken("a check that nobody here knows")
    found: int = xxh3(data)
    return found


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
    """Chooses every few MiB how to pack, by what moved such data the fastest.

    Args:
        expected: bytes a second that one stream is thought to move, until it is known; None when
            nothing is known.
        both: whether both ends have zstd.
    """

    GROUP_BYTES = 4 << 20  # between two choices
    SAMPLE = 32 << 10
    EXPLORE = 5  # so often the second best is tried
    # codec, level, strategy, usual bytes a second, at most of a link that it is worth thinking
    # of, and how much of what it gains counts: the processor may have better to do
    ZLIB_WAYS = (
        (ZLIB, 1, zlib.Z_HUFFMAN_ONLY, 150e6, 120e6, 0.95),
        (ZLIB, 1, zlib.Z_DEFAULT_STRATEGY, 90e6, 50e6, 0.8),
        (ZLIB, 6, zlib.Z_DEFAULT_STRATEGY, 30e6, 6e6, 0.75),
    )
    ZSTD_WAYS = (
        (ZSTD, 1, 0, 330e6, 250e6, 0.95),
        (ZSTD, 3, 0, 250e6, 120e6, 0.95),
        (ZSTD, 9, 0, 70e6, 5e6, 0.8),
    )

    def __init__(
        self,
        expected: Optional[float] = None,
        both: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._link, self._clock = expected, clock
        self._zstd: Any = find_zstd() if both else None
        self._ways: Any = self.ZSTD_WAYS if self._zstd else self.ZLIB_WAYS
        self._factors = dict.fromkeys(self._ways, 1.0)  # how much faster than foreseen
        self._way: Any = None
        self._foreseen = 0.0  # plain bytes a second of the present group
        self._bytes = 0  # of the present group, plain
        self._seconds = self._sending = 0.0  # all that it took, and sending alone
        self._groups = 0
        self._waited = True  # for the link, not for the processor

    def pack(self, plain: Data) -> Tuple[int, Data]:
        """The codec and what to send."""
        if not self._groups or self._bytes >= self.GROUP_BYTES:
            self._learn()
            self._way, self._foreseen = self._choice(memoryview(plain))
            self._groups += 1
        self._bytes += len(plain)
        if self._way is None:
            return PLAIN, plain
        started = self._clock()
        packed = self._packed(self._way, plain)
        self._seconds += self._clock() - started
        return (self._way[0], packed) if len(packed) < len(plain) else (PLAIN, plain)

    def sent(self, seconds: float) -> None:
        """Sending what `pack` returned took so long."""
        self._seconds += seconds
        self._sending += seconds

    def _learn(self) -> None:
        """Compare the group with what was foreseen; buffers take the first at any speed."""
        if self._groups > 1 or (self._groups == 1 and self._link is None):
            rate = self._bytes / max(1e-6, self._seconds)
            if self._way is None:
                self._link = rate if self._link is None else (self._link + rate) / 2
            else:
                factor = rate / self._foreseen * self._factors[self._way]
                self._factors[self._way] = (self._factors[self._way] + factor) / 2
        self._waited = self._sending > self._seconds / 4
        self._bytes, self._seconds, self._sending = 0, 0.0, 0.0

    def _choice(self, plain: memoryview) -> Tuple[Any, float]:
        """What should move such data the fastest, and how fast; None is as they are."""
        link = self._link
        if link is None:
            return None, 0.0
        middle = max(0, len(plain) // 2 - self.SAMPLE // 2)
        sample = plain[middle : middle + self.SAMPLE]
        found: List[Tuple[float, Any, float]] = [(link, None, link)]
        best = 1.12
        for way in self._ways:
            ratio = len(self._packed(way, sample)) / max(1, len(sample)) if link < way[4] else 2.0
            if ratio < best * 0.85:
                best = ratio
                rate = min(way[3], link / ratio) * self._factors[way]
                found.append((rate * way[5], way, rate))
        found.sort(key=lambda one: -one[0])
        if self._groups % self.EXPLORE == self.EXPLORE - 1 and len(found) > 1:
            if not self._waited:
                return None, link  # the link may be much faster than it is thought to be
            if found[1][0] > found[0][0] / 2:
                found.pop(0)
        return found[0][1], found[0][2]

    def _packed(self, way: Any, plain: Data) -> bytes:
        if way[0] == ZSTD:
            packed: bytes = self._zstd.pack(plain, way[1])
            return packed
        packer = zlib.compressobj(way[1], zlib.DEFLATED, 15, 9, way[2])
        return packer.compress(plain) + packer.flush()
