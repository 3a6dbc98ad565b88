"""Putting an entry together again: verified, hidden until it is whole, never outside its place.

The manifest may come from a stranger's machine. Folders and files are made with names that were
checked, files never through a link, and links last, so nothing is ever written through one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gpuctl.errors import StoreError
from gpuctl.store.manifest import Blob, CorruptManifest, FileRecord, LinkRecord, Manifest
from gpuctl.store.parallel import in_order

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

ReadBlob = Callable[[Blob], bytes | bytearray]

_PERMISSIONS = 0o777
_PART = ".gpuctl-part-"
_ABANDONED_SECONDS = 24 * 3600
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class CorruptEntry(CorruptManifest):
    """What is stored is not what the manifest says, so the manifest counts as corrupt."""


def difference(blob: Blob, content: bytes | bytearray) -> str | None:
    """Return how bytes differ from what their blob's name says; None when they do not."""
    if len(content) != blob.size:
        return f"the blob {blob.sha256} is not {blob.size} bytes long"
    if hashlib.sha256(content).hexdigest() != blob.sha256:
        return f"the blob {blob.sha256} has other bytes than its name says"
    return None


@dataclass(frozen=True, slots=True)
class Fetched:
    """An entry that was restored."""

    path: Path
    files: int
    bytes: int
    links_left_out: tuple[LinkRecord, ...]  # they lead out of the entry


def restore(
    manifest: Manifest,
    dest: Path,
    read_blob: ReadBlob,
    *,
    progress: Progress | None = None,
) -> Fetched:
    """Make the entry at ``dest``: the file itself, or the folder.

    Where nothing is, the whole appears by one rename. Into a folder that is there, what was
    verified moves in file by file, each by a rename; what else is in it stays.

    Raises:
        CorruptEntry: from ``read_blob``, or a file as a whole is not what the manifest says.
        StoreError: something of another kind is in the way, or the disk fails. Until
            everything was verified ``dest`` stays as it was.
    """
    with _said(dest):
        dest = dest.resolve()  # a link that the user put there is followed once, here
        parent = dest.parent
        parent.mkdir(parents=True, exist_ok=True)
        _sweep_abandoned(dest)
        _check_in_the_way(manifest, dest)
        free = shutil.disk_usage(parent).free
        if free < manifest.bytes:
            raise StoreError(
                f"{dest} needs {manifest.bytes / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB",
                next="Make room there, or name another place.",
            )
        part = dest.with_name(f".{dest.name}{_PART}{secrets.token_hex(4)}")
        try:
            left_out = _build(manifest, part, read_blob, progress)
            _move(part, dest)
            _sync(parent)
        except BaseException:
            # What went wrong first is what must be told; the next restore sweeps what is left.
            with contextlib.suppress(OSError):
                _discard(part)
            raise
    return Fetched(dest, len(manifest.files), manifest.bytes, left_out)


def leads_out(link: LinkRecord) -> bool:
    """Whether a link could lead out of its entry.

    Only ``(../)*rest`` with no further ``..`` is let in: ``rest`` may itself run through links,
    and a ``..`` after one of them would count from where that link leads.
    """
    if link.target.startswith("/"):
        return True
    parts = [part for part in link.target.split("/") if part not in ("", ".")]
    climbs = next((i for i, part in enumerate(parts) if part != ".."), len(parts))
    return climbs > link.path.count("/") or ".." in parts[climbs:]


def _build(
    manifest: Manifest, part: Path, read_blob: ReadBlob, progress: Progress | None
) -> tuple[LinkRecord, ...]:
    for folder in sorted(manifest.dirs, key=lambda record: record.path):
        _below(part, folder.path).mkdir(mode=0o700)
    done = 0

    def count(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None:
            progress(done, manifest.bytes)

    blobs = in_order(manifest.blobs(), read_blob)
    with contextlib.closing(blobs):
        for file in manifest.files:
            _write(_below(part, file.path), file, blobs, count)
    left_out = [link for link in manifest.links if leads_out(link)]
    for link in manifest.links:
        if not leads_out(link):
            _below(part, link.path).symlink_to(link.target)
    for folder in sorted(manifest.dirs, key=lambda record: record.path, reverse=True):
        place = _below(part, folder.path)
        _sync(place)
        place.chmod(folder.mode & _PERMISSIONS)
    return tuple(left_out)


def _write(
    target: Path,
    record: FileRecord,
    blobs: Iterator[bytes | bytearray],
    count: Callable[[int], None],
) -> None:
    whole = hashlib.sha256()
    with os.fdopen(os.open(target, _CREATE, 0o600), "wb") as file:
        for _ in record.blobs:
            content = next(blobs)
            whole.update(content)
            file.write(content)
            count(len(content))
            del content  # else it would be held while the next ones are fetched
        file.flush()
        if whole.hexdigest() != record.sha256:
            raise CorruptEntry(f"The file {record.path or target.name!r} is not what was stored")
        nanoseconds = int(record.mtime * 1e9)
        os.utime(file.fileno(), ns=(nanoseconds, nanoseconds))
        os.fchmod(file.fileno(), record.mode & _PERMISSIONS)
        os.fsync(file.fileno())


def _check_in_the_way(manifest: Manifest, dest: Path) -> None:
    """Refuse what would end half merged: a file where a folder goes, or a folder for a file."""
    folders = [_below(dest, folder.path) for folder in manifest.dirs]
    others = [_below(dest, file.path) for file in manifest.files]
    others += [_below(dest, link.path) for link in manifest.links]
    wrong = [place for place in folders if os.path.lexists(place) and not _is_folder(place)]
    wrong += [place for place in others if _is_folder(place)]
    if wrong:
        raise StoreError(
            f"{wrong[0]} is in the way: it is not of the same kind as what is restored there",
            next="Move it away, then try again.",
        )


def _move(part: Path, dest: Path) -> None:
    if not _is_folder(part):
        part.replace(dest)
        return
    mode = part.stat().st_mode & _PERMISSIONS
    part.chmod(0o700)  # a folder that is read-only cannot be moved to another parent
    if not os.path.lexists(dest):
        part.rename(dest)
        dest.chmod(mode)
        return
    for child in sorted(part.iterdir()):
        _move(child, dest / child.name)
    part.rmdir()
    _sync(dest)


def _is_folder(place: Path) -> bool:
    return place.is_dir() and not place.is_symlink()


def _sweep_abandoned(dest: Path) -> None:
    oldest = time.time() - _ABANDONED_SECONDS
    prefix = f".{dest.name}{_PART}"
    with os.scandir(dest.parent) as listed:
        siblings = list(listed)
    for found in siblings:
        if found.name.startswith(prefix) and found.stat(follow_symlinks=False).st_mtime < oldest:
            _discard(Path(found.path))


def _discard(path: Path) -> None:
    if _is_folder(path):
        for folder, _, _ in os.walk(path):
            Path(folder).chmod(0o700)  # a restored folder may be read-only
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _below(part: Path, path: str) -> Path:
    return part / path if path else part


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _said(dest: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{dest} cannot be restored: {error.strerror or error}",
            next="Look at that folder and its disk, or name another place.",
        ) from error
