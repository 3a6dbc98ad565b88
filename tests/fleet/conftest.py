"""A fleet on a hand-driven clock with one cloud in memory."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, this_process
from gpuctl.home import Home
from gpuctl.ledger import Ledger
from tests.clouds.memory_cloud import HandClock, MemoryCloud

OWNER = "a1b2c3d4e5f6"


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
