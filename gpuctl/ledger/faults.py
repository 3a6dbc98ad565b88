"""What SQLite and the file system complain about, said for people."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from gpuctl.errors import LedgerError
from gpuctl.ledger.backup import newest_backup

_WAL_WRITE_LOCK = "120"  # byte of the -shm file that a writer locks (SQLite: UNIX_SHM_BASE)
_NO_ROOM_BYTES = 64 * 1024

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_FORBIDDEN = {
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Unreadable(Exception):
    """A row of the ledger's file does not hold what was written there."""


def ledger_error(error: sqlite3.Error, path: Path, *, patience: float) -> LedgerError:
    """Turn what SQLite raised into a sentence and a next step.

    Args:
        patience: how many seconds were waited for a lock.
    """
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    if primary in _BUSY:
        return _locked(path, patience)
    if primary in _DAMAGED:
        return damaged(path, str(error))
    if primary == sqlite3.SQLITE_FULL or (primary == sqlite3.SQLITE_IOERR and _is_full(path)):
        return LedgerError(
            f"The ledger {path} could not be written: the disk is full ({error})."
            " Nothing of this step was recorded",
            next=f"Free some space under {path.parent} and repeat;"
            " `gpuctl audit` lists what bills.",
        )
    if primary in _FORBIDDEN:
        return forbidden(path, str(error))
    if primary == sqlite3.SQLITE_IOERR:
        return LedgerError(
            f"The ledger {path} could not be read or written: {error}."
            " Nothing of this step was recorded",
            next="Look at the disk it is on (space, quota, cable), then repeat.",
        )
    return LedgerError(
        f"The ledger {path} failed: {error}. Nothing of this step was recorded",
        next="Repeat; if it stays, `gpuctl doctor` checks the file.",
    )


def damaged(path: Path, detail: str) -> LedgerError:
    """Say that the file is not what gpuctl wrote, and where the newest copy of it is."""
    copy = newest_backup(path)
    restore = (
        f"Move {path}, {path.name}-wal and {path.name}-shm away and put the newest backup copy, "
        f"{copy}, in its place"
        if copy
        else f"There is no backup copy of it. Move {path}, {path.name}-wal and {path.name}-shm away"
    )
    return LedgerError(
        f"The ledger {path} is damaged: {detail}. Machines that it lists may still be billing",
        may_bill=True,
        next=f"Run `gpuctl audit`: it asks the clouds themselves. {restore}.",
    )


def forbidden(path: Path, detail: str) -> LedgerError:
    """Say that the file or its folder may not be written."""
    if not path.parent.exists():
        what = f"there is no folder {path.parent}"
    elif not _may(path.parent, os.W_OK | os.X_OK):
        what = f"the folder {path.parent} is read-only for this user"
    elif path.is_dir():
        what = "it is a folder"
    elif path.exists() and not _may(path, os.R_OK | os.W_OK):
        what = "the file is read-only for this user"
    else:
        what = detail
    return LedgerError(
        f"The ledger {path} cannot be written: {what}",
        next="Give yourself write access to file and folder, or set GPUCTL_HOME to a folder of"
        " yours.",
    )


def writer_pid(path: Path) -> int | None:
    """Return which process holds the ledger's write lock; None where nobody can tell.

    Read from /proc/locks, which only Linux has. The file itself is not opened for it: closing it
    again would drop the locks of this process.
    """
    try:
        inode = path.with_name(f"{path.name}-shm").stat().st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        fields = line.split()  # 1: POSIX ADVISORY WRITE <pid> <major>:<minor>:<inode> <start> <end>
        if (
            len(fields) == 8
            and fields[3] == "WRITE"
            and fields[5].rsplit(":", 1)[-1] == str(inode)
            and fields[6] == _WAL_WRITE_LOCK
            and int(fields[4]) > 0
        ):
            return int(fields[4])
    return None


def _locked(path: Path, patience: float) -> LedgerError:
    pid = writer_pid(path)
    who = f"another gpuctl (process {pid})" if pid else "another gpuctl"
    look = f" `ps -p {pid}` shows what it does." if pid else ""
    return LedgerError(
        f"The ledger {path} is locked: {who} kept it for more than {patience:g} s."
        " Nothing of this step was recorded",
        next=f"Repeat when it is done.{look}",
    )


def _may(path: Path, mode: int) -> bool:
    # By default the question is about the real user, not the one that the process acts as.
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def _is_full(path: Path) -> bool:
    try:
        disk = os.statvfs(path.parent)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < _NO_ROOM_BYTES
