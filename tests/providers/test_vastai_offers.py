"""Searches of Vast.ai that hide nothing, and rows that are read for what they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from time import thread_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuctl.market_nearest import nearest, relaxed
from providers.base import Ambiguous, Mark, NoCapacity, SelfEnd, SshAccess, State, Want
from providers.gpus import all_gpus, find, identify
from providers.vastai_machines import gpu_name, label, machine, number, read_label
from providers.vastai_names import API_NAMES
from providers.vastai_offers import Terms, api_names, cuda_of, offers_in, priced, searches
from tests.clouds.http_cloud import Fault, Reply
from tests.clouds.vastai_cloud import Host
from tests.clouds.vastai_cloud.market import asks_of, offer_row
from tests.providers.vastai_bench import RTX, VastBench, vast_bench

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def vast(tmp_path: Path) -> Iterator[VastBench]:
    """A market of a few hosts."""
    with vast_bench(tmp_path / "home") as made:
        yield made


def row(host: Host | None = None, *, disk: float = 40, **changes: Any) -> dict[str, Any]:
    """One row of a search."""
    host = host or Host(1)
    ask = asks_of([host])[-1]
    floor = host.min_bid * len(ask.gpu_ids)
    made = offer_row(ask, now=NOW.timestamp(), disk=disk, floor=floor, rented=False)
    return {**made, **changes}


# ---------------------------------------------------------------------------- searching


def test_the_cheapest_is_found_behind_the_servers_limit(vast: VastBench) -> None:
    """64 rows a search: cheap rows that do not fit must not hide the one that does."""
    decoys = [Host(1000 + n, price=Decimal("0.05"), cuda=11.8) for n in range(150)]
    vast.cloud.contracts.hosts = [*decoys, Host(2000, price=Decimal("0.06"))]
    vast.cloud.switches.filters_ignored = frozenset({"cuda_max_good"})
    want = replace(RTX, spot=False, image="pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime")
    assert vast.provider.offers(want) == []  # more rows of one price than can be paged through
    for n, host in enumerate(decoys):
        host.price += Decimal(n) / 100_000
    assert [offer.id for offer in vast.provider.offers(want)] == ["200000"]
    assert len(vast.cloud.requests("POST", "/bundles/")) == 2 + 3


def searched(vast: VastBench) -> list[dict[str, Any]]:
    """The searches since the last look."""
    bodies = [json.loads(one.body) for one in vast.cloud.requests("POST", "/bundles/")]
    vast.cloud.log.clear()
    return bodies


def test_one_search_is_usual(vast: VastBench) -> None:
    """A row tells both prices; where all rows are seen, another order shows nothing more."""
    offers = vast.provider.offers(Want(gpus=("RTX-4090", "A100-40GB", "H100")))
    assert {offer.spot for offer in offers} == {True, False}
    assert {offer.gpu for offer in offers} == {"RTX-4090", "A100-40GB-SXM", "H100-80GB-SXM"}
    assert len(searched(vast)) == 1


def test_a_market_with_more_than_a_page_is_searched_in_both_orders(vast: VastBench) -> None:
    """The cheapest bid may be for what is dear on demand."""
    firm = [Host(1000 + n, price=Decimal("0.30"), min_bid=Decimal("0.29")) for n in range(70)]
    vast.cloud.contracts.hosts = [*firm, Host(2000, price=Decimal(1), min_bid=Decimal("0.05"))]
    offers = vast.provider.offers(RTX)
    assert offers[0].id == "200000/bid"
    assert [body["type"] for body in searched(vast)] == ["on-demand", "bid"]


def test_a_quote_that_nothing_matches_takes_two_searches(vast: VastBench) -> None:
    """The second asks for whatever is near: the same card, its family, any that is as big."""
    want = Want(gpus=("A100-40GB",), spot=True, max_price_hour=Decimal("0.10"))
    assert vast.provider.offers(want) == []
    near = nearest(want, vast.provider.offers(relaxed(want)))
    assert [one.kind for one in near] == ["same", "family", "bigger"]
    assert len(searched(vast)) == 2


def test_any_number_of_gpus_can_be_asked_for(vast: VastBench) -> None:
    offers = vast.provider.offers(Want(gpus=("A100-40GB",), gpu_count=0, spot=False))
    assert {offer.gpu_count for offer in offers} == {1, 2}


def test_in_a_large_market_the_same_card_and_its_family_are_not_hidden_by_cheaper_ones(
    vast: VastBench,
) -> None:
    cheap = [
        Host(1000 + n, "RTX A6000", "NVIDIA RTX A6000", 49140, price=Decimal("0.30"))
        for n in range(70)
    ]
    vast.cloud.contracts.hosts += cheap
    want = Want(gpus=("A100-40GB",), spot=True, max_price_hour=Decimal("0.10"))
    assert vast.provider.offers(want) == []
    near = nearest(want, vast.provider.offers(relaxed(want)))
    assert [one.kind for one in near] == ["same", "family", "bigger"]
    assert len(searched(vast)) == 4


def test_a_page_that_ends_above_the_cap_is_the_last(vast: VastBench) -> None:
    vast.cloud.contracts.hosts = [
        Host(1000 + n, price=Decimal(1) + Decimal(n) / 1000) for n in range(150)
    ]
    want = replace(RTX, spot=False, max_price_hour=Decimal("0.5"))
    assert vast.provider.offers(want) == []
    assert len(searched(vast)) == 1


@pytest.mark.parametrize(
    ("regions", "countries"),
    [(("US",), ["US"]), (("us", "se"), ["US", "SE"]), (("Texas",), None), (("US", "Texas"), None)],
)
def test_a_country_is_searched_for_there(
    vast: VastBench, regions: tuple[str, ...], countries: list[str] | None
) -> None:
    offers = vast.provider.offers(replace(RTX, regions=regions))
    assert {offer.region for offer in offers} <= {"Texas, US", "Sweden, SE"}
    assert "Texas, US" in {offer.region for offer in offers}
    [body] = searched(vast)
    assert body.get("geolocation") == (countries and {"in": countries})


def test_traffic_has_its_price_and_is_not_in_the_hour(vast: VastBench) -> None:
    offer = vast.provider.offers(replace(RTX, spot=False))[0]
    assert (offer.gb_in_price, offer.gb_out_price) == (Decimal("0.002"), Decimal("0.004"))
    assert "$0.002" in offer.note
    for host in vast.cloud.contracts.hosts:
        host.inet_down_cost = host.inet_up_cost = Decimal(0)
    free = vast.provider.offers(replace(RTX, spot=False))[0]
    assert free.price_hour == offer.price_hour
    assert (free.gb_in_price, free.gb_out_price) == (0, 0)
    assert "traffic" not in free.note


def test_a_search_says_everything(vast: VastBench) -> None:
    want = Want(
        gpus=("A100-80GB",), cpus=8, memory_gb=64, disk_gb=100, min_reliability=0.9, spot=True
    )
    vast.provider.offers(want)
    body = json.loads(vast.cloud.requests("POST", "/bundles/")[0].body)
    assert body["rentable"] == {"eq": True}
    assert body["rented"] == {"eq": False}
    assert body["verified"] == {"eq": True}
    assert body["num_gpus"] == {"eq": 1}
    assert body["gpu_name"]["in"] == ["A100 PCIE", "A100 SXM", "A100 SXM4"]
    assert body["allocated_storage"] == 100
    assert body["disk_space"] == {"gte": 100}
    assert body["cpu_cores_effective"] == {"gte": 8}
    assert body["cpu_ram"] == {"gte": 64_000}
    assert body["reliability"] == {"gte": 0.9}
    assert body["type"] == "bid"
    assert body["order"] == [["min_bid", "asc"]]


@pytest.mark.parametrize(
    ("gpus", "cards"),
    [
        (("A100-40GB",), {"A100-40GB-SXM"}),
        (("A100-80GB",), {"A100-80GB-SXM"}),
        (("H100",), {"H100-80GB-SXM"}),
        (("24GB+",), {"RTX-4090", "RTX-3090", "A100-40GB-SXM", "A100-80GB-SXM", "H100-80GB-SXM"}),
        (("80GB+",), {"A100-80GB-SXM", "H100-80GB-SXM"}),  # an H100 has 81559 MiB, not 81920
        (("48GB+", "RTX-3090"), {"RTX-3090", "A100-80GB-SXM", "H100-80GB-SXM"}),
        ((), {"RTX-4090", "RTX-3090", "A100-40GB-SXM", "A100-80GB-SXM", "H100-80GB-SXM"}),
    ],
)
def test_cards_of_one_name_are_told_apart_by_memory(
    vast: VastBench, gpus: tuple[str, ...], cards: set[str]
) -> None:
    offers = vast.provider.offers(Want(gpus=gpus, spot=False))
    assert {offer.gpu for offer in offers} == cards


def test_filters_that_the_server_ignores_are_applied_here(vast: VastBench) -> None:
    vast.cloud.switches.filters_ignored = frozenset(
        {"gpu_ram", "num_gpus", "verified", "disk_space", "reliability", "gpu_name"}
    )
    vast.cloud.switches.default_filters = False
    offers = vast.provider.offers(Want(gpus=("A100-80GB",), disk_gb=500, spot=False))
    assert [(offer.gpu, offer.gpu_count) for offer in offers] == [("A100-80GB-SXM", 1)]


@pytest.mark.parametrize("defaults", [True, False])
def test_hosts_that_nobody_verified_are_left_out_unless_wanted(
    vast: VastBench, defaults: bool
) -> None:
    vast.cloud.switches.default_filters = defaults
    assert "10400" not in [offer.id for offer in vast.provider.offers(RTX)]
    found = vast.again(GPUCTL_VASTAI_UNVERIFIED="1").offers(RTX)
    notes = {offer.id: offer.note for offer in found}
    assert ("10400" in notes) is not defaults
    assert defaults or "not verified" in notes["10400"]


def test_a_cap_on_spot_is_compared_with_the_bid(vast: VastBench) -> None:
    """A peer compared it with the on-demand price."""
    want = replace(RTX, spot=True, max_price_hour=Decimal("0.20"))
    assert {offer.price_hour for offer in vast.provider.offers(want)} == {Decimal("0.173333")}
    assert vast.provider.offers(replace(want, spot=False)) == []


def test_rented_slices_vanish_together(vast: VastBench) -> None:
    pair = Want(gpus=("A100-40GB",), gpu_count=2, spot=False)
    assert len(vast.provider.offers(pair)) == 1
    vast.provider.create(vast.order(Want(gpus=("A100-40GB",))))
    assert vast.provider.offers(pair) == []
    assert len(vast.provider.offers(Want(gpus=("A100-40GB",), spot=False))) == 1


def test_the_disk_that_is_asked_for_is_in_the_price(vast: VastBench) -> None:
    small, big = (
        vast.provider.offers(replace(RTX, disk_gb=disk, spot=False))[0] for disk in (8, 200)
    )
    monthly = vast.cloud.contracts.hosts[2].storage_cost
    assert small.price_hour == Decimal("0.36") + (monthly * 8 / 720).quantize(Decimal("0.000001"))
    assert float(big.price_hour - small.price_hour) == pytest.approx(float(monthly) * 192 / 720)


def test_nobody_pays_for_all_of_a_hosts_free_disk(vast: VastBench) -> None:
    """Nothing was said of a disk: 40 GB, of the 200 that are free there."""
    offer = vast.provider.offers(Want(gpus=RTX.gpus, spot=False))[0]
    assert offer.disk_gb == 200
    storage = vast.cloud.contracts.hosts[2].storage_cost * 40 / 720
    assert offer.price_hour == Decimal("0.36") + storage.quantize(Decimal("0.000001"))
    assert vast.provider.create(vast.order(Want(gpus=RTX.gpus))).price_hour == offer.price_hour


@pytest.mark.parametrize("body", [b"{}", b"[]", b'{"offers": null}', b'{"success": false}', b"no"])
def test_an_odd_answer_to_a_search_is_not_an_empty_market(vast: VastBench, body: bytes) -> None:
    fault = Fault("/bundles/", how="answer", reply=Reply(200, body), times=None)
    vast.cloud.faults.append(fault)
    with pytest.raises(Ambiguous):
        vast.provider.offers(RTX)


def test_an_offer_that_became_another_card_is_not_rented(vast: VastBench) -> None:
    order = vast.order(Want(gpus=("A100-80GB",)))
    vast.cloud.contracts.hosts[5].gpu_ram = 40960
    with pytest.raises(NoCapacity, match="something else"):
        vast.provider.create(order)
    assert vast.books() == {}


# ---------------------------------------------------------------------------- names


def test_every_name_that_is_searched_for_leads_back_to_its_card() -> None:
    for gpu in all_gpus():
        for name in api_names(gpu):
            assert identify(name, gpu.vram_gb) == gpu


@pytest.mark.parametrize(
    ("card", "names"),
    [
        ("A100-40GB-SXM", ["A100 SXM4", "A100 SXM"]),
        ("H100-80GB-PCIe", ["H100 PCIE"]),
        ("H200-141GB-SXM", ["H200"]),
        ("RTX-4070-Ti-SUPER", ["RTX 4070S Ti"]),
        ("RTX-4090D", ["RTX 4090D"]),
        ("RTX-6000-Ada", ["RTX 6000Ada"]),
        ("Quadro-RTX-6000", ["Q RTX 6000"]),
        ("RTX-PRO-6000-Max-Q", ["RTX PRO 6000 Max-Q"]),
    ],
)
def test_cards_have_their_names_there(card: str, names: list[str]) -> None:
    assert api_names(find(card)) == names


def test_hardly_any_name_of_theirs_is_nobodys_card() -> None:
    known = {name for gpu in all_gpus() for name in api_names(gpu)}
    unknown = {name for name in API_NAMES if name not in known}
    assert {"RTX 4090 Ti", "RTX 5090 Ti"} <= unknown  # never sold
    nvidia = {name for name in unknown if not name.startswith(("RX", "Radeon", "Pro ", "PRO W"))}
    assert len(nvidia) <= 4, nvidia


def test_a_card_that_nobody_knows_is_still_offered_by_size() -> None:
    odd = row(gpu_name="RTX 6090 Ti", gpu_ram=49140)
    [offer] = offers_in([odd], Want(gpus=("40GB+",)), Terms(), spot=False, now=NOW)
    assert (offer.gpu, offer.vram_gb) == ("RTX-6090-Ti", 48.0)


@pytest.mark.parametrize(
    ("image", "cuda"),
    [
        ("pytorch/pytorch:2.8.0-cuda12.8-cudnn9-runtime", 12.8),
        ("ghcr.io/x/y:5000-cu121", 12.1),
        ("me/job:v1-cuda-11.8", 11.8),
        ("vastai/pytorch:@vastai-automatic-tag", None),
        ("ubuntu:24.04", None),
        ("ubuntu", None),
        (None, None),
    ],
)
def test_an_image_names_the_cuda_that_its_host_needs(
    vast: VastBench, image: str | None, cuda: float | None
) -> None:
    assert cuda_of(image) == cuda
    vast.cloud.contracts.hosts[2].cuda = 11.0
    found = {offer.id for offer in vast.provider.offers(replace(RTX, spot=False, image=image))}
    assert ("10300" in found) is (cuda is None)


# ---------------------------------------------------------------------------- reading rows


def test_a_slice_has_its_share_of_the_computer() -> None:
    host = Host(1, gpus=4, cpu_cores=128, cpu_ram=512_000, disk=1000)
    one = asks_of([host])[0]
    made = offer_row(one, now=NOW.timestamp(), disk=40, floor=host.min_bid, rented=False)
    [offer] = offers_in([made], RTX, Terms(), spot=False, now=NOW)
    assert (offer.vcpus, offer.ram_gb, offer.disk_gb) == (32, 128, 250)
    [told] = offers_in([{**made, "cpu_cores_effective": None}], RTX, Terms(), spot=False, now=NOW)
    assert told.vcpus == 32
    [none] = offers_in(
        [{**made, "cpu_cores_effective": None, "cpu_cores": 0}], RTX, Terms(), spot=False, now=NOW
    )
    assert none.vcpus is None


def test_prices_are_for_the_whole_offer() -> None:
    made = row(Host(1, gpus=2))
    [offer] = offers_in([made], replace(RTX, gpu_count=2), Terms(), spot=False, now=NOW)
    assert offer.price_hour == Decimal("0.808333")
    assert float(offer.price_hour) == pytest.approx(made["dph_total"], abs=1e-6)


def test_a_bid_is_never_above_the_on_demand_price() -> None:
    found = priced(row(dph_base=0.2, min_bid=0.19), 40)
    assert found is not None
    assert found.bid(Decimal("0.1")) == Decimal("0.2")
    equal = priced(row(dph_base=0.2, min_bid=0.2), 40)
    assert equal is not None
    assert equal.bid(Decimal("0.1")) == Decimal("0.2")
    none = priced(row(min_bid=None), 40)
    assert none is not None
    assert none.bid(Decimal(0)) is None


def test_the_emulations_rows_add_up() -> None:
    made = row(Host(1, gpus=2), disk=8)
    assert made["dph_total"] == pytest.approx(made["dph_base"] + made["storage_total_cost"])
    assert made["storage_total_cost"] == pytest.approx(made["storage_cost"] * 8 / 720)
    assert made["duration"] == pytest.approx(made["end_date"] - NOW.timestamp())
    assert made["gpu_total_ram"] == made["gpu_ram"] * made["num_gpus"]
    assert made["search"]["totalHour"] == made["dph_total"]
    assert made["driver_vers"] == 570124006
    assert made["internet_down_cost_per_tb"] == made["inet_down_cost"] * 1024


def test_5000_rows_are_read_in_no_time() -> None:
    rows = [row(Host(n, price=Decimal(n))) for n in range(1, 5001)]
    began = thread_time()
    assert len(offers_in(rows, RTX, Terms(), spot=False, now=NOW)) == 5000
    assert thread_time() - began < 1


junk = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(),
    st.text(max_size=12),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
columns = st.sampled_from(sorted(row()))


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(columns, junk, max_size=6))
def test_no_row_of_a_search_breaks_the_others(changes: dict[str, Any]) -> None:
    good = row(Host(2))
    for spot in (False, True):
        found = offers_in([{**row(), **changes}, good], Want(), Terms(), spot=spot, now=NOW)
        assert found[-1].id.startswith("200")
        for offer in found:
            assert offer.price_hour >= 0
            assert (offer.gpu is None) == (offer.gpu_count == 0)


instance_columns = st.sampled_from(
    [
        *("actual_status", "cur_state", "next_state", "intended_status", "status_msg", "label"),
        *("ports", "public_ipaddr", "ssh_host", "ssh_port", "start_date", "num_gpus", "gpu_name"),
        *("gpu_ram", "dph_total", "is_bid", "geolocation", "image_runtype", "country_code"),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(instance_columns, junk, max_size=8))
def test_no_instance_breaks_the_listing(columns: dict[str, Any]) -> None:
    made = machine({"id": 7, **columns}, provider="vastai", now=NOW, port=22, self_end=SelfEnd())
    assert made.provider_id == "7"
    assert made.name
    assert isinstance(made.state, State)
    assert made.mark is None
    if isinstance(made.access, SshAccess):
        assert 0 < made.access.port < 65536


@settings(max_examples=100, deadline=None)
@given(
    owner=st.from_regex(r"[0-9a-f]{6,32}", fullmatch=True),
    run=st.one_of(st.none(), st.from_regex(r"[a-z0-9-]{1,37}", fullmatch=True)),
    seconds=st.integers(0, 10**8),
)
def test_a_label_keeps_the_mark(owner: str, run: str | None, seconds: int) -> None:
    mark = Mark(owner, NOW + timedelta(seconds=seconds), run)
    text = label("gpuctl-a-c0ffee-00000000", mark)
    assert len(text) <= 256
    assert read_label(text) == ("gpuctl-a-c0ffee-00000000", mark)


@given(st.text())
def test_other_peoples_labels_have_no_mark(text: str) -> None:
    name, mark = read_label(text)
    assert mark is None or "owner=" in text
    assert mark is not None or name == text


@pytest.mark.parametrize("value", [True, None, "x", "nan", float("inf"), [], {}])
def test_what_is_no_number_is_none(value: object) -> None:
    assert number(value) is None


def test_a_card_without_a_name_is_nobodys() -> None:
    assert gpu_name({"gpu_name": " "}) is None
    assert searches(Want(gpus=("24GB+",)), Terms())[0].body["gpu_ram"]["gte"] < 24564
