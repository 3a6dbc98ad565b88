"""What RunPod says, read: whatever it is, it is read or refused, and money is never guessed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from providers.base import Ambiguous, InvalidRequest, Machine, Mark, Offer, Order, State, Want
from providers.runpod_client import next_cursor
from providers.runpod_offers import (
    COMMUNITY,
    SECURE,
    Choice,
    canonical,
    cheapest_first,
    cpu_offers,
    gpu_offers,
    price_of,
    price_stopped,
    read_offer_id,
    vcpus_for,
)
from providers.runpod_pods import body_of, machine_of, mark_of
from tests.clouds.runpod_cloud.catalog import GPUS

NOW = datetime(2026, 11, 21, tzinfo=UTC)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def _objects(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with those keys or without, and anything as values."""
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, JSON))


POD_KEYS = (
    *("id", "name", "status", "gpu", "cost", "disk", "mounts", "ssh", "runtime", "env"),
    *("dataCenterId", "cloud", "createdAt"),
)
ROW_KEYS = (
    *("id", "price", "maxCount", "memory", "secure", "community", "availability", "dataCenters"),
    *("manufacturer", "vcpu", "ramGbPerVcpu"),
)


@given(_objects(*POD_KEYS))
def test_any_pod_is_read_or_is_none(pod: dict[str, Any]) -> None:
    try:
        machine = machine_of(pod, "https://api.runpod.io")
    except Ambiguous:
        assert not isinstance(pod.get("id"), str) or not pod["id"]
        return
    assert isinstance(machine, Machine)
    assert machine.price_hour is None or machine.price_hour >= 0
    assert (machine.access is not None) == (machine.state is State.READY)
    if machine.mark is not None:
        assert machine.mark.end.tzinfo is not None


@given(st.lists(_objects(*ROW_KEYS), max_size=3), st.sampled_from([SECURE, COMMUNITY]))
def test_any_catalogue_is_read(rows: list[dict[str, Any]], cloud: str) -> None:
    for offer in [*gpu_offers(rows, cloud, Want(), NOW), *cpu_offers(rows, Want(), NOW)]:
        assert offer.price_hour > 0
        assert read_offer_id(offer.id).offer_id == offer.id


NAMES = st.sampled_from(sorted(GPUS)) | st.text(min_size=1, max_size=40).filter(str.strip)
PLACES = st.none() | st.from_regex(r"[A-Z]{2,3}-[A-Z]{2}-[1-9]", fullmatch=True)


@given(
    st.sampled_from([SECURE, COMMUNITY]), PLACES, NAMES, st.integers(1, 9999), st.booleans()
)  # fmt: skip
def test_offer_ids_lead_back(
    cloud: str, place: str | None, kind: str, count: int, has_gpu: bool
) -> None:
    choice = Choice(cloud, place, kind, count, has_gpu)
    assert read_offer_id(choice.offer_id) == choice
    assert " " not in choice.offer_id


@given(st.text(max_size=60))
def test_other_ids_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="no offer of RunPod"):
        read_offer_id(text)


MARKS = st.builds(
    Mark,
    owner=st.from_regex(r"[0-9a-f]{6,32}", fullmatch=True),
    end=st.datetimes(datetime(2026, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
    run=st.none() | st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True),
    managed_by=st.sampled_from(["gpuctl", "terraform"]),
)


@given(MARKS)
def test_a_mark_comes_back(mark: Mark) -> None:
    offer = Offer("runpod", "x", None, 0, None, False, Decimal(1), "any")
    order = Order("gpuctl-x-c0ffee-0a1b2c3d", offer, mark)
    env = body_of(order, Choice(SECURE, None, "NVIDIA A40", 1, True))["env"]
    assert all(isinstance(value, str) for value in env.values())
    back = mark_of(env)
    assert back is not None
    assert replace(back, end=mark.end) == mark
    assert timedelta(0) <= mark.end - back.end < timedelta(seconds=1)


@given(_objects("gpuctl_owner", "gpuctl_end", "gpuctl_run", "gpuctl_managed_by"))
def test_what_is_not_our_mark_is_none(env: dict[str, Any]) -> None:
    mark = mark_of(env)
    assert mark is None or (isinstance(env["gpuctl_owner"], str) and env["gpuctl_end"].isdigit())


@given(JSON.filter(lambda value: isinstance(value, dict)))
@settings(max_examples=200)
def test_pages_are_followed_or_doubted(body: dict[str, Any]) -> None:
    try:
        cursor = next_cursor(body, "pods")
    except Ambiguous:
        return
    assert cursor is None or cursor


@pytest.mark.parametrize(
    ("body", "cursor"),
    [
        ({"pods": []}, None),
        ({"pods": [], "nextCursor": None}, None),
        ({"pods": [], "nextCursor": ""}, None),
        ({"pods": [], "nextCursor": "abc"}, "abc"),
        ({"pods": [], "next_cursor": 7}, "7"),
        ({"pods": [], "pagination": {"nextCursor": "x", "hasMore": True}}, "x"),
        ({"pods": [], "hasMore": False}, None),
        ({"pods": [], "page": {"size": 100, "number": 1, "prevCursor": "x"}}, None),
    ],
)
def test_cursors(body: dict[str, Any], cursor: str | None) -> None:
    assert next_cursor(body, "pods") == cursor


@pytest.mark.parametrize("body", [{"hasMore": True}, {"pagination": {"nextPage": {"a": 1}}}])
def test_a_page_that_does_not_say_how_to_go_on_is_no_answer(body: dict[str, Any]) -> None:
    with pytest.raises(Ambiguous, match="one page of several"):
        next_cursor(body, "pods")


def test_variants_are_not_merged() -> None:
    names = [canonical(row.id)[0] for row in GPUS.values()]
    assert len(set(names)) == len(names)
    for row in GPUS.values():
        name, vram = canonical(row.id, row.memory)
        assert (name, vram) == canonical(row.id)
        assert vram is not None
        assert abs(vram - row.memory) <= 2  # RunPod says 143 GB where the card has 141


def test_a_card_that_nobody_knows_is_offered_under_its_own_name() -> None:
    row = {
        "id": "NVIDIA  RTX 9090 Ultra",
        "memory": 64,
        "secure": True,
        "price": {"secure": 2.5},
        "availability": "LOW",
    }
    [offer] = gpu_offers([row], SECURE, Want(gpus=("48GB+",), disk_gb=73), NOW)
    assert (offer.gpu, offer.vram_gb, offer.price_hour) == ("RTX-9090-Ultra", 64, Decimal("2.51"))
    assert read_offer_id(offer.id).kind == row["id"]  # with its two spaces


def test_rows_that_lack_something_cost_only_themselves() -> None:
    good = {"id": "NVIDIA A40", "price": {"secure": 0.44}, "secure": True, "availability": "HIGH"}
    bad: list[dict[str, Any]] = [
        {},
        {**good, "id": "unknown"},
        {**good, "price": None},
        {**good, "price": {"secure": 0}},
        {**good, "price": {"community": 0.1}},
        {**good, "secure": False},
        {**good, "maxCount": {"secure": 0}},
        {**good, "manufacturer": "AMD"},
    ]
    offers = gpu_offers([*bad, good, *bad], SECURE, Want(gpus=("A40",)), NOW)
    assert [offer.gpu for offer in offers] == ["A40"]


def test_prices_of_disks() -> None:
    assert price_of(Decimal("0.44"), 73, 73) == Decimal("0.46")
    assert price_stopped(73) == Decimal("0.02")
    assert price_stopped(0) == 0


@pytest.mark.parametrize(
    ("want", "count"),
    [(Want(), 2), (Want(cpus=3), 4), (Want(memory_gb=33), 32), (Want(cpus=8, memory_gb=1), 8)],
)
def test_cpus_come_in_powers_of_two(want: Want, count: int) -> None:
    assert vcpus_for(want, 2) == count


def test_5000_rows_are_ranked_at_once() -> None:
    import time

    rows = [
        {
            "id": gpu.id,
            "memory": gpu.memory,
            "secure": True,
            "price": {"secure": 1 + number / 1000},
            "availability": "HIGH",
            "dataCenters": [{"id": "EU-RO-1", "availability": "HIGH"}],
        }
        for number in range(112)
        for gpu in GPUS.values()
    ]
    assert len(rows) > 5000
    began = time.process_time()
    offers = cheapest_first(gpu_offers(rows, SECURE, Want(gpus=("8GB+",)), NOW))
    assert time.process_time() - began < 1
    assert len(offers) > 4900
