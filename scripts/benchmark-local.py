#!/usr/bin/env python3
"""How fast is this computer? Trains one small network and tells time and memory.

    python3 scripts/benchmark-local.py               a table
    python3 scripts/benchmark-local.py --json        the same as JSON

The job is always the same: a network of three layers (64, 512, 256, 10) learns to tell made-up
digits apart, with batches of 64 and plain gradient descent. It runs on what is there: torch on
every GPU kind it knows and on the CPU, numpy, and Python alone (whose steps are few and slow).
Compare computers by `steps_per_second` of one backend; `loss` shows that it really learned.

It needs the standard library only (Python 3.10). `--backend` picks one, `--steps` makes it longer.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

LAYERS = (64, 512, 256, 10)
BATCH = 64
RATE = 0.1
STEPS = {"torch-cuda": 400, "torch-mps": 400, "torch-cpu": 200, "numpy": 200, "python": 3}
SAMPLES = 1024
Step = Callable[[int], float]
"""Takes the number of a step, does it, returns the loss before it."""


def samples() -> tuple[list[list[float]], list[int]]:
    """Ten shapes of 64 points with noise on them: the same everywhere."""
    rng = random.Random(7)  # noqa: S311 - not for secrets
    shapes = [[rng.random() for _ in range(LAYERS[0])] for _ in range(LAYERS[-1])]
    answers = [rng.randrange(LAYERS[-1]) for _ in range(SAMPLES)]
    points = [[value + rng.gauss(0, 0.3) for value in shapes[answer]] for answer in answers]
    return points, answers


def first_weights() -> list[list[list[float]]]:
    """Return a matrix for each layer, the same everywhere."""
    rng = random.Random(11)  # noqa: S311
    return [
        [[rng.gauss(0, math.sqrt(2 / rows)) for _ in range(columns)] for _ in range(rows)]
        for rows, columns in pairwise(LAYERS)
    ]


def with_torch(device: str) -> tuple[Step, Callable[[], float | None]]:
    """Prepare the job for torch on a device."""
    import torch

    points, answers = samples()
    x = torch.tensor(points, device=device)
    y = torch.tensor(answers, device=device)
    weights = [torch.tensor(w, device=device, requires_grad=True) for w in first_weights()]
    is_cuda = device == "cuda"
    if is_cuda:
        torch.cuda.reset_peak_memory_stats()

    def step(number: int) -> float:
        rows = slice(number * BATCH % SAMPLES, number * BATCH % SAMPLES + BATCH)
        out = x[rows]
        for index, weight in enumerate(weights):
            out = out @ weight if index == 0 else torch.relu(out) @ weight
        loss = torch.nn.functional.cross_entropy(out, y[rows])
        loss.backward()
        with torch.no_grad():
            for weight in weights:
                weight -= RATE * weight.grad
                weight.grad = None
        return float(loss)  # waits for the device

    return step, lambda: torch.cuda.max_memory_allocated() / 1e9 if is_cuda else None


def with_numpy() -> tuple[Step, Callable[[], float | None]]:
    """Prepare the job for numpy."""
    import numpy as np

    points, answers = samples()
    x, y = np.array(points, dtype=np.float32), np.array(answers)
    weights = [np.array(w, dtype=np.float32) for w in first_weights()]

    def step(number: int) -> float:
        start = number * BATCH % SAMPLES
        wanted = y[start : start + BATCH]
        seen = [x[start : start + BATCH]]
        for index, weight in enumerate(weights):
            out = seen[-1] @ weight
            seen.append(np.maximum(out, 0) if index < len(weights) - 1 else out)
        shifted = np.exp(seen[-1] - seen[-1].max(axis=1, keepdims=True))
        chances = shifted / shifted.sum(axis=1, keepdims=True)
        here = np.arange(BATCH)
        loss = -np.log(chances[here, wanted]).mean()
        back = chances.copy()
        back[here, wanted] -= 1
        back /= BATCH
        for index in reversed(range(len(weights))):
            slope = seen[index].T @ back
            if index:
                back = (back @ weights[index].T) * (seen[index] > 0)
            weights[index] -= RATE * slope
        return float(loss)

    return step, lambda: None


def with_python() -> tuple[Step, Callable[[], float | None]]:
    """Prepare the job for Python alone: a sample after the other."""
    points, answers = samples()
    weights = first_weights()

    def step(number: int) -> float:
        start = number * BATCH % SAMPLES
        slopes = [[[0.0] * len(w[0]) for _ in w] for w in weights]
        total = 0.0
        for point, answer in zip(
            points[start : start + BATCH], answers[start : start + BATCH], strict=True
        ):
            total += _learn(point, answer, weights, slopes)
        for weight, slope in zip(weights, slopes, strict=True):
            for row, change in zip(weight, slope, strict=True):
                for column, value in enumerate(change):
                    row[column] -= RATE * value / BATCH
        return total / BATCH

    return step, lambda: None


def _learn(
    point: list[float],
    answer: int,
    weights: list[list[list[float]]],
    slopes: list[list[list[float]]],
) -> float:
    """Add one sample's slopes; return its loss."""
    seen = [point]
    for index, weight in enumerate(weights):
        out = [0.0] * len(weight[0])
        for value, row in zip(seen[-1], weight, strict=True):
            if value:
                for column, factor in enumerate(row):
                    out[column] += value * factor
        last = index == len(weights) - 1
        seen.append(out if last else [max(value, 0.0) for value in out])
    most = max(seen[-1])
    grown = [math.exp(value - most) for value in seen[-1]]
    whole = sum(grown)
    back = [value / whole - (index == answer) for index, value in enumerate(grown)]
    for index in reversed(range(len(weights))):
        for value, row in zip(seen[index], slopes[index], strict=True):
            if value:
                for column, factor in enumerate(back):
                    row[column] += value * factor
        if index:
            back = [
                sum(a * b for a, b in zip(back, row, strict=True)) if value > 0 else 0.0
                for value, row in zip(seen[index], weights[index], strict=True)
            ]
    return -math.log(grown[answer] / whole)


# ------------------------------------------------------------------------- measuring


def backends() -> list[str]:
    """Say on what the job can run here, fastest first."""
    found = []
    try:
        import torch
    except ImportError:
        pass
    else:
        if torch.cuda.is_available():
            found.append("torch-cuda")
        if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available():
            found.append("torch-mps")
        found.append("torch-cpu")
    try:
        import numpy  # noqa: F401
    except ImportError:
        pass
    else:
        found.append("numpy")
    return [*found, "python"]


def measure(backend: str, steps: int | None) -> dict[str, Any]:
    """Run the job on one backend, in this process; return what it took."""
    began = time.perf_counter()
    if backend.startswith("torch-"):
        step, gpu_memory = with_torch(backend.removeprefix("torch-"))
    else:
        step, gpu_memory = with_numpy() if backend == "numpy" else with_python()
    first_loss = step(0)  # not counted: caches and kernels are made here
    ready = time.perf_counter()
    count = steps or STEPS[backend]
    loss = first_loss
    for number in range(1, count + 1):
        loss = step(number)
    seconds = time.perf_counter() - ready
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "backend": backend,
        "steps": count,
        "seconds": round(seconds, 3),
        "steps_per_second": round(count / seconds, 2),
        "start_seconds": round(ready - began, 3),
        "memory_gb": round(peak * (1 if sys.platform == "darwin" else 1024) / 1e9, 3),
        "gpu_memory_gb": gpu_memory(),
        "first_loss": round(first_loss, 4),
        "loss": round(loss, 4),
    }


def computer() -> dict[str, Any]:
    """Return what kind of computer it is."""
    return {
        "system": platform.platform(terse=True),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a table."""
    head = ("backend", "steps", "seconds", "steps/s", "memory GB", "GPU GB", "loss")
    keys = ("backend", "steps", "seconds", "steps_per_second", "memory_gb", "gpu_memory_gb", "loss")
    rows = [head, *(tuple("-" if r[k] is None else str(r[k]) for k in keys) for r in results)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) if not i else cell.rjust(w) for i, (cell, w) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in rows)
    )


def main() -> int:
    """Measure every backend in a process of its own, so that none counts the memory of another."""
    parser = argparse.ArgumentParser(description="Time and memory of a small training here.")
    parser.add_argument("--backend", choices=list(STEPS), action="append", help="only this one")
    parser.add_argument("--steps", type=int, help="how many (default: as fits the backend)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--alone", choices=list(STEPS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.steps is not None and given.steps < 1:
        parser.error("--steps: at least 1")
    if given.alone:
        print(json.dumps(measure(given.alone, given.steps)))
        return 0
    there = backends()
    if absent := [name for name in given.backend or () if name not in there]:
        parser.error(f"{absent[0]} cannot run here; what can: {', '.join(there)}")
    results = []
    for name in given.backend or there:
        argv = [sys.executable, __file__, "--alone", name]
        argv += ["--steps", str(given.steps)] if given.steps else []
        done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=3600, check=True)
        results.append(json.loads(done.stdout))
    if given.json:
        print(json.dumps({"computer": computer(), "results": results}))
    else:
        about = computer()
        print(f"{about['system']}, {about['cores']} cores, Python {about['python']}\n")
        print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
