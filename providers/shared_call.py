"""One call for everybody who asks at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

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
