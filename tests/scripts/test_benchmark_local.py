"""`scripts/benchmark-local.py` trains for real, and every backend trains the same network."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.scripts.on_machine import SCRIPTS

BENCHMARK = SCRIPTS / "benchmark-local.py"


def measured(*options: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-I", BENCHMARK, *options, "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_python_alone_is_enough() -> None:
    told = measured("--backend", "python", "--steps", "1")
    assert told["computer"]["cores"] >= 1
    [result] = told["results"]
    assert (result["backend"], result["steps"]) == ("python", 1)
    assert result["seconds"] > 0
    assert result["steps_per_second"] == pytest.approx(1 / result["seconds"], rel=0.1)
    assert 0.005 < result["memory_gb"] < 1
    assert result["loss"] < result["first_loss"], "it learned nothing"


@pytest.mark.slow
def test_every_backend_trains_the_same(tmp_path: Any) -> None:
    backends = [
        name
        for name, module in (("numpy", "numpy"), ("torch-cpu", "torch"))
        if importlib.util.find_spec(module)
    ]
    if not backends:
        pytest.skip("neither numpy nor torch is here")
    options = [word for name in ["python", *backends] for word in ("--backend", name)]
    results = measured(*options, "--steps", "3")["results"]
    assert [one["backend"] for one in results] == ["python", *backends]
    for one in results:
        assert one["loss"] == pytest.approx(results[0]["loss"], rel=1e-3)


def test_a_backend_that_is_not_here_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-I", BENCHMARK, "--backend", "torch-cuda"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 0:
        pytest.skip("this computer has a CUDA GPU")
    assert done.returncode == 2
    assert "torch-cuda cannot run here" in done.stderr


@pytest.mark.slow
def test_the_table_has_a_row_for_each() -> None:
    done = subprocess.run(
        [sys.executable, "-I", BENCHMARK, "--backend", "python", "--steps", "1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    head, row = done.stdout.splitlines()[2:4]
    assert head.split()[:2] == ["backend", "steps"]
    assert row.split()[:2] == ["python", "1"]
