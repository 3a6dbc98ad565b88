"""Five hundred servers of one project reaped within what its API allows."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpuctl.fleet.audit import audit
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.reap import reap
from gpuctl.home import Home
from gpuctl.ledger import Ledger
from gpuctl.names import new_machine_name
from providers.base import Mark
from providers.hetzner import HetznerProvider
from providers.hetzner_servers import labels_of
from tests.clouds.hetzner_cloud import HetznerCloud, main_settings
from tests.clouds.memory_cloud import HandClock
from tests.fleet.conftest import OWNER

MANY = 500
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cloud(clock: HandClock) -> Iterator[HetznerCloud]:  # type: ignore[override]
    with HetznerCloud(clock=clock) as made:
        yield made


@pytest.fixture
def own(tmp_path: Path, clock: HandClock, cloud: HetznerCloud) -> Iterator[Fleet]:
    home = Home(tmp_path, OWNER)
    settings = main_settings(cloud)
    with Ledger.open(home.ledger, clock=clock) as ledger:
        fleet = Fleet(home, ledger, clock, settings)
        fleet.use(HetznerProvider(settings, clock))
        yield fleet


def test_a_reap_of_many_stays_within_the_limit(
    own: Fleet, cloud: HetznerCloud, clock: HandClock
) -> None:
    mark = Mark(OWNER, datetime(2026, 11, 20, tzinfo=UTC))
    for _ in range(MANY):
        number = cloud.add_foreign(new_machine_name("demo", OWNER))
        cloud.project.servers[int(number)].facts["labels"] = labels_of(mark)
    foreign = cloud.add_foreign()
    clock.pass_time(60)
    assert len(audit(own).unaccounted) == MANY
    reaped = reap(own)
    assert reaped.errors == ()
    assert len(reaped.receipts) == MANY
    assert list(cloud.bills("server")) == [foreign]
    assert [line for line in cloud.log if line.status == 429] == []
    # A deletion, two looks at it and at the list (shared by those who end one at the same time),
    # and now and then a push: with eight at a time, an hour's requests and what comes back while
    # the listing settles are enough.
    assert len(cloud.log) < 10 * MANY
