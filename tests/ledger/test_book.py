"""Recording and reading: order, transactions, threads, what is found, what it cost."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpuctl.errors import LedgerError, UsageError
from gpuctl.ledger import Ledger
from tests.ledger.facts import (
    START,
    StepClock,
    checkpoint,
    created,
    gone,
    intended,
    name,
    run_opened,
)
from tests.waiting import until

ME = name("demo", 1)
RUN = "demo-1a2b3c"


def test_an_event_is_what_was_said(ledger: Ledger) -> None:
    event = ledger.record("intended", machine=ME, run=RUN, **intended())
    assert (event.seq, event.at, event.kind) == (1, START, "intended")
    assert (event.machine, event.run) == (ME, RUN)
    assert event.facts["price_hour"] == "1.20"
    assert event.facts["hard_end"] == "2026-11-22T12:00:00.000000Z"
    assert ledger.events() == [event]


def test_a_fact_may_be_called_kind(ledger: Ledger) -> None:
    ledger.record("intended", machine=ME, **intended())
    event = ledger.record("refused", machine=ME, kind="NoCapacity", message="none")
    assert (event.kind, event.facts["kind"]) == ("refused", "NoCapacity")


def test_more_facts_than_needed_are_kept(ledger: Ledger) -> None:
    ledger.record("intended", machine=ME, **intended(image="pytorch", setup={"keys": 1}))
    facts = ledger.events()[0].facts
    assert (facts["image"], facts["setup"]) == ("pytorch", {"keys": 1})


def test_events_of_one_machine_of_one_run_and_after(ledger: Ledger) -> None:
    other = name("other", 2)
    ledger.record("run_opened", run=RUN, **run_opened())
    ledger.record("intended", machine=ME, run=RUN, **intended())
    ledger.record("intended", machine=other, **intended())
    ledger.record("created", machine=ME, **created())  # belongs to the run of its machine
    ledger.record("created", machine=other, **created())
    assert [one.seq for one in ledger.events(machine=ME)] == [2, 4]
    assert [one.seq for one in ledger.events(run=RUN)] == [1, 2, 4]
    assert [one.seq for one in ledger.events(after=3)] == [4, 5]
    assert [one.seq for one in ledger.events(machine=other, after=3)] == [5]
    assert ledger.events(machine="nobody") == []


def test_events_are_never_changed(ledger: Ledger) -> None:
    ledger.record("intended", machine=ME, **intended())
    before = ledger.events()
    for statement in (
        "UPDATE events SET kind = 'gone'",
        "DELETE FROM events",
        "INSERT OR REPLACE INTO events VALUES (1, '', '', '', '', '')",
        "REPLACE INTO events VALUES (1, '', '', '', '', '')",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="is never"):
            ledger._connection.execute(statement)
    assert ledger.events() == before


def test_machines_are_filtered(ledger: Ledger) -> None:
    ledger.record("intended", machine=name("a"), run=RUN, **intended())
    ledger.record("intended", machine=name("b"), **intended(provider="aws"))
    ledger.record("intended", machine=name("c"), run=RUN, **intended(owner="ffffff"))
    ledger.record("refused", machine=name("c"), kind="NoCapacity", message="")

    def names(**wanted: object) -> list[str]:
        return [row.name.split("-")[1] for row in ledger.machines(**wanted)]  # type: ignore[arg-type]

    assert names() == ["a", "b", "c"]
    assert names(open_only=True) == ["a", "b"]
    assert names(provider="aws") == ["b"]
    assert names(run=RUN) == ["a", "c"]
    assert names(run=RUN, open_only=True, owner="ffffff") == []
    assert ledger.machine("nobody") is None
    assert ledger.run("nothing") is None


def test_runs_are_newest_first_and_whole(ledger: Ledger) -> None:
    for number in range(3):
        run = f"demo-{number}"
        ledger.record("run_opened", run=run, **run_opened())
        ledger.record("intended", machine=name("demo", number), run=run, **intended())
        ledger.record("attempt_started", run=run, machine=name("demo", number), number=1)
        ledger.record("checkpoint", run=run, **checkpoint(number + 1))
    assert [row.id for row in ledger.runs()] == ["demo-2", "demo-1", "demo-0"]
    (newest,) = ledger.runs(limit=1)
    assert newest == ledger.run("demo-2")
    assert [one.seq for one in newest.checkpoints] == [3]
    assert [one.machine for one in newest.attempts] == [name("demo", 2)]
    assert [one.name for one in newest.machines] == [name("demo", 2)]
    assert ledger.runs(limit=0) == []


def test_find(ledger: Ledger) -> None:
    ledger.record("run_opened", run="demo-aaaaaa", **run_opened())
    ledger.record("run_opened", run="demo-bbbbbb", **run_opened())
    ledger.record("run_state", run="demo-aaaaaa", state="failed")
    ledger.record("intended", machine=ME, **intended())
    assert ledger.find_run("demo").id == "demo-bbbbbb", "the one that goes on"
    assert ledger.find_run("aaaa").id == "demo-aaaaaa"
    assert ledger.find_machine("demo").name == ME
    with pytest.raises(UsageError, match="No machine is called 'demoo'"):
        ledger.find_machine("demoo")
    with pytest.raises(UsageError, match="No run is called 'x'"):
        ledger.find_run("x")


def test_providers_used(ledger: Ledger) -> None:
    for number, provider in enumerate(["aws", "vastai", "hetzner"]):
        ledger.record("intended", machine=name("m", number), **intended(provider=provider))
    ledger.record("refused", machine=name("m", 0), kind="AuthFailed", message="")
    ledger.record("absent", machine=name("m", 1), confirmed_by=gone()["confirmed_by"])
    assert ledger.providers_used() == {"vastai", "hetzner"}, "nothing was rented on aws"


def test_spend_since(ledger: Ledger, clock: StepClock) -> None:
    for number in range(3):
        ledger.record("intended", machine=name("m", number), **intended(price_hour=Decimal(1)))
        ledger.record("created", machine=name("m", number), **created())
    ledger.record("gone", machine=name("m", 1), **gone())  # computed: 1 dollar in an hour
    ledger.record("gone", machine=name("m", 2), **gone(cost_usd=Decimal(6)))  # so the bill says
    clock.sleep(2 * 3600)
    assert ledger.spend_since(START) == Decimal(2 + 1 + 6)
    assert ledger.spend_since(START + timedelta(minutes=30)) == Decimal("1.5") + Decimal("3.5")
    assert ledger.spend_since(START + timedelta(hours=1)) == 1
    assert ledger.spend_since(clock.now()) == 0


def test_a_transaction_stays_or_goes_as_a_whole(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.record("intended", machine=ME, **intended())
        with ledger.transaction():
            ledger.record("in_doubt", machine=ME, message="")
        row = ledger.machine(ME)
        assert row is not None
        assert row.in_doubt, "it reads its own writes"

    def interrupted() -> None:
        with ledger.transaction():
            ledger.record("created", machine=ME, **created())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [one.kind for one in ledger.events()] == ["intended", "in_doubt"]
    row = ledger.machine(ME)
    assert row is not None
    assert row.created_at is None


def test_a_mistake_inside_a_transaction_takes_nothing_else_with_it(ledger: Ledger) -> None:
    with ledger.transaction():
        ledger.record("intended", machine=ME, **intended())
        with pytest.raises(ValueError, match="no machine nobody"):
            ledger.record("created", machine="nobody", **created())
    assert [one.kind for one in ledger.events()] == ["intended"]


def test_after_a_failed_write_the_rest_of_a_transaction_is_refused(ledger: Ledger) -> None:
    ledger.record("intended", machine=ME, **intended())
    pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    ledger._connection.execute(f"PRAGMA max_page_count = {pages}")

    def stubborn() -> None:
        with ledger.transaction():
            ledger.record("in_doubt", machine=ME, message="")
            with pytest.raises(LedgerError, match="disk is full"):
                ledger.record("observed", machine=ME, state="ready", status="x" * 1_000_000)
            with pytest.raises(LedgerError, match="had failed before"):
                ledger.record("destroy_asked", machine=ME, why="")

    with pytest.raises(LedgerError, match="had failed before"):
        stubborn()
    assert [one.kind for one in ledger.events()] == ["intended"]
    assert ledger.check() == []


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    def work(number: int) -> None:
        for count in range(20):
            machine = name("t", number * 100 + count)
            ledger.record("intended", machine=machine, **intended())
            assert ledger.machine(machine) is not None

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.seq for one in ledger.events()] == list(range(1, 81))
    assert len(ledger.machines(open_only=True)) == 80


def test_a_thread_that_keeps_the_ledger_is_not_waited_for_forever(ledger: Ledger) -> None:
    held, enough = threading.Event(), threading.Event()

    def keep() -> None:
        with ledger.transaction():
            held.set()
            enough.wait(30)

    thread = threading.Thread(target=keep)
    thread.start()
    assert held.wait(10)
    with pytest.raises(LedgerError, match="another thread of this gpuctl kept it for more than"):
        ledger.machines()
    enough.set()
    thread.join()
    assert ledger.machines() == []


def test_a_read_sees_one_moment(path: Path, clock: StepClock, ledger: Ledger) -> None:
    ledger.record("run_opened", run=RUN, **run_opened())
    with Ledger.open(path, clock=clock) as other, ledger._reading():
        assert ledger._query("SELECT count(*) FROM runs", ()) == [(1,)]
        other.record("run_opened", run="later-1", **run_opened())
        assert ledger._query("SELECT count(*) FROM runs", ()) == [(1,)]
    assert len(ledger.runs()) == 2


def test_it_is_not_used_after_a_fork(ledger: Ledger) -> None:
    ledger.record("intended", machine=ME, **intended())
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child() -> None:
        try:
            ledger.machines()
        except RuntimeError as error:
            answers.put(str(error))
        ledger.close()  # leaves the parent's connection alone
        os._exit(0)

    process = context.Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert until(lambda: not answers.empty(), 5)
    assert "cannot be used in a forked process" in answers.get()
    ledger.record("in_doubt", machine=ME, message="")
    assert len(ledger.events()) == 2


def test_close_is_idempotent(path: Path, clock: StepClock) -> None:
    ledger = Ledger.open(path, clock=clock)
    ledger.close()
    ledger.close()
    with pytest.raises(sqlite3.ProgrammingError):
        ledger.machines()


def test_check_finds_what_does_not_fit(ledger: Ledger) -> None:
    ledger.record("intended", machine=ME, **intended())
    assert ledger.check() == []
    ledger._connection.execute("UPDATE machines SET price_hour = '0.01'")
    (problem,) = ledger.check()
    assert "machines" in problem
    ledger.rebuild()
    assert ledger.check() == []
    row = ledger.machine(ME)
    assert row is not None
    assert row.price_hour == Decimal("1.20")


def test_listing_machines_parses_no_events(ledger: Ledger) -> None:
    ledger.record("intended", machine=ME, **intended())
    said: list[str] = []
    ledger._connection.set_trace_callback(said.append)
    assert len(ledger.machines()) == 1
    ledger._connection.set_trace_callback(None)
    assert any("FROM machines" in one for one in said)
    assert not any("events" in one for one in said)


def test_it_starts_without_heavy_libraries() -> None:
    program = (
        "import sys, gpuctl.ledger;"
        "print([m for m in ('pydantic', 'rich', 'boto3', 'click', 'requests') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
