"""How each event changes what is read."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from gpuctl.ledger import Ledger, MachineRow, RunRow
from gpuctl.ledger.events import MACHINE_KINDS, RUN_KINDS
from providers.base import State
from tests.ledger.facts import (
    KEEPER,
    SOME_FACTS,
    START,
    StepClock,
    borrowed,
    checkpoint,
    created,
    gone,
    intended,
    name,
    run_opened,
)

ME = name("demo")
RUN = "demo-1a2b3c"
Book = Callable[..., MachineRow]


@pytest.fixture
def book(ledger: Ledger, clock: StepClock) -> Book:
    """Record one event a minute about one machine, and return what is known of it then."""
    ledger.record("intended", machine=ME, **intended())

    def record(kind: str, /, **facts: Any) -> MachineRow:
        clock.sleep(60)
        ledger.record(kind, machine=ME, **facts)
        row = ledger.machine(ME)
        assert row is not None
        return row

    return record


def minutes(number: float) -> Any:
    return START + timedelta(minutes=number)


def test_an_intent_is_a_machine(ledger: Ledger, clock: StepClock) -> None:
    ledger.record("intended", machine=ME, run=RUN, **intended(attempt=2, purpose="run"))
    row = ledger.machine(ME)
    assert row is not None
    assert (row.state, row.provider_id, row.closed, row.in_doubt) == (
        "intended",
        None,
        False,
        False,
    )
    assert (row.run, row.attempt, row.purpose, row.keeper) == (RUN, 2, "run", KEEPER)
    assert (row.price_hour, row.spot, row.gpu_count) == (Decimal("1.20"), True, 1)
    assert (row.lease_seconds, row.lease_until) == (600, minutes(10))
    assert row.hard_end == START + timedelta(hours=24)
    assert row.cost_so_far(minutes(600)) == 0


def test_what_the_create_call_answered(book: Book) -> None:
    row = book("created", **created(price_hour=Decimal("0.90")))
    assert (row.state, row.provider_id, row.region) == (State.BOOTING, "i-1", "de-fra")
    assert row.created_at == START
    assert row.access is not None
    assert row.access["host"] == "192.0.2.1"
    assert row.cost_so_far(minutes(60)) == Decimal("0.90")


def test_a_create_without_a_price_keeps_the_offers(book: Book) -> None:
    assert book("created", **created()).price_hour == Decimal("1.20")


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("refused", {"kind": "NoCapacity", "message": "none left"}),
        ("absent", {"confirmed_by": gone()["confirmed_by"]}),
    ],
)
def test_what_never_was_costs_nothing(book: Book, kind: str, facts: dict[str, Any]) -> None:
    book("in_doubt", message="timeout")
    row = book(kind, **facts)
    assert (row.closed, row.closed_by, row.state, row.in_doubt) == (True, kind, State.GONE, False)
    assert (row.cost_usd, row.cost_source) == (Decimal(0), "nothing was rented")
    assert row.cost_so_far(minutes(600)) == 0
    assert len(row.confirmed_by) == (2 if kind == "absent" else 0)


def test_doubt_costs_from_the_intent_on(book: Book) -> None:
    row = book("in_doubt", message="timeout")
    assert row.in_doubt
    assert row.cost_so_far(minutes(60)) == Decimal("1.20")


def test_what_was_created_is_in_no_doubt(book: Book) -> None:
    book("created", **created())
    assert not book("in_doubt", message="a late thought").in_doubt


def test_doubt_that_turns_out_a_machine(book: Book) -> None:
    book("in_doubt", message="timeout")
    row = book("adopted", provider_id="i-9", price_hour=Decimal(2), region=None, created_at=None)
    assert (row.provider_id, row.in_doubt, row.closed) == ("i-9", False, False)
    assert row.created_at == START, "nobody knows when it began, so the intent counts"
    assert row.cost_so_far(minutes(60)) == Decimal(2)


def test_ready(book: Book) -> None:
    book("created", **created(access=None))
    row = book("ready", steps={"boot": 12.5}, access={"kind": "local", "root": "/m"}, gpus=1)
    assert (row.state, row.ready_at) == (State.READY, minutes(2))
    assert row.access == {"kind": "local", "root": "/m"}
    assert book("ready", steps={}, access=None, gpus=[]).access == row.access


def test_lease_and_keeper(book: Book) -> None:
    assert book("renewed", lease_until=minutes(30)).lease_until == minutes(30)
    row = book("kept", keeper=KEEPER | {"role": "watchdog", "pid": 1}, detached=True)
    assert row.detached
    assert row.keeper is not None
    assert row.keeper["role"] == "watchdog"
    assert book("kept", keeper=None, detached=False).keeper is None


def test_prices_change(book: Book) -> None:
    book("created", **created(price_hour=Decimal(1)))  # minute 1
    book("priced", price_hour=Decimal(3))  # minute 2
    row = book("priced", price_hour=Decimal(6))  # minute 3
    assert row.price_hour == 6
    # 2 minutes at 1, one at 3, two at 6 dollars an hour.
    assert row.cost_so_far(minutes(5)) == rounded(Decimal(2 + 3 + 12) / 60)


def test_a_price_recorded_by_a_clock_that_was_set_back(book: Book, clock: StepClock) -> None:
    book("created", **created(price_hour=Decimal(1)))
    book("priced", price_hour=Decimal(3))
    clock.sleep(-120)
    row = book("priced", price_hour=Decimal(6))  # minute 1 again
    assert row.cost_so_far(minutes(2)) == rounded(Decimal(1 + 6) / 60)


def test_the_end(book: Book) -> None:
    book("created", **created())
    row = book("destroy_asked", why="done")
    assert row.destroy_asked_at == minutes(2)
    assert book("destroy_asked", why="again").destroy_asked_at == minutes(2)
    assert not book("destroy_accepted", answer="ok").closed
    row = book("gone", **gone(cost_usd=Decimal("1.25"), cost_source="GET /billing"))
    assert (row.closed_by, row.state, row.ended_at) == ("gone", State.GONE, minutes(60))
    assert (row.cost_usd, row.cost_source) == (Decimal("1.25"), "GET /billing")
    assert [one["call"] for one in row.confirmed_by] == ["get", "list"]
    assert row.confirmed_by[0]["at"] == "2026-11-21T13:00:00.000000Z"
    assert row.cost_so_far(minutes(999)) == Decimal("1.25")


def test_gone_without_a_bill_costs_up_to_the_end(book: Book) -> None:
    book("created", **created())
    assert book("gone", **gone()).cost_so_far(minutes(999)) == Decimal("1.20")


def test_two_processes_confirm_the_same_end(book: Book) -> None:
    book("created", **created())
    book("gone", **gone(cost_usd=Decimal(1)))
    row = book("gone", **gone(ended_at=minutes(90), cost_usd=Decimal(2), cost_source="bill"))
    assert (row.ended_at, row.cost_usd, row.cost_source) == (minutes(60), Decimal(2), "bill")


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("observed", {"state": "ready", "status": "RUNNING"}),
        ("ready", {"steps": {}, "gpus": 1}),
        ("in_doubt", {"message": "?"}),
        ("forgotten", {"by": "me", "why": "tired"}),
        ("refused", {"kind": "NoCapacity", "message": "late"}),
    ],
)
def test_a_late_word_does_not_bring_it_back(book: Book, kind: str, facts: dict[str, Any]) -> None:
    book("created", **created())
    before = book("gone", **gone())
    assert book(kind, **facts) == before


def test_seen_gone_is_not_confirmed_gone(book: Book) -> None:
    book("created", **created())
    row = book("observed", state=State.GONE, status="TERMINATED")
    assert (row.state, row.closed) == (State.GONE, False)


def test_found_alive_after_its_end_it_is_open_and_bills_again(book: Book) -> None:
    book("created", **created())
    book("destroy_asked", why="done")
    book("gone", **gone(cost_usd=Decimal(1)))
    row = book("adopted", provider_id="i-1", created_at=minutes(100))
    assert (row.closed, row.state, row.ended_at) == (False, State.BOOTING, None)
    assert (row.cost_usd, row.destroy_asked_at, row.confirmed_by) == (None, None, ())
    assert row.created_at == START, "it bills since its beginning, not since it was found"
    assert row.cost_so_far(minutes(120)) == Decimal("2.40")


def test_found_without_a_row(ledger: Ledger, clock: StepClock) -> None:
    ledger.record(
        "adopted", machine=ME, run="far-1", provider="aws", provider_id="i-0", gpu=None,
        gpu_count=0, spot=True, price_hour=None, region="eu-west-1", created_at=START, access=None,
        owner="ffffffffffff", hard_end=minutes(30),
    )  # fmt: skip
    row = ledger.machine(ME)
    assert row is not None
    assert (row.provider, row.owner, row.run, row.spot) == ("aws", "ffffffffffff", "far-1", True)
    assert row.hard_end == minutes(30)
    assert row.lease_until == START, "nobody holds its lease"
    assert (row.price_hour, row.cost_source) == (Decimal(0), "price unknown")


def test_found_without_a_row_needs_its_provider(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="provider missing"):
        ledger.record("adopted", machine=ME, provider_id="i-0")
    assert ledger.events() == []


def test_forgotten_is_closed_without_a_proof(book: Book) -> None:
    book("created", **created())
    row = book("forgotten", by="me", why="the account is closed")
    assert (row.closed_by, row.ended_at, row.cost_usd) == ("forgotten", minutes(2), None)
    assert row.cost_so_far(minutes(999)) == Decimal("0.04")


@pytest.mark.parametrize("kind", sorted(set(MACHINE_KINDS) - {"intended", "adopted", "borrowed"}))
def test_nothing_happens_to_a_machine_that_is_not_there(ledger: Ledger, kind: str) -> None:
    with pytest.raises(ValueError, match=f"{kind}: .*no machine {ME}"):
        ledger.record(kind, machine=ME, **SOME_FACTS[kind])
    assert ledger.events() == []


def test_what_is_borrowed_costs_nothing_and_is_shown_to_who_asks_for_it(ledger: Ledger) -> None:
    ledger.record("borrowed", machine=ME, **borrowed())
    assert ledger.machines() == []
    assert ledger.machines(open_only=True) == []
    assert ledger.providers_used() == set()
    [row] = ledger.machines(open_only=True, borrowed=True)
    assert row == ledger.machine(ME) == ledger.find_machine("gpuctl")
    assert (row.borrowed, row.terraform, row.purpose) == (True, "/infra/trainer", "borrowed")
    assert (row.price_hour, row.lease_until) == (Decimal("0.45"), row.hard_end)
    assert row.cost_so_far(minutes(600)) == 0
    assert row.access is not None
    assert row.access["host"] == "h"


def test_a_borrowed_machine_that_is_replaced_keeps_its_row(ledger: Ledger) -> None:
    ledger.record("borrowed", machine=ME, **borrowed())
    ledger.record("ready", machine=ME, **SOME_FACTS["ready"])
    ledger.record("gone", machine=ME, **SOME_FACTS["gone"])
    assert ledger.machine(ME).closed  # type: ignore[union-attr]
    ledger.record("borrowed", machine=ME, **borrowed(provider_id="us-east-1/i-2"))
    [row] = ledger.machines(borrowed=True)
    assert (row.provider_id, row.closed, row.ready_at) == ("us-east-1/i-2", False, None)
    assert row.confirmed_by == ()


def test_what_was_rented_is_never_borrowed(ledger: Ledger) -> None:
    ledger.record("intended", machine=ME, **intended())
    with pytest.raises(ValueError, match="in the ledger as rented"):
        ledger.record("borrowed", machine=ME, **borrowed())
    assert len(ledger.events()) == 1


def test_a_name_is_used_once(ledger: Ledger) -> None:
    ledger.record("intended", machine=ME, **intended())
    with pytest.raises(ValueError, match="is in the ledger already"):
        ledger.record("intended", machine=ME, **intended())
    assert len(ledger.events()) == 1


# --------------------------------------------------------------------------------- runs


@pytest.fixture
def run(ledger: Ledger, clock: StepClock) -> Callable[..., RunRow]:
    ledger.record("run_opened", run=RUN, **run_opened())

    def record(kind: str, machine: str | None = None, **facts: Any) -> RunRow:
        clock.sleep(60)
        ledger.record(kind, run=RUN, machine=machine, **facts)
        row = ledger.run(RUN)
        assert row is not None
        return row

    return record


def test_a_run(run: Callable[..., RunRow]) -> None:
    row = run("run_state", state="running")
    assert (row.id, row.name, row.state, row.ended_at) == (RUN, "demo", "running", None)
    assert (row.spec, row.spec_file) == ({"run": "python train.py"}, "/home/me/train.yaml")
    assert (row.store, row.created_at) == ("/home/me/store", START)
    row = run("run_kept", keeper=KEEPER, detached=True)
    assert (row.keeper, row.detached) == (KEEPER, True)
    row = run("run_state", state="failed", reason="exit 3", exit_code=3)
    assert (row.reason, row.exit_code, row.ended_at) == ("exit 3", 3, minutes(3))
    assert run("run_state", state="failed").ended_at == minutes(3)
    row = run("run_state", state="recovering")
    assert (row.reason, row.exit_code, row.ended_at) == (None, None, None)


def test_attempts(run: Callable[..., RunRow]) -> None:
    run("attempt_started", machine=ME, number=1)
    row = run("attempt_ended", number=1, outcome="interrupted", reason="outbid",
              cost_usd=Decimal("0.5"))  # fmt: skip
    row = run("attempt_started", machine=name("demo", 2), number=2)
    first, second = row.attempts
    assert (first.number, first.machine, first.outcome) == (1, ME, "interrupted")
    assert (first.started_at, first.ended_at) == (minutes(1), minutes(2))
    assert (first.cost_usd, first.reason, first.exit_code) == (Decimal("0.5"), "outbid", None)
    assert (second.outcome, second.ended_at, second.cost_usd) == (None, None, None)
    with pytest.raises(ValueError, match=r"attempt 2 of .* began already"):
        run("attempt_started", machine=ME, number=2)
    with pytest.raises(ValueError, match=r"attempt 3 of .* never began"):
        run("attempt_ended", number=3, outcome="lost")


def test_a_runs_cost_is_that_of_its_machines(ledger: Ledger, run: Callable[..., RunRow]) -> None:
    for number in (1, 2):  # the second never comes to an attempt, and costs all the same
        machine = name("demo", number)
        ledger.record("intended", machine=machine, run=RUN, **intended())
        ledger.record("created", machine=machine, **created())
    run("attempt_started", machine=name("demo", 1), number=1)
    run("attempt_started", machine=name("borrowed"), number=2)
    row = run("attempt_ended", number=2, outcome="completed", cost_usd=Decimal("0.10"))
    assert [one.name for one in row.machines] == [name("demo", 1), name("demo", 2)]
    assert row.cost_so_far(minutes(60)) == Decimal("2.50")


def test_checkpoints(run: Callable[..., RunRow]) -> None:
    run("checkpoint", **checkpoint(2))
    row = run("checkpoint", **checkpoint(1, step=None))
    assert [(one.name, one.step, one.bytes) for one in row.checkpoints] == [
        ("epoch-1", None, 123),
        ("epoch-2", 2, 123),
    ]
    assert row.checkpoints[0].at == START
    row = run("checkpoint_pruned", attempt=1, seq=1)
    assert [one.seq for one in row.checkpoints] == [2]
    row = run("checkpoint", **checkpoint(1))  # learnt again after a re-attach
    assert [one.seq for one in row.checkpoints] == [2]
    row = run("checkpoint_pruned", attempt=1, seq=9)  # shipped while nobody watched
    row = run("checkpoint", **checkpoint(9))
    assert [one.seq for one in row.checkpoints] == [2]


def test_outputs(run: Callable[..., RunRow]) -> None:
    run("output", **{"from": "out", "to": "/a", "bytes": 1})
    row = run("output", **{"from": "out", "to": "/a", "bytes": 2})
    assert [(one.source, one.target, one.bytes) for one in row.outputs] == [("out", "/a", 2)]


@pytest.mark.parametrize("kind", sorted(set(RUN_KINDS) - {"run_opened"}))
def test_nothing_happens_to_a_run_that_is_not_there(ledger: Ledger, kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        ledger.record(kind, run=RUN, machine=ME, **SOME_FACTS[kind])
    assert ledger.events() == []


def rounded(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.000001"))
