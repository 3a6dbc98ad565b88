"""What the AWS adapter remembers between commands: facts, prices, refusals, regions.

Files below GPUCTL_HOME/aws. All but the regions can be lost without harm.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from providers.base import Clock

REFUSED_FOR = timedelta(minutes=3)
_DROPPED_AFTER = timedelta(days=7)


class Notes:
    """A few small tables on disk, each entry with the time it was written.

    Args:
        folder: made when something is written first.
        clock: tells how old an entry is.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._memory: dict[str, dict[str, tuple[datetime, Any]]] = {}

    def get(self, table: str, key: str, at_most: timedelta) -> tuple[datetime, Any] | None:
        """Return when an entry was written and what it says; None when it is older, or absent."""
        with self._lock:
            found = self._table(table).get(key)
        if found is None or not timedelta(0) <= self._clock.now() - found[0] <= at_most:
            return None
        return found

    def put(self, table: str, values: Mapping[str, Any]) -> datetime:
        """Write entries; return the time that they carry."""
        now = self._clock.now()
        with self._lock:
            self._memory.pop(table, None)  # another process may have written meanwhile
            entries = self._table(table)
            entries.update({key: (now, value) for key, value in values.items()})
            kept = {k: e for k, e in entries.items() if now - e[0] < _DROPPED_AFTER}
            self._memory[table] = kept
            self._write(table, {key: [when.isoformat(), v] for key, (when, v) in kept.items()})
        return now

    def refuse(self, pool: str) -> None:
        """Remember that a pool had nothing."""
        self.put("refused", {pool: True})

    def refused(self, pool: str) -> bool:
        """Whether a pool had nothing a short while ago."""
        return self.get("refused", pool, REFUSED_FOR) is not None

    def used_regions(self) -> tuple[str, ...]:
        """The regions where this home ever asked for a machine."""
        try:
            return tuple(sorted(file.name for file in (self._folder / "regions").iterdir()))
        except FileNotFoundError:
            return ()

    def use_region(self, region: str) -> None:
        """Remember a region, before anything is asked for there. Raises OSError."""
        folder = self._folder / "regions"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / region).touch()

    def _table(self, name: str) -> dict[str, tuple[datetime, Any]]:
        if name not in self._memory:
            try:
                read = json.loads((self._folder / f"{name}.json").read_text())
                self._memory[name] = {
                    key: (datetime.fromisoformat(when), value)
                    for key, (when, value) in read.items()
                }
            except (OSError, ValueError, TypeError, AttributeError):
                self._memory[name] = {}  # absent or damaged: AWS is asked again
        return self._memory[name]

    def _write(self, name: str, content: object) -> None:
        with suppress(OSError):  # then AWS is asked again
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=f".{name}-")
            with os.fdopen(handle, "w") as file:
                json.dump(content, file)
            Path(temporary).replace(self._folder / f"{name}.json")
