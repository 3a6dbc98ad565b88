"""What AWS offers: every row whole, true, and orderable; and the parsers behind it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.aws_client import Patience
from providers.aws_launch import token
from providers.aws_machines import read_machine, read_mark, split
from providers.aws_prices import read_product, usd
from providers.aws_schedule import read_description
from providers.aws_types import quota_of, read_kind
from providers.base import NotFound, ProviderError, RateLimited, Unsupported, Want
from providers.gpus import find
from tests.clouds.aws_cloud.market import quota_code
from tests.clouds.aws_cloud.wire import json_refusal, throttled
from tests.clouds.http_cloud import Fault
from tests.providers.aws_bench import A10G, START, Account, account

__all__ = ["account"]


def test_every_type_is_offered_at_its_own_price(account: Account) -> None:
    offers = account.provider.offers(Want(gpus=("1GB+",), disk_gb=40, spot=False))
    prices = {offer.id: offer.price_hour for offer in offers}
    beside = Decimal(40) * Decimal("0.08") / 730 + Decimal("0.005")
    for name, price in (("g5.xlarge", "1.006"), ("g6e.xlarge", "1.861"), ("p5.4xlarge", "6.88")):
        found = prices[f"on-demand:us-east-1:{name}"]
        assert abs(found - Decimal(price) - beside) < Decimal("0.00001")


def test_cards_are_named_with_memory_and_form(account: Account) -> None:
    for count, wanted, name in (
        (8, "A100-40GB", "A100-40GB-SXM"),
        (8, "A100-80GB", "A100-80GB-SXM"),
        (1, "H100", "H100-80GB-SXM"),
        (1, "L40S", "L40S"),
    ):
        offers = account.provider.offers(Want(gpus=(wanted,), gpu_count=count))
        assert offers
        assert {offer.gpu for offer in offers} == {name}
        assert {offer.vram_gb for offer in offers} == {find(name).vram_gb}


def test_there_is_no_single_a100(account: Account) -> None:
    assert list(account.provider.offers(Want(gpus=("A100-40GB",), gpu_count=1))) == []


def test_a_slice_of_a_card_is_not_the_card(account: Account) -> None:
    offers = account.provider.offers(Want(gpus=("L4",)))
    assert not any(".g6f" in offer.id or ":g6f" in offer.id for offer in offers)


def test_what_is_not_sold_as_spot_has_no_spot_row(account: Account) -> None:
    for letter in "abcdef":
        account.cloud.market.spot["g5.xlarge", f"us-east-1{letter}"] = []
    ids = {offer.id for offer in account.provider.offers(A10G)}
    assert "spot:us-east-1:g5.xlarge" not in ids
    assert {"spot:us-east-1:g5.2xlarge", "on-demand:us-east-1:g5.xlarge"} <= ids


def test_the_price_in_force_counts_not_an_older_or_later_one(account: Account) -> None:
    account.cloud.market.spot["g5.xlarge", "us-east-1a"] = [
        (START - timedelta(days=30), Decimal("0.01")),
        (START - timedelta(hours=1), Decimal("0.20")),
        (START + timedelta(hours=1), Decimal("0.02")),
    ]
    offer = account.provider.offers(replace(A10G, spot=True))[0]
    assert Decimal("0.20") < offer.price_hour < Decimal("0.21")


def test_prices_of_the_list_that_are_zero_are_no_prices(account: Account) -> None:
    assert all(offer.price_hour > Decimal("0.1") for offer in account.provider.offers(A10G))


def test_old_prices_keep_their_date_and_are_not_shown_for_ever(account: Account) -> None:
    wanted = replace(A10G, spot=False)
    assert account.provider.offers(wanted)[0].as_of == START
    account.clock.pass_time(3600)
    assert account.another().offers(wanted)[0].as_of == START
    account.clock.pass_time(12 * 3600)
    account.cloud.faults.append(
        Fault("/pricing/", how="answer", reply=json_refusal("ThrottlingException", "x"), times=None)
    )
    with pytest.raises(RateLimited):
        account.another().offers(wanted)


def test_a_price_cap_is_compared_with_what_is_asked_for(account: Account) -> None:
    cap = Decimal("0.60")
    offers = account.provider.offers(replace(A10G, max_price_hour=cap, spot=None))
    assert offers
    assert all(offer.spot and offer.price_hour <= cap for offer in offers)


def test_storage_is_in_the_price(account: Account) -> None:
    small, big = (
        account.provider.offers(replace(A10G, disk_gb=size, spot=False))[0].price_hour
        for size in (1, 731)
    )
    assert abs(big - small - Decimal("0.08")) < Decimal("0.0001")


def test_machines_without_a_gpu(account: Account) -> None:
    offers = account.provider.offers(Want(cpus=8, memory_gb=16))
    assert offers
    assert all(o.gpu is None and (o.vcpus or 0) >= 8 and (o.ram_gb or 0) >= 16 for o in offers)
    from tests.providers.aws_bench import order

    machine = account.provider.create(order(offers[0]))
    assert (machine.gpu, machine.gpu_count) == (None, 0)


def test_placement_scores_are_asked_only_where_they_mean_something(account: Account) -> None:
    account.provider.offers(Want(gpus=("H100",), spot=True))  # one type
    assert account.cloud.requests("POST", "/GetSpotPlacementScores") == []
    account.provider.offers(replace(A10G, spot=True))
    assert len(account.cloud.requests("POST", "/GetSpotPlacementScores")) == 1


def test_zones_that_aws_thinks_little_of_come_last(account: Account) -> None:
    from tests.providers.aws_bench import launches, order, spot

    zones = {
        row["ZoneName"]: row["ZoneId"]
        for row in account.provider._aws.ec2("us-east-1").describe_availability_zones()[
            "AvailabilityZones"
        ]
    }
    market = account.cloud.market
    pools = [z for z in sorted(zones) if market.spot_changes("g5.xlarge", z)]
    cheapest = min(pools, key=lambda z: market.spot_changes("g5.xlarge", z)[0][1])
    market.scores[zones[cheapest]] = 1
    account.provider.create(order(spot(account)))
    [asked] = launches(account)
    [rental] = account.cloud.rentals.all.values()
    assert rental.zone != cheapest
    assert asked


def test_without_scores_everything_goes_on(account: Account) -> None:
    account.cloud.market.score_limit = 1
    account.cloud.faults.append(
        Fault("GetSpotPlacementScores", how="answer", reply=throttled(), times=1)
    )
    assert account.provider.offers(A10G)
    for want in (replace(A10G, cpus=8), replace(A10G, cpus=16), A10G):  # other sets of types
        account.clock.pass_time(601)
        assert account.another().offers(want)
    assert len(account.cloud.market.scored) == 1  # AWS has refused the others


def test_the_price_of_another_system_or_tenancy_is_never_shown(account: Account) -> None:
    """The list has a dozen rows for each type; one of them is meant."""
    offers = account.provider.offers(replace(A10G, spot=False))
    [small] = [one for one in offers if one.id == "on-demand:us-east-1:g5.xlarge"]
    assert abs(small.price_hour - Decimal("1.006") - Decimal("0.0051")) < Decimal("0.0001")
    elsewhere = account.another(GPUCTL_AWS_REGIONS="ap-southeast-2")  # the list is in three regions
    assert any(not one.spot for one in elsewhere.offers(A10G))


def test_regions_that_nobody_wants_are_not_asked(account: Account) -> None:
    assert list(account.provider.offers(replace(A10G, regions=("eu",)))) == []
    assert account.cloud.log == []


def test_one_dead_service_is_an_error_and_no_empty_list(account: Account) -> None:
    account.cloud.faults.append(Fault("/DescribeSpotPriceHistory", how="drop", times=None))
    with pytest.raises(ProviderError, match="spot prices"):
        account.provider.offers(replace(A10G, spot=True))


def test_a_quote_asks_for_what_it_needs(account: Account) -> None:
    account.provider.offers(replace(A10G, spot=False))
    assert len(account.cloud.log) == 2  # a price list of types, and the disks'
    account.cloud.log.clear()
    account.provider.offers(replace(A10G, spot=False))
    assert account.cloud.log == []


def test_the_cheapest_is_found_behind_the_pages_of_the_price_history(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.clouds.aws_cloud import wire

    account.cloud.market.spot["g5.48xlarge", "us-east-1f"] = [(START, Decimal("0.01"))]
    wanted = Want(gpus=("A10G",), gpu_count=8, spot=True, disk_gb=1)
    whole = account.provider.offers(wanted)
    account.cloud.log.clear()
    monkeypatch.setattr(wire, "_PAGE", 2)
    assert account.another().offers(wanted) == whole
    assert len(account.cloud.requests("POST", "/DescribeSpotPriceHistory")) > 1


def test_what_leaves_a_machine_is_billed_and_not_in_the_hour(account: Account) -> None:
    offers = account.provider.offers(A10G)
    assert {(offer.gb_in_price, offer.gb_out_price) for offer in offers} == {(0, Decimal("0.09"))}


def test_a_placement_score_that_hangs_is_hardly_waited_for(account: Account) -> None:
    """A hint: the client that asks for it is given up long after the prices are there."""
    hang = Fault("GetSpotPlacementScores", how="hang", seconds=30, times=None)
    account.cloud.faults.append(hang)
    began = time.monotonic()
    assert account.another(Patience()).offers(A10G)
    assert time.monotonic() - began < 20  # it would take 30


def test_a_container_is_refused_with_a_reason(account: Account) -> None:
    with pytest.raises(Unsupported, match="machines, not containers"):
        account.provider.offers(Want(image="ubuntu:24.04"))


# ------------------------------------------------------------------ parsers, whatever comes

JSON: Any = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner),
    max_leaves=12,
)
KEYS = st.sampled_from(["product", "terms", "attributes", "instanceType", "OnDemand", "USD"])


@given(st.recursive(JSON, lambda inner: st.dictionaries(KEYS, inner, max_size=4), max_leaves=8))
def test_no_product_breaks_the_price_list(value: Any) -> None:
    for _, price in read_product(json.dumps(value)):
        assert price > 0


@given(st.text())
def test_a_price_is_finite_and_not_negative(text: str) -> None:
    price = usd(text)
    assert price is None or (price.is_finite() and price >= 0)


@given(st.decimals(min_value="0.000001", max_value="999", places=6))
def test_prices_are_read_to_the_last_digit(price: Decimal) -> None:
    assert usd(f"{price:.10f}") == price


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=20)), st.text(max_size=400))
def test_no_tag_breaks_a_mark(tags: dict[str, str], end: str) -> None:
    mark = read_mark({**tags, "gpuctl:managed": "1", "gpuctl:owner": "a", "gpuctl:end": end})
    assert mark is None or mark.end.tzinfo is UTC


@given(st.text())
def test_no_description_breaks_a_schedule(text: str) -> None:
    mark = read_description(text)
    assert mark is None or mark.owner


@given(st.text())
def test_no_id_leads_anywhere_it_should_not(text: str) -> None:
    try:
        region, instance = split(text)
    except NotFound:
        return
    assert region
    assert instance.startswith("i-")


@given(st.dictionaries(st.text(max_size=12), st.text(max_size=12)), st.text(max_size=30))
def test_any_instance_can_be_read(tags: dict[str, str], status: str) -> None:
    row = {
        "InstanceId": "i-1",
        "State": {"Name": status},
        "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        "LaunchTime": datetime.now(UTC),
    }
    machine = read_machine(row, "eu-west-1", 22)
    assert machine.provider_id == "eu-west-1/i-1"
    assert machine.mark is None


def test_types_that_nobody_can_name_are_left_out() -> None:
    base = {
        "InstanceType": "g99.xlarge",
        "VCpuInfo": {"DefaultVCpus": 4},
        "MemoryInfo": {"SizeInMiB": 16384},
        "SupportedUsageClasses": ["spot"],
    }
    card = {"Name": "Q9000", "Manufacturer": "NVIDIA", "Count": 1, "MemoryInfo": {"SizeInMiB": 1}}
    assert read_kind(base) is None
    assert read_kind({**base, "GpuInfo": {"Gpus": [card]}}) is None
    radeon = {**card, "Name": "Radeon Pro V520", "Manufacturer": "AMD"}
    assert read_kind({**base, "GpuInfo": {"Gpus": [radeon]}}) is None
    fine = {**card, "Name": "L40S", "MemoryInfo": {"SizeInMiB": 45776}}
    kind = read_kind({**base, "GpuInfo": {"Gpus": [fine]}})
    assert kind is not None
    assert (kind.gpu, kind.gpu_count, kind.ram_gb) == ("L40S", 1, 17.2)


@pytest.mark.parametrize("name", ["g4dn.xlarge", "g7e.2xlarge", "p4d.24xlarge", "p5.4xlarge"])
@pytest.mark.parametrize("market", ["spot", "on-demand"])
def test_quotas_are_those_of_the_cloud(name: str, market: str) -> None:
    assert quota_of(name, spot=market == "spot")[0] == quota_code(name, market)


def test_tokens_differ_by_all_that_tells_launches_apart() -> None:
    base = ("gpuctl-a-c0ffee-1", "us-east-1", "g5.xlarge", "use1-az1", "spot")
    others = [
        token(*(part + ("x" if n == place else "") for n, part in enumerate(base)))
        for place in range(len(base))
    ]
    assert len({token(*base), *others}) == 6
    assert token(*base) == token(*base)
