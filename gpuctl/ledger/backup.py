"""Copies of the ledger's file, beside it: made before a migration, and when somebody asks."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path


def back_up(path: Path, at: datetime, version: int) -> Path:
    """Copy the ledger as it is now, whole and on disk when this returns.

    Raises:
        OSError, sqlite3.Error: the copy could not be made; no half of one is left.
    """
    stamp = at.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    copy = path.with_name(f"{path.name}.{stamp}.v{version}.bak")
    draft = path.with_name(f".{copy.name}.{os.getpid()}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with closing(read_only(path)) as source, closing(sqlite3.connect(draft)) as target:
            source.backup(target)
        settle(draft)
        draft.rename(copy)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    settle(path.parent)
    return copy


def newest_backup(path: Path) -> Path | None:
    """Return the newest copy of a ledger, or None."""
    try:
        copies = [
            one
            for one in path.parent.iterdir()
            if one.name.startswith(f"{path.name}.") and one.name.endswith(".bak")
        ]
    except OSError:
        return None
    return max(copies, key=lambda one: one.name, default=None)


def read_only(path: Path, timeout: float = 10.0) -> sqlite3.Connection:
    """Open a file in a way that cannot change a byte of it, not even by tidying up its log."""
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=timeout, isolation_level=None
    )


def settle(path: Path) -> None:
    """Have a file or a folder on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
