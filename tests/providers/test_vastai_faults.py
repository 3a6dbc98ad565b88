"""Vast.ai at its worst: lost answers, bids, taken offers, refusals; and what each of it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from gpuctl.fleet.presence import prove_absent
from providers import http_client
from providers.base import (
    Ambiguous,
    AuthFailed,
    NotFound,
    PriceChanged,
    QuotaExceeded,
    RateLimited,
    State,
)
from tests.clouds.http_cloud import Request
from tests.providers.vastai_bench import KEY, NAME, RTX, VastBench, ready, vast_bench


@pytest.fixture
def vast(tmp_path: Path) -> Iterator[VastBench]:
    """An account with nothing rented, at the documented pace."""
    with vast_bench(tmp_path / "home") as made:
        yield made


def price_now(vast: VastBench, id: str) -> Decimal:
    """What the books have it cost an hour now."""
    return vast.cloud.contracts.books.things[id].spans[-1].price_hour


# ---------------------------------------------------------------------------- creating


@pytest.mark.parametrize("switch", ["create_502_after_commit", "create_timeout_after_commit"])
@pytest.mark.parametrize("lag", [0, 20])
def test_a_create_that_took_effect_unheard_is_found_by_its_name(
    vast: VastBench, monkeypatch: pytest.MonkeyPatch, switch: str, lag: float
) -> None:
    order = vast.order()
    monkeypatch.setattr(http_client, "READ_SECONDS", 0.2)
    setattr(vast.cloud.switches, switch, 1)
    vast.cloud.switches.times.list_lag = lag
    with pytest.raises(Ambiguous):
        vast.provider.create(order)
    assert len(vast.books()) == 1
    monkeypatch.setattr(http_client, "READ_SECONDS", 10)
    proof = prove_absent(
        vast.provider, NAME, None, vast.clock, deadline=vast.clock.monotonic() + 90, until_seen=True
    )
    assert proof.machine is not None
    assert vast.books() == {proof.machine.provider_id: NAME}


def test_an_offer_taken_meanwhile_where_nobody_heeds_our_wish(vast: VastBench) -> None:
    """`cancel_unavail` is ignored: a stopped instance is left, whose disk bills, and is told."""
    vast.cloud.switches.taken_at_create = 1
    vast.cloud.switches.cancel_ignored = True
    made = vast.provider.create(vast.order())
    assert (made.state, made.status) == (State.STOPPED, "provisioning, waiting for its GPUs")
    assert made.price_hour == price_now(vast, made.provider_id).quantize(Decimal("0.000001"))
    assert vast.provider.destroy(made.provider_id) == "200 destroyed"  # as fleet does
    assert vast.books() == {}


def test_a_new_account_that_may_not_spend_so_much(vast: VastBench) -> None:
    order = vast.order()
    vast.cloud.switches.spend_rate_limit = True
    with pytest.raises(QuotaExceeded, match="spend rate"):
        vast.provider.create(order)
    assert vast.books() == {}


def test_a_refused_bid_whose_instance_is_not_shown_yet_stays_in_doubt(vast: VastBench) -> None:
    order = vast.order(spot=True)
    vast.cloud.switches.floor_rises = Decimal(2)
    vast.cloud.switches.times.list_lag = 25
    vast.cloud.switches.lag_hides_from_destroy = True
    with pytest.raises(Ambiguous, match="left a stopped instance"):
        vast.provider.create(order)
    proof = prove_absent(
        vast.provider, NAME, None, vast.clock, deadline=vast.clock.monotonic() + 90, until_seen=True
    )
    assert proof.machine is not None
    assert vast.provider.destroy(proof.machine.provider_id) == "200 destroyed"
    assert vast.books() == {}


def test_prices_of_bids_in_the_columns_of_on_demand(vast: VastBench) -> None:
    """Nobody knows which price a search of type `bid` has there; a bid is a bid either way."""
    vast.cloud.switches.bids_in_total = True
    offer = vast.provider.offers(replace(RTX, spot=True))[0]
    made = vast.provider.create(vast.order(spot=True))
    assert made.spot
    assert made.price_hour == offer.price_hour
    assert made.price_hour < vast.provider.offers(replace(RTX, spot=False))[0].price_hour
    with pytest.raises(PriceChanged):
        vast.provider.create(vast.order(spot=True, max_price_hour=Decimal("0.01")))


def test_an_end_that_is_accepted_and_ignored_is_asked_for_again(vast: VastBench) -> None:
    id = ready(vast)
    vast.cloud.switches.destroy_ignored = 2
    assert vast.provider.destroy(id) == "200 destroyed"
    proof = prove_absent(
        *(vast.provider, NAME, id, vast.clock),
        deadline=vast.clock.monotonic() + 300,
        again=lambda: vast.provider.destroy(id) and None,
    )
    assert proof.absent
    assert vast.books() == {}


# ---------------------------------------------------------------------------- stopped, outbid


@pytest.mark.parametrize("word", ["exited", "stopped", "created"])
@pytest.mark.parametrize("intended", ["stopped", "running"])
def test_outbid_by_whatever_name(vast: VastBench, word: str, intended: str) -> None:
    vast.cloud.switches.stopped_as = word  # type: ignore[assignment]
    vast.cloud.switches.outbid_intended = intended  # type: ignore[assignment]
    vast.cloud.switches.stopped_storage = Decimal(3)  # dearer than while it ran
    id = ready(vast, spot=True)
    running = price_now(vast, id)
    vast.cloud.outbid(int(id))
    found = vast.provider.get(id)
    assert (found.state, found.reason) == (State.STOPPED, "interrupted")
    assert found.price_hour == price_now(vast, id).quantize(Decimal("0.000001"))
    assert 0 < price_now(vast, id) < running


def test_outbid_and_never_back(vast: VastBench) -> None:
    vast.cloud.switches.auto_resume = False
    id = ready(vast, spot=True)
    vast.cloud.contracts.outbid(int(id))
    vast.cloud.contracts.strangers_leave()
    vast.clock.pass_time(600)
    assert vast.provider.get(id).state is State.STOPPED
    assert list(vast.books()) == [id]  # its disk bills on


def test_outbid_before_it_ever_ran_is_not_waited_for(vast: VastBench) -> None:
    made = vast.provider.create(vast.order(spot=True))
    vast.clock.pass_time(10)
    assert vast.provider.get(made.provider_id).state is State.BOOTING
    vast.cloud.contracts.outbid(int(made.provider_id))
    found = vast.provider.get(made.provider_id)
    assert (found.state, found.reason) == (State.STOPPED, "interrupted")


def test_paused_in_memory_its_gpus_are_billed(vast: VastBench) -> None:
    id = ready(vast)
    running = vast.provider.get(id).price_hour
    vast.cloud.contracts.freeze(int(id))
    found = vast.provider.get(id)
    assert (found.state, found.price_hour) == (State.STOPPED, running)
    assert price_now(vast, id).quantize(Decimal("0.000001")) == running


@pytest.mark.parametrize("word", ["offline", "unknown"])
def test_a_host_that_is_down_bills_nothing_and_is_not_gone(vast: VastBench, word: str) -> None:
    vast.cloud.switches.down_as = word  # type: ignore[assignment]
    id = ready(vast)
    vast.cloud.contracts.host_down(int(id))
    assert vast.provider.get(id).state is State.LOST
    assert price_now(vast, id) == 0
    vast.cloud.contracts.host_down(int(id), down=False)
    assert vast.provider.get(id).state is State.READY
    assert price_now(vast, id) > 0


def test_at_the_end_of_a_hosts_offer_it_stops_and_goes(vast: VastBench) -> None:
    vast.cloud.contracts.credit = Decimal(10**6)
    vast.cloud.contracts.hosts[2].days_left = 0.5
    id = ready(vast)
    vast.clock.pass_time(12 * 3600)
    assert vast.provider.get(id).state is State.STOPPED
    assert not vast.cloud.contracts.start(vast.cloud.contracts.all[int(id)])
    vast.clock.pass_time(48 * 3600)
    with pytest.raises(NotFound):
        vast.provider.get(id)
    assert vast.books() == {}


# ---------------------------------------------------------------------------- money


def test_traffic_is_on_the_bill(vast: VastBench) -> None:
    vast.cloud.switches.pull_gb = 20
    id = ready(vast)
    contract = vast.cloud.contracts.all[int(id)]
    vast.cloud.contracts.traffic(contract, down=100, up=50)
    vast.clock.pass_time(3600)
    vast.provider.destroy(id)
    billed = vast.provider.billed(id)
    books = vast.cloud.contracts.books
    traffic = 120 * contract.ask.host.inet_down_cost + 50 * contract.ask.host.inet_up_cost
    assert billed is not None
    assert abs(billed.amount - books.billed(id, vast.clock.now())) < Decimal("0.0001")
    assert billed.amount > traffic > Decimal("0.4")


# ---------------------------------------------------------------------------- keys and limits


def test_a_second_factor_that_is_asked_for_again(vast: VastBench) -> None:
    id, order = ready(vast), vast.order()
    vast.cloud.switches.session_expired = True
    verbs: tuple[Callable[[], object], ...] = (
        vast.provider.list,
        lambda: vast.provider.get(id),
        lambda: vast.provider.destroy(id),
        lambda: vast.provider.offers(RTX),
        lambda: vast.provider.create(order),
    )
    for verb in verbs:
        with pytest.raises(AuthFailed, match="expired"):
            verb()
    assert list(vast.books()) == [id]


@pytest.mark.parametrize("missing", ["instance_read", "instance_write"])
def test_a_key_that_lacks_a_right(vast: VastBench, missing: str) -> None:
    order = vast.order()
    rights = {"instance_read", "instance_write", "misc", "user_read", "user_write"}
    vast.cloud.scopes["narrow"] = rights - {missing}
    narrow = vast.again(VAST_API_KEY="narrow")
    verb = narrow.list if missing == "instance_read" else lambda: narrow.create(order)
    with pytest.raises(AuthFailed, match="right"):
        verb()
    assert vast.books() == {}


@pytest.mark.parametrize("missing", [{"user_write"}, {"user_read", "user_write"}])
def test_a_key_that_may_not_register_ssh_keys_attaches_them(
    vast: VastBench, missing: set[str]
) -> None:
    rights = {"instance_read", "instance_write", "misc", "user_read", "user_write"}
    vast.cloud.scopes["narrow"] = rights - missing
    made = vast.again(VAST_API_KEY="narrow").create(vast.order())
    assert vast.cloud.ssh_keys == {}
    contract = vast.cloud.contracts.all[int(made.provider_id)]
    assert [key["public_key"] for key in contract.ssh_keys] == [KEY]


def test_doctor_tells_a_key_that_may_only_look(vast: VastBench) -> None:
    vast.cloud.scopes["narrow"] = {"instance_read", "misc", "user_read"}
    found = {one.name: one for one in vast.again(VAST_API_KEY="narrow").check()}
    assert (found["key"].ok, found["rights"].ok) == (True, False)
    assert "instance_write" in found["rights"].detail
    found = {one.name: one for one in vast.provider.check()}
    assert found["rights"].ok
    assert vast.cloud.contracts.books.things == {}


def test_paths_are_never_redirected(vast: VastBench) -> None:
    vast.cloud.switches.slash_308 = True
    id = ready(vast, spot=True)
    vast.provider.list()
    vast.provider.check()
    vast.provider.destroy(id)
    vast.provider.billed(id)
    assert 308 not in {line.status for line in vast.cloud.log}


def test_a_server_without_a_cap_on_searches(vast: VastBench) -> None:
    vast.cloud.switches.search_cap = None
    assert [offer.gpu for offer in vast.provider.offers(RTX)]


@pytest.mark.parametrize("form", ["text", "detail", "error"])
def test_limits_twice_as_strict_as_documented(vast: VastBench, form: str) -> None:
    """A factor in the answer says so; nothing is lost, made twice or left."""
    vast.cloud.switches.pacing = 2
    vast.cloud.switches.too_many = form  # type: ignore[assignment]
    id = ready(vast)
    for _ in range(3):
        assert [one.provider_id for one in vast.provider.list()] == [id]
        assert vast.provider.get(id).state is State.READY
    assert vast.provider.destroy(id) == "200 destroyed"
    assert vast.cloud.refused  # it was told off, and waited
    assert all(line.startswith("GET ") for line in vast.cloud.refused)
    assert vast.books() == {}


def test_the_days_searches_are_back_at_midnight(vast: VastBench) -> None:
    vast.cloud.switches.search_quota = True
    with pytest.raises(RateLimited, match="until midnight UTC") as caught:
        vast.provider.offers(RTX)
    vast.clock.pass_time(caught.value.retry_after)
    assert (vast.clock.now().hour, vast.clock.now().minute) == (0, 0)
    assert len(vast.cloud.requests("POST", "/bundles/")) == 1


def test_searches_are_counted_by_address_not_by_key(vast: VastBench) -> None:
    """Somebody else here has made ten in this minute, with another key."""
    vast.cloud.scopes["other"] = {"misc"}
    headers = {"authorization": "Bearer other"}
    for _ in range(10):
        vast.cloud.gate(Request("POST", "/api/v0/bundles/", {}, headers, b"{}"))
    with pytest.raises(RateLimited) as caught:
        vast.provider.offers(RTX)
    vast.clock.pass_time(max(caught.value.retry_after, 60))
    assert vast.provider.offers(RTX)
