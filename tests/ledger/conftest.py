"""A ledger on a hand-driven clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuctl.ledger import Ledger
from tests.ledger.facts import StepClock


@pytest.fixture
def clock() -> StepClock:
    return StepClock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path: Path, clock: StepClock) -> Iterator[Ledger]:
    with Ledger.open(path, clock=clock, patience=0.3) as ledger:
        yield ledger
