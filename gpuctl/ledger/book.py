"""The ledger itself: open it, record what happened, read what is.

One file, any number of processes and threads. What `record` has returned for is on disk.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from types import TracebackType

from gpuctl.errors import LedgerError
from gpuctl.ledger import reading, tables
from gpuctl.ledger.backup import back_up
from gpuctl.ledger.encoding import moment_text
from gpuctl.ledger.events import MACHINE_KINDS, RUN_ENDED, Event, checked
from gpuctl.ledger.faults import Unreadable, damaged, forbidden, ledger_error
from gpuctl.ledger.finding import Candidate, pick
from gpuctl.ledger.machine_projection import Value
from gpuctl.ledger.opening import connect
from gpuctl.ledger.rows import MachineRow, RunRow
from gpuctl.ledger.schema import MIGRATIONS, Migration
from gpuctl.names import parse_machine_name
from providers.base import Clock

PATIENCE_SECONDS = 10.0


class Ledger:
    """The durable book of what we intended, what the clouds confirmed, and what it cost.

    Usable from several threads: they share one connection, one at a time. Not usable after a
    fork: open it again there. Every method raises `LedgerError` when the file cannot be read or
    written.
    """

    def __init__(
        self, connection: sqlite3.Connection, path: Path, clock: Clock, patience: float
    ) -> None:
        self.path = path
        self._connection = connection
        self._clock = clock
        self._patience = patience
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._depth = 0

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        clock: Clock,
        create: bool = True,
        migrations: Sequence[Migration] = MIGRATIONS,
        patience: float = PATIENCE_SECONDS,
    ) -> Ledger:
        """Open a ledger; an older one is brought up to date after a copy of it was made.

        Args:
            create: make a new one where there is none.
            migrations: how the format came to be; its length is the newest version.
            patience: how many seconds to wait while others write.

        Raises:
            LedgerError: it is missing, foreign, damaged, newer than this gpuctl, locked or
                read-only. A newer one is left untouched.
        """
        connection = connect(
            path, clock=clock, create=create, migrations=migrations, patience=patience
        )
        return cls(connection, path, clock, patience)

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        if os.getpid() == self._pid:  # else the connection is the parent process's to close
            with self._lock:
                self._connection.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------ writing

    def record(
        self, kind: str, /, *, machine: str | None = None, run: str | None = None, **facts: object
    ) -> Event:
        """Append one event. When this returns, it is on disk (inside `transaction`: at its end).

        An event about a machine that was rented for a run belongs to that run too.

        Args:
            kind: one of `gpuctl.ledger.events`; so are the facts that it needs.
            machine: the machine's name.
            run: the run's id.
            facts: moments as aware datetimes, money as Decimal, the rest as JSON has it.

        Raises:
            ValueError: unknown kind, missing or malformed fact, or an event that does not fit
                those before it: a mistake in the calling code. Nothing was written.
            LedgerError: it could not be written, and was not.
        """
        proper = checked(kind, machine, run, facts)
        with self.transaction(), self._said():
            if run is None and kind in MACHINE_KINDS:
                run = tables.run_of_machine(self._connection, machine)
            seq = tables.next_seq(self._connection)
            event = Event(seq, self._clock.now(), kind, machine, run, proper)
            row = tables.row_after(self._connection, event)
            try:
                tables.append(self._connection, event, row)
            except BaseException:
                # Half of it may be there; nothing of the whole transaction may stay.
                self._roll_back()
                raise
        return event

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Read and record as one step: nobody else writes in between, and all of it stays or none.

        A transaction inside another is part of the outer one. Keep it short: others wait.
        """
        with self._held():
            if self._depth:
                self._depth += 1
                try:
                    self._check_alive()
                    yield
                finally:
                    self._depth -= 1
                return
            with self._said():
                self._roll_back()  # what an interrupt in the wrong moment may have left open
                self._connection.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
                self._check_alive()
                with self._said():
                    self._connection.execute("COMMIT")
            finally:
                self._depth = 0
                with self._said():
                    self._roll_back()

    def rebuild(self) -> None:
        """Make the tables that are read anew from the events."""
        with self.transaction(), self._said():
            try:
                tables.remake(self._connection)
            except BaseException:
                self._roll_back()
                raise

    def back_up(self) -> Path:
        """Copy the ledger as it is now to a file beside it, and return that."""
        with self._held(), self._said():
            version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
            try:
                return back_up(self.path, self._clock.now(), version)
            except OSError as error:
                raise forbidden(self.path, error.strerror or str(error)) from error

    # ------------------------------------------------------------------------ reading

    def machines(
        self,
        *,
        open_only: bool = False,
        owner: str | None = None,
        run: str | None = None,
        provider: str | None = None,
        borrowed: bool = False,
    ) -> list[MachineRow]:
        """Return the machines that fit, oldest first.

        Args:
            borrowed: also those that Terraform owns. Who does not ask for them cannot end them.
        """
        wanted = {"owner": owner, "run": run, "provider": provider}
        conditions = ["closed_by IS NULL"] if open_only else []
        conditions += [] if borrowed else ["terraform IS NULL"]
        conditions += [f"{column} = ?" for column, value in wanted.items() if value is not None]
        values = [value for value in wanted.values() if value is not None]
        with self._reading():
            return reading.machines(self._query, " AND ".join(conditions), values)

    def machine(self, name: str) -> MachineRow | None:
        """Return a machine by its full name."""
        with self._reading():
            return next(iter(reading.machines(self._query, "name = ?", [name])), None)

    def find_machine(self, part: str) -> MachineRow:
        """Return the machine that a person means by part of its name.

        Raises:
            UsageError: it means none, or several.
        """
        with self._reading():
            found = self._query("SELECT name, closed_by IS NULL FROM machines ORDER BY seq", ())
            candidates = [Candidate(name, _middle(name), bool(open_)) for name, open_ in found]
            name = pick(part, candidates, what="machine", listing="`gpuctl list --all`")
            return reading.machines(self._query, "name = ?", [name])[0]

    def runs(self, limit: int | None = None) -> list[RunRow]:
        """Return the newest runs, newest first."""
        with self._reading():
            if limit is None:
                return reading.runs(self._query)
            newest = "seq IN (SELECT seq FROM runs ORDER BY seq DESC LIMIT ?)"
            return reading.runs(self._query, newest, [limit])

    def run(self, id: str) -> RunRow | None:
        """Return a run by its id."""
        with self._reading():
            return next(iter(reading.runs(self._query, "id = ?", [id])), None)

    def find_run(self, part: str) -> RunRow:
        """Return the run that a person means by part of its id, or by its name.

        Raises:
            UsageError: it means none, or several.
        """
        with self._reading():
            found = self._query("SELECT id, name, state FROM runs ORDER BY seq", ())
            candidates = [Candidate(id, name, state not in RUN_ENDED) for id, name, state in found]
            id = pick(part, candidates, what="run", listing="`gpuctl runs`")
            return reading.runs(self._query, "id = ?", [id])[0]

    def events(
        self, *, machine: str | None = None, run: str | None = None, after: int = 0
    ) -> list[Event]:
        """Return the events of a machine, of a run, or all, oldest first.

        Args:
            after: only those with a higher number.
        """
        wanted = {"machine": machine, "run": run}
        conditions = ["seq > ?"] + [f"{one} = ?" for one in wanted if wanted[one] is not None]
        values: list[Value] = [after, *(one for one in wanted.values() if one is not None)]
        statement = (
            f"SELECT {tables.EVENT_COLUMNS} FROM events"  # noqa: S608
            f" WHERE {' AND '.join(conditions)} ORDER BY seq"
        )
        with self._reading():
            return [tables.event_of(record) for record in self._query(statement, values)]

    def providers_used(self) -> set[str]:
        """Name every provider on which something was, or may have been, rented."""
        with self._reading():
            found = self._query(
                "SELECT DISTINCT provider FROM machines"
                " WHERE closed_by IS NOT 'refused' AND terraform IS NULL",
                (),
            )
            return {provider for (provider,) in found}

    def regions_used(self, provider: str) -> set[str]:
        """Name every region of a provider in which something was, or may have been, rented."""
        with self._reading():
            found = self._query(
                "SELECT DISTINCT region FROM machines"
                " WHERE provider = ? AND closed_by IS NOT 'refused'",
                [provider],
            )
            return {region for (region,) in found if region}

    def refused_since(self, moment: datetime) -> set[tuple[str, str]]:
        """Return (provider, offer id) of every create that was refused since then, and of every
        machine that was rented then and ended before it was ready.
        """
        statement = (
            "SELECT DISTINCT provider, offer_id FROM machines"
            " WHERE (closed_by = 'refused' OR (closed_by = 'gone' AND ready_at IS NULL))"
            " AND intended_at >= ?"
        )
        with self._reading():
            found = self._query(statement, [moment_text(moment)])
        return {(provider, offer_id) for provider, offer_id in found}

    def spend_since(self, moment: datetime) -> Decimal:
        """Return what all machines together have cost from a moment until now, in USD."""
        now = self._clock.now()
        with self._reading():
            rows = reading.machines(
                self._query, "ended_at IS NULL OR ended_at > ?", [moment_text(moment)]
            )
        return sum((row.cost_since(moment, now) for row in rows), Decimal(0))

    def check(self) -> list[str]:
        """Look the whole file over and return what is wrong with it; takes seconds when large."""
        with self._reading():
            found = [str(one) for (one,) in self._query("PRAGMA integrity_check", ())]
            problems = [one for one in found if one != "ok"]
            if not problems:
                made = tables.tables_from_events(self._connection)
                kept = tables.tables_as_kept(self._connection)
                problems = [
                    f"the table of {name} is not what the events say; `rebuild` makes it anew"
                    for name in made
                    if made[name] != kept[name]
                ]
        return problems

    # --------------------------------------------------------------------- connection

    @contextmanager
    def _held(self) -> Iterator[None]:
        if os.getpid() != self._pid:
            raise RuntimeError("a Ledger cannot be used in a forked process; open it there")
        if not self._lock.acquire(timeout=self._patience):
            raise LedgerError(
                f"The ledger {self.path} is busy: another thread of this gpuctl kept it for more"
                f" than {self._patience:g} s",
                next="Repeat; if it stays, end this gpuctl: the watchdog guards the machines.",
            )
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Let all reads of one answer see the same moment."""
        with self._held(), self._said():
            if self._depth:
                self._check_alive()
                yield
                return
            self._roll_back()
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._roll_back()

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Turn what SQLite raises into sentences."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # closed, or wrong use: a mistake in the calling code
        except sqlite3.Error as error:
            raise ledger_error(error, self.path, patience=self._patience) from error
        except Unreadable as error:
            raise damaged(self.path, str(error)) from error

    def _query(self, statement: str, values: Sequence[Value]) -> list[reading.Record]:
        return self._connection.execute(statement, values).fetchall()

    def _check_alive(self) -> None:
        if not self._connection.in_transaction:
            raise LedgerError(
                f"A step in the ledger {self.path} had failed before, so nothing of the steps"
                " around it was recorded",
                next="Repeat the command.",
            )

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def _middle(name: str) -> str:
    parsed = parse_machine_name(name)
    return parsed.middle if parsed else name
