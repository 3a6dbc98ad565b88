"""What people see: lines, tables and progress. rich is imported only when it is needed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from gpuctl.cli.output import write
from gpuctl.printable import printable
from gpuctl.quantities import format_bytes

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_TABLE_WIDTH = 10_000  # the terminal wraps; rich would cut, and half a machine's name is no name
_PLAIN_EVERY_SECONDS = 5.0


def safe(text: object) -> str:
    """Return one line of text that cannot do anything to a terminal."""
    return printable(str(text)).replace("\n", " ").replace("\t", " ")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout. A column whose header ends with ``>`` is right-aligned."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        right = header.endswith(">")
        shown.add_column(header.rstrip(">"), justify="right" if right else "left", no_wrap=True)
    for row in rows:
        shown.add_row(*(Text(safe("" if cell is None else cell)) for cell in row))
    console = Console(file=sys.stdout, width=_TABLE_WIDTH, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(shown)
    write("".join(text.rstrip() + "\n" for text in capture.get().splitlines()))


def line(text: object = "") -> None:
    """Print one line of a command's result on stdout."""
    write(safe(text) + "\n")


class Terminal:
    """Steps, warnings, output and progress on stderr. Takes calls from several threads.

    A terminal that was closed must not stop a run half-way: when stderr cannot be written any
    more, nothing more is said. What happened is in the ledger all the same.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._lock = threading.RLock()
        self._bars: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._line_open = False
        self._said: dict[str, tuple[bool, float]] = {}

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def say(self, text: str) -> None:
        """Show one line."""
        self._line(safe(text))

    def step(self, text: str) -> None:
        """Show a step of the work."""
        self._line(safe(text))

    def warn(self, text: str) -> None:
        """Show what a person should know."""
        self._line(f"warning: {safe(text)}")

    def output(self, stream: str, text: str) -> None:
        """Show what a job wrote; it was made safe where it arrived."""
        del stream  # both streams of a job go to stderr, so that stdout holds the result alone
        with self._lock:
            self._stop_bars()
            self._write(text)
            self._line_open = not text.endswith("\n")

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far a transfer is, in bytes."""
        with self._lock:
            if self._stream.isatty():
                self._show_bar(safe(what), done, total)
            else:
                self._tell_plainly(safe(what), done, total)

    def close(self) -> None:
        """Take progress bars away."""
        with self._lock:
            self._stop_bars()

    def _line(self, text: str) -> None:
        with self._lock:
            self._stop_bars()
            self._write(("\n" if self._line_open else "") + text + "\n")
            self._line_open = False

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            # Closed: see the class. ValueError is what Python raises for a closed file.
            return

    def _show_bar(self, what: str, done: int, total: int) -> None:
        if self._bars is None:
            self._bars = _new_bars(self._stream)
            self._bars.start()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total or None)
        self._bars.update(self._tasks[what], completed=done, total=total or None)
        if total and done >= total:
            self._bars.remove_task(self._tasks.pop(what))
            if not self._tasks:
                self._stop_bars()

    def _stop_bars(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
            self._tasks.clear()

    def _tell_plainly(self, what: str, done: int, total: int) -> None:
        """Say how far a long transfer is, now and then; a short one passes in silence."""
        now = time.monotonic()
        told, at = self._said.setdefault(what, (False, now))
        if total > 0 and done >= total:
            del self._said[what]
            if told:
                self._line(f"{what}: {format_bytes(done)}, done")
        elif now - at >= _PLAIN_EVERY_SECONDS:
            self._said[what] = (True, now)
            of = f" of {format_bytes(total)}" if total else ""
            self._line(f"{what}: {format_bytes(done)}{of}")


def _new_bars(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    # rich reads NO_COLOR and TERM itself.
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(file=stream),
        transient=True,
    )
