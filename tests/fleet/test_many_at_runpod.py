"""500 machines on one RunPod account: within its 60 requests a minute, and no slower than that."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpuctl.fleet.audit import audit
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.reap import reap
from gpuctl.home import Home
from gpuctl.ledger import Ledger
from gpuctl.names import new_machine_name
from providers.base import Mark, Offer, Order
from providers.runpod import RunpodProvider
from providers.runpod_offers import SECURE, Choice
from providers.runpod_pods import body_of
from tests.clouds.memory_cloud import HandClock
from tests.clouds.runpod_cloud import RunpodCloud, main_settings

OWNER = "a1b2c3d4e5f6"
MANY = 500


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 11, 21, 12, tzinfo=UTC))


@pytest.fixture
def cloud(clock: HandClock) -> Iterator[RunpodCloud]:
    with RunpodCloud(clock=clock) as made:
        made.account.balance = made.account.spend_limit = Decimal(10**6)
        yield made


@pytest.fixture
def fleet(tmp_path: Path, cloud: RunpodCloud, clock: HandClock) -> Iterator[Fleet]:
    home = Home(tmp_path, OWNER)
    environ = {**main_settings(cloud), "HOME": str(tmp_path)}
    with Ledger.open(home.ledger, clock=clock) as ledger:
        fleet = Fleet(home, ledger, clock, environ)
        fleet.use(RunpodProvider.from_environment(environ, home=tmp_path, clock=clock))
        yield fleet


def rent(cloud: RunpodCloud, clock: HandClock, count: int) -> None:
    """Machines of ours that no ledger knows."""
    choice = Choice(SECURE, None, "NVIDIA A40", 1, has_gpu=True)
    offer = Offer("runpod", choice.offer_id, "A40", 1, 48, False, Decimal("0.44"), "any")
    mark = Mark(OWNER, clock.now() + timedelta(hours=24))
    for _ in range(count):
        order = Order(new_machine_name("many", OWNER), offer, mark)
        cloud.account.create(body_of(order, choice))


def test_one_look_is_a_few_requests(fleet: Fleet, cloud: RunpodCloud, clock: HandClock) -> None:
    rent(cloud, clock, MANY)
    found = audit(fleet)
    assert len([one for one in found.unaccounted if one.machine]) == MANY
    assert len([one for one in cloud.log if one.path.startswith("/v2")]) == 2
    assert sum(clock.slept) == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_all_of_them_are_reaped(fleet: Fleet, cloud: RunpodCloud, clock: HandClock) -> None:
    rent(cloud, clock, MANY)
    done = reap(fleet)
    statuses = [line.status for line in cloud.log]
    assert not done.errors
    assert len(done.receipts) == MANY
    assert cloud.books.open() == {}
    # The clock of the test adds up what threads sleep side by side, so it tells no duration.
    assert statuses.count(429) == 0
    assert len(statuses) < 6 * MANY, len(statuses)
