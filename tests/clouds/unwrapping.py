"""What a request to a cloud says, when all that is packed into it is unpacked."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from tests.clouds.http_cloud import Logged

_BASE64 = re.compile(rb"[A-Za-z0-9+/]{16,}={0,2}")


def unwrapped(line: Logged) -> Iterator[bytes]:
    """What a request says: as it came, and what was packed into it."""
    yield line.path.encode()
    for value in line.query.values():
        yield from _opened(value.encode())
    yield from _opened(line.body)


def _opened(text: bytes, depth: int = 6) -> Iterator[bytes]:
    yield text
    if depth == 0 or len(text) < 8:
        return
    for inside in _insides(text):
        if inside != text:
            yield from _opened(inside, depth - 1)


def _insides(text: bytes) -> Iterator[bytes]:
    """What a text may be a wrapping of: JSON, a form, base64, gzip; words of a script as well."""
    try:
        yield from _leaves(json.loads(text))
        return
    except ValueError:
        pass
    if text.startswith(b"\x1f\x8b"):
        try:
            yield gzip.decompress(text)
        except (OSError, EOFError, zlib.error):
            return
        return
    for _, value in parse_qsl(text.decode(errors="replace"), keep_blank_values=True):
        yield value.encode()
    for word in _BASE64.findall(text):
        try:
            yield base64.b64decode(word, validate=True)
        except binascii.Error:
            continue  # a long word, or a hash


def _leaves(value: Any) -> Iterator[bytes]:
    if isinstance(value, dict):
        for name, inside in value.items():
            yield name.encode()
            yield from _leaves(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _leaves(inside)
    elif isinstance(value, str):
        yield value.encode()
