"""The `vastai` provider: the shared suite, and what Vast.ai in particular gets wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from providers import http_client, vastai
from providers.base import (
    Ambiguous,
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    PriceChanged,
    ProviderError,
    RateLimited,
    State,
    Want,
)
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


def ready(vast: VastBench, *, spot: bool = False) -> str:
    """Rent one and wait until it runs; return its id."""
    machine = vast.provider.create(vast.order(spot=spot))
    vast.clock.pass_time(200)
    assert vast.provider.get(machine.provider_id).state is State.READY
    return machine.provider_id


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
    rows = vast.cloud._search
    vast.cloud._search = lambda query: _cheaper(rows(query))  # type: ignore[method-assign]
    with pytest.raises(Ambiguous, match="left a stopped instance"):
        vast.provider.create(order)
    assert vast.books() == {}
    assert len(cloud.books.things) == 1  # it was there


def _cheaper(reply: Reply) -> Reply:
    """The floor rose after the search was answered."""
    for row in reply.body["offers"]:
        row["min_bid"] /= 2
    return reply


def test_a_bid_below_the_floor_that_cannot_be_undone_stays_in_doubt(vast: VastBench) -> None:
    order = vast.order(spot=True)
    rows = vast.cloud._search
    vast.cloud._search = lambda query: _cheaper(rows(query))  # type: ignore[method-assign]
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


# ---------------------------------------------------------------------------- keys


@pytest.mark.parametrize("status", [401, 404])
def test_a_bad_key_is_never_taken_for_an_absence(vast: VastBench, status: int) -> None:
    id, order = ready(vast), vast.order()
    vast.cloud.switches.bad_key_status = status  # type: ignore[assignment]
    stranger = vast.again(VAST_API_KEY="wrong")
    verbs = (
        stranger.list,
        lambda: stranger.get(id),
        lambda: stranger.destroy(id),
        lambda: stranger.offers(RTX),
        lambda: stranger.create(order),
        stranger.check,
        stranger.leftovers,
    )
    for verb in verbs:
        with pytest.raises(AuthFailed) as caught:
            verb()
        assert "wrong" not in str(caught.value)
    assert list(vast.books()) == [id]


def test_a_session_that_expired_is_a_bad_key(vast: VastBench) -> None:
    told = {"success": False, "msg": "Session expired. Please log in again."}
    fault = Fault("/v1/instances", how="answer", reply=Reply(404, told))
    vast.cloud.faults.append(fault)
    with pytest.raises(AuthFailed, match="expired"):
        vast.provider.list()


def test_a_key_that_may_only_read(vast: VastBench) -> None:
    id = ready(vast)
    vast.cloud.readers.add("reader")
    reader = vast.again(VAST_API_KEY="reader")
    assert len(reader.list()) == 1
    with pytest.raises(AuthFailed, match="right"):
        reader.destroy(id)
    assert list(vast.books()) == [id]


def test_keys_are_found_where_the_official_tool_keeps_them(tmp_path: Path) -> None:
    home = tmp_path / "h"
    old, new = home / ".vast_api_key", home / ".config/vastai/vast_api_key"
    new.parent.mkdir(parents=True)

    def key(**more: str) -> str | None:
        return vastai.read_settings({"HOME": str(home), **more}).key

    assert key() is None
    old.write_text("old\n")
    assert key() == "old"
    new.write_text("new\n")
    assert key() == "new"
    assert key(VAST_API_KEY="mine") == "mine"
    assert key(XDG_CONFIG_HOME=str(tmp_path / "elsewhere")) == "old"


# ---------------------------------------------------------------------------- limits


@pytest.mark.parametrize("form", ["text", "detail", "error"])
@pytest.mark.parametrize("header", [None, "7"])
def test_reads_wait_out_a_429(vast: VastBench, form: str, header: str | None) -> None:
    vast.cloud.switches.too_many = form  # type: ignore[assignment]
    vast.cloud.switches.retry_after = header
    vast.cloud.gate(_list_of(vast))  # somebody else with this key has just asked
    assert vast.provider.list() == []
    assert len(vast.cloud.refused) == 1
    assert max(vast.clock.slept) >= (7 if header else 1)


def _list_of(vast: VastBench):  # type: ignore[no-untyped-def]
    from tests.clouds.http_cloud import Request

    headers = {"authorization": f"Bearer {vast.cloud.key}"}
    return Request("GET", "/api/v1/instances/", {}, headers, b"")


def test_a_429_that_asks_for_ten_minutes_is_told_at_once(vast: VastBench) -> None:
    vast.cloud.switches.retry_after = "600"
    vast.cloud.gate(_list_of(vast))
    with pytest.raises(RateLimited) as caught:
        vast.provider.list()
    assert caught.value.retry_after == 600
    assert len(vast.cloud.refused) == 1


def test_a_429_on_destroy_makes_the_next_one_wait(vast: VastBench) -> None:
    id = ready(vast)
    reply = Reply(429, {"detail": "API requests too frequent endpoint threshold=3.0"})
    vast.cloud.faults.append(Fault("/instances/", "DELETE", how="answer", reply=reply))
    with pytest.raises(RateLimited):
        vast.provider.destroy(id)
    before = vast.clock.now()
    assert vast.provider.destroy(id) == "200 destroyed"
    assert (vast.clock.now() - before).total_seconds() >= 3
    assert vast.books() == {}


def test_searches_that_are_used_up_are_told_with_the_time_to_wait(vast: VastBench) -> None:
    for _ in range(5):
        vast.provider.offers(RTX)
    with pytest.raises(RateLimited, match="10 such calls") as caught:
        vast.provider.offers(RTX)
    assert 12 < caught.value.retry_after <= 61
    vast.clock.pass_time(caught.value.retry_after)
    assert vast.provider.offers(RTX)
    assert vast.cloud.refused == []


def test_the_days_searches_are_used_up(vast: VastBench) -> None:
    vast.cloud.switches.search_quota = True
    with pytest.raises(RateLimited, match="search_quota_exceeded"):
        vast.provider.offers(RTX)
    assert len(vast.cloud.requests("POST", "/bundles/")) == 1


def test_two_processes_keep_the_pace_together(vast: VastBench) -> None:
    other = vast.again()
    for _ in range(3):
        vast.provider.list()
        other.list()
    assert vast.cloud.refused == []


def test_a_home_that_cannot_be_written_keeps_nobody_from_ending(vast: VastBench) -> None:
    id = ready(vast)
    pace = vast.home / "vastai"
    for file in pace.iterdir():
        file.unlink()
    pace.rmdir()
    pace.write_text("a file where a folder should be")
    vast.provider.list()
    vast.provider.list()
    assert vast.provider.destroy(id) == "200 destroyed"
    assert vast.cloud.refused == []


# ---------------------------------------------------------------------------- listing


def rent_many(vast: VastBench, count: int) -> None:
    """So many instances of another tool."""
    host = vast.cloud.contracts.hosts[0]
    vast.cloud.contracts.credit = Decimal(10**6)
    for number in range(count):
        ask = vast.cloud.contracts.asks()[0]
        vast.cloud.contracts.hosts[0] = replace(host, id=10_000 + number)
        ask = vast.cloud.contracts.asks()[0]
        vast.cloud.contracts.rent(ask, {"image": "x", "label": f"n{number}"}, None, ())


def test_500_instances_are_listed_within_the_pace_and_no_slower(vast: VastBench) -> None:
    rent_many(vast, 500)
    before = vast.clock.now()
    assert len(vast.provider.list()) == 500
    took = (vast.clock.now() - before).total_seconds()
    assert vast.cloud.refused == []
    assert took <= 20 * 1.1  # 20 pages, a second apart


def test_who_waits_for_the_same_list_shares_it(vast: VastBench) -> None:
    rent_many(vast, 60)
    gate = threading.Event()
    serve = vast.cloud.serve
    vast.cloud.serve = lambda request: gate.wait(10) and serve(request)  # type: ignore[method-assign, assignment, return-value]
    with ThreadPoolExecutor(9) as pool:
        lists = [pool.submit(vast.provider.list) for _ in range(9)]
        assert until(lambda: sum(one.running() for one in lists) == 9, 5)
        gate.set()
        assert all(len(one.result(20)) == 60 for one in lists)
    assert len(vast.cloud.requests("GET", "/v1/instances")) <= 3 * 3


def test_a_short_list_is_not_taken_for_the_whole(vast: VastBench) -> None:
    rent_many(vast, 30)
    vast.cloud.switches.list_short = 1
    with pytest.raises(Ambiguous, match="of 30 instances"):
        vast.provider.list()


@pytest.mark.parametrize("answer", ["410", "200"])
def test_a_retired_list_is_not_an_empty_account(vast: VastBench, answer: str) -> None:
    """The one that we use might be retired as the one before was."""
    body = {"success": False, "error": "deprecated_endpoint", "msg": "Use another."}
    fault = Fault("/v1/instances", how="answer", reply=Reply(int(answer), body), times=None)
    vast.cloud.faults.append(fault)
    with pytest.raises(Ambiguous, match="retired"):
        vast.provider.list()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"instances": null}',
        b'{"instances": {}}',
        b'{"instances": [1]}',
        b'{"success": false, "instances": []}',
        b"<html>",
    ],
)
def test_an_odd_list_is_not_an_empty_one(vast: VastBench, body: bytes) -> None:
    fault = Fault("/v1/instances", how="answer", reply=Reply(200, body), times=None)
    vast.cloud.faults.append(fault)
    with pytest.raises(Ambiguous):
        vast.provider.list()


def test_an_empty_account_may_say_null(vast: VastBench) -> None:
    vast.cloud.switches.null_when_empty = True
    assert vast.provider.list() == []


def test_lists_that_lag_and_lie_are_told_as_they_come(vast: VastBench) -> None:
    """Fleet settles such doubts: two looks, a settling period apart, at both calls."""
    vast.cloud.switches.times.list_lag = 20
    machine = vast.provider.create(vast.order())
    assert (machine.state, machine.price_hour) == (State.BOOTING, None)
    assert vast.provider.list() == []
    vast.clock.pass_time(vast.provider.capabilities.settle_seconds)
    assert [one.name for one in vast.provider.list()] == [NAME]
    vast.cloud.switches.list_lies_empty = vast.cloud.switches.get_lies_null = 1
    assert vast.provider.list() == []
    with pytest.raises(NotFound):
        vast.provider.get(machine.provider_id)
    assert vast.provider.get(machine.provider_id).name == NAME


def test_odd_columns_cost_only_what_they_tell(vast: VastBench) -> None:
    id = ready(vast)
    vast.cloud.switches.odd_rows = frozenset(
        {"ports", "extra_env", "start_date", "cpu_cores", "cpu_cores_effective", "geolocation"}
    )
    [found] = vast.provider.list()
    assert (found.provider_id, found.name, found.state) == (id, NAME, State.READY)
    assert found.region == "SE"
    assert vast.provider.offers(RTX)[0].region == "unknown"


# ---------------------------------------------------------------------------- ending


@pytest.mark.parametrize("status", [404, 200])
def test_a_second_destroy_is_accepted(vast: VastBench, status: int) -> None:
    id = ready(vast)
    vast.cloud.switches.second_delete = status  # type: ignore[assignment]
    before = len(vast.cloud.log)
    assert vast.provider.destroy(id) == "200 destroyed"
    assert vast.provider.destroy(id) == f"{status} absent already"
    assert [one.method for one in vast.cloud.log[before:]] == ["DELETE", "DELETE"]  # no look-up


def test_a_destroy_that_is_refused_with_a_200_is_not_accepted(vast: VastBench) -> None:
    id = ready(vast)
    body = {"success": False, "msg": "cannot do that now"}
    vast.cloud.faults.append(Fault("/instances/", "DELETE", how="answer", reply=Reply(200, body)))
    with pytest.raises(ProviderError, match="cannot do that now"):
        vast.provider.destroy(id)


def test_stopped_bills_on_and_is_not_gone(vast: VastBench) -> None:
    id = ready(vast)
    vast.cloud.contracts.stop(vast.cloud.contracts.all[int(id)])
    found = vast.provider.get(id)
    assert (found.state, found.reason) == (State.STOPPED, None)
    before = vast.cloud.contracts.books.billed(id, vast.clock.now())
    vast.clock.pass_time(3600)
    assert vast.cloud.contracts.books.billed(id, vast.clock.now()) > before
    assert [one.provider_id for one in vast.provider.list()] == [id]


def test_what_was_billed_is_what_the_books_say(vast: VastBench) -> None:
    id = ready(vast)
    vast.clock.pass_time(3600)
    vast.provider.destroy(id)
    billed = vast.provider.billed(id)
    assert billed is not None
    said = vast.cloud.contracts.books.billed(id, vast.clock.now())
    assert abs(billed.amount - said) < Decimal("0.0001")
    assert vast.provider.billed("999999999") is None


def test_charges_that_lag_are_not_the_whole_bill(vast: VastBench) -> None:
    id = ready(vast)
    vast.cloud.switches.charges_lag = 600
    vast.clock.pass_time(3600)
    vast.provider.destroy(id)
    assert vast.provider.billed(id) is None
    vast.clock.pass_time(600)
    assert vast.provider.billed(id) is not None


def test_the_clocks_are_compared(vast: VastBench) -> None:
    clock = type(vast.clock)(vast.clock.now())
    clock.pass_time(600)
    settings = {"VAST_URL": vast.cloud.url, "VAST_API_KEY": vast.cloud.key}
    far = vastai.VastProvider.from_environment(settings, home=vast.home / "x", clock=clock)
    findings = {one.name: one for one in far.check()}
    assert not findings["clock"].ok
    assert "ahead" in findings["clock"].detail
    assert all(one.ok for one in vast.provider.check())
