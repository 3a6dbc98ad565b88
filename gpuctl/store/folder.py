"""A store in a folder of this computer.

A file appears by rename after it was synced, so a crash leaves hidden temporary files and
never half a blob. Everything that is made here is readable by its owner only.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gpuctl.errors import StoreError
from gpuctl.store.objects import Missing, Stored

_DRAFT_SUFFIX = ".draft"
_NO_HARD_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}
# Without O_NONBLOCK a FIFO that somebody put there would hold us for ever.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEXT = {
    errno.ENOSPC: "Make room there, or name another store.",
    errno.EDQUOT: "Make room in your quota there, or name another store.",
    errno.EACCES: "Make the folder yours, or name another store.",
    errno.EPERM: "Make the folder yours, or name another store.",
    errno.EROFS: "It is mounted read-only; name another store.",
}


class FolderObjects:
    """The objects of one run in a folder."""

    def __init__(self, root: Path, run_id: str) -> None:
        self._top = root
        self._run = root / run_id

    @property
    def location(self) -> str:
        """The run's folder."""
        return str(self._run)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self._run

    @property
    def reachable_from_machine(self) -> bool:
        """False: only what runs on this computer sees it."""
        return False

    def listing(self, folder: str) -> Sequence[Stored]:
        """See `Objects.listing`."""
        with self._said("read", folder):
            return list(_walk(self._run / folder, folder))

    def read(self, key: str, limit: int) -> bytes | bytearray:
        """See `Objects.read`."""
        with self._said("read", key):
            try:
                handle = os.open(self._run / key, _READ)
            except FileNotFoundError as error:
                raise Missing(f"{self.location} has no {key}") from error
            with os.fdopen(handle, "rb") as file:
                return file.read(limit + 1)

    def write(self, key: str, body: bytes | bytearray) -> None:
        """See `Objects.write`."""
        with self._said("write", key):
            target = self._run / key
            draft = self._draft(target, body)
            try:
                draft.replace(target)
            finally:
                draft.unlink(missing_ok=True)
            _sync_folder(target.parent)

    def create(self, key: str, body: bytes | bytearray) -> bool:
        """See `Objects.create`."""
        with self._said("write", key):
            target = self._run / key
            draft = self._draft(target, body)
            try:
                made = _link(draft, target)
            finally:
                draft.unlink(missing_ok=True)
            _sync_folder(target.parent)
            return made

    def remove(self, stored: Stored) -> bool:
        """See `Objects.remove`."""
        with self._said("remove from", stored.key):
            target = self._run / stored.key
            # Moved aside first: a writer that replaces the object from now on keeps its own.
            aside = _hidden(target)
            try:
                if _modified(target.lstat()) > stored.modified:
                    return False
                target.rename(aside)
            except FileNotFoundError:
                return True
            try:
                rewritten = _modified(aside.lstat()) > stored.modified
                if rewritten:
                    _link(aside, target)
            finally:
                aside.unlink(missing_ok=True)
            _sync_folder(target.parent)
            return not rewritten

    def sweep_unfinished(self, before: datetime) -> int:
        """See `Objects.sweep_unfinished`: hidden temporary files of writers that died."""
        swept = 0
        with self._said("remove from", "drafts"):
            for draft in _walk(self._run, "", hidden=True):
                if draft.modified < before:
                    (self._run / draft.key.lstrip("/")).unlink(missing_ok=True)
                    swept += 1
        return swept

    def write_grant(self, expires: datetime) -> dict[str, Any] | None:
        """See `Objects.write_grant`: the path, for an agent on this computer; never expires."""
        del expires
        return {"kind": "folder", "path": self.location}

    def read_urls(self, keys: Iterable[str], expires: datetime) -> dict[str, str]:
        """A folder has no addresses: raises `StoreError`."""
        del keys, expires
        raise StoreError(
            f"The store {self._top} is a folder; another computer cannot read it",
            next="Name an S3 store in checkpoints.store.",
        )

    def _draft(self, target: Path, body: bytes | bytearray) -> Path:
        self._make(target.parent)
        draft = _hidden(target)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        return draft

    def _make(self, folder: Path) -> None:
        if folder.is_dir():
            return
        self._make(folder.parent)
        with contextlib.suppress(FileExistsError):  # another writer was first
            folder.mkdir(mode=0o700)
        _sync_folder(folder.parent)

    @contextlib.contextmanager
    def _said(self, verb: str, key: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            code = error.errno or 0
            raise StoreError(
                f"gpuctl cannot {verb} the store {self._top}: "
                f"{os.strerror(code) if code else error} ({self._run.name}/{key})",
                next=_NEXT.get(code, "Look at that folder and its disk, or name another store."),
            ) from error


def _walk(folder: Path, prefix: str, *, hidden: bool = False) -> Iterator[Stored]:
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return
    for entry in entries:
        key = f"{prefix}/{entry.name}"
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(folder / entry.name, key, hidden=hidden)
            continue
        if entry.name.startswith(".") is not hidden:
            continue
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(info.st_mode):
            yield Stored(key, info.st_size, _modified(info))


def _hidden(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(6)}{_DRAFT_SUFFIX}")


def _modified(info: os.stat_result) -> datetime:
    # Whole microseconds: as a float the last digits would depend on how they were rounded.
    seconds, rest = divmod(info.st_mtime_ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # exFAT and some network file systems have no hard links; one writer an attempt suffices.
        if target.exists():
            return False
        source.rename(target)
    return True


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # removed meanwhile; nothing is left to lose
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)
