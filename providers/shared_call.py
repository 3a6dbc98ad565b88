"""One call for everybody who asks at the same time, or one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from providers.base import Clock

T = TypeVar("T")


class SharedCall(Generic[T]):
    """A read that several threads want at once is made once for all of them.

    Whoever asks while it is under way gets the next one: an answer is never older than its
    question. What it raises is raised for each of them.

    Args:
        call: the read. It ends: it has a timeout of its own.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        self._call = call
        self._changed = threading.Condition()
        self._begun = 0  # calls
        self._ended = 0
        self._under_way = False
        self._value: list[T] = []  # of the last call; empty when it failed
        self._error: BaseException | None = None

    def __call__(self) -> T:
        """Return what a call said that began after this."""
        with self._changed:
            wanted = self._begun + 1
            while self._under_way:
                self._changed.wait()
                if self._ended >= wanted:
                    return self._told()
            self._begun += 1
            self._under_way = True
        value: list[T] = []
        error: BaseException | None = None
        try:
            value = [self._call()]
        except BaseException as raised:
            error = raised
        with self._changed:
            self._under_way = False
            self._ended = self._begun
            self._value, self._error = value, error
            self._changed.notify_all()
            return self._told()

    def _told(self) -> T:
        if self._error is not None:
            raise self._error
        return self._value[0]


class RecentAnswer(Generic[T]):
    """A read about the whole account, for many who ask one after the other about a part of it.

    Args:
        call: the read.
        clock: for the age of what it said.
        seconds: how old an answer may be.
    """

    def __init__(self, call: Callable[[], T], clock: Clock, seconds: float) -> None:
        self._call = SharedCall(call)
        self._clock = clock
        self._age = timedelta(seconds=seconds)
        self._last: tuple[datetime, T] | None = None

    def since(self, moment: datetime | None) -> T:
        """Return what a call said that began after a moment, and a short while ago at most."""
        began, last = self._clock.now(), self._last
        young = last is not None and timedelta(0) <= began - last[0] <= self._age
        if last is not None and young and (moment is None or last[0] >= moment):
            return last[1]
        said = self._call()
        self._last = (began, said)
        return said
