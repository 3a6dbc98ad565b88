"""C libraries that most systems have: zstd, three times as fast as zlib and denser, and XXH3.

Python reaches them without any package; where they are missing, zlib and crc32 do it. Standard
library only, Python >= 3.8: it runs on both ends of a transfer (docs/transfer.md).
"""

from __future__ import annotations

import functools
from typing import Any

_PLACES = ("lib%s.so.%d", "lib%s.%d.dylib", "/opt/homebrew/lib/lib%s.%d.dylib")


class Zstd:
    """Packs and unpacks; one thread at a time."""

    def __init__(self, ctypes: Any, library: Any) -> None:
        self._ctypes, self._library = ctypes, library
        self._packing: Any = None
        self._room = bytearray(0)

    def pack(self, plain: Any, level: int) -> bytes:
        """Packed bytes; as they are when that fails."""
        c = self._ctypes
        if self._packing is None:
            self._packing = c.c_void_p(self._library.ZSTD_createCCtx())
        most = self._library.ZSTD_compressBound(c.c_size_t(len(plain)))
        if len(self._room) < most:
            self._room = bytearray(most)
        room = (c.c_char * len(self._room)).from_buffer(self._room)
        size = self._library.ZSTD_compressCCtx(
            self._packing, room, c.c_size_t(most), _at(c, plain), c.c_size_t(len(plain)), level
        )
        failed = self._library.ZSTD_isError(c.c_size_t(size))
        return bytes(plain) if failed else bytes(memoryview(self._room)[:size])

    def unpack(self, packed: Any, length: int) -> bytearray:
        """At most ``length`` plain bytes. Raises ValueError."""
        c, plain = self._ctypes, bytearray(length + 1)
        size = self._library.ZSTD_decompress(
            (c.c_char * len(plain)).from_buffer(plain),
            c.c_size_t(length),
            _at(c, packed),
            c.c_size_t(len(packed)),
        )
        if self._library.ZSTD_isError(c.c_size_t(size)):
            raise ValueError("packed data that are none")
        del plain[size:]
        return plain

    def __del__(self) -> None:
        """Give the memory back that Python knows nothing of."""
        if self._packing is not None:
            self._library.ZSTD_freeCCtx(self._packing)  # a c_void_p


def _at(ctypes: Any, data: Any) -> Any:
    """Where data lie, for a C function that only reads them."""
    if isinstance(data, bytes):
        return data
    if isinstance(data, memoryview) and data.readonly:
        return bytes(data)
    return (ctypes.c_char * len(data)).from_buffer(data)


def _loaded(name: str, version: int, results: dict[str, str]) -> Any:
    """(ctypes, library) with the functions' result types set, or None."""
    try:
        import ctypes
    except ImportError:
        return None
    for place in _PLACES:
        try:
            library = ctypes.CDLL(place % (name, version))
            for function, result in results.items():
                getattr(library, function).restype = getattr(ctypes, result)
            return ctypes, library
        except (OSError, AttributeError):
            continue
    return None


@functools.lru_cache(None)
def _zstd() -> Any:
    sizes = dict.fromkeys(
        ("ZSTD_compressBound", "ZSTD_compressCCtx", "ZSTD_decompress"), "c_size_t"
    )
    return _loaded("zstd", 1, {**sizes, "ZSTD_createCCtx": "c_void_p", "ZSTD_isError": "c_uint"})


def find_zstd() -> Zstd | None:
    """A new one, or None where there is no such library."""
    found = _zstd()
    return Zstd(*found) if found else None


@functools.lru_cache(None)
def find_xxh3() -> Any:
    """A function from data to 32 bits of their XXH3, ten times as fast as crc32, or None."""
    found = _loaded("xxhash", 0, {"XXH3_64bits": "c_uint64"})
    if not found:
        return None
    ctypes, library = found

    def xxh3(data: Any) -> int:
        value: int = library.XXH3_64bits(_at(ctypes, data), ctypes.c_size_t(len(data)))
        return value & 0xFFFFFFFF

    return xxh3
