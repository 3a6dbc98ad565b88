"""The `vastai` provider against the emulated Vast.ai, both on a clock that the test moves."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from providers.base import Mark, Order, Provider, State, Want
from providers.registry import create_provider
from tests.clouds.memory_cloud import HandClock
from tests.clouds.vastai_cloud import VastCloud, main_settings, usual_hosts

OWNER = "c0ffee123456"
NAME = "gpuctl-job-c0ffee-0badcafe"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIH0000000000000000000000000000000000000000000 gpuctl"
RTX = Want(gpus=("RTX-4090",), disk_gb=40)


@dataclass
class VastBench:
    """A cloud, an adapter, and their clock."""

    cloud: VastCloud
    clock: HandClock
    home: Path
    provider: Provider

    def again(self, **settings: str) -> Provider:
        """Another adapter of the same account, as another process has it."""
        environ = {**main_settings(self.cloud), **settings}
        return create_provider("vastai", environ, home=self.home, clock=self.clock)

    def order(self, want: Want = RTX, *, spot: bool = False, **changes: Any) -> Order:
        """An order for the cheapest that matches."""
        offer = self.provider.offers(replace(want, spot=spot))[0]
        mark = Mark(OWNER, self.clock.now() + timedelta(hours=3), "demo-1a2b3c")
        made = Order(NAME, offer, mark, want.disk_gb, ssh_public_key=KEY)
        return replace(made, **changes)

    def books(self) -> dict[str, str]:
        """What bills now: id -> name."""
        things = self.cloud.contracts.books.open()
        return {id: label.split()[0] if label else "" for id, label in things.items()}

    def created(self, number: int = -1) -> Any:
        """The body of a create call."""
        return json.loads(self.cloud.requests("PUT", "/asks/")[number].body)


@contextlib.contextmanager
def vast_bench(home: Path) -> Iterator[VastBench]:
    """Open one. The documented limits hold."""
    clock = HandClock(datetime.now(UTC))
    with VastCloud(clock=clock) as cloud:
        cloud.contracts.hosts = usual_hosts()
        cloud.switches.pacing = 1
        provider = create_provider("vastai", main_settings(cloud), home=home, clock=clock)
        yield VastBench(cloud, clock, home, provider)


def ready(vast: VastBench, *, spot: bool = False) -> str:
    """Rent one and wait until it runs; return its id."""
    machine = vast.provider.create(vast.order(spot=spot))
    vast.clock.pass_time(200)
    assert vast.provider.get(machine.provider_id).state is State.READY
    return machine.provider_id
