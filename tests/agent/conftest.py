"""Fixtures of the agent's tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.bench import Bench, old_python


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """An agent run by the Python of the tests."""
    bench = Bench(tmp_path)
    yield bench
    bench.clear()


@pytest.fixture(params=["this python", pytest.param("python 3.8", marks=pytest.mark.slow)])
def every_bench(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """An agent run by the Python of the tests, and by the oldest that is supported."""
    python = sys.executable if request.param == "this python" else old_python()
    if python is None:
        pytest.skip("there is no python3.8 on this computer")
    bench = Bench(tmp_path, python)
    yield bench
    bench.clear()
