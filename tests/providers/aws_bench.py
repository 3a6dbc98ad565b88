"""An emulated AWS account, and a provider on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from providers.aws import AwsProvider
from providers.aws_client import Aws, Patience
from providers.aws_notes import Notes
from providers.aws_offers import kinds
from providers.aws_types import CPU_TYPES, GPU_TYPES
from providers.base import Machine, Mark, Offer, Order, Want
from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.aws_cloud.wire import form
from tests.clouds.memory_cloud import HandClock

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
QUICK = Patience(connect=2, read=3, launch=3, tries=1)
A10G = Want(gpus=("A10G",), disk_gb=1)


@dataclass
class Account:
    """An emulated account, its clock, and a provider on it."""

    cloud: AwsCloud
    clock: HandClock
    home: Path
    provider: AwsProvider

    def another(self, patience: Patience = QUICK, **settings: str) -> AwsProvider:
        """The adapter as another process would have it, on the same home."""
        environ = {**self.cloud.settings(), **settings}
        return AwsProvider(environ, self.home, self.clock, patience)


@cache
def _known_kinds() -> str:
    """What the adapter remembers of the machine types, asked for once: half a second each time."""
    clock = HandClock(START)
    with AwsCloud(clock=clock) as cloud, TemporaryDirectory() as folder:
        aws = Aws(cloud.settings())
        for patterns in (GPU_TYPES, CPU_TYPES):
            kinds(aws, Notes(Path(folder), clock), "us-east-1", patterns)
        return (Path(folder) / "kinds.json").read_text()


@pytest.fixture
def account(tmp_path: Path) -> Iterator[Account]:
    """An account without machines behind its instances, on a clock of the test's own."""
    clock = HandClock(START)
    notes = tmp_path / "home" / "aws"
    notes.mkdir(parents=True)
    (notes / "kinds.json").write_text(_known_kinds())
    with AwsCloud(clock=clock) as cloud:
        provider = AwsProvider(cloud.settings(), tmp_path / "home", clock, QUICK)
        yield Account(cloud, clock, tmp_path / "home", provider)


OWNER = "c0ffee123456"


def order(offer: Offer, name: str = "demo", cap: str | None = None, **more: Any) -> Order:
    """An order for three hours."""
    return Order(
        name=f"gpuctl-{name}-c0ffee-00000001",
        offer=offer,
        mark=Mark(OWNER, START + timedelta(hours=3), "demo-1a2b3c"),
        disk_gb=1,
        max_price_hour=None if cap is None else Decimal(cap),
        **more,
    )


def spot(account: Account) -> Offer:
    """The cheapest A10G on spot."""
    return next(offer for offer in account.provider.offers(A10G) if offer.spot)


def on_demand(account: Account) -> Offer:
    """The cheapest A10G on demand."""
    return next(offer for offer in account.provider.offers(A10G) if not offer.spot)


def launches(account: Account) -> list[dict[str, str]]:
    """What RunInstances was asked for, in order."""
    return [form(each.body) for each in account.cloud.requests("POST", "/RunInstances$")]


def running(account: Account, name: str = "demo") -> Machine:
    """A spot machine that runs."""
    machine = account.provider.create(order(spot(account), name))
    account.clock.pass_time(account.cloud.rentals.times.boot)
    return account.provider.get(machine.provider_id)
