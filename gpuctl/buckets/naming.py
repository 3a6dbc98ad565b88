"""Keys of objects and names of files: which becomes which, and what is refused. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from gpuctl.errors import StoreError
from gpuctl.printable import printable
from gpuctl.store.bucket import Address, Entry

LONGEST_KEY = 1024  # bytes, S3's own limit
LARGEST_OBJECT = 5 << 40
_LONGEST_NAME = 255  # bytes, of most file systems
_MOST_PARTS = 10_000
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Item:
    """An object, and the file that it becomes."""

    path: str  # below the target; "" when the target is the file itself
    entry: Entry


def items_below(address: Address, entries: Iterable[Entry]) -> list[Item]:
    """Return the files that a prefix becomes. Keys that end with ``/`` stand for folders.

    Raises:
        StoreError: a key can be no file's name, or not beside the others.
    """
    found: dict[str, Item] = {}
    for entry in entries:
        path = entry.key.removeprefix(address.folder)
        if path == "" or (path.endswith("/") and entry.size == 0):
            continue
        parts = path.split("/")
        climbs = any(part in ("", ".", "..") for part in parts) or "\0" in path
        if climbs or any(len(part.encode()) > _LONGEST_NAME for part in parts):
            raise StoreError(
                f"The key {printable(entry.key)!r} in s3://{address.bucket} can be no file's name",
                next="Copy it to a key with plain names, or name a narrower prefix.",
            )
        found[path] = Item(path, entry)
    for path in found:
        for folder in PurePosixPath(path).parents:
            if str(folder) in found:
                raise StoreError(
                    f"s3://{address.bucket}/{printable(found[str(folder)].entry.key)} is an object "
                    f"and has others below it, so it would have to be a file and a folder",
                    next="Rename one of them, or name a narrower prefix.",
                )
    return list(found.values())


def key_below(address: Address, path: str) -> str:
    """Return the key of a file below a prefix.

    Raises:
        StoreError: S3 cannot hold that name, or it climbs.
    """
    key = address.folder + path
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        size = 0
    plain = not any(character < " " or character in "\x7f\ufffe\uffff" for character in path)
    climbs = any(part in ("", ".", "..") for part in path.split("/"))
    if climbs or not plain or not 0 < size <= LONGEST_KEY:
        raise StoreError(
            f"{printable(ascii(path)[1:-1])} can be no key in S3: it "
            + ("climbs" if climbs else "is too long" if plain and size else "is no plain text"),
            next="Rename it there, then try again.",
        )
    return key


def key_of_file(address: Address, name: str) -> str:
    """Return the key of one file: the address itself, below it when that ends with ``/``."""
    if address.key and not address.key.endswith("/"):
        return address.key
    return key_below(address, name)


def key_of_output(address: Address, name: str) -> str:
    """Return the key of a run's output that is one file.

    As for folders here: below the address, unless that looks like a file's name itself.
    """
    if not address.key.endswith("/") and PurePosixPath(address.key).suffix:
        return address.key
    return key_below(address, name)


def part_size(size: int, least: int) -> int:
    """Return how large the parts of a file are: S3 takes 10,000 at most."""
    if size <= least * _MOST_PARTS:
        return least
    return -(-size // _MOST_PARTS // _MIB) * _MIB + _MIB


def is_md5(etag: str) -> bool:
    """Whether an ETag may be the MD5 of the content."""
    return len(etag) == 32 and all(character in "0123456789abcdef" for character in etag)


def sizes_differ(expected: Mapping[str, int], found: Iterable[Entry]) -> list[str]:
    """Return the keys that are not there with the size that was sent."""
    there = {entry.key: entry.size for entry in found}
    return sorted(key for key, size in expected.items() if there.get(key) != size)
