"""The local copy of what a job wrote: read by `gpuctl logs`, continued after a re-attach."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from gpuctl.home import Home


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

    def read(self, offset: int = 0) -> tuple[list[Entry], int]:
        """Return the entries from a byte offset of this file on, and the offset behind them.

        A last line that is still being written is left for the next call.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        whole = data[: data.rfind(b"\n") + 1]
        return list(_parsed(whole)), offset + len(whole)

    def next_offset(self, attempt: int) -> int:
        """Return where in the machine's log of an attempt the next piece begins."""
        entries, _ = self.read()
        return max((e.next for e in entries if e.attempt == attempt), default=0)


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
