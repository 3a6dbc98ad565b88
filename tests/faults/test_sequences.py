"""Random sequences of commands, faults, crashes and restarts; promises 1 to 7 hold all the way.

Ten sequences by default, 200 with FAULTS_SEQUENCES=200 (`make faults`), 2,000 in
`make faults-full`. The clouds of `make faults` are played in real time; here an hour is nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gpuctl.errors import GpuctlError
from gpuctl.fleet import keeper as keeper_module
from gpuctl.fleet import watchdog as watchdog_module
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.audit import audit
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.lease import keep, renew
from gpuctl.fleet.reap import reap
from gpuctl.fleet.release import release_all
from gpuctl.fleet.watchdog import Watchdog
from providers.base import (
    Ambiguous,
    Machine,
    Mark,
    NoCapacity,
    Order,
    ProviderError,
    RateLimited,
    State,
)
from tests.clouds.idle_clock import IdleClock
from tests.clouds.memory_cloud import MemoryCloud
from tests.faults.worlds import Computer, Killed, Process

SEQUENCES = int(os.environ.get("FAULTS_SEQUENCES", "10"))
OWNERS = ("a1b2c3d4e5f6", "f6e5d4c3b2a1")
SETTLE = 10.0
SHOWN = 30.0
LEASE = 600.0
CAP = Decimal(2)
START = datetime(2026, 11, 21, 12, tzinfo=UTC)
DAY = 24 * 3600

which = st.integers(0, 1)
fuses = st.none() | st.integers(1, 12)
wrong_clocks = st.sampled_from([0.0, 0.0, 0.0, -3600.0, 3600.0])
hiccups = st.lists(
    st.sampled_from(["5xx", "429", "capacity"]).map(
        lambda word: {
            "5xx": Ambiguous("503"),
            "429": RateLimited("too many", 1),
            "capacity": NoCapacity("none left"),
        }[word]
    ),
    max_size=3,
)
reads = st.lists(
    st.sampled_from(["5xx", "429"]).map(
        lambda word: Ambiguous("503") if word == "5xx" else RateLimited("too many", 1)
    ),
    max_size=4,
)


class Sequences(RuleBasedStateMachine):
    """Two computers of two owners with one account, and a stranger's machines beside theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="sequences-"))
        self.patch = pytest.MonkeyPatch()
        self.clock = IdleClock(START)
        self.clock.__enter__()
        self.cloud = MemoryCloud(self.clock, settle_seconds=SETTLE)
        self.cloud.shown_seconds = SHOWN
        self.computers = [
            Computer(self.folder / f"home{n}", owner, self.cloud, self.clock)
            for n, owner in enumerate(OWNERS)
        ]
        self.living: dict[int, Process] = {}
        self.watchdogs: list[tuple[Process, Watchdog] | None] = [None, None]
        self.holding: list[tuple[int, Process, Fleet, str]] = []
        self.needs = 0
        self._patched()

    def _patched(self) -> None:
        def started(pid: int) -> str | None:
            process = self.living.get(pid)
            return process.keeper.started if process and not process.dead else None

        self.patch.setattr(keeper_module, "process_started", started)
        self.patch.setattr(watchdog_module, "_AT_ONCE", 1)
        import tenacity.nap

        # Waits between two tries pass on the clock of this world.
        self.patch.setattr(tenacity.nap, "time", SimpleNamespace(sleep=self.clock.pass_time))

    @initialize()
    def somebody_else_is_there(self) -> None:
        """What must never be touched."""
        for name, mark in {
            "their-database": None,
            "gpuctl-run-0123ab-00000001": Mark("0123ab0123ab", START + timedelta(days=400)),
            "gpuctl-tf-a1b2c3-00000002": Mark(
                OWNERS[0], START + timedelta(days=400), managed_by="terraform"
            ),
        }.items():
            self.cloud.put(_theirs(name, mark))
        self.theirs = set(self.cloud.machines)

    # ------------------------------------------------------------------ commands

    @rule(where=which, fuse=fuses, after=st.booleans(), wrong=wrong_clocks, stays=st.booleans())
    def rent(self, where: int, fuse: int | None, after: bool, wrong: float, stays: bool) -> None:
        """Rent for one need, down three offers; then look after it, or leave it to the watchdog."""
        computer = self.computers[where]
        computer.wrong_by = wrong
        process = self._process(fuse, after=after)
        self.needs += 1
        need = Need(f"n{self.needs}", LEASE, "run", max_price_hour=CAP)
        fleet = computer.fleet(process, self._before_create(computer))
        computer.wrong_by = 0.0
        try:
            for _ in range(3):
                try:
                    row, machine = acquire(
                        fleet,
                        self.cloud.offer(),
                        need,
                        process.keeper,
                        guard=lambda: self._guard(where),
                    )
                except ProviderError:
                    continue
                assert machine.price_hour is None or machine.price_hour <= CAP
                if stays:
                    self.holding.append((where, process, fleet, row.name))
                    return
                self._guard(where)
                watching = self.watchdogs[where]
                assert watching is not None
                keep(fleet, row, watching[0].keeper, detached=False)
                break
        except (Killed, GpuctlError):
            pass
        process.dead = True

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        """A controller renews its lease."""
        where, process, fleet, name = data.draw(st.sampled_from(self.holding))
        del where
        row = None if process.dead else fleet.ledger.machine(name)
        if row is not None and not row.closed and row.destroy_asked_at is None:
            with suppress(Killed):
                renew(fleet, row, LEASE)

    @precondition(lambda self: self.holding)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        """A controller is killed in between."""
        held = data.draw(st.sampled_from(self.holding))
        held[1].dead = True
        self.holding.remove(held)

    @rule(where=which, fuse=fuses, after=st.booleans())
    def terminate(self, where: int, fuse: int | None, after: bool) -> None:
        """End everything of one home."""
        process = self._process(fuse, after=after)
        fleet = self.computers[where].fleet(process, _never)
        with suppress(Killed, GpuctlError):
            release_all(fleet, fleet.ledger.machines(open_only=True), why="terminate")
        process.dead = True

    @rule(where=which, fuse=fuses, after=st.booleans(), wrong=wrong_clocks)
    def reap(self, where: int, fuse: int | None, after: bool, wrong: float) -> None:
        """From cron."""
        process = self._process(fuse, after=after)
        self.computers[where].wrong_by = wrong
        fleet = self.computers[where].fleet(process, _never)
        self.computers[where].wrong_by = 0.0
        with suppress(Killed, GpuctlError):
            reap(fleet)
        process.dead = True

    @rule(where=which, fuse=fuses, after=st.booleans())
    def watch(self, where: int, fuse: int | None, after: bool) -> None:
        """A round of the watchdog, where there is one."""
        watching = self.watchdogs[where]
        if watching is None:
            return
        watching[0].lay(fuse, after=after)
        with suppress(Killed):
            watching[1].round()
        if watching[0].dead:
            self.watchdogs[where] = None

    # ------------------------------------------------------------------ the world

    @rule(seconds=st.sampled_from([1, 5, 30, 300, 700, 3700]))
    def time_passes(self, seconds: int) -> None:
        """Nobody does anything."""
        self.clock.pass_time(seconds)

    @rule(
        create=hiccups,
        lost=st.integers(0, 1),
        lists=reads,
        gets=reads,
        destroys=reads,
        absent=st.integers(0, 2),
        ignored=st.integers(0, 1),
        lag=st.sampled_from([0.0, 0.0, SETTLE - 2]),
        denied=st.sampled_from([0.0, 0.0, SHOWN - 1]),
        leftover=st.booleans(),
        price=st.sampled_from([None, None, Decimal(5)]),
    )
    def trouble(self, create: list[Any], lost: int, lists: list[Any], **rest: Any) -> None:
        """The cloud has a bad day."""
        faults = self.cloud.faults
        faults.create, faults.create_reply_lost, faults.list = create, lost, lists
        faults.get, faults.destroy = rest["gets"], rest["destroys"]
        faults.get_says_absent, faults.destroy_ignored = rest["absent"], rest["ignored"]
        faults.list_lag_seconds, faults.denied_seconds = rest["lag"], rest["denied"]
        faults.leftover = rest["leftover"]
        faults.create_price = rest["price"]

    @precondition(lambda self: self.cloud.machines.keys() - self.theirs)
    @rule(data=st.data())
    def taken_away(self, data: st.DataObject) -> None:
        """A spot machine is taken away."""
        ours = sorted(self.cloud.machines.keys() - self.theirs)
        self.cloud.take_away(data.draw(st.sampled_from(ours)))

    # ------------------------------------------------------------------ the promises

    @invariant()
    def only_ours_is_touched(self) -> None:
        """Promise 6."""
        assert self.theirs <= self.cloud.machines.keys()

    @invariant()
    def what_is_closed_is_gone(self) -> None:
        """Promise 3."""
        alive = {machine.name for machine in self.cloud.machines.values()}
        for computer in self.computers:
            with computer.book() as book:
                closed = {row.name for row in book.machines() if row.closed}
            assert not closed & alive

    @invariant()
    def one_machine_for_one_need(self) -> None:
        """Promise 2."""
        middles = [name.split("-")[1] for name in self._ours()]
        assert len(middles) == len(set(middles))

    def teardown(self) -> None:
        """Everybody dies; the guards, each alone, end all of it (promises 4 and 5)."""
        try:
            for process in self.living.values():
                process.dead = True
            self.trouble(
                [],
                0,
                [],
                gets=[],
                destroys=[],
                absent=0,
                ignored=0,
                lag=0.0,
                denied=0.0,
                leftover=False,
                price=None,
            )
            self._one_by_the_watchdog_other_by_reap()
            assert not self._ours()
            assert not self.cloud.volumes
            self.only_ours_is_touched()
            self._audits_are_clean()
        finally:
            for computer in self.computers:
                computer.close()
            self.patch.undo()
            self.clock.__exit__(None, None, None)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _one_by_the_watchdog_other_by_reap(self) -> None:
        self.watchdogs = [None, None]
        self.clock.pass_time(SETTLE)
        reap(self.computers[1].fleet(self._process(None), _never))
        self._guard(0)
        watching = self.watchdogs[0]
        assert watching is not None
        for _ in range(40):
            if not watching[1].round():
                break
            self.clock.pass_time(LEASE / 4)

    def _audits_are_clean(self) -> None:
        for computer in self.computers:
            done = audit(computer.fleet(self._process(None), _never))
            assert done.clean, done
            with computer.book() as book:
                assert not book.machines(open_only=True)
                assert book.check() == []

    # ------------------------------------------------------------------ inside

    def _process(self, fuse: int | None, *, after: bool = False) -> Process:
        process = Process(1000 + len(self.living), "controller", fuse, after=after)
        self.living[process.pid] = process
        return process

    def _guard(self, where: int) -> None:
        """What `ensure_watchdog` does: there is one, and one only."""
        if self.watchdogs[where] is None:
            process = Process(1000 + len(self.living), "watchdog", None, after=False)
            self.living[process.pid] = process
            fleet = self.computers[where].fleet(process, _never)
            self.watchdogs[where] = (process, Watchdog(fleet, process.keeper))

    def _before_create(self, computer: Computer) -> Callable[[Order], None]:
        def check(order: Order) -> None:
            """Promise 1: the intent is on disk. Promise 2: nothing else is there for the need."""
            with computer.book() as book:
                assert book.machine(order.name) is not None
            middle = order.name.split("-")[1]
            assert middle not in {name.split("-")[1] for name in self._ours()}

        return check

    def _ours(self) -> list[str]:
        return [m.name for id, m in self.cloud.machines.items() if id not in self.theirs]


def _never(order: Order) -> None:
    raise AssertionError(f"a guard rents nothing: {order.name}")


def _theirs(name: str, mark: Mark | None) -> Machine:
    return Machine(
        name, "memory", f"theirs-{name}", State.READY, "RUNNING", region="here", mark=mark
    )


Sequences.TestCase.settings = settings(
    max_examples=SEQUENCES,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestSequences = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"  # threads of processes that are killed
)(pytest.mark.timeout(0)(Sequences.TestCase))
