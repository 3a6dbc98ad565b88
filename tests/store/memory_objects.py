"""A store's objects in memory, on a clock that tests own, with a crash wherever they want it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gpuctl.errors import StoreError
from gpuctl.store.objects import Missing, Stored


class ManualClock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 11, 21, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.moment

    def monotonic(self) -> float:
        return self.moment.timestamp()

    def sleep(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class Crash(BaseException):
    """The process dies here."""


class MemoryObjects:
    """One run's objects in a dictionary. Moments are whole seconds, as in S3."""

    location = "memory:run"
    folder: Path | None = None
    reachable_from_machine = False

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.held: dict[str, tuple[bytes, datetime]] = {}
        self.writes: list[str] = []
        self.removals_left: int | None = None  # then it crashes

    def listing(self, folder: str) -> Sequence[Stored]:
        return [
            Stored(key, len(body), modified)
            for key, (body, modified) in self.held.items()
            if key.startswith(f"{folder}/")
        ]

    def read(self, key: str, limit: int) -> bytes | bytearray:
        if key not in self.held:
            raise Missing(f"no {key}")
        return self.held[key][0][: limit + 1]

    def write(self, key: str, body: bytes | bytearray) -> None:
        self.writes.append(key)
        self.held[key] = (bytes(body), self.clock.now().replace(microsecond=0))

    def create(self, key: str, body: bytes | bytearray) -> bool:
        if key in self.held:
            return False
        self.write(key, body)
        return True

    def remove(self, stored: Stored) -> bool:
        if self.removals_left is not None:
            if self.removals_left == 0:
                raise Crash
            self.removals_left -= 1
        body_and_moment = self.held.get(stored.key)
        if body_and_moment is not None and body_and_moment[1] > stored.modified:
            return False
        self.held.pop(stored.key, None)
        return True

    def sweep_unfinished(self, before: datetime) -> int:
        return 0

    def write_grant(self, expires: datetime) -> dict[str, Any] | None:
        return None

    def read_urls(self, keys: Iterable[str], expires: datetime) -> dict[str, str]:
        raise StoreError("memory has no addresses")
