"""Reading files for the other end: pieces, bundles, block signatures.

Standard library only, Python >= 3.8: it runs on both ends of a transfer (docs/transfer.md).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import struct
import time
import zlib
from typing import Any, Callable, Iterator, List, Tuple

from gpuctl.remote.transfer.framing import (
    BUNDLE,
    PIECE,
    PIECE_BYTES,
    PIECE_HEAD,
    PLAIN,
    XXH3,
    Frames,
    Packing,
    check_of,
)

DIGEST = 16  # bytes of SHA-256 that stand for a block
ANCHOR = 16  # the first bytes of a block, by which a moved one is found again
BEAT_EVERY = 64  # MiB of silent work


def open_plain(path: str) -> int:
    """A regular file's descriptor; links are not followed. Raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return handle


def extents(handle: int, offset: int, end: int) -> Iterator[Tuple[int, int]]:
    """Where between two offsets there are data, not holes."""
    while offset < end:
        try:
            start = os.lseek(handle, offset, os.SEEK_DATA)
            stop = os.lseek(handle, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            start, stop = offset, end  # a file system that knows no holes
        if start >= end:
            return
        yield start, min(stop, end)
        offset = stop


def piece_buffer() -> memoryview:
    """What `pieces` reads into; each stream has one, since a new one costs as much as reading."""
    return memoryview(bytearray(PIECE_HEAD + PIECE_BYTES))


def pieces(
    handle: int, offset: int, length: int, dense: bool, buffer: memoryview
) -> Iterator[Tuple[int, memoryview]]:
    """The bytes of a part of a file behind `PIECE_HEAD` bytes of room, valid until the next.

    Holes are left out unless ``dense``.
    """
    state = os.fstat(handle)
    if state.st_blocks * 512 >= state.st_size:
        dense = True  # looking for holes takes time
    whole = [(offset, offset + length)]
    for start, end in whole if dense else extents(handle, offset, offset + length):
        while start < end:
            room = buffer[PIECE_HEAD : PIECE_HEAD + end - start]
            size = os.preadv(handle, [room], start)
            if not size:
                return
            yield start, buffer[: PIECE_HEAD + size]
            start += size


def send_piece(
    frames: Frames, packing: Packing, number: int, offset: int, frame: memoryview, quick: bool
) -> int:
    """Send what `pieces` yields; returns its check: crc32, or XXH3 when ``quick``."""
    plain = frame[PIECE_HEAD:]
    check = check_of(plain, quick)
    codec, data = packing.pack(plain)
    head = PIECE.pack(number, offset, len(plain), check, codec | XXH3 if quick else codec)
    started = time.perf_counter()
    if codec == PLAIN:
        frames.send_piece(head, frame)
    else:
        frames.send(b"R", head, data)
    packing.sent(time.perf_counter() - started)
    return check


def send_bundle(frames: Frames, packing: Packing, root: str, paths: List[str]) -> List[List[Any]]:
    """Send small files in one frame; returns its table. What vanished is left out."""
    table: List[List[Any]] = []
    contents: List[bytes] = []
    for path in paths:
        try:
            handle = open_plain(os.path.join(root, path) if path else root)
        except FileNotFoundError:
            continue
        try:
            state = os.fstat(handle)
            data = os.read(handle, state.st_size) if state.st_size else b""
        finally:
            os.close(handle)
        mode = stat.S_IMODE(state.st_mode) & 0o777
        table.append([path, len(data), mode, state.st_mtime_ns, zlib.crc32(data)])
        contents.append(data)
    head = json.dumps(table, separators=(",", ":")).encode()
    plain = head + b"".join(contents)
    codec, packed = packing.pack(plain)
    started = time.perf_counter()
    frames.send(b"B", BUNDLE.pack(len(head), codec) + struct.pack(">I", len(plain)), packed)
    packing.sent(time.perf_counter() - started)
    return table


def block_size(size: int) -> int:
    """Bytes a block of the delta for a file of this size: a power of two near its root."""
    block = 16 << 10
    while block * block < size and block < 1 << 20:
        block *= 2
    return block


def signatures(handle: int, block: int) -> Iterator[bytes]:
    """For each block its digest and its first bytes, a few MiB of file at a time."""
    batch, offset = [], 0
    while True:
        data = os.pread(handle, block, offset)
        if data:
            digest = hashlib.sha256(data).digest()[:DIGEST]
            batch.append(digest + data[:ANCHOR].ljust(ANCHOR, b"\0"))
            offset += len(data)
        if batch and (len(data) < block or len(batch) * block >= 8 << 20):
            yield b"".join(batch)
            batch = []
        if len(data) < block:
            return


def file_digest(path: str, beat: Callable[[], None] | None = None) -> str:
    """SHA-256 of a file, in hexadecimal; ``beat`` is called now and then. Raises OSError."""
    handle = open_plain(path)
    try:
        digest, read = hashlib.sha256(), 0
        while True:
            data = os.read(handle, 1 << 20)
            if not data:
                return digest.hexdigest()
            digest.update(data)
            read += 1
            if beat and read % BEAT_EVERY == 0:
                beat()
    finally:
        os.close(handle)
