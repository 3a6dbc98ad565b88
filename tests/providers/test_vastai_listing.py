"""Lists of Vast.ai that lag, lie and change; and how its instances end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from providers import vastai
from providers.base import (
    ABSENT,
    Ambiguous,
    NotFound,
    ProviderError,
    State,
)
from tests.clouds.http_cloud import Fault, Reply
from tests.providers.vastai_bench import NAME, RTX, VastBench, ready, vast_bench
from tests.waiting import until


@pytest.fixture
def vast(tmp_path: Path) -> Iterator[VastBench]:
    """An account with nothing rented."""
    with vast_bench(tmp_path / "home") as made:
        yield made


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
    assert vast.provider.destroy(id) == ABSENT
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


def test_the_bills_of_several_are_one_question(vast: VastBench) -> None:
    ids = [ready(vast), ready(vast)]
    for id in ids:
        vast.provider.destroy(id)
    before = len(vast.cloud.requests("GET", "/charges/"))
    assert all(vast.provider.billed(id) for id in ids)
    assert len(vast.cloud.requests("GET", "/charges/")) == before + 1


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
