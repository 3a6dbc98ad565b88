"""From a path to a connection: a new ledger, one of today, an older one; nothing else."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from gpuctl.errors import LedgerError
from gpuctl.ledger.backup import back_up, read_only, settle
from gpuctl.ledger.faults import Unreadable, damaged, forbidden, ledger_error
from gpuctl.ledger.schema import APPLICATION_ID, Migration
from gpuctl.ledger.tables import remake
from providers.base import Clock

_SMALLEST_BYTES = 512  # the smallest page that SQLite has


def connect(
    path: Path, *, clock: Clock, create: bool, migrations: Sequence[Migration], patience: float
) -> sqlite3.Connection:
    """Open a ledger; make it or bring it up to date where that is needed.

    Raises:
        LedgerError: it is missing, foreign, damaged, newer than this gpuctl, locked or read-only.
    """
    try:
        if not path.exists():
            if not create:
                raise LedgerError(
                    f"There is no ledger {path}: nothing was rented from this GPUCTL_HOME yet",
                    next="Set GPUCTL_HOME to the folder that was used to rent.",
                )
            _make(path, migrations)
        version = _inspected(path, len(migrations), patience)
        connection = _connected(path, patience)
        try:
            if version < len(migrations):
                _upgrade(connection, path, clock, migrations)
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise ledger_error(error, path, patience=patience) from error
    except OSError as error:
        raise forbidden(path, error.strerror or str(error)) from error
    return connection


def _make(path: Path, migrations: Sequence[Migration]) -> None:
    """Make a new ledger whole before it gets its name; the first of several makers wins."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    try:
        with closing(_connected(draft, patience=10)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _migrate(connection, migrations, 0)
            connection.execute("COMMIT")
        settle(draft)
        try:
            os.link(draft, path)
        except FileExistsError:
            return  # Another process made it in the meantime.
        settle(path.parent)
        settle(path.parent.parent)  # GPUCTL_HOME itself may be as new as the ledger in it.
    finally:
        for suffix in ("", "-wal", "-shm"):
            draft.with_name(draft.name + suffix).unlink(missing_ok=True)


def _inspected(path: Path, known: int, patience: float) -> int:
    """Return the version of a file, without changing a byte of it.

    Raises:
        LedgerError: it is no ledger, or newer than this gpuctl.
    """
    if path.is_dir():
        raise forbidden(path, "it is a folder")
    if path.stat().st_size < _SMALLEST_BYTES:
        # SQLite would take it for a new database. A ledger gets its name only when it is whole.
        raise damaged(path, "the file is cut off")
    with closing(read_only(path, patience)) as connection:
        application = connection.execute("PRAGMA application_id").fetchone()[0]
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if application != APPLICATION_ID:
        raise LedgerError(
            f"{path} is a database, but not a ledger of gpuctl; it was left as it is",
            next="Move it away, or set GPUCTL_HOME to another folder.",
        )
    if version > known:
        raise LedgerError(
            f"The ledger {path} was written by a newer gpuctl (format {version}; this one knows"
            f" {known}); it was left as it is",
            next="Use the newer gpuctl: `pip install --upgrade gpuctl`.",
        )
    return version


def _connected(path: Path, patience: float) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=patience, isolation_level=None, check_same_thread=False
    )
    try:
        if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # a commit is on disk when it returns
        connection.execute("PRAGMA fullfsync = ON")  # on macOS fsync alone stops at the drive
        connection.execute("PRAGMA checkpoint_fullfsync = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA cell_size_check = ON")  # notices a damaged page earlier
    except BaseException:
        connection.close()
        raise
    return connection


def _upgrade(
    connection: sqlite3.Connection, path: Path, clock: Clock, migrations: Sequence[Migration]
) -> None:
    """Bring an older ledger up to date in one transaction, after a copy of it was made."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version < len(migrations):  # else another process was faster
            copy = back_up(path, clock.now(), version)
            try:
                _migrate(connection, migrations, version)
            except (sqlite3.Error, Unreadable) as error:
                raise LedgerError(
                    f"The ledger {path} could not be brought from format {version} to"
                    f" {len(migrations)}: {error}. Nothing in it was changed",
                    next=f"Use the gpuctl that wrote it; a copy of it is {copy}.",
                ) from error
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _migrate(connection: sqlite3.Connection, migrations: Sequence[Migration], version: int) -> None:
    for migration in migrations[version:]:
        for statement in migration:
            connection.execute(statement)
    remake(connection)
    connection.execute(f"PRAGMA user_version = {len(migrations)}")
