"""The tables of the ledger's file, and how an older file becomes a newer one.

Version n+1 is made from version n by the statements of ``MIGRATIONS[n]``; version 0 is an empty
file. Only the events are migrated: the tables that are read are thrown away and made anew from
the events, so a change of those alone is a migration without statements.
"""

from __future__ import annotations

from collections.abc import Sequence

Migration = Sequence[str]
"""SQL statements that bring the events from one version to the next."""

APPLICATION_ID = 0x67707563  # "gpuc": in bytes 68 to 71 of the file, for file(1) and for us

_EVENTS = (
    """
    CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        at TEXT NOT NULL,
        kind TEXT NOT NULL,
        machine TEXT,
        run TEXT,
        facts TEXT NOT NULL
    )
    """,
    "CREATE INDEX events_machine ON events (machine, seq) WHERE machine IS NOT NULL",
    "CREATE INDEX events_run ON events (run, seq) WHERE run IS NOT NULL",
    """
    CREATE TRIGGER events_never_change BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'an event of the ledger is never changed'); END
    """,
    """
    CREATE TRIGGER events_never_go BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'an event of the ledger is never removed'); END
    """,
    # INSERT OR REPLACE would remove the old row without the trigger above.
    """
    CREATE TRIGGER events_never_replaced BEFORE INSERT ON events
    WHEN EXISTS (SELECT 1 FROM events WHERE seq = NEW.seq)
    BEGIN SELECT RAISE(ABORT, 'an event of the ledger is never replaced'); END
    """,
)

MIGRATIONS: tuple[Migration, ...] = (
    _EVENTS,
    (),  # machines: ticks, bill_step_seconds
    (),  # machines: terraform. An older gpuctl would end what is borrowed.
)

# A column is named as in `gpuctl.ledger.projection`. Money and moments are text, so that
# neither loses a digit; JSON is text.
TABLES = (
    """
    CREATE TABLE machines (
        seq INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        provider TEXT NOT NULL,
        provider_id TEXT,
        state TEXT NOT NULL,
        gpu TEXT,
        gpu_count INTEGER NOT NULL,
        spot INTEGER NOT NULL,
        price_hour TEXT NOT NULL,
        region TEXT NOT NULL,
        disk_gb REAL NOT NULL,
        offer_id TEXT NOT NULL,
        access TEXT,
        lease_until TEXT NOT NULL,
        lease_seconds REAL NOT NULL,
        hard_end TEXT NOT NULL,
        run TEXT,
        attempt INTEGER,
        owner TEXT NOT NULL,
        keeper TEXT,
        detached INTEGER NOT NULL,
        purpose TEXT NOT NULL,
        intended_at TEXT NOT NULL,
        created_at TEXT,
        ready_at TEXT,
        ended_at TEXT,
        interrupted TEXT,
        destroy_asked_at TEXT,
        cost_usd TEXT,
        cost_source TEXT,
        confirmed_by TEXT,
        in_doubt INTEGER NOT NULL,
        closed_by TEXT,
        prices TEXT,
        ticks TEXT,
        bill_step_seconds REAL,
        terraform TEXT
    )
    """,
    "CREATE INDEX machines_open ON machines (seq) WHERE closed_by IS NULL",
    "CREATE INDEX machines_run ON machines (run, seq) WHERE run IS NOT NULL",
    """
    CREATE TABLE runs (
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        state TEXT NOT NULL,
        reason TEXT,
        exit_code INTEGER,
        spec TEXT NOT NULL,
        spec_file TEXT,
        owner TEXT NOT NULL,
        store TEXT NOT NULL,
        created_at TEXT NOT NULL,
        ended_at TEXT,
        detached INTEGER NOT NULL,
        keeper TEXT
    )
    """,
    """
    CREATE TABLE attempts (
        run TEXT NOT NULL REFERENCES runs (id),
        number INTEGER NOT NULL,
        machine TEXT NOT NULL,
        started_at TEXT NOT NULL,
        ended_at TEXT,
        outcome TEXT,
        exit_code INTEGER,
        reason TEXT,
        cost_usd TEXT,
        PRIMARY KEY (run, number)
    )
    """,
    """
    CREATE TABLE checkpoints (
        run TEXT NOT NULL REFERENCES runs (id),
        attempt INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        name TEXT NOT NULL,
        version INTEGER NOT NULL,
        step INTEGER,
        at TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        pruned_at TEXT,
        PRIMARY KEY (run, attempt, seq)
    )
    """,
    """
    CREATE TABLE outputs (
        run TEXT NOT NULL REFERENCES runs (id),
        source TEXT NOT NULL,
        target TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        at TEXT NOT NULL,
        PRIMARY KEY (run, source, target)
    )
    """,
)
