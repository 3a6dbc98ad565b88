"""The `vastai` provider: the shared suite, and what Vast.ai in particular gets wrong."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from providers import http_client
from providers.base import (
    Ambiguous,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    PriceChanged,
    State,
    Want,
)
from providers.vastai_boot import END_PROGRAM
from providers.vastai_machines import STATES, read_state
from tests.clouds.http_cloud import Fault, Reply
from tests.conformance.provider_suite import Bench, ProviderSuite
from tests.providers.vastai_bench import KEY, NAME, RTX, VastBench, vast_bench
from tests.waiting import until


@pytest.fixture
def vast(tmp_path: Path) -> Iterator[VastBench]:
    """An account with nothing rented."""
    with vast_bench(tmp_path / "home") as made:
        yield made


class TestVastAi(ProviderSuite):
    """What every provider must pass, within the documented rate limits."""

    @pytest.fixture
    def bench(self, vast: VastBench) -> Bench:
        def foreign() -> str:
            ask = next(ask for ask in vast.cloud.contracts.asks() if ask.host.id == 108)
            body = {"image": "x", "label": "somebody's own"}
            return str(vast.cloud.contracts.rent(ask, body, None, ()).id)

        def broken() -> None:
            vast.cloud.faults.append(Fault(method="GET", how="drop", times=None))

        return Bench(
            provider=vast.provider,
            books=vast.books,
            want=Want(disk_gb=1, gpus=("RTX-4090",)),
            pass_time=vast.clock.pass_time,
            unknown_id="999999999",
            break_reads=broken,
            add_unmarked=foreign,
            status_map=(STATES, read_state),
            ready_seconds=300,
        )

    @pytest.fixture(autouse=True)
    def within_limits(self, vast: VastBench) -> Iterator[None]:
        yield
        assert vast.cloud.refused == []
        assert all(agent.startswith("gpuctl/") for agent in vast.cloud.agents)


# ---------------------------------------------------------------------------- creating


def test_the_create_call_is_what_the_contract_asks_for(vast: VastBench) -> None:
    machine = vast.provider.create(vast.order(spot=True, image="pytorch/pytorch:2.8.0"))
    body = vast.created()
    assert body["cancel_unavail"] is True
    assert body["image"] == "pytorch/pytorch:2.8.0"
    assert body["runtype"] == "ssh_direc ssh_proxy"
    assert body["label"].split()[0] == NAME == machine.name
    assert len(body["label"]) <= 256
    assert len(body["onstart"]) <= 4048
    assert KEY in body["onstart"]
    assert float(body["price"]) == pytest.approx(0.165)  # 10 % above the lowest that is taken
    assert machine.price_hour == Decimal("0.173333")
    assert machine.spot


def test_the_account_key_is_nowhere_but_in_the_header(vast: VastBench) -> None:
    machine = vast.provider.create(vast.order())
    vast.provider.list()
    vast.provider.destroy(machine.provider_id)
    key = vast.cloud.key
    for line in vast.cloud.log:
        assert key.encode() not in line.body
        assert key not in line.path + json.dumps(dict(line.query))
    assert machine.self_end is not None
    assert key not in " ".join(machine.self_end.argv)
    files = [file for file in vast.home.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if key in file.read_text()]


def test_the_bid_margin_is_a_setting(vast: VastBench) -> None:
    bids = {}
    for percent in ("0", "50"):
        offers = vast.again(GPUCTL_VASTAI_BID_MARGIN=percent).offers(replace(RTX, spot=True))
        bids[percent] = offers[0].price_hour
    storage = Decimal("0.008333")
    assert bids == {"0": Decimal("0.15") + storage, "50": Decimal("0.225") + storage}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GPUCTL_VASTAI_BID_MARGIN", "lots"),
        ("GPUCTL_VASTAI_BID_MARGIN", "-5"),
        ("GPUCTL_VASTAI_SSH_PORT", "0"),
        ("VAST_URL", "console.vast.ai"),
    ],
)
def test_malformed_settings_are_named(vast: VastBench, name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        vast.again(**{name: value})


def test_a_lost_reply_is_in_doubt_and_the_machine_is_found_by_its_name(vast: VastBench) -> None:
    vast.cloud.faults.append(Fault("/asks/", "PUT", "after", "drop"))
    with pytest.raises(Ambiguous):
        vast.provider.create(vast.order())
    [found] = vast.provider.list()
    assert (found.name, len(vast.cloud.requests("PUT", "/asks/"))) == (NAME, 1)
    assert vast.books() == {found.provider_id: NAME}


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_5xx_on_create_is_in_doubt_and_never_repeated(vast: VastBench, status: int) -> None:
    reply = Reply(status, b"<html>bad gateway</html>", {"Content-Type": "text/html"})
    vast.cloud.faults.append(Fault("/asks/", "PUT", "after", "answer", reply))
    with pytest.raises(Ambiguous):
        vast.provider.create(vast.order())
    assert len(vast.cloud.requests("PUT", "/asks/")) == 1
    assert len(vast.books()) == 1


def test_a_create_that_hangs_is_in_doubt(vast: VastBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "READ_SECONDS", 0.3)
    order = vast.order()
    vast.cloud.faults.append(Fault("/asks/", "PUT", "after", "hang", seconds=2))
    with pytest.raises(Ambiguous, match="did not answer"):
        vast.provider.create(order)
    assert until(lambda: len(vast.books()) == 1, 5)


@pytest.mark.parametrize("form", ["text", "detail", "error"])
def test_too_many_on_a_create_is_in_doubt(vast: VastBench, form: str) -> None:
    """It has been seen together with an instance that was made."""
    vast.cloud.switches.too_many = form  # type: ignore[assignment]
    vast.cloud.switches.too_many_but_created = 1
    with pytest.raises(Ambiguous, match="may have been made"):
        vast.provider.create(vast.order())
    assert len(vast.cloud.requests("PUT", "/asks/")) == 1
    assert [machine.name for machine in vast.provider.list()] == [NAME]


@pytest.mark.parametrize("answer", [404, 410, 400, 200])
def test_an_offer_that_is_taken_meanwhile_rents_nothing(vast: VastBench, answer: int) -> None:
    vast.cloud.switches.offer_gone = answer  # type: ignore[assignment]
    vast.cloud.switches.taken_at_create = 1
    with pytest.raises(NoCapacity):
        vast.provider.create(vast.order())
    assert vast.books() == {}


def test_an_offer_whose_slices_are_rented_is_gone_before_anything_is_sent(vast: VastBench) -> None:
    order = vast.order(Want(gpus=("A100-40GB",), gpu_count=2))
    one = vast.order(Want(gpus=("A100-40GB",)))
    vast.provider.create(one)
    with pytest.raises(NoCapacity):
        vast.provider.create(order)
    assert len(vast.cloud.requests("PUT", "/asks/")) == 1


def test_a_bid_below_the_floor_leaves_nothing_behind(vast: VastBench) -> None:
    """The cloud says no, and makes a stopped instance all the same."""
    order = vast.order(spot=True)
    cloud = vast.cloud.contracts
    vast.cloud.switches.floor_rises = Decimal(2)
    with pytest.raises(Ambiguous, match="left a stopped instance"):
        vast.provider.create(order)
    assert vast.books() == {}
    assert len(cloud.books.things) == 1  # it was there


def test_a_bid_below_the_floor_that_cannot_be_undone_stays_in_doubt(vast: VastBench) -> None:
    order = vast.order(spot=True)
    vast.cloud.switches.floor_rises = Decimal(2)
    vast.cloud.faults.append(Fault("/instances/", "DELETE", how="drop"))
    with pytest.raises(Ambiguous, match="could not be ended at once"):
        vast.provider.create(order)
    [left] = vast.provider.list()
    assert (left.name, left.state, left.spot) == (NAME, State.STOPPED, True)


def test_a_bid_that_became_on_demand_is_not_kept(vast: VastBench) -> None:
    vast.cloud.switches.silent_on_demand = True
    with pytest.raises(Ambiguous, match="on-demand, not as ordered"):
        vast.provider.create(vast.order(spot=True))
    assert vast.books() == {}


def test_a_price_that_rose_since_the_quote_rents_nothing(vast: VastBench) -> None:
    order = vast.order()
    vast.cloud.contracts.hosts[2].price *= 2
    with pytest.raises(PriceChanged, match=r"costs \$0\.72"):
        vast.provider.create(order)
    with pytest.raises(PriceChanged):
        vast.provider.create(replace(order, max_price_hour=Decimal("0.5")))
    assert vast.cloud.requests("PUT", "/asks/") == []
    assert vast.provider.create(replace(order, max_price_hour=Decimal(1))).price_hour


def test_a_bid_is_lowered_to_the_cap_where_the_floor_allows(vast: VastBench) -> None:
    order = vast.order(spot=True, max_price_hour=Decimal("0.16"))
    made = vast.provider.create(order)
    assert made.price_hour == Decimal("0.16")


def test_a_price_that_changed_on_the_reply_is_told(vast: VastBench) -> None:
    vast.cloud.switches.reply_price = Decimal(3)
    order = vast.order(max_price_hour=Decimal("0.5"))
    made = vast.provider.create(order)  # fleet compares it with the cap, and releases
    assert made.price_hour == Decimal("1.088333")


def test_without_credit_nothing_is_rented(vast: VastBench) -> None:
    order = vast.order()
    vast.cloud.contracts.credit = Decimal(0)
    with pytest.raises(InsufficientFunds, match="credit"):
        vast.provider.create(order)
    findings = {one.name: one for one in vast.provider.check()}
    assert not findings["balance"].ok


@pytest.mark.parametrize("team", [False, True])
def test_the_ssh_key_gets_there(vast: VastBench, team: bool) -> None:
    vast.cloud.switches.team_account = team
    machine = vast.provider.create(vast.order())
    contract = vast.cloud.contracts.all[int(machine.provider_id)]
    assert KEY in [key["public_key"] for key in contract.ssh_keys]
    assert bool(vast.cloud.ssh_keys) is not team
    vast.again().create(vast.order(name=NAME[:-1] + "0"))
    assert len(vast.cloud.ssh_keys) == (0 if team else 1)  # once is enough


def test_a_key_that_could_not_be_attached_at_once_is_attached_later(vast: VastBench) -> None:
    vast.cloud.switches.team_account = True
    vast.cloud.switches.times.list_lag = 60
    machine = vast.provider.create(vast.order())
    contract = vast.cloud.contracts.all[int(machine.provider_id)]
    assert contract.ssh_keys == []
    vast.clock.pass_time(200)
    vast.provider.get(machine.provider_id)
    assert [key["public_key"] for key in contract.ssh_keys] == [KEY]


def test_what_a_machine_runs_is_python_3_8() -> None:
    ast.parse(END_PROGRAM, feature_version=(3, 8))
