"""The one process per home that outlives a killed gpuctl.

It is started before the first create, holds a lock for as long as it lives, ends machines whose
lease has run out, settles creates that nobody heard back from, finishes teardowns that a dead
process began, and ends itself when nothing is left to guard.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import partial
from pathlib import Path
from typing import IO

from gpuctl.errors import GpuctlError
from gpuctl.fleet.acquire import settle
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.deadlines import by_this_clock
from gpuctl.fleet.guarding import command
from gpuctl.fleet.guarding import ensure_watchdog as ensure_watchdog
from gpuctl.fleet.guarding import watchdog_of as watchdog_of
from gpuctl.fleet.keeper import Keeper, alive, keeper_from, this_process
from gpuctl.fleet.lease import sync_grace
from gpuctl.fleet.presence import prove_absent
from gpuctl.fleet.release import release_all
from gpuctl.fleet.upgrade import Upgrade
from gpuctl.fleet.uploads import give_up_uploads
from gpuctl.home import Home, open_home
from gpuctl.ledger import Ledger, MachineRow
from providers.base import Clock, ProviderError, SystemClock

_TICK_SECONDS = 1.0
_PATIENCE_SECONDS = 1.0  # with what is under way; new duties begin meanwhile
_AT_ONCE = 16
_IDLE_TICKS = 3  # rounds without an open row before it ends
_LOOK_EVERY_SECONDS = 5.0
_RETRY_CAP_SECONDS = 300.0
_LOCK_TRIES, _LOCK_PAUSE_SECONDS = 20, 0.02


class Duty(Enum):
    """What the watchdog owes one machine now."""

    NOTHING = "nothing"
    SETTLE = "settle"  # its create was never answered
    RELEASE = "release"
    LOOK = "look"  # whether it ended by itself


@dataclass(frozen=True, slots=True)
class Judgement:
    """A duty and the reason that goes into the ledger."""

    duty: Duty
    why: str = ""


def judge(row: MachineRow, now: datetime, keeper_lives: bool | None) -> Judgement:
    """Decide what to do about one open row. Pure.

    Args:
        keeper_lives: whether its keeper lives (the watchdog itself counts); None when that
            cannot be known here.
    """
    abandoned = keeper_lives is False
    keeper = keeper_from(row.keeper)
    role = keeper.role if keeper is not None else ""
    if row.destroy_asked_at is not None and (abandoned or role == "watchdog"):
        return Judgement(Duty.RELEASE, "its teardown was cut short")
    if abandoned and row.provider_id is None:
        return Judgement(Duty.SETTLE, "its create was cut short")
    if abandoned and role == "provision":
        return Judgement(Duty.RELEASE, "its provisioning was cut short")
    if now >= row.hard_end:
        return Judgement(Duty.RELEASE, "past its hard end")
    if now >= _last_moment(row):
        return Judgement(Duty.RELEASE, "its lease has run out")
    # A living controller looks itself: a machine that is just being made is in no list yet.
    unwatched = row.detached and keeper_lives is not True
    if abandoned or unwatched or now >= row.lease_until:
        return Judgement(Duty.LOOK)
    return Judgement(Duty.NOTHING)


def _last_moment(row: MachineRow) -> datetime:
    if row.detached:
        # The machine carries a detached run on by itself, to its caps.
        return row.hard_end
    # A machine that never answered has nothing to sync.
    grace = sync_grace(row.lease_seconds) if row.ready_at is not None else 0.0
    return row.lease_until + timedelta(seconds=grace)


class Watchdog:
    """The loop, apart from the process that it runs in."""

    def __init__(self, fleet: Fleet, keeper: Keeper) -> None:
        self.fleet = fleet
        self.keeper = keeper
        self._not_before: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._busy: dict[str, Future[None]] = {}

    def round(self, patience: float | None = None) -> int:
        """Go once over every open row that is not being attended to; return how many are open.

        Each cloud has threads of its own: one that hangs must not keep another's machines alive.

        Args:
            patience: seconds to wait for what was begun; it goes on after that. None: to its end.
        """
        doomed: dict[tuple[str, str], list[MachineRow]] = {}
        for row in self.fleet.ledger.machines(open_only=True):
            if row.name not in self._busy:
                self._attend(row, doomed)
        for (_, why), rows in doomed.items():
            self._begin(rows, partial(self._release, rows, why))
        wait(self._busy.values(), timeout=patience)
        ended = {name: one for name, one in self._busy.items() if one.done()}
        for name, one in ended.items():
            del self._busy[name]
            one.result()
        return len(self.fleet.ledger.machines(open_only=True))

    @property
    def is_busy(self) -> bool:
        """Whether something that was begun goes on."""
        return bool(self._busy)

    def _begin(self, rows: Sequence[MachineRow], duty: Callable[[], None]) -> None:
        provider = rows[0].provider
        if provider not in self._pools:
            self._pools[provider] = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix=provider)
        future = self._pools[provider].submit(self._trying, rows, duty)
        self._busy |= dict.fromkeys((row.name for row in rows), future)

    def _trying(self, rows: Sequence[MachineRow], duty: Callable[[], None]) -> None:
        try:
            duty()
        except Exception as error:
            # Also a mistake in a provider, or a system that refuses: the others are attended to.
            for row in rows:
                self._later(row, _words(error))

    def _attend(self, row: MachineRow, doomed: dict[tuple[str, str], list[MachineRow]]) -> None:
        """Begin what is owed to a machine; what is to be ended is only noted, with its reason."""
        if self.fleet.clock.monotonic() < self._not_before.get(row.name, 0):
            return
        try:
            row = by_this_clock(self._take_over(row), self.fleet.clock)
        except GpuctlError as error:
            self._later(row, error.message)
            return
        judgement = judge(row, self.fleet.clock.now(), self._lives(row))
        if judgement.duty is Duty.RELEASE:
            doomed.setdefault((row.provider, judgement.why), []).append(row)
        elif judgement.duty is Duty.SETTLE:
            self._begin([row], partial(self._settle, row))
        elif judgement.duty is Duty.LOOK:
            self._begin([row], partial(self._look, row))

    def _settle(self, row: MachineRow) -> None:
        found = settle(self.fleet, row)
        self._failures.pop(row.name, None)
        self.fleet.say(f"{row.name}: {'adopted' if found else 'was never created'}")

    def _take_over(self, row: MachineRow) -> MachineRow:
        """Become the keeper of what an earlier watchdog kept."""
        keeper = keeper_from(row.keeper)
        if keeper is None or keeper.role != "watchdog" or keeper == self.keeper:
            return row
        if alive(keeper) is not False:
            return row
        self.fleet.ledger.record(
            "kept", machine=row.name, keeper=self.keeper.facts(), detached=row.detached
        )
        return self.fleet.ledger.machine(row.name) or row

    def _lives(self, row: MachineRow) -> bool | None:
        keeper = keeper_from(row.keeper)
        return False if keeper is None else alive(keeper)

    def _look(self, row: MachineRow) -> None:
        provider = self.fleet.provider(row.provider)
        # One answer without it proves nothing (promise 3), and releasing ends it.
        proof = prove_absent(
            provider,
            row.name,
            row.provider_id,
            self.fleet.clock,
            deadline=self.fleet.clock.monotonic() + 3 * provider.capabilities.settle_seconds,
            until_seen=True,
        )
        if proof.absent:
            self._release([row], "it ended by itself")
            return
        if proof.error is not None:
            raise proof.error
        pause = max(_LOOK_EVERY_SECONDS, provider.capabilities.poll_seconds)
        left = (row.lease_until - self.fleet.clock.now()).total_seconds()
        if left <= pause:
            pause = max(provider.capabilities.poll_seconds, _TICK_SECONDS)
        self._not_before[row.name] = self.fleet.clock.monotonic() + pause
        self._failures.pop(row.name, None)

    def _release(self, rows: Sequence[MachineRow], why: str) -> None:
        """End machines of one account together: the same listings prove all of them gone."""
        for row in rows:
            self.fleet.say(f"{row.name}: ending it: {why}")
        receipts, errors = release_all(self.fleet, rows, why=f"watchdog: {why}")
        for receipt in receipts:
            self._failures.pop(receipt.name, None)
            self.fleet.say(f"{receipt.name}: gone, {receipt.cost_usd} USD ({receipt.cost_source})")
        told = {error.machine: error for error in errors}
        gone = {receipt.name for receipt in receipts}
        for row in rows:
            if row.name not in gone:
                self._later(row, told[row.name].message if row.name in told else "it was not ended")

    def _later(self, row: MachineRow, message: str) -> None:
        """Try again later, never give up: backing off to minutes."""
        failures = self._failures[row.name] = self._failures.get(row.name, 0) + 1
        pause = retry_pause(failures)
        self._not_before[row.name] = self.fleet.clock.monotonic() + pause
        self.fleet.say(f"{row.name}: {message} (again in {pause:.0f} s)")


def _words(error: Exception) -> str:
    if isinstance(error, GpuctlError):
        return error.message
    return str(error) if isinstance(error, ProviderError) else f"{type(error).__name__}: {error}"


def retry_pause(failures: int) -> float:
    """Return the seconds until the next try: twice as long each time, minutes at most. Pure."""
    return min(2.0 ** min(failures, 30), _RETRY_CAP_SECONDS)


def _lock(path: Path, keeper: Keeper) -> IO[bytes] | None:
    """Be the one watchdog of a home; None when another is.

    Who only looks whether there is one holds the lock for an instant: hence the patience.
    """
    file = path.open("a+b")
    for last in (*[False] * _LOCK_TRIES, True):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if last:
                file.close()
                return None
            time.sleep(_LOCK_PAUSE_SECONDS)
    file.truncate(0)
    file.write(json.dumps(keeper.facts()).encode())
    file.flush()
    return file


def _write_line(line: str) -> None:
    stamp = datetime.now().astimezone().isoformat(timespec="seconds")
    with suppress(OSError):  # a disk that is full of what bills must not stop who ends it
        sys.stdout.write(f"{stamp} {line}\n")
        sys.stdout.flush()


def guard_home(home: Home, clock: Clock, environ: Mapping[str, str]) -> None:
    """Run the watchdog until nothing is left to guard."""
    keeper = this_process("watchdog")
    while True:
        held = _lock(home.watchdog_lock, keeper)
        if held is None:
            return
        with held, Ledger.open(home.ledger, clock=clock) as ledger:
            fleet = Fleet(home, ledger, clock, environ, _write_line)
            if _until_idle(Watchdog(fleet, keeper), clock):
                _begin_anew(home)
            for trouble in give_up_uploads(fleet):
                fleet.say(trouble.message)
        # The lock is free now. An intent that was written while it was still held is seen here.
        with Ledger.open(home.ledger, clock=clock) as ledger:
            if not ledger.machines(open_only=True):
                return


def _until_idle(watchdog: Watchdog, clock: Clock) -> bool:
    """Go round until nothing is left to guard; True: another gpuctl has taken this one's place."""
    idle = 0
    upgrade = Upgrade(clock)
    while idle < _IDLE_TICKS:
        try:
            idle = 0 if watchdog.round(_PATIENCE_SECONDS) else idle + 1
        except GpuctlError as error:
            # A locked or full ledger passes; giving up would leave machines without a guard.
            idle = 0
            watchdog.fleet.say(error.message)
        except Exception as error:
            # So does a system that has no thread or file left.
            idle = 0
            watchdog.fleet.say(f"{type(error).__name__}: {error}")
        if upgrade.is_there() and not watchdog.is_busy:
            return True
        clock.sleep(_TICK_SECONDS)
    return False


def _begin_anew(home: Home) -> None:
    """Go on as the same process with the code that is on disk now. The lock is taken anew."""
    _write_line("another version of gpuctl was installed: going on with that one")
    os.execv(sys.executable, command(home))  # noqa: S606 - no shell is meant


def _end_as_told(_number: int, _frame: object) -> None:
    """Leave at once, for a shutdown does not wait; the log says so."""
    with suppress(OSError):  # not by `sys.stdout`, which may be in the middle of a line
        os.write(1, b"told to end (SIGTERM); the next gpuctl command starts another watchdog\n")
    os._exit(128 + signal.SIGTERM)


def main() -> None:
    """Be the watchdog of the home that is named on the command line."""
    os.umask(0o077)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_as_told)
    environ = {**os.environ, "GPUCTL_HOME": sys.argv[1]}
    guard_home(open_home(environ), SystemClock(), environ)


if __name__ == "__main__":
    main()
