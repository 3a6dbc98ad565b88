"""Asking a run to stop, from a signal handler or another thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from gpuctl.errors import Exit, GpuctlError, Interrupted


class StopRequest:
    """Set once, by whoever wants the run to end early; asked at every wait."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.signal: signal.Signals | None = None

    @property
    def requested(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()

    def request(self, by: signal.Signals | None = None) -> None:
        """Ask for the end."""
        self.signal = self.signal or by
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Let time pass, or less of it when somebody asks; return whether somebody has."""
        return self._event.wait(max(seconds, 0))

    def check(self) -> None:
        """Raise `Interrupted` when somebody asked."""
        if self.requested:
            raise self.error()

    def error(self) -> GpuctlError:
        """Return the error that ends the command once everything is released."""
        name = self.signal.name if self.signal else "a request"
        error = Interrupted(f"Stopped by {name}")
        if self.signal is signal.SIGTERM:
            error.exit_code = Exit.TERMINATED
        return error


class SecondSignal(BaseException):
    """Somebody pressed Ctrl-C again: leave at once and say what may still bill."""


@contextmanager
def stopping_on_signals(stop: StopRequest) -> Iterator[None]:
    """Turn SIGINT, SIGTERM and SIGHUP into a stop request; a second one into `SecondSignal`."""

    def asked(number: int, _frame: FrameType | None) -> None:
        if stop.requested and number == signal.SIGINT:
            raise SecondSignal
        stop.request(signal.Signals(number))

    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, asked) for number in watched}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
