"""Two computers, one account, in memory and on a hand-driven clock: for random sequences.

A process is killed at one of its seams (a call of the provider, a write to the ledger), before
or after it. From then on it does nothing any more: every further seam refuses it.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, Role, boot_id
from gpuctl.home import Home
from gpuctl.ledger import Event, Ledger
from providers.base import Clock, Leftover, Machine, Order
from tests.clouds.idle_clock import IdleClock
from tests.clouds.memory_cloud import MemoryCloud


class Killed(BaseException):
    """kill -9. Nothing that the process would do about it is done."""


class Process:
    """One gpuctl.

    Args:
        fuse: at which of its seams it is killed, counted from 1; None: not.
        after: after that seam has had its effect.
    """

    def __init__(self, pid: int, role: Role, fuse: int | None, *, after: bool) -> None:
        self.pid = pid
        self.dead = False
        self.keeper = Keeper(role, platform.node(), boot_id(), pid, f"start of {pid}")
        self.lay(fuse, after=after)

    def lay(self, fuse: int | None, *, after: bool) -> None:
        """Say at which of its next seams it is killed."""
        self._fuse = fuse
        self._after = after

    def seam(self, work: Callable[[], Any]) -> Any:
        """Do something that others see."""
        if self.dead:
            raise Killed
        struck = False
        if self._fuse is not None:
            self._fuse -= 1
            struck = self._fuse == 0
        if struck and not self._after:
            self._die()
        try:
            return work()
        finally:
            if struck:
                self._die()

    def _die(self) -> None:
        self.dead = True
        raise Killed


class Account:
    """The cloud as one process reaches it."""

    def __init__(
        self, cloud: MemoryCloud, process: Process, before_create: Callable[[Order], None]
    ):
        self._cloud = cloud
        self._process = process
        self._before_create = before_create
        self.name = cloud.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cloud, name)

    def create(self, order: Order) -> Machine:
        self._before_create(order)
        made = self._process.seam(lambda: self._cloud.create(order))
        assert isinstance(made, Machine)
        return made

    def get(self, provider_id: str) -> Machine:
        return self._process.seam(lambda: self._cloud.get(provider_id))  # type: ignore[no-any-return]

    def list(self) -> Sequence[Machine]:
        return self._process.seam(self._cloud.list)  # type: ignore[no-any-return]

    def destroy(self, provider_id: str) -> str:
        return str(self._process.seam(lambda: self._cloud.destroy(provider_id)))

    def leftovers(self) -> Sequence[Leftover]:
        return self._process.seam(self._cloud.leftovers)  # type: ignore[no-any-return]

    def remove(self, leftover: Leftover) -> None:
        self._process.seam(lambda: self._cloud.remove(leftover))


class WatchedLedger(Ledger):
    """A ledger whose writes are seams of a process."""

    process: Process

    def record(
        self, kind: str, /, *, machine: str | None = None, run: str | None = None, **facts: object
    ) -> Event:
        whole = super().record
        made = self.process.seam(lambda: whole(kind, machine=machine, run=run, **facts))
        assert isinstance(made, Event)
        return made


class WrongClock:
    """A clock that is set wrong; seconds pass on it all the same."""

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._wrong_by = timedelta(seconds=seconds)

    def now(self) -> datetime:
        return self._clock.now() + self._wrong_by

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)


class Computer:
    """One GPUCTL_HOME, with the processes that live there."""

    def __init__(self, path: Path, owner: str, cloud: MemoryCloud, clock: IdleClock) -> None:
        path.mkdir(mode=0o700)
        self.home = Home(path, owner)
        self.cloud = cloud
        self.clock = clock
        self.wrong_by = 0.0
        self.open: list[WatchedLedger] = []

    def fleet(self, process: Process, before_create: Callable[[Order], None]) -> Fleet:
        """What one process there works with."""
        clock = WrongClock(self.clock, self.wrong_by)
        ledger = WatchedLedger.open(self.home.ledger, clock=clock)
        assert isinstance(ledger, WatchedLedger)
        ledger.process = process
        self.open.append(ledger)
        fleet = Fleet(self.home, ledger, clock, {})
        fleet.use(Account(self.cloud, process, before_create))  # type: ignore[arg-type]
        return fleet

    def book(self) -> Ledger:
        """The ledger, to look into it."""
        return Ledger.open(self.home.ledger, clock=self.clock)

    def close(self) -> None:
        """Let go of every file."""
        for ledger in self.open:
            ledger.close()
