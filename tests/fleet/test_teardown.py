"""Many machines ended together: each is proven on its own, and none waits for another."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuctl.errors import GpuctlError, LedgerError, MayStillBill
from gpuctl.fleet import teardown
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import this_process
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.release import release_all
from gpuctl.home import Home
from gpuctl.ledger import Ledger, MachineRow
from providers.base import Ambiguous, AuthFailed, Leftover, Machine, RateLimited
from tests.clouds.idle_clock import IdleClock
from tests.clouds.memory_cloud import MemoryCloud
from tests.fleet.conftest import OWNER
from tests.waiting import until

NEED = Need(middle="demo", lease_seconds=600, purpose="provision")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
MANY = 15


class WatchedCloud(MemoryCloud):
    """Knows when each end was accepted, and has faults for single machines."""

    def __init__(self, clock: IdleClock) -> None:
        super().__init__(clock)
        self.guard = threading.RLock()
        self.ends: dict[str, list[Callable[[], object] | str]] = {}  # what comes before a good end
        self.accepted: dict[str, datetime] = {}
        self.sweeps = 0
        self.sweep_errors: list[Ambiguous] = []

    def list(self) -> Sequence[Machine]:
        with self.guard:
            return super().list()

    def destroy(self, provider_id: str) -> str:
        with self.guard:
            faults = self.ends.get(provider_id, [])
            fault = faults.pop(0) if faults else None
        if callable(fault):
            fault()
        with self.guard:
            if fault == "ignored":
                self.faults.destroy_ignored = 1
            answer = super().destroy(provider_id)
            self.accepted.setdefault(provider_id, self.clock.now())
            return answer

    def leftovers(self) -> Sequence[Leftover]:
        self.sweeps += 1
        if self.sweep_errors:
            raise self.sweep_errors.pop(0)
        return super().leftovers()


def raising(error: Exception) -> Callable[[], None]:
    def fault() -> None:
        raise error

    return fault


class Bench:
    """A fleet on a cloud in memory, and machines to end."""

    def __init__(self, folder: Path, clock: IdleClock, ledger: Ledger) -> None:
        self.clock = clock
        self.cloud = WatchedCloud(clock)
        self.ledger = ledger
        self.fleet = Fleet(Home(folder, OWNER), ledger, clock, {})
        self.fleet.use(self.cloud)

    def rent(self, count: int = MANY) -> list[MachineRow]:
        keeper = this_process("controller")
        rows = [
            acquire(self.fleet, self.cloud.offer(), NEED, keeper, guard=lambda: None)[0]
            for _ in range(count)
        ]
        self.clock.pass_time(60)
        self.cloud.calls.clear()
        return rows

    def end(self, rows: Sequence[MachineRow]) -> tuple[list[Receipt], list[GpuctlError]]:
        receipts, errors = release_all(self.fleet, rows, why="test")
        for receipt in receipts:
            self.proven(receipt)
        return receipts, errors

    def proven(self, receipt: Receipt) -> None:
        """Check promise 3 for one machine, and what the ledger says."""
        first, second = receipt.confirmed_by
        assert receipt.provider_id is not None
        assert first.at >= self.cloud.accepted[receipt.provider_id]
        assert (second.at - first.at).total_seconds() >= self.cloud.settle_seconds
        assert receipt.provider_id not in self.cloud.machines
        row = self.ledger.machine(receipt.name)
        assert row is not None
        assert row.closed


@contextmanager
def open_bench(folder: Path) -> Iterator[Bench]:
    with IdleClock(NOON) as clock, Ledger.open(folder / "ledger.db", clock=clock) as ledger:
        yield Bench(folder, clock, ledger)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with open_bench(tmp_path) as made:
        yield made


def test_two_listings_prove_them_all(bench: Bench) -> None:
    rows = bench.rent()
    receipts, errors = bench.end(rows)
    assert errors == []
    assert [receipt.name for receipt in receipts] == [row.name for row in rows]
    assert len([call for call in bench.cloud.calls if call.startswith("destroy")]) == MANY
    assert bench.cloud.calls.count("list") == 2
    assert not [call for call in bench.cloud.calls if call.startswith("get")]
    assert bench.cloud.sweeps == 1
    assert bench.clock.monotonic() - 60 == bench.cloud.settle_seconds
    assert bench.cloud.books() == (MANY, 0, 0)


def test_a_few_are_asked_for_by_id_too(bench: Bench) -> None:
    receipts, _ = bench.end(bench.rent(2))
    assert {one.call for receipt in receipts for one in receipt.confirmed_by} == {"get + list"}


def test_the_leftovers_of_all_are_swept_at_once(bench: Bench) -> None:
    bench.cloud.faults.leftover = True
    receipts, _ = bench.end(bench.rent())
    assert len(receipts) == MANY
    assert bench.cloud.sweeps == 2  # and looked at again
    assert bench.cloud.books() == (MANY, 0, 0)


def test_a_sweep_that_fails_is_made_again(bench: Bench) -> None:
    bench.cloud.sweep_errors = [Ambiguous("502"), Ambiguous("timeout")]
    receipts, errors = bench.end(bench.rent())
    assert (len(receipts), errors) == (MANY, [])


def test_one_that_is_refused_or_breaks_concerns_no_other(bench: Bench) -> None:
    rows = bench.rent()
    bench.cloud.ends = {
        "m3": [raising(AuthFailed("403"))],
        "m5": [raising(ZeroDivisionError("a secret"))],
    }
    receipts, errors = bench.end(rows)
    assert len(receipts) == MANY - 2
    assert {error.machine for error in errors} == {rows[2].name, rows[4].name}
    for error in errors:
        assert isinstance(error, MayStillBill)
        assert "a secret" not in error.message
    assert set(bench.cloud.machines) == {"m3", "m5"}


def test_one_that_hangs_holds_up_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teardown, "_TICK_SECONDS", 0.02)
    rows = bench.rent()
    hang, over = threading.Event(), threading.Event()
    bench.cloud.ends = {"m1": [lambda: hang.wait()]}
    found: list[tuple[list[Receipt], list[GpuctlError]]] = []

    def let_time_pass() -> None:
        while not over.is_set():
            bench.clock.sleep(1)

    ending = threading.Thread(target=lambda: found.append(bench.end(rows)))
    for thread in (ending, threading.Thread(target=let_time_pass, daemon=True)):
        thread.start()
    try:
        assert until(lambda: len(bench.ledger.machines(open_only=True)) == 1, 20)
        assert set(bench.cloud.machines) == {"m1"}
    finally:
        hang.set()
        ending.join(20)
        over.set()
    [(receipts, errors)] = found
    assert (len(receipts), errors) == (MANY, [])


def test_one_that_lingers_is_asked_for_again_and_the_others_are_not(bench: Bench) -> None:
    rows = bench.rent()
    bench.cloud.ends = {"m7": ["ignored", "ignored"]}
    receipts, errors = bench.end(rows)
    assert (len(receipts), errors) == (MANY, [])
    again = [call for call in bench.cloud.calls if call.startswith("destroy")]
    assert again.count("destroy m7") == 3
    assert len(again) == MANY + 2


def test_what_is_terraforms_is_refused_and_concerns_no_other(bench: Bench) -> None:
    rows = bench.rent(3)
    rows[1] = replace(rows[1], terraform="infra")
    receipts, errors = bench.end(rows)
    assert [receipt.name for receipt in receipts] == [rows[0].name, rows[2].name]
    assert [error.machine for error in errors] == [rows[1].name]
    assert set(bench.cloud.machines) == {"m2"}


def test_a_twin_is_ended_too(bench: Bench) -> None:
    """What a cloud that repeats a create by itself leaves behind: one name, two machines."""
    rows = bench.rent()
    twin = replace(bench.cloud.machines["m4"], provider_id="m4-twin")
    bench.cloud.put(twin)
    receipts, errors = bench.end([*rows, rows[3]])
    assert (len(receipts), errors) == (MANY, [])
    assert bench.cloud.machines == {}


def test_a_listing_that_fails_proves_nothing_and_is_made_again(bench: Bench) -> None:
    bench.cloud.faults.list = [Ambiguous("502"), RateLimited("429", 7), Ambiguous("timeout")]
    receipts, errors = bench.end(bench.rent())
    assert (len(receipts), errors) == (MANY, [])


def test_a_revoked_key_is_told_for_each(bench: Bench) -> None:
    rows = bench.rent(8)
    bench.cloud.faults.list = [AuthFailed("401")] * 9
    receipts, errors = bench.end(rows)
    assert receipts == []
    assert {error.machine for error in errors} == {row.name for row in rows}
    assert all(error.next and "credentials" in error.next for error in errors)
    assert len(bench.ledger.machines(open_only=True)) == 8


def test_a_ledger_that_cannot_be_written_stops_no_teardown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = bench.rent()

    def full(*_: object, **__: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(bench.ledger, "record", full)
    receipts, errors = bench.end(rows)
    assert receipts == []
    assert {error.machine for error in errors} == {row.name for row in rows}
    assert all("is gone, confirmed 2 times" in error.message for error in errors)
    assert bench.cloud.books() == (MANY, 0, 0)


def test_doubtful_creates_are_found_by_name_in_the_same_listings(bench: Bench) -> None:
    bench.rent(6)
    for made in (True, False):
        bench.cloud.faults.create_reply_lost = int(made)
        bench.cloud.faults.create = [] if made else [Ambiguous("timeout")]
        bench.cloud.faults.list = [AuthFailed("not now")]
        with pytest.raises(MayStillBill):
            bench.rent(1)
    bench.cloud.calls.clear()
    rows = bench.ledger.machines(open_only=True)
    assert [row.provider_id for row in rows[6:]] == [None, None]
    receipts, errors = release_all(bench.fleet, rows, why="test")
    assert errors == []
    assert receipts[6].provider_id == "m7"
    assert (receipts[7].provider_id, receipts[7].cost_source) == (None, "never created")
    assert bench.cloud.books()[1:] == (0, 0)
    assert bench.cloud.calls.count("list") <= 4


FAULTS = st.sampled_from(["good", "ignored", "slow", "limited", "refused", "broken"])


@given(ends=st.lists(FAULTS, min_size=2, max_size=12), listings=st.lists(st.booleans(), max_size=6))
@settings(max_examples=10)
def test_no_row_is_closed_without_its_proof(ends: list[str], listings: list[bool]) -> None:
    """Whatever happens to each of them, and to the listings."""
    with TemporaryDirectory() as folder, open_bench(Path(folder)) as bench:
        rows = bench.rent(len(ends))
        faults: dict[str, list[Callable[[], object] | str]] = {
            "good": [],
            "ignored": ["ignored"],
            "slow": [lambda: bench.clock.sleep(45), raising(Ambiguous("timeout"))],
            "limited": [raising(RateLimited("429", 20))] * 2,
            "refused": [raising(AuthFailed("403"))] * 9,
            "broken": [raising(KeyError("id"))] * 9,
        }
        bench.cloud.ends = {f"m{n}": list(faults[one]) for n, one in enumerate(ends, 1)}
        bench.cloud.faults.list = [Ambiguous("503") for bad in listings if bad]
        receipts, errors = bench.end(rows)
        bad = {f"m{n}" for n, one in enumerate(ends, 1) if one in ("refused", "broken")}
        assert len(receipts) == len(ends) - len(bad)
        assert {row.provider_id for row in bench.ledger.machines(open_only=True)} == bad
        assert set(bench.cloud.machines) == bad
        assert len(errors) == len(bad)


def test_what_follows_the_ledger_has_done_so_before_anybody_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by a loaded computer: `terminate` was over before the file for ssh was right."""
    [row] = bench.rent(1)
    one = teardown.Teardown(bench.fleet, bench.cloud, [row], why="test", deadline_seconds=180)
    told: list[bool] = []
    monkeypatch.setattr(teardown, "follow_ledger", lambda _: told.append(one.outcomes[0].done()))
    one.run()
    assert told == [False]
    assert one.outcomes[0].result().confirmed
