"""gpuctl killed in the middle of a create: the next one finds out first, on every cloud."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gpuctl.errors import MayStillBill, NothingRentable
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, this_process
from gpuctl.fleet.provision import provision
from gpuctl.fleet.watchdog import Watchdog
from gpuctl.home import Home
from gpuctl.ledger import Ledger
from providers.base import Ambiguous, Offer, Want
from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.hetzner_cloud import HetznerCloud
from tests.clouds.hetzner_cloud import main_settings as hetzner_settings
from tests.clouds.http_cloud import Fault, HttpCloud
from tests.clouds.memory_cloud import HandClock
from tests.clouds.runpod_cloud import RunpodCloud
from tests.clouds.runpod_cloud import main_settings as runpod_settings
from tests.clouds.vastai_cloud import VastCloud, usual_hosts
from tests.clouds.vastai_cloud import main_settings as vastai_settings
from tests.fleet.conftest import OWNER

NEED = Need("demo", 3600, "provision", disk_gb=10)
DEAD = Keeper("provision", this_process("provision").host, "an earlier boot", 1, "0")


@dataclass
class Account:
    """One cloud, and how to look into its books."""

    cloud: HttpCloud
    name: str
    want: Want
    create: tuple[str, str]  # the create call: its method and path
    machines: Callable[[], int]  # how many bill now
    settings: dict[str, str]


@contextmanager
def at(name: str, clock: HandClock) -> Iterator[Account]:
    card = Want(gpus=("RTX-4090",), disk_gb=10, spot=False)
    if name == "runpod":
        with RunpodCloud(clock=clock) as pods:
            bills = lambda: len(pods.books.open("pod"))  # noqa: E731
            yield Account(pods, name, card, ("POST", "/v2/pods$"), bills, runpod_settings(pods))
    elif name == "vastai":
        with VastCloud(clock=clock) as vast:
            vast.contracts.hosts = usual_hosts()
            bills = lambda: len(vast.contracts.books.open())  # noqa: E731
            yield Account(vast, name, card, ("PUT", "/asks/"), bills, vastai_settings(vast))
    elif name == "hetzner":
        with HetznerCloud(clock=clock) as servers:
            bills = lambda: len(servers.bills("server"))  # noqa: E731
            settings = hetzner_settings(servers)
            yield Account(servers, name, Want(disk_gb=10), ("POST", "/servers$"), bills, settings)
    else:
        with AwsCloud(clock=clock) as aws:
            bills = lambda: len(aws.books.open("instance"))  # noqa: E731
            want = Want(gpus=("A10G",), disk_gb=10, spot=True)
            yield Account(aws, name, want, ("", "/RunInstances"), bills, aws.settings())


@pytest.fixture(params=["runpod", "vastai", "hetzner", pytest.param("aws", marks=pytest.mark.slow)])
def account(request: pytest.FixtureRequest, clock: HandClock) -> Iterator[Account]:
    with at(request.param, clock) as made:
        yield made


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime.now(UTC))


@pytest.fixture
def fleet(tmp_path: Path, clock: HandClock, account: Account) -> Iterator[Fleet]:
    home = Home(tmp_path, OWNER)
    with Ledger.open(home.ledger, clock=clock) as ledger:
        yield Fleet(home, ledger, clock, {"HOME": str(tmp_path), **account.settings})


def killed_in_the_middle(fleet: Fleet, account: Account, monkeypatch: pytest.MonkeyPatch) -> str:
    """The create call has had its effect; its answer was never heard, nor anything written down."""
    method, path = account.create
    account.cloud.faults.append(Fault(path, method=method, when="after", how="drop"))

    def kill(*_: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("gpuctl.fleet.acquire.settle", kill)
        with pytest.raises(RuntimeError):
            acquire(fleet, offer(fleet, account), NEED, DEAD, guard=lambda: None)
    assert account.machines() == 1
    [row] = fleet.ledger.machines()
    assert row.provider_id is None
    return row.name


def offer(fleet: Fleet, account: Account) -> Offer:
    found = fleet.provider(account.name).offers(account.want)
    return next(one for one in found if one.available)


def creates(account: Account) -> int:
    method, path = account.create
    return sum(
        method in ("", one.method) and re.search(path, one.path) is not None
        for one in account.cloud.log
    )


def go(_seconds: float) -> None:
    """Nobody asks to stop."""


def test_it_is_ended_before_anything_else_is_rented(
    fleet: Fleet, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = killed_in_the_middle(fleet, account, monkeypatch)
    with pytest.raises(NothingRentable):  # this one was given no offers
        provision(fleet, [], NEED, pause=go)
    assert account.machines() == 0
    row = fleet.ledger.machine(name)
    assert row is not None
    assert (row.closed_by, len(row.confirmed_by)) == ("gone", 2)
    assert creates(account) == 1


def test_while_nobody_can_tell_nothing_else_is_rented(
    fleet: Fleet, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = killed_in_the_middle(fleet, account, monkeypatch)
    offers = [offer(fleet, account)]

    def down(*_: object) -> None:
        raise Ambiguous("503")

    with monkeypatch.context() as patch:
        patch.setattr(fleet.provider(account.name), "list", down)
        with pytest.raises(MayStillBill) as caught:
            provision(fleet, offers, NEED, pause=go)
    assert caught.value.machine == name
    assert "https://" in str(caught.value.next)
    assert creates(account) == 1
    assert account.machines() == 1


def test_the_watchdog_does_it_when_no_other_gpuctl_comes(
    fleet: Fleet, account: Account, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_in_the_middle(fleet, account, monkeypatch)
    watchdog = Watchdog(fleet, this_process("watchdog"))
    for _ in range(5):
        if not watchdog.round():
            break
        clock.pass_time(30)
    assert account.machines() == 0
    assert fleet.ledger.machines(open_only=True) == []
    assert creates(account) == 1
