"""What a run tells whoever watches it. `cli` renders it; nothing here prints."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from gpuctl.quantities import format_bytes

_MOST_WAITING_CHARACTERS = 16_000_000
_STANDSTILL_SECONDS = 10.0


class Reporter(Protocol):
    """Takes what happens, as it happens."""

    def step(self, text: str) -> None:
        """A step of the run: one line for a person."""

    def warn(self, text: str) -> None:
        """Something a person should know."""

    def output(self, stream: str, text: str) -> None:
        """Text that the job wrote; already made safe for a terminal."""

    def progress(self, what: str, done: int, total: int) -> None:
        """How far a transfer is, in bytes; ``total`` is 0 while unknown."""


class Quiet:
    """A reporter that says nothing."""

    def step(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""

    def output(self, stream: str, text: str) -> None:
        """Say nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Say nothing."""


class Unhurried:
    """Passes everything on from a thread of its own, in order.

    A terminal that stands still (Ctrl-S, a pager, a pipe that nobody empties) must not keep a run
    from noticing its end, being stopped, or releasing what bills. Steps and warnings wait; of a
    job's output what is too much to wait is left out, with a word: the journal has all of it.
    """

    def __init__(self, to: Reporter, *, at_end: Callable[[], None] = lambda: None) -> None:
        """Begin nothing yet.

        Args:
            to: takes what is told; only ever called from one thread.
            at_end: called there last.
        """
        self._to = to
        self._at_end = at_end
        self._calls: deque[tuple[Callable[[], None], int]] = deque()
        self._progress: dict[str, tuple[int, int]] = {}
        self._news = threading.Condition()
        self._waiting = 0  # characters of output
        self._left_out = 0
        self._told = 0  # calls that are done
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._pass_on, name="report", daemon=True)

    def __enter__(self) -> Unhurried:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._add(self._at_end)
        self.flush()
        with self._news:
            self._closed = True
            self._news.notify_all()

    def step(self, text: str) -> None:
        """Tell it when its turn comes."""
        self._add(lambda: self._to.step(text))

    def warn(self, text: str) -> None:
        """Tell it when its turn comes."""
        self._add(lambda: self._to.warn(text))

    def output(self, stream: str, text: str) -> None:
        """Show it when its turn comes; leave it out when too much waits already."""
        with self._news:
            if self._waiting >= _MOST_WAITING_CHARACTERS:
                self._left_out += len(text)
                return
            self._say_what_was_left_out()
            self._add(lambda: self._to.output(stream, text), len(text))

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far it is by then."""
        with self._news:
            if what not in self._progress:
                self._add(lambda: self._show_progress(what))
            self._progress[what] = (done, total)

    def flush(self, *, standstill_seconds: float = _STANDSTILL_SECONDS) -> None:
        """Wait until all was told, or until nothing moves any more."""
        with self._news:
            self._say_what_was_left_out()
            while self._calls or self._busy:
                told = self._told
                self._news.wait_for(
                    lambda: self._told != told,  # noqa: B023 - asked before the next round
                    standstill_seconds,
                )
                if self._told == told:
                    return

    def _add(self, call: Callable[[], None], characters: int = 0) -> None:
        with self._news:
            self._calls.append((call, characters))
            self._waiting += characters
            self._news.notify_all()

    def _say_what_was_left_out(self) -> None:
        if self._left_out:
            text = (
                f"{format_bytes(self._left_out)} of output were left out here, since nobody read "
                "them in time; `gpuctl logs` has them"
            )
            self._left_out = 0
            self.warn(text)

    def _show_progress(self, what: str) -> None:
        with self._news:
            done, total = self._progress.pop(what)
        self._to.progress(what, done, total)

    def _pass_on(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._calls or self._closed)
                if not self._calls:
                    return
                call, characters = self._calls.popleft()
                self._busy = True
            call()
            with self._news:
                self._waiting -= characters
                self._busy = False
                self._told += 1
                self._news.notify_all()
