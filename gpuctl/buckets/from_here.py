"""From this computer to a bucket; and what of it holds for machines too: keys, and the proof."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuctl.buckets.far_send import etag_of
from gpuctl.buckets.naming import key_below, key_of_file, part_size, sizes_differ
from gpuctl.errors import StoreError
from gpuctl.printable import printable
from gpuctl.remote.connection import Progress, Transferred
from gpuctl.remote.selection import everything
from gpuctl.store.bucket import Address, Bucket, Entry
from gpuctl.store.parallel import in_order

PART_BYTES = 64 << 20  # larger files go in parts, several at a time
_CHUNK = 1 << 20

FileKey = Callable[[Address, str], str]
"""Says which key one file gets, by the address and its name."""


@dataclass(slots=True)
class ObjectFile:
    """A file that becomes an object."""

    path: str  # below the source; "" when the source is the file itself
    key: str
    size: int
    part: int
    there: str | None = None  # the ETag of an object of that size and key
    upload: str | None = None

    @property
    def parts(self) -> int:
        """How many it is sent in; 0 when in one request."""
        return -(-self.size // self.part) if self.size > self.part else 0


def send_from_here(
    source: Path,
    address: Address,
    *,
    environ: Mapping[str, str],
    name: str,
    file_key: FileKey = key_of_file,
    progress: Progress | None = None,
) -> Transferred:
    """Send a file or a folder of this computer to a bucket.

    A folder's contents land below the address. What is there already with the same content, as
    far as its ETag tells, is not sent. Links are left out.

    Args:
        source: what to send.
        address: where to.
        environ: the AWS SDK's own settings.
        name: what a file is called.
        file_key: where a file lands.
        progress: called with (bytes done, bytes in all) while it goes on.

    Raises:
        StoreError, NoCredentials: the bucket does not take it, or cannot hold a name.
    """
    bucket = Bucket(address.bucket, environ)
    listed, left_out = _listed_here(source)
    with _readable():
        files = planned(bucket, address, listed, name, file_key, not source.is_dir())
        total, done = sum(file.size for file in files), [0]

        def seen(size: int) -> None:
            done[0] += size
            if progress is not None:
                progress(done[0], total)

        sent = list(in_order(files, functools.partial(_store, bucket, source, seen=seen)))
    confirm(bucket, address, files)
    moved = [file.size for file, is_new in zip(files, sent, strict=True) if is_new]
    return Transferred(len(moved), sum(moved), len(files) - len(moved), left_out)


def _store(bucket: Bucket, source: Path, file: ObjectFile, *, seen: Callable[[int], None]) -> bool:
    place = source / file.path if file.path else source
    read = functools.partial(_read, place)
    if file.there is not None and etag_of(read, file.size, file.part) == file.there:
        seen(file.size)
        return False
    bucket.store(place, file.key, file.part, seen)
    return True


def _listed_here(source: Path) -> tuple[list[tuple[str, int]], tuple[str, ...]]:
    if not source.is_dir():
        with _readable():
            return [("", source.stat().st_size)], ()
    tree = everything(source)
    return [(file.path, file.size) for file in tree.files], no_links(
        [link.path for link in tree.links]
    )


def _read(place: Path, start: int, size: int) -> Iterator[bytes]:
    with place.open("rb") as file:
        file.seek(start)
        while size > 0 and (chunk := file.read(min(_CHUNK, size))):
            yield chunk
            size -= len(chunk)


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{error.filename or 'A file'} cannot be read here: {error.strerror or error}",
            next="Correct its permissions, then try again.",
        ) from error


def planned(
    bucket: Bucket,
    address: Address,
    listed: Sequence[tuple[str, int]],
    name: str,
    file_key: FileKey,
    is_file: bool,
) -> list[ObjectFile]:
    """Give every file its key, and say what the bucket has there."""
    if is_file:
        key = file_key(address, name)
        entry = bucket.look(key)
        there = {key: entry} if entry is not None else {}
        keys = [key]
    else:
        keys = [key_below(address, path) for path, _ in listed]
        there = {entry.key: entry for entry in bucket.listing(address.folder)}
    return [
        ObjectFile(path, key, size, part_size(size, PART_BYTES), _same_size(there.get(key), size))
        for (path, size), key in zip(listed, keys, strict=True)
    ]


def _same_size(entry: Entry | None, size: int) -> str | None:
    return entry.etag if entry is not None and entry.size == size else None


def confirm(bucket: Bucket, address: Address, files: Sequence[ObjectFile]) -> None:
    """Ask the bucket itself whether everything is there: the machine's word is not enough."""
    expected = {file.key: file.size for file in files}
    if len(files) == 1:
        found = [entry for entry in [bucket.look(files[0].key)] if entry is not None]
    else:
        found = list(bucket.listing(address.folder))
    wrong = sizes_differ(expected, found)
    if wrong:
        raise StoreError(
            f"s3://{bucket.name}/{printable(wrong[0])} is not there as it was sent"
            + (f" (nor are {len(wrong) - 1} more)" if len(wrong) > 1 else ""),
            next="See that nobody else writes there, then try again.",
        )


def no_links(paths: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{printable(ascii(path)[1:-1])}: a link, which S3 cannot hold" for path in paths)
