"""What a receipt says a machine cost is what the cloud's own books say, and it says who says so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.bills import settle_bills
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import this_process
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.release import release
from gpuctl.fleet.spending import altogether, is_billed
from gpuctl.home import Home
from gpuctl.ledger import Ledger, MachineRow
from gpuctl.ledger.costs import billed_until
from providers import aws_billing
from providers.base import Ambiguous, Billed, Want
from providers.reference.exchange import eur_usd
from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.hetzner_cloud import HetznerCloud
from tests.clouds.hetzner_cloud import main_settings as hetzner_settings
from tests.clouds.memory_cloud import HandClock, MemoryCloud
from tests.clouds.runpod_cloud import RunpodCloud
from tests.clouds.runpod_cloud import main_settings as runpod_settings
from tests.clouds.vastai_cloud import VastCloud, usual_hosts
from tests.clouds.vastai_cloud import main_settings as vastai_settings
from tests.fleet.conftest import OWNER

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
CENT = Decimal("0.01")
NEED = Need("demo", 3 * 3600, "provision", disk_gb=10)
A_WHILE = 90 * 60.0


@contextmanager
def fleet_at(folder: Path, clock: HandClock, settings: dict[str, str]) -> Iterator[Fleet]:
    """A home of its own with the credentials of one account."""
    home = Home(folder, OWNER)
    with Ledger.open(home.ledger, clock=clock) as ledger:
        yield Fleet(home, ledger, clock, {"HOME": str(folder), **settings})


def used_for_a_while(fleet: Fleet, clock: HandClock, provider: str, want: Want) -> Receipt:
    """Rent one, let time pass, release it."""
    offer = next(one for one in fleet.provider(provider).offers(want) if one.available)
    row, machine = acquire(fleet, offer, NEED, this_process("controller"), guard=lambda: None)
    for seconds in (5, 15, 10, 30, A_WHILE - 60):
        clock.pass_time(seconds)
        fleet.provider(provider).get(machine.provider_id)  # emulations move when they are asked
    receipt = release(fleet, row, why="test")
    assert receipt.confirmed
    return receipt


def row_of(fleet: Fleet, receipt: Receipt) -> MachineRow:
    row = fleet.ledger.machine(receipt.name)
    assert row is not None
    return row


@pytest.fixture
def clock() -> HandClock:
    return HandClock(START)


def test_runpod_tells_when_the_hour_is_over(tmp_path: Path, clock: HandClock) -> None:
    with (
        RunpodCloud(clock=clock) as cloud,
        fleet_at(tmp_path, clock, runpod_settings(cloud)) as fleet,
    ):
        receipt = used_for_a_while(
            fleet, clock, "runpod", Want(gpus=("RTX-4090",), disk_gb=10, spot=False)
        )
        books = cloud.books.billed(str(receipt.provider_id), clock.now())
        assert abs(receipt.cost_usd - books) < CENT
        assert receipt.cost_source == "computed"
        assert settle_bills(fleet, [row_of(fleet, receipt)]) == []
        assert not is_billed(row_of(fleet, receipt)), "the hour is not over"
        clock.pass_time(3600)
        assert settle_bills(fleet, [row_of(fleet, receipt)]) == []
        row = row_of(fleet, receipt)
        assert is_billed(row)
        assert row.cost_source == "GET /v2/billing/pods"
        assert row.cost_usd is not None
        assert abs(row.cost_usd - books) < CENT
        assert row.closed_by == "gone"
        assert len(row.confirmed_by) == 2, "the proof is kept"
        total = altogether([row], clock.now())
        assert (total.billed, total.computed) == (row.cost_usd, 0)


def test_vastai_tells_at_once_or_later(tmp_path: Path, clock: HandClock) -> None:
    with (
        VastCloud(clock=clock) as cloud,
        fleet_at(tmp_path, clock, vastai_settings(cloud)) as fleet,
    ):
        cloud.contracts.hosts = usual_hosts()
        cloud.switches.charges_lag = 600
        receipt = used_for_a_while(
            fleet, clock, "vastai", Want(gpus=("RTX-4090",), disk_gb=10, spot=False)
        )
        books = cloud.contracts.books.billed(str(receipt.provider_id), clock.now())
        assert receipt.cost_source == "computed"
        clock.pass_time(900)
        assert settle_bills(fleet, [row_of(fleet, receipt)]) == []
        row = row_of(fleet, receipt)
        assert row.cost_source == "Vast.ai charges"
        assert row.cost_usd is not None
        assert abs(row.cost_usd - books) < CENT


@pytest.mark.slow
@pytest.mark.parametrize("spot", [True, False], ids=["spot", "on-demand"])
def test_aws_is_computed_by_its_own_prices(tmp_path: Path, clock: HandClock, spot: bool) -> None:
    with AwsCloud(clock=clock) as cloud, fleet_at(tmp_path, clock, cloud.settings()) as fleet:
        want = Want(gpus=("A10G",), disk_gb=10, spot=spot)
        receipt = used_for_a_while(fleet, clock, "aws", want)
        things = [t for t in cloud.books.things.values() if t.name == receipt.name]
        assert {thing.kind for thing in things} >= {"instance", "volume", "address"}
        books = sum((thing.cost(clock.now()) for thing in things), Decimal(0))
        assert abs(receipt.cost_usd - books) < CENT
        assert receipt.cost_source == (aws_billing.SPOT_SOURCE if spot else aws_billing.LIST_SOURCE)
        assert not is_billed(row_of(fleet, receipt)), "AWS has told prices, not a bill"


def test_hetzner_charges_every_hour_that_was_begun(tmp_path: Path, clock: HandClock) -> None:
    with (
        HetznerCloud(clock=clock) as cloud,
        fleet_at(tmp_path, clock, hetzner_settings(cloud)) as fleet,
    ):
        receipt = used_for_a_while(fleet, clock, "hetzner", Want(disk_gb=10))
        row = row_of(fleet, receipt)
        books = cloud.project.charged() * eur_usd(fleet.environ).usd
        assert abs(receipt.cost_usd - books) < CENT
        hours = receipt.cost_usd / row.price_hour
        assert hours == pytest.approx(math.ceil(A_WHILE / 3600))
        assert receipt.cost_source == "computed by started hours"


# ---------------------------------------------------------------- asking again, in memory


def test_a_part_of_a_bill_is_none(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    receipt = used_for_a_while(fleet, clock, "memory", Want())
    ended = row_of(fleet, receipt).ended_at
    assert ended is not None
    early = Billed(Decimal("0.10"), ended - timedelta(minutes=10), "memory billing")
    monkeypatch.setattr(cloud, "billed", lambda _id: early)
    assert settle_bills(fleet, fleet.ledger.machines()) == []
    assert not is_billed(row_of(fleet, receipt))


def test_who_does_not_answer_is_asked_once_and_named(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        used_for_a_while(fleet, clock, "memory", Want())
    asked: list[str] = []

    def down(provider_id: str) -> Billed:
        asked.append(provider_id)
        raise Ambiguous("503")

    monkeypatch.setattr(cloud, "billed", down)
    [trouble] = settle_bills(fleet, fleet.ledger.machines())
    assert (trouble.provider, trouble.kind) == ("memory", "Ambiguous")
    assert len(asked) == 1


# ---------------------------------------------------------------------------- pure


@given(
    seconds=st.floats(0, 10 * 86400),
    step=st.one_of(st.none(), st.sampled_from([1.0, 60.0, 3600.0])),
)
def test_a_step_that_was_begun_is_charged(seconds: float, step: float | None) -> None:
    end = START + timedelta(seconds=seconds)
    until = billed_until(START, end, step)
    assert until >= end
    if step is None:
        assert until == end
    else:
        assert until - end < timedelta(seconds=step)
        assert (until - START) % timedelta(seconds=step) == timedelta(0)


STAY = aws_billing.Stay("us-east-1", True, "g5.xlarge", "us-east-1a", START, Decimal("0.50"))


def test_each_hour_of_a_machine_has_the_price_at_which_it_began() -> None:
    changes = [
        (START - timedelta(days=1), Decimal("0.40")),
        (START + timedelta(minutes=30), Decimal("0.60")),  # counts from the second hour on
        (START + timedelta(minutes=90), Decimal("0.30")),  # and this from the third
    ]
    ended = START + timedelta(hours=2, minutes=30)
    beside = Decimal("0.10")  # its disk and address: what was on its tag beside the price
    rest = Decimal("0.5")
    expected = Decimal("0.40") + Decimal("0.60") + rest * Decimal("0.30") + beside * (2 + rest)
    assert aws_billing.charged(STAY, changes, ended) == expected


@given(
    prices=st.lists(st.decimals(0, 10, places=4), min_size=1, max_size=8),
    hours=st.floats(0, 40),
)
def test_a_price_that_stands_still_costs_hours_times_price(
    prices: list[Decimal], hours: float
) -> None:
    ended = START + timedelta(hours=hours)
    still = [(START - timedelta(hours=n), prices[0]) for n in range(len(prices))]
    cost = aws_billing.charged(STAY, sorted(still), ended)
    assert cost == pytest.approx(Decimal("0.5") * Decimal(str(hours)), abs=Decimal("0.00001"))
    wild = [(START + timedelta(hours=n), price) for n, price in enumerate(prices)]
    assert aws_billing.charged(STAY, wild, ended) >= 0
