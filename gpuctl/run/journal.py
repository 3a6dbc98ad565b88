"""The local copy of what a job wrote: read by `gpuctl logs`, continued after a re-attach."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from gpuctl.home import Home

AT_ONCE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A piece of output."""

    attempt: int
    next: int  # the offset in the machine's own log that follows it
    at: float  # epoch seconds, by the machine's clock
    stream: str  # "out", "err" or "agent"
    text: str


class Journal:
    """An append-only file of entries, one JSON object a line. One writer, any number of readers."""

    def __init__(self, home: Home, run_id: str) -> None:
        self.path = home.runs / run_id / "log.jsonl"
        self._file: BinaryIO | None = None

    def append(self, entry: Entry) -> None:
        """Add one entry.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        line = json.dumps(
            {
                "attempt": entry.attempt,
                "next": entry.next,
                "at": entry.at,
                "stream": entry.stream,
                "text": entry.text,
            }
        )
        if self._file is None:
            self._file = self._opened()
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self.path.open("ab+")
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # close the line that a crash tore
        return file

    def read(self, offset: int = 0, *, at_once: int = AT_ONCE_BYTES) -> tuple[list[Entry], int]:
        """Return entries from a byte offset of this file on, and the offset behind them.

        A last line that is still being written is left for the next call.

        Args:
            at_once: about how many bytes are read; the offset that comes back is the given one
                when there is nothing more.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read(at_once)
                while b"\n" not in data and (more := file.read(at_once)):
                    data += more
        except FileNotFoundError:
            return [], offset
        whole = data[: data.rfind(b"\n") + 1]
        return list(_parsed(whole)), offset + len(whole)

    def end(self, *, at_once: int = AT_ONCE_BYTES) -> int:
        """Return the offset behind the last whole line."""
        try:
            with self.path.open("rb") as file:
                for start, data in _blocks_backwards(file, file.seek(0, os.SEEK_END), at_once):
                    if b"\n" in data:
                        return start + data.rindex(b"\n") + 1
        except FileNotFoundError:
            pass
        return 0

    def backwards(self, end: int, *, at_once: int = AT_ONCE_BYTES) -> Iterator[Entry]:
        """Yield the entries before an offset that `end` or `read` returned, the newest first."""
        try:
            with self.path.open("rb") as file:
                rest = b""
                for start, data in _blocks_backwards(file, end, at_once):
                    data += rest
                    cut = 0 if start == 0 else data.find(b"\n") + 1
                    if start > 0 and cut == 0:
                        rest = data  # a line that is longer than a block
                        continue
                    rest = data[:cut]
                    yield from reversed(list(_parsed(data[cut:])))
        except FileNotFoundError:
            return

    def next_offset(self, attempt: int) -> int:
        """Return where in the machine's log of an attempt the next piece begins."""
        for entry in self.backwards(self.end()):
            if entry.attempt == attempt:
                return entry.next
            if entry.attempt < attempt:
                break
        return 0


def _blocks_backwards(file: BinaryIO, end: int, at_once: int) -> Iterator[tuple[int, bytes]]:
    """Yield what is before an offset, the last block first: where it begins, and its bytes."""
    while end > 0:
        start = max(end - at_once, 0)
        file.seek(start)
        yield start, file.read(end - start)
        end = start


def _parsed(data: bytes) -> Iterator[Entry]:
    for line in data.splitlines():
        try:
            facts = json.loads(line)
            yield Entry(
                int(facts["attempt"]),
                int(facts["next"]),
                float(facts["at"]),
                str(facts["stream"]),
                str(facts["text"]),
            )
        except (ValueError, KeyError, TypeError):
            continue  # A line torn by a full disk or a crash; those around it still count.
