"""Runs through the real command line, each in a home of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.rehearsal import Rehearsal


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[Rehearsal]:
    """A home that nobody has used; what a failed test leaves running is ended."""
    made = Rehearsal(tmp_path)
    yield made
    if made.machine_folders():
        made.gpuctl("terminate", "--all", "--yes")
    made.kill_watchdog()
