"""Hundreds of machines on one account of each emulated cloud, and what its documents allow there.

There is nothing behind the APIs, and the clock jumps over what everybody waits for: seconds are
those of pacing and settling alone. The access log says when each request came.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from gpuctl.fleet.audit import audit
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.observe import observe
from gpuctl.fleet.reap import reap
from gpuctl.home import Home
from gpuctl.ledger import Ledger
from gpuctl.names import new_machine_name
from providers.base import Mark, Offer, Order, Provider
from providers.registry import create_provider
from tests.clouds.http_cloud import HttpCloud, Logged, Request
from tests.clouds.idle_clock import IdleClock

OWNER = "a1b2c3d4e5f6"
NAMES = ("runpod", "vastai", "hetzner", "aws")
START = datetime(2026, 11, 21, 12, tzinfo=UTC)
HARD_END_SECONDS = 3600.0


@dataclass(frozen=True)
class Least:
    """What a command needs at least: requests, and the seconds that their pacing takes."""

    calls: int
    seconds: float


@dataclass(frozen=True)
class Done:
    """What a command took."""

    calls: int
    seconds: float  # by the cloud's clock
    log: Sequence[Logged]
    said: Any


@dataclass(frozen=True)
class Many:
    """One account.

    Attributes:
        rent_all: rent machines of these names, behind gpuctl's back.
        left: what bills, by the cloud's own books.
        too_often: the requests of a log that came earlier than the documents allow.
        least: for "list", "audit" and "reap", of so many machines.
    """

    name: str
    cloud: HttpCloud
    clock: IdleClock
    fleet: Fleet
    rent_all: Callable[[Sequence[str], Mark], None]
    left: Callable[[], Mapping[str, str]]
    too_often: Callable[[Sequence[Logged]], Sequence[Logged]]
    least: Callable[[str, int], Least]

    @property
    def provider(self) -> Provider:
        return self.fleet.provider(self.name)

    def rent(self, count: int) -> None:
        """Rent that many, with a row in the ledger each; nobody looks after them."""
        mark = Mark(OWNER, self.clock.now() + timedelta(seconds=HARD_END_SECONDS))
        with self.cloud.lock:
            self.rent_all([new_machine_name("many", OWNER) for _ in range(count)], mark)
        self.clock.pass_time(600)
        with self.fleet.ledger.transaction():
            for machine in self.provider.list():
                self.fleet.ledger.record(
                    "adopted",
                    machine=machine.name,
                    provider=machine.provider,
                    provider_id=machine.provider_id,
                    price_hour=machine.price_hour,
                    created_at=machine.created_at,
                    access=None,
                    owner=OWNER,
                    hard_end=mark.end,
                )
        self.clock.pass_time(600)

    def take(self, command: str) -> Done:
        """Carry out what `gpuctl list --refresh`, `audit` or `reap` does."""
        began, before = self.clock.monotonic(), len(self.cloud.log)
        doing: Mapping[str, Callable[[Fleet], Any]] = {
            "list": observe,
            "audit": audit,
            "reap": reap,
        }
        said = doing[command](self.fleet)
        log = self.cloud.log[before:]
        return Done(len(log), self.clock.monotonic() - began, log, said)


@contextmanager
def many_at(name: str, folder: Path) -> Iterator[Many]:
    """An account of one cloud, by its name."""
    makers: Mapping[str, Callable[[IdleClock], _Maker]] = {
        "runpod": _runpod,
        "vastai": _vastai,
        "hetzner": _hetzner,
        "aws": _aws,
    }
    with IdleClock(START) as clock:
        made = makers[name](clock)
        with made.cloud as cloud:
            environ = {**made.settings(), "HOME": str(folder), "PATH": "/usr/bin:/bin"}
            home = Home(folder, OWNER)
            with Ledger.open(home.ledger, clock=clock) as ledger:
                fleet = Fleet(home, ledger, clock, environ)
                fleet.use(create_provider(name, environ, home=folder, clock=clock))
                yield Many(
                    name,
                    cloud,
                    clock,
                    fleet,
                    made.rent_all,
                    made.left,
                    made.too_often,
                    made.least,
                )


@dataclass(frozen=True)
class _Maker:
    cloud: HttpCloud
    settings: Callable[[], Mapping[str, str]]
    rent_all: Callable[[Sequence[str], Mark], None]
    left: Callable[[], Mapping[str, str]]
    too_often: Callable[[Sequence[Logged]], Sequence[Logged]]
    least: Callable[[str, int], Least]


# ------------------------------------------------------------------ limits, from the documents


def beyond_bucket(log: Sequence[Logged], size: float, refill: float) -> list[Logged]:
    """Which requests found a token bucket empty that was full before the first."""
    early: list[Logged] = []
    left, then = size, log[0].at if log else 0.0
    for line in sorted(log, key=lambda one: one.at):
        left, then = min(size, left + (line.at - then) * refill), line.at
        if left < 1 - 1e-6:
            early.append(line)
        else:
            left -= 1
    return early


def beyond_windows(log: Sequence[Logged], most: int, seconds: float) -> list[Logged]:
    """Which requests were too many in a window that opens with the first request after the last."""
    early: list[Logged] = []
    began, count = float("-inf"), 0
    for line in sorted(log, key=lambda one: one.at):
        if line.at - began >= seconds:
            began, count = line.at, 0
        count += 1
        if count > most:
            early.append(line)
    return early


def _seconds_of_windows(calls: int, most: int, seconds: float) -> float:
    """When the last of so many calls may leave."""
    return (calls - 1) // most * seconds


# ------------------------------------------------------------------ RunPod


def _runpod(clock: IdleClock) -> _Maker:
    from providers.runpod_offers import SECURE, Choice
    from providers.runpod_pods import body_of
    from tests.clouds.runpod_cloud import RunpodCloud, main_settings

    cloud = RunpodCloud(clock=clock)
    cloud.account.balance = cloud.account.spend_limit = Decimal(10**6)
    choice = Choice(SECURE, None, "NVIDIA A40", 1, has_gpu=True)
    offer = Offer("runpod", choice.offer_id, "A40", 1, 48, False, Decimal("0.44"), "any")

    def rent_all(names: Sequence[str], mark: Mark) -> None:
        for name in names:
            cloud.account.create(body_of(Order(name, offer, mark), choice))

    def too_often(log: Sequence[Logged]) -> Sequence[Logged]:
        return [*beyond_windows(log, 60, 60), *beyond_windows(log, 3000, 3600)]

    def least(command: str, count: int) -> Least:
        calls = {"list": 1, "audit": 2, "reap": count + 4}[command]
        settle = 10.0 if command == "reap" else 0.0
        return Least(calls, _seconds_of_windows(calls, 60, 60) + settle)

    return _Maker(cloud, lambda: main_settings(cloud), rent_all, cloud.books.open, too_often, least)


# ------------------------------------------------------------------ Vast.ai


def _vastai(clock: IdleClock) -> _Maker:
    from providers.vastai_machines import label
    from tests.clouds.vastai_cloud import Host, VastCloud, main_settings
    from tests.clouds.vastai_cloud.market import asks_of
    from tests.clouds.vastai_cloud.switches import THRESHOLDS

    cloud = VastCloud(clock=clock)
    cloud.contracts.credit = Decimal(10**6)
    cloud.switches.pacing = 1
    body = {"image": "vastai/pytorch", "disk": 40, "env": {}, "onstart": "", "runtype": "ssh_direc"}

    def rent_all(names: Sequence[str], mark: Mark) -> None:
        for number, name in enumerate(names, 1000):
            cloud.contracts.hosts.append(Host(number))
            [ask] = asks_of(cloud.contracts.hosts[-1:])
            cloud.contracts.rent(ask, {**body, "label": label(name, mark)}, None, ())

    def too_often(log: Sequence[Logged]) -> Sequence[Logged]:
        import re

        early: list[Logged] = []
        for method, path, calls, seconds in THRESHOLDS:
            mine = [one for one in log if one.method == method and re.search(path, one.path)]
            if calls == 1:
                early += beyond_bucket(mine, 1, 1 / seconds)
        return early

    def least(command: str, count: int) -> Least:
        pages = ceil(count / 25)
        if command == "list":
            return Least(pages, pages - 1.0)
        if command == "audit":
            return Least(pages + 1, float(pages))
        # Pages are a second apart, ends three, and the second empty page waits for the listing to
        # settle; one look at what is left, one at the charges.
        return Least(pages + count + 2 + 2, pages - 1.0 + (count - 1) * 3.0 + 30)

    return _Maker(
        cloud, lambda: main_settings(cloud), rent_all, cloud.contracts.books.open, too_often, least
    )


# ------------------------------------------------------------------ Hetzner


def _hetzner(clock: IdleClock) -> _Maker:
    from providers.hetzner_servers import labels_of
    from tests.clouds.hetzner_cloud import HetznerCloud, main_settings

    cloud = HetznerCloud(clock=clock)

    def rent_all(names: Sequence[str], mark: Mark) -> None:
        for name in names:
            number = cloud.add_foreign(name)
            cloud.project.servers[int(number)].facts["labels"] = labels_of(mark)

    def too_often(log: Sequence[Logged]) -> Sequence[Logged]:
        return beyond_bucket(log, 3600, 1)

    def least(command: str, count: int) -> Least:
        pages = ceil(count / 50)
        if command == "list":
            return Least(pages + 1, 0)  # and the prices
        if command == "audit":
            return Least(pages + 3 + 1, 0)
        # A server is listed for three seconds after its deletion was accepted.
        return Least(pages + count + 2 + 3 + 1, 3 + 5)

    return _Maker(cloud, lambda: main_settings(cloud), rent_all, cloud.bills, too_often, least)


# ------------------------------------------------------------------ AWS

# In each region; EC2 developer guide, "Request throttling for the Amazon EC2 API".
_CHANGES = {"TerminateInstances": (100, 5), "CancelSpotInstanceRequests": (50, 5)}


def _aws(clock: IdleClock) -> _Maker:
    from providers.aws_machines import marks
    from tests.clouds.aws_cloud import AwsCloud, main_settings
    from tests.clouds.aws_cloud.cloud import KEY

    cloud = AwsCloud(clock=clock)
    scope = f"AWS4-HMAC-SHA256 Credential={KEY}/20261121/us-east-1/ec2/aws4_request, S="
    image = "/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"

    def launch(name: str, mark: Mark, count: int) -> None:
        params = {
            "Action": "RunInstances",
            "Version": "2016-11-15",
            "ImageId": f"resolve:ssm:{image}",
            "InstanceType": "t3.micro",
            "MinCount": str(count),
            "MaxCount": str(count),
            "InstanceMarketOptions.MarketType": "spot",
        }
        for number, kind in enumerate(("instance", "volume", "spot-instances-request"), 1):
            params[f"TagSpecification.{number}.ResourceType"] = kind
            tags = {**marks(name, mark), "gpuctl:price": "0.0042"}
            for tag, (key, value) in enumerate(tags.items(), 1):
                params[f"TagSpecification.{number}.Tag.{tag}.Key"] = key
                params[f"TagSpecification.{number}.Tag.{tag}.Value"] = value
        headers = {"authorization": scope, "content-type": "application/x-www-form-urlencoded"}
        body = urlencode(params).encode()
        reply = cloud.serve(Request("POST", "/", {}, headers, body))
        assert reply is not None
        assert reply.status == 200, reply.content()

    def rent_all(names: Sequence[str], mark: Mark) -> None:
        # Together, for moto takes its time; and then each gets a name of its own.
        for first in range(0, len(names), 50):
            launch(names[first], mark, len(names[first : first + 50]))
        for name, rental in zip(names, cloud.rentals.all.values(), strict=True):
            rental.instance.add_tags({"gpuctl:name": name})
            assert rental.request is not None
            rental.request.tags["gpuctl:name"] = name

    def too_often(log: Sequence[Logged]) -> Sequence[Logged]:
        early: list[Logged] = []
        for path in {one.path for one in log if one.path.startswith("/ec2/")}:
            action = path.rpartition("/")[2]
            size, refill = (100, 20) if action.startswith("Describe") else _CHANGES[action]
            early += beyond_bucket([one for one in log if one.path == path], size, refill)
        return early

    def least(command: str, count: int) -> Least:
        calls = {
            "list": 1,
            "audit": 1 + 4,
            # Each is ended, its spot request is looked up and cancelled.
            "reap": 1 + 3 * count + 2 + 4,
        }[command]
        if command != "reap":
            return Least(calls, 0)
        # A hundred ends at once and then five a second, and the last machine takes its time to
        # go; or fifty cancellations, and five a second. Then the listing settles.
        ends = max((count - 100) / 5, 0) + cloud.rentals.times.end
        return Least(calls, max(ends, (count - 50) / 5) + 10)

    return _Maker(
        cloud, lambda: main_settings(cloud), rent_all, lambda: cloud.books.open(), too_often, least
    )


def refused(log: Sequence[Logged]) -> list[str]:
    """The requests that were told to come later, whatever the words."""
    return [
        json.dumps([one.method, one.path, one.status])
        for one in log
        if one.status == 429 or one.status >= 500
    ]
