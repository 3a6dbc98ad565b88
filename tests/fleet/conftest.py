"""A fleet on a hand-driven clock with one cloud in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, this_process
from gpuctl.home import Home
from gpuctl.ledger import Ledger, MachineRow
from providers.base import Order
from tests.clouds.memory_cloud import HandClock, MemoryCloud

OWNER = "a1b2c3d4e5f6"
NEED = Need(middle="demo", lease_seconds=600, purpose="provision")

CutShort = Callable[[Callable[[Order], object]], MachineRow]


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 11, 21, 12, 0, tzinfo=UTC))


@pytest.fixture
def cloud(clock: HandClock) -> MemoryCloud:
    return MemoryCloud(clock)


@pytest.fixture
def fleet(tmp_path: Path, clock: HandClock, cloud: MemoryCloud) -> Iterator[Fleet]:
    home = Home(tmp_path, OWNER)
    with Ledger.open(home.ledger, clock=clock) as ledger:
        fleet = Fleet(home, ledger, clock, {})
        fleet.use(cloud)
        yield fleet


@pytest.fixture
def keeper() -> Keeper:
    return this_process("controller")


@pytest.fixture
def cut_short(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> CutShort:
    """Kill a gpuctl in the middle of its create call; the row that is left.

    Its argument is what the cloud does with the order before that.
    """

    def cut(arrives: Callable[[Order], object]) -> MachineRow:
        known = {row.name for row in fleet.ledger.machines()}

        def killed(order: Order) -> object:
            arrives(order)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(cloud, "create", killed)
            with pytest.raises(KeyboardInterrupt):
                acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)
        [row] = [row for row in fleet.ledger.machines(open_only=True) if row.name not in known]
        assert not row.in_doubt  # nobody heard anything: the call may still be on its way
        return row

    return cut
