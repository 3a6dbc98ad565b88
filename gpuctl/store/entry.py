"""Taking an entry apart: a file or a folder on this computer becomes records and blobs."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuctl.errors import StoreError
from gpuctl.store.manifest import Blob, DirRecord, FileRecord, LinkRecord

_PERMISSIONS = 0o777
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Where on this computer the bytes of a blob are."""

    file: Path
    offset: int  # bytes


@dataclass(frozen=True, slots=True)
class Described:
    """What an entry consists of."""

    files: tuple[FileRecord, ...]
    dirs: tuple[DirRecord, ...]
    links: tuple[LinkRecord, ...]
    pieces: Mapping[Blob, Piece]
    special: tuple[str, ...]  # sockets, pipes and devices: left out


@dataclass(slots=True)
class _Draft:
    files: list[FileRecord] = field(default_factory=list)
    dirs: list[DirRecord] = field(default_factory=list)
    links: list[LinkRecord] = field(default_factory=list)
    pieces: dict[Blob, Piece] = field(default_factory=dict)
    special: list[str] = field(default_factory=list)


def describe(entry: Path, blob_bytes: int) -> Described:
    """Read an entry once, hashing everything; files are cut into blobs of ``blob_bytes``.

    Raises:
        StoreError: it is not there, is neither file nor folder, cannot be read, or has a name
            that is not UTF-8.
    """
    draft = _Draft()
    try:
        info = entry.lstat()
        if stat.S_ISREG(info.st_mode):
            _add_file(draft, entry, "", blob_bytes)
        elif stat.S_ISDIR(info.st_mode):
            _add_folder(draft, entry, "", blob_bytes)
        else:
            raise StoreError(
                f"{entry} is neither a file nor a folder",
                next="Name the file or folder itself, not a link to it.",
            )
    except OSError as error:
        raise StoreError(
            f"{error.filename or entry} cannot be read: {error.strerror or error}",
            next="Correct the path or its permissions, then try again.",
        ) from error
    return Described(
        tuple(draft.files),
        tuple(draft.dirs),
        tuple(draft.links),
        draft.pieces,
        tuple(draft.special),
    )


def read_piece(piece: Piece, blob: Blob) -> bytes:
    """Return the bytes of a blob from its file.

    Raises:
        StoreError: the file has changed since it was described, or cannot be read.
    """
    try:
        with piece.file.open("rb") as file:
            file.seek(piece.offset)
            content = file.read(blob.size)
    except OSError as error:
        raise StoreError(f"{piece.file} cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(content).hexdigest() != blob.sha256:
        raise StoreError(
            f"{piece.file} changed while it was being stored",
            next="Nothing was stored. Try again when nothing writes there.",
        )
    return content


def _add_folder(draft: _Draft, folder: Path, path: str, blob_bytes: int) -> None:
    draft.dirs.append(DirRecord(path, folder.lstat().st_mode & _PERMISSIONS))
    with os.scandir(folder) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        below = f"{path}/{entry.name}" if path else entry.name
        _check_utf8(folder / entry.name)
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISLNK(mode):
            target = os.readlink(entry.path)  # noqa: PTH115 - a Path would tidy the target up
            _check_utf8(Path(target))
            draft.links.append(LinkRecord(below, target))
        elif stat.S_ISDIR(mode):
            _add_folder(draft, folder / entry.name, below, blob_bytes)
        elif stat.S_ISREG(mode):
            _add_file(draft, folder / entry.name, below, blob_bytes)
        else:
            draft.special.append(below)


def _add_file(draft: _Draft, file: Path, path: str, blob_bytes: int) -> None:
    whole = hashlib.sha256()
    blobs: list[Blob] = []
    size = 0
    with file.open("rb") as source:
        info = os.fstat(source.fileno())
        while True:
            blob = _next_blob(_limited(source.fileno(), blob_bytes), whole)
            if blob.size == 0:
                break
            draft.pieces.setdefault(blob, Piece(file, size))
            blobs.append(blob)
            size += blob.size
    draft.files.append(
        FileRecord(
            path,
            info.st_mode & _PERMISSIONS,
            info.st_mtime,
            size,
            whole.hexdigest(),
            tuple(blobs),
        )
    )


def _limited(handle: int, limit: int) -> Iterator[bytes]:
    while limit and (chunk := os.read(handle, min(_CHUNK, limit))):
        limit -= len(chunk)
        yield chunk


def _next_blob(chunks: Iterator[bytes], whole: hashlib._Hash) -> Blob:
    own = hashlib.sha256()
    size = 0
    for chunk in chunks:
        own.update(chunk)
        whole.update(chunk)
        size += len(chunk)
    return Blob(own.hexdigest(), size)


def _check_utf8(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise StoreError(
            f"The name {str(path)!r} is not UTF-8 and cannot be stored",
            next="Rename it.",
        ) from error
