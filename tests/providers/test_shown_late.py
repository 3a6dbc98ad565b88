"""Clouds that deny for a while what they have made: it bills, and is ended all the same.

The process that ends it is another than the one that made it, as after a kill -9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import this_process
from gpuctl.fleet.release import release
from gpuctl.home import Home
from gpuctl.ledger import Ledger
from providers.base import ABSENT, NotFound, Provider, Want
from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.memory_cloud import HandClock
from tests.clouds.runpod_cloud import RunpodCloud
from tests.providers.aws_bench import QUICK, START, AwsProvider
from tests.providers.runpod_bench import provider_of
from tests.providers.vastai_bench import OWNER, vast_bench

HIDDEN_SECONDS = 50
NEED = Need("demo", 600, "provision")


@dataclass
class Late:
    """An account that shows what is new after a while, and processes with an adapter each."""

    clock: HandClock
    another: Callable[[], Provider]
    bills: Callable[[], Mapping[str, object]]


def _runpod(_: Path, stack: ExitStack) -> Late:
    clock = HandClock(START)
    cloud = stack.enter_context(RunpodCloud(clock=clock))
    cloud.switches.list_lag_s = cloud.switches.get_404_for_s = HIDDEN_SECONDS
    return Late(clock, lambda: provider_of(cloud, clock), cloud.books.open)


def _vastai(folder: Path, stack: ExitStack) -> Late:
    bench = stack.enter_context(vast_bench(folder))
    bench.cloud.switches.times.list_lag = HIDDEN_SECONDS
    bench.cloud.switches.lag_hides_from_destroy = True
    return Late(bench.clock, bench.again, bench.books)


def _aws(folder: Path, stack: ExitStack) -> Late:
    clock = HandClock(START)
    cloud = stack.enter_context(AwsCloud(clock=clock))
    cloud.rentals.times.unseen = HIDDEN_SECONDS
    another = lambda: AwsProvider(cloud.settings(), folder, clock, QUICK)  # noqa: E731
    return Late(clock, another, cloud.rentals.rented)


@pytest.fixture(params=[_runpod, _vastai, _aws], ids=["runpod", "vastai", "aws"])
def late(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Late]:
    with ExitStack() as stack:
        yield request.param(tmp_path, stack)


def test_it_is_not_taken_for_gone(late: Late, tmp_path: Path) -> None:
    maker, ender = late.another(), late.another()
    home = Home(tmp_path, OWNER)
    with Ledger.open(home.ledger, clock=late.clock) as ledger:
        fleet = Fleet(home, ledger, late.clock, {})
        fleet.use(maker)
        offer = maker.offers(Want(gpus=("A10G", "RTX-4090"), disk_gb=40))[0]
        row, machine = acquire(fleet, offer, NEED, this_process("provision"), guard=lambda: None)
        assert len(late.bills()) == 1
        with pytest.raises(NotFound):
            maker.get(machine.provider_id)
        assert ender.destroy(machine.provider_id) == ABSENT
        assert len(late.bills()) == 1
        fleet.use(ender)
        receipt = release(fleet, row, why="test")
    assert late.bills() == {}
    first, second = receipt.confirmed_by
    assert first.at - row.intended_at >= timedelta(seconds=HIDDEN_SECONDS)
    assert second.at > first.at
