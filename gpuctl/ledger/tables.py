"""Events into the file, and the tables that are read kept in step with them.

Names of tables and columns in a statement are constants of this package; values are bound.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import datetime

from gpuctl.ledger.encoding import dump, moment_text
from gpuctl.ledger.events import Event
from gpuctl.ledger.faults import Unreadable
from gpuctl.ledger.machine_projection import Row, Value
from gpuctl.ledger.projection import TABLE_OF, TABLES, Key, Table, rebuilt
from gpuctl.ledger.schema import TABLES as TABLE_STATEMENTS

EVENT_COLUMNS = "seq, at, kind, machine, run, facts"


def row_after(connection: sqlite3.Connection, event: Event) -> Row:
    """Return the row that an event makes of the one that is there; nothing is written.

    Raises:
        ValueError: the event does not fit those before it.
    """
    table = TABLE_OF[event.kind]
    row = table.fold(_load(connection, table, table.key_of(event)), event)
    if "run" in table.key and not _has_run(connection, event.run):
        raise ValueError(f"{event.kind}: the ledger has no run {event.run}")
    return row


def append(connection: sqlite3.Connection, event: Event, row: Row) -> None:
    """Add an event and the row that it makes, inside the transaction that is under way."""
    connection.execute(
        f"INSERT INTO events ({EVENT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)",  # noqa: S608
        (
            event.seq,
            moment_text(event.at),
            event.kind,
            event.machine,
            event.run,
            dump(event.facts),
        ),
    )
    _save(connection, TABLE_OF[event.kind], [row])


def next_seq(connection: sqlite3.Connection) -> int:
    """Return the number of the next event."""
    found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
    return int(found[0]) + 1 if found else 1


def run_of_machine(connection: sqlite3.Connection, name: str | None) -> str | None:
    """Return the run that a machine was rented for."""
    found = connection.execute("SELECT run FROM machines WHERE name = ?", (name,)).fetchone()
    return found[0] if found else None


def remake(connection: sqlite3.Connection) -> None:
    """Throw the tables that are read away and make them anew from the events.

    Raises:
        Unreadable: an event does not hold what was written, or does not fit those before it.
    """
    made = tables_from_events(connection)
    for table in reversed(TABLES):
        connection.execute(f"DROP TABLE IF EXISTS {table.name}")
    for statement in TABLE_STATEMENTS:
        connection.execute(statement)
    for table in TABLES:
        _save(connection, table, made[table.name].values())


def tables_from_events(connection: sqlite3.Connection) -> dict[str, dict[Key, Row]]:
    """Return every table as the events make it.

    Raises:
        Unreadable: an event does not hold what was written, or does not fit those before it.
    """
    records = connection.execute(f"SELECT {EVENT_COLUMNS} FROM events ORDER BY seq")  # noqa: S608
    try:
        return rebuilt(_events(records))
    except (ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"the events do not fit together: {error}") from error


def tables_as_kept(connection: sqlite3.Connection) -> dict[str, dict[Key, Row]]:
    """Return every table as it stands in the file."""
    return {
        table.name: {
            tuple(row[column] for column in table.key): row
            for row in _rows(connection.execute(f"SELECT * FROM {table.name}"))  # noqa: S608
        }
        for table in TABLES
    }


def event_of(record: tuple[int, str, str, str | None, str | None, str]) -> Event:
    """Make an event from its columns.

    Raises:
        Unreadable: they do not hold what was written.
    """
    seq, at, kind, machine, run, facts = record
    try:
        return Event(seq, datetime.fromisoformat(at), kind, machine, run, json.loads(facts))
    except (ValueError, TypeError) as error:
        raise Unreadable(f"event {seq} cannot be read ({error})") from error


def _events(
    records: Iterable[tuple[int, str, str, str | None, str | None, str]],
) -> Iterator[Event]:
    return (event_of(record) for record in records)


def _has_run(connection: sqlite3.Connection, run: str | None) -> bool:
    found = connection.execute("SELECT 1 FROM runs WHERE id = ?", (run,)).fetchone()
    return found is not None


def _load(connection: sqlite3.Connection, table: Table, key: Key) -> Row | None:
    where = " AND ".join(f"{column} = ?" for column in table.key)
    query = f"SELECT * FROM {table.name} WHERE {where}"  # noqa: S608
    return next(_rows(connection.execute(query, key)), None)


def _rows(cursor: sqlite3.Cursor) -> Iterator[Row]:
    columns = [column[0] for column in cursor.description]
    return (dict(zip(columns, record, strict=True)) for record in cursor)


def _save(connection: sqlite3.Connection, table: Table, rows: Iterable[Row]) -> None:
    rows = list(rows)
    if not rows:
        return
    columns = list(rows[0])
    values: list[list[Value]] = [[row[column] for column in columns] for row in rows]
    changed = ", ".join(f"{one} = excluded.{one}" for one in columns if one not in table.key)
    connection.executemany(
        f"INSERT INTO {table.name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608
        f" ON CONFLICT ({', '.join(table.key)}) DO UPDATE SET {changed}",
        values,
    )
