"""New ledgers, older ones, newer ones, and files that are none."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from gpuctl.errors import LedgerError
from gpuctl.ledger import Ledger
from gpuctl.ledger.backup import newest_backup
from gpuctl.ledger.schema import APPLICATION_ID, MIGRATIONS
from tests.ledger.facts import StepClock, created, intended, name, run_opened

ME = name("demo")
NOW = len(MIGRATIONS)
NEXT = (*MIGRATIONS, ("ALTER TABLE events ADD COLUMN host TEXT",))
BROKEN = (*MIGRATIONS, ("ALTER TABLE events ADD COLUMN host TEXT", "SELECT nonsense"))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("PRAGMA user_version").fetchone()[0])


def some_events(ledger: Ledger) -> None:
    ledger.record("run_opened", run="demo-1", **run_opened())
    ledger.record("intended", machine=ME, run="demo-1", **intended())
    ledger.record("created", machine=ME, **created())


def test_a_new_ledger(path: Path, clock: StepClock) -> None:
    with Ledger.open(path, clock=clock) as ledger:
        settings = {
            pragma: ledger._connection.execute(f"PRAGMA {pragma}").fetchone()[0]
            for pragma in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert settings == {
        "journal_mode": "wal",
        "synchronous": 2,  # FULL
        "foreign_keys": 1,
        "busy_timeout": 10_000,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in path.parent.iterdir()] == [path.name], "nothing is left beside it"


def test_none_is_made_when_none_is_wanted(path: Path, clock: StepClock) -> None:
    with pytest.raises(LedgerError, match="There is no ledger"):
        Ledger.open(path, clock=clock, create=False)
    assert not path.exists()


def test_a_newer_ledger_is_left_untouched(path: Path, clock: StepClock) -> None:
    with Ledger.open(path, clock=clock, migrations=NEXT) as ledger:
        some_events(ledger)
    before = digest(path)
    with pytest.raises(
        LedgerError, match=rf"newer gpuctl \(format {NOW + 1}; this one knows {NOW}\)"
    ) as caught:
        Ledger.open(path, clock=clock)
    assert caught.value.next
    assert digest(path) == before


def test_a_newer_ledger_whose_version_is_still_in_its_log_is_left_untouched(
    path: Path, clock: StepClock, tmp_path: Path
) -> None:
    Ledger.open(path, clock=clock).close()
    copy = tmp_path / "copy" / path.name
    copy.parent.mkdir()
    with Ledger.open(path, clock=clock, migrations=NEXT) as ledger:
        some_events(ledger)
        for suffix in ("", "-wal"):  # as a killed process leaves them
            source = path.with_name(path.name + suffix)
            copy.with_name(copy.name + suffix).write_bytes(source.read_bytes())
    files = [copy, copy.with_name(copy.name + "-wal")]
    before = [digest(one) for one in files]
    with pytest.raises(LedgerError, match="newer gpuctl"):
        Ledger.open(copy, clock=clock)
    assert [digest(one) for one in files] == before


def test_an_older_ledger_is_copied_then_brought_up_to_date(path: Path, clock: StepClock) -> None:
    with Ledger.open(path, clock=clock) as ledger:
        some_events(ledger)
        events, machines, runs = ledger.events(), ledger.machines(), ledger.runs()
    with Ledger.open(path, clock=clock, migrations=NEXT) as ledger:
        assert (ledger.events(), ledger.machines(), ledger.runs()) == (events, machines, runs)
        ledger.record("in_doubt", machine=ME, message="")
    assert version(path) == NOW + 1
    copy = newest_backup(path)
    assert copy is not None
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    with Ledger.open(copy, clock=clock) as old:
        assert (old.events(), old.machines()) == (events, machines)


def test_a_hand_built_file_of_version_1_with_other_tables(path: Path, clock: StepClock) -> None:
    facts = json.dumps({**intended(), "price_hour": "2"}, default=str).replace("+00:00", "Z")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        for statement in MIGRATIONS[0]:
            connection.execute(statement)
        connection.execute("CREATE TABLE machines (name TEXT, was TEXT)")  # as it was once
        connection.execute(
            "INSERT INTO events VALUES (7, '2026-01-01T00:00:00.000000Z', 'intended', ?, NULL, ?)",
            (ME, facts.replace(" 12:00", "T12:00").replace(" 12:10", "T12:10")),
        )
        connection.execute("PRAGMA user_version = 1")
        connection.commit()
    with Ledger.open(path, clock=clock, migrations=NEXT) as ledger:
        row = ledger.machine(ME)
        assert row is not None
        assert row.price_hour == 2
        assert ledger.record("in_doubt", machine=ME, message="").seq == 8
        assert ledger.check() == []


def test_a_hand_built_file_of_version_0(path: Path, clock: StepClock) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    assert version(path) == 0
    with Ledger.open(path, clock=clock) as ledger:
        some_events(ledger)
        assert len(ledger.machines()) == 1
    assert version(path) == len(MIGRATIONS)
    assert newest_backup(path) is not None


def test_a_migration_that_fails_changes_nothing(path: Path, clock: StepClock) -> None:
    with Ledger.open(path, clock=clock) as ledger:
        some_events(ledger)
        events = ledger.events()
    with pytest.raises(LedgerError, match=f"from format {NOW} to {NOW + 1}: no such") as caught:
        Ledger.open(path, clock=clock, migrations=BROKEN)
    copy = newest_backup(path)
    assert str(copy) in str(caught.value.next)
    assert version(path) == NOW
    with Ledger.open(path, clock=clock) as ledger:
        assert ledger.events() == events
        assert ledger.check() == []


def test_events_that_do_not_fit_together_stop_a_migration(path: Path, clock: StepClock) -> None:
    with Ledger.open(path, clock=clock) as ledger:
        some_events(ledger)
        ledger._connection.execute(
            "INSERT INTO events VALUES (99, '2026-01-01T00:00:00Z', 'created', 'x', NULL, '{}')"
        )
    with pytest.raises(LedgerError, match=r"do not fit together: created: .* no machine x"):
        Ledger.open(path, clock=clock, migrations=NEXT)
    assert version(path) == NOW


def test_somebody_elses_database_is_left_untouched(path: Path, clock: StepClock) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE machines (name TEXT)")
    before = digest(path)
    with pytest.raises(LedgerError, match="not a ledger of gpuctl"):
        Ledger.open(path, clock=clock)
    assert digest(path) == before


def test_a_backup_is_whole(path: Path, clock: StepClock) -> None:
    with Ledger.open(path, clock=clock) as ledger:
        some_events(ledger)
        first = ledger.back_up()
        clock.sleep(1)
        ledger.record("in_doubt", machine=ME, message="")
        second = ledger.back_up()
        assert newest_backup(path) == second
    with Ledger.open(first, clock=clock, create=False) as copy:
        assert len(copy.events()) == 3
        assert copy.check() == []
    with Ledger.open(second, clock=clock, create=False) as copy:
        assert len(copy.events()) == 4
