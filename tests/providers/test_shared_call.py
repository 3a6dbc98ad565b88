"""Reads that several threads share."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from providers.shared_call import SharedCall
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
