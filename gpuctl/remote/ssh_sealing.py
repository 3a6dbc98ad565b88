"""Building sealed SSH packets under AES-GCM: many in one buffer, with few copies."""

from __future__ import annotations

import os
import struct
from typing import Any

DATA = 94  # SSH_MSG_CHANNEL_DATA, RFC 4254
LENGTH = struct.Struct(">I")
DATA_HEAD = struct.Struct(">BBII")  # padding length, type, channel, data length or window
BLOCK = 16
TAG = 16


class Nonce:
    """RFC 5647, 7.1: four fixed bytes and a counter of eight."""

    def __init__(self, first: bytes) -> None:
        self._fixed = first[:4]
        self._counter = int.from_bytes(first[4:], "big")

    def next(self) -> bytes:
        """Return the next one."""
        nonce = self._fixed + self._counter.to_bytes(8, "big")
        self._counter = (self._counter + 1) & 0xFFFFFFFFFFFFFFFF
        return nonce


class Sealer:
    """Builds sealed packets in one buffer. What it returns is valid until the next call."""

    def __init__(self, engine: Any, nonce: Nonce) -> None:
        self._engine = engine
        self._nonce = nonce
        self._plain = memoryview(bytearray(0))
        self._sealed = memoryview(bytearray(0))
        self._into = getattr(engine, "encrypt_into", None)  # cryptography >= 47

    def message(self, payload: bytes) -> memoryview:
        """One message."""
        self._room(len(payload) + 64, len(payload) + 128)
        size = _padded(len(payload))
        padding = size - 1 - len(payload)
        self._plain[0] = padding
        self._plain[1 : 1 + len(payload)] = payload
        self._plain[1 + len(payload) : size] = os.urandom(padding)
        return self._sealed[: self._seal(size, 0)]

    def data(self, channel: int, data: memoryview, packet: int) -> memoryview:
        """Channel data, split into packets."""
        packets = -(-len(data) // packet)
        self._room(packet + 64, len(data) + packets * 64)
        random = os.urandom(2 * BLOCK)
        end = 0
        for start in range(0, len(data), packet):
            piece = data[start : start + packet]
            used = DATA_HEAD.size + len(piece)
            size = _padded(used - 1)
            DATA_HEAD.pack_into(self._plain, 0, size - used, DATA, channel, len(piece))
            self._plain[DATA_HEAD.size : used] = piece
            self._plain[used:size] = random[: size - used]
            end = self._seal(size, end)
        return self._sealed[:end]

    def _seal(self, size: int, at: int) -> int:
        """Seal the first ``size`` bytes of the plain text to ``at``; return where they end."""
        end = at + 4 + size + TAG
        head = LENGTH.pack(size)
        self._sealed[at : at + 4] = head
        if self._into is not None:
            nonce = self._nonce.next()
            self._into(nonce, self._plain[:size], head, self._sealed[at + 4 : end])
        else:
            sealed = self._engine.encrypt(self._nonce.next(), bytes(self._plain[:size]), head)
            self._sealed[at + 4 : end] = sealed
        return end

    def _room(self, plain: int, sealed: int) -> None:
        if len(self._plain) < plain:
            self._plain = memoryview(bytearray(plain))
        if len(self._sealed) < sealed:
            self._sealed = memoryview(bytearray(sealed))


def _padded(payload: int) -> int:
    """Bytes of padding length, payload and at least four of padding, in whole blocks."""
    return -(-(1 + payload + 4) // BLOCK) * BLOCK
