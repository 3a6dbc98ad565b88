"""An emulated RunPod, and the `runpod` provider on it, both on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from providers.base import Clock, Order, Want
from providers.runpod import RunpodProvider
from providers.runpod_pods import IMAGE
from tests.clouds.memory_cloud import HandClock
from tests.clouds.runpod_cloud import RunpodCloud, main_settings
from tests.conformance.provider_suite import Bench

RTX_4090 = Want(gpus=("RTX-4090",), disk_gb=10)


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 11, 21, 12, tzinfo=UTC))


@pytest.fixture
def cloud(clock: HandClock) -> Iterator[RunpodCloud]:
    with RunpodCloud(clock=clock) as made:
        yield made


@pytest.fixture
def runpod(cloud: RunpodCloud, clock: HandClock) -> RunpodProvider:
    return provider_of(cloud, clock)


def provider_of(cloud: RunpodCloud, clock: Clock, **settings: str) -> RunpodProvider:
    """Another adapter of the same account, as another process has it."""
    environ = {"HOME": "/nonexistent", **main_settings(cloud), **settings}
    return RunpodProvider.from_environment(environ, home=Path("/nonexistent"), clock=clock)


def order(runpod: RunpodProvider, want: Want = RTX_4090, **changes: object) -> Order:
    """An order for the cheapest that matches."""
    return replace(Bench(runpod, dict, want).order(), **changes)


def foreign_pod(cloud: RunpodCloud) -> str:
    """A pod of somebody else in the account; its id."""
    body = {
        "name": "somebody-elses",
        "image": IMAGE,
        "gpu": {"id": "NVIDIA A40", "count": 1},
        "env": {"gpuctl_owner": "not hexadecimal"},
    }
    return cloud.account.create(body).id


def findings(runpod: RunpodProvider) -> dict[str, tuple[bool, str]]:
    """What the doctor says: name -> whether it is well, and why."""
    return {one.name: (one.ok, one.detail) for one in runpod.check()}
