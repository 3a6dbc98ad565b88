"""Reads that several threads share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from providers.shared_call import RecentAnswer, SharedCall
from tests.clouds.memory_cloud import HandClock
from tests.waiting import until


class Slow:
    """A read that is let go by hand; each has a number."""

    def __init__(self) -> None:
        self.calls = 0
        self.go = threading.Semaphore(0)
        self.fails = False

    def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        assert self.go.acquire(timeout=10)
        if self.fails:
            raise ConnectionError(f"call {number}")
        return number


def test_who_asks_meanwhile_gets_the_next_together() -> None:
    slow = Slow()
    shared = SharedCall(slow)
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(shared)
        assert until(lambda: slow.calls == 1, 5)
        others = [pool.submit(shared) for _ in range(5)]
        waiting = shared._changed._waiters  # type: ignore[attr-defined]
        assert until(lambda: len(waiting) == 5, 5)
        slow.go.release()
        assert first.result(5) == 1
        slow.go.release()
        assert {other.result(5) for other in others} == {2}
    assert slow.calls == 2


def test_one_after_the_other_asks_each_time() -> None:
    slow = Slow()
    shared = SharedCall(slow)
    for number in (1, 2, 3):
        slow.go.release()
        assert shared() == number


def test_a_failure_is_everybodys_and_the_next_is_a_new_one() -> None:
    slow = Slow()
    slow.fails = True
    shared = SharedCall(slow)
    slow.go.release()
    with pytest.raises(ConnectionError, match="call 1"):
        shared()
    slow.fails = False
    slow.go.release()
    assert shared() == 2


def test_a_recent_answer_serves_who_asks_a_moment_later() -> None:
    clock = HandClock(datetime(2026, 11, 21, 12, tzinfo=UTC))
    calls: list[datetime] = []

    def ask() -> int:
        calls.append(clock.now())
        return len(calls)

    bills = RecentAnswer(ask, clock, 10)
    assert [bills.since(None), bills.since(None)] == [1, 1]
    clock.pass_time(9)
    assert bills.since(clock.now() - timedelta(seconds=9)) == 1
    assert bills.since(clock.now()) == 2  # what happened since is not in the first
    clock.pass_time(11)
    assert bills.since(None) == 3


def test_a_failure_is_no_answer() -> None:
    clock = HandClock(datetime(2026, 11, 21, 12, tzinfo=UTC))
    failures = [ValueError("502")]

    def ask() -> int:
        if failures:
            raise failures.pop()
        return 7

    bills = RecentAnswer(ask, clock, 10)
    with pytest.raises(ValueError, match="502"):
        bills.since(None)
    assert bills.since(None) == 7
