"""Copying trees between a folder of ours and one that is not to be trusted, file by file.

Every file appears by rename, so nobody ever sees half of one; what has the same size and time of
change is left alone. Nothing is written through a symbolic link that is already there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gpuctl.remote.connection import Progress, Transferred
from gpuctl.remote.selection import File, Selection
from gpuctl.remote.transfer.pace import Pace

_CHUNK = 1 << 20
_PERMISSIONS = 0o777  # set-uid and the like stay behind


@dataclass(slots=True)
class Copy:
    """One transfer: counts what it does and reports it."""

    total_bytes: int = 0
    progress: Progress | None = None
    checksum: bool = False  # compare content, not size and time of change
    pace: Pace = field(default_factory=Pace)
    files: int = field(default=0, init=False)
    moved: int = field(default=0, init=False)  # bytes
    skipped: int = field(default=0, init=False)
    _seen: int = field(default=0, init=False)

    def tree(self, source: Path, selection: Selection, target: Path) -> None:
        """Copy what was selected of ``source`` into ``target``, which is made if needed.

        Raises:
            OSError: something cannot be read or written.
        """
        target.mkdir(parents=True, exist_ok=True)
        for folder in selection.dirs:
            _make_folder(target / folder.path)
        for file in selection.files:
            self.file(source / file.path, file, target / file.path)
        for link in selection.links:
            _make_link(target / link.path, link.target)
        for folder in reversed(selection.dirs):  # last, for a folder may be read-only
            (target / folder.path).chmod(folder.mode & _PERMISSIONS)

    def file(self, source: Path, file: File, target: Path) -> None:
        """Copy one file unless it is there already.

        Raises:
            OSError: something cannot be read or written.
        """
        if self._is_there(source, file, target):
            target.chmod(file.mode & _PERMISSIONS)
            self.skipped += 1
            self._report(file.size)
            return
        try:
            handle = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return  # removed after it was listed: it is not part of the tree any more
        with os.fdopen(handle, "rb", buffering=0):
            state = os.fstat(handle)
            if stat.S_ISREG(state.st_mode):
                self._write(handle, state, target)

    def done(self) -> Transferred:
        """What was moved."""
        return Transferred(self.files, self.moved, self.skipped)

    def _is_there(self, source: Path, file: File, target: Path) -> bool:
        try:
            there = target.lstat()
            if not stat.S_ISREG(there.st_mode) or there.st_size != file.size:
                return False
            if not self.checksum:
                return there.st_mtime_ns == file.mtime_ns
            if _digest(source) != _digest(target):
                return False
        except FileNotFoundError:  # one of them; the caller finds out which
            return False
        os.utime(target, ns=(there.st_atime_ns, file.mtime_ns))
        return True

    def _write(self, source: int, state: os.stat_result, target: Path) -> None:
        if target.is_dir() and not target.is_symlink():
            raise IsADirectoryError(None, "a folder is where a file should go", str(target))
        draft = target.with_name(f".{secrets.token_hex(8)}.part")
        out = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            try:
                for offset, chunk in _data(source, state.st_size):
                    self.pace.wait(len(chunk))
                    _write_all(out, offset, chunk)
                    self._report(len(chunk))
                os.ftruncate(out, state.st_size)
                os.fchmod(out, stat.S_IMODE(state.st_mode) & _PERMISSIONS)
            finally:
                os.close(out)
            os.utime(draft, ns=(state.st_atime_ns, state.st_mtime_ns))
            draft.replace(target)
        except BaseException:
            with suppress(OSError):  # the first error is the one to tell
                draft.unlink()
            raise
        self.files += 1
        self.moved += state.st_size

    def _report(self, size: int) -> None:
        self._seen += size
        if self.progress:
            self.progress(self._seen, self.total_bytes)


def write_file(target: Path, content: bytes, mode: int) -> None:
    """Write a small file, whole or not at all; the folder is made if needed.

    Raises:
        OSError: it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{secrets.token_hex(8)}.part")
    out = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        try:
            _write_all(out, 0, content)
            os.fchmod(out, mode)
        finally:
            os.close(out)
        draft.replace(target)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            draft.unlink()
        raise


def described(path: Path) -> File:
    """What `Copy.file` needs to know about one regular file. Raises OSError."""
    state = path.stat()
    return File("", state.st_size, state.st_mtime_ns, stat.S_IMODE(state.st_mode))


def _make_folder(path: Path) -> None:
    if path.is_symlink():  # else what belongs below it would land where it points
        path.unlink()
    path.mkdir(exist_ok=True)
    path.chmod(path.stat().st_mode & _PERMISSIONS | stat.S_IRWXU)


def _make_link(path: Path, target: str) -> None:
    if path.is_symlink() and os.fspath(path.readlink()) == target:
        return
    draft = path.with_name(f".{secrets.token_hex(8)}.part")
    draft.symlink_to(target)
    try:
        draft.replace(path)
    except OSError:
        draft.unlink()
        raise


def _digest(path: Path) -> bytes:
    """The SHA-256 of a regular file; links are not followed."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _data(handle: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield what is not a hole, at most ``size`` bytes into the file."""
    end = 0
    while end < size:
        start, end = _extent(handle, end, size)
        while start < end:
            chunk = os.pread(handle, min(_CHUNK, end - start), start)
            if not chunk:
                return  # it shrank; the next transfer sees another time of change
            yield start, chunk
            start += len(chunk)


def _extent(handle: int, offset: int, size: int) -> tuple[int, int]:
    """Where the next data begin and end."""
    try:
        start = os.lseek(handle, offset, os.SEEK_DATA)
        return min(start, size), min(os.lseek(handle, start, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # only a hole is left
            return size, size
        if error.errno == errno.EINVAL:  # a file system that knows no holes
            return offset, size
        raise


def _write_all(handle: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
