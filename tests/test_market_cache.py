"""Answers that are kept for a moment: never stale, never somebody else's, never in the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.market import ask
from gpuctl.market_cache import STAND_IN_SECONDS, YOUNG_SECONDS, OfferCache
from providers.base import Offer, ProviderError, RateLimited, Want
from tests.clouds.memory_cloud import HandClock

START = datetime(2026, 11, 21, 12, tzinfo=UTC)
WANT = Want(gpus=("RTX-4090",))


def offer(id: str = "o1", price: str = "0.35") -> Offer:
    return Offer(
        "acme", id, "RTX-4090", 1, 24, False, Decimal(price), "eu", disk_gb=40, as_of=START
    )


class Cloud:
    """Counts how often it is asked."""

    name = "acme"

    def __init__(self, answer: Sequence[Offer] | ProviderError) -> None:
        self.answer = answer
        self.asked = 0
        self.by_name_only = False

    @property
    def capabilities(self) -> Any:
        return SimpleNamespace(spot=True, by_name_only=self.by_name_only)

    def configured(self) -> bool:
        return True

    def offers(self, want: Want) -> Sequence[Offer]:
        del want
        self.asked += 1
        if isinstance(self.answer, ProviderError):
            raise self.answer
        return self.answer


@pytest.fixture
def clock() -> HandClock:
    return HandClock(START)


@pytest.fixture
def cache(tmp_path: Path, clock: HandClock) -> OfferCache:
    return OfferCache(tmp_path / "offers", clock, {"RUNPOD_API_KEY": "one"})


def quote(cloud: Any, cache: OfferCache, seconds: float = YOUNG_SECONDS) -> Any:
    return ask([cloud], WANT, clock=cache.clock, cache=cache, young_seconds=seconds, environ={})


def test_a_young_answer_spares_a_question_and_keeps_its_age(
    cache: OfferCache, clock: HandClock
) -> None:
    cloud = Cloud([offer()])
    first = quote(cloud, cache)
    clock.pass_time(8)
    second = quote(cloud, cache)
    assert cloud.asked == 1
    assert second.offers == first.offers
    assert second.offers[0].as_of == START
    clock.pass_time(8)
    quote(cloud, cache)
    assert cloud.asked == 2


def test_renting_and_fresh_always_ask(cache: OfferCache) -> None:
    cloud = Cloud([offer()])
    quote(cloud, cache)
    quote(cloud, cache, seconds=0)
    assert cloud.asked == 2


def test_hosts_and_this_computer_are_always_asked(cache: OfferCache) -> None:
    cloud = Cloud([offer()])
    cloud.by_name_only = True
    quote(cloud, cache)
    quote(cloud, cache)
    assert cloud.asked == 2


def test_who_is_asked_too_often_is_stood_in_for(cache: OfferCache, clock: HandClock) -> None:
    cloud = Cloud([offer()])
    quote(cloud, cache)
    cloud.answer = RateLimited("acme takes no more requests.", 30)
    clock.pass_time(120)
    found = quote(cloud, cache)
    assert [one.as_of for one in found.offers] == [START]
    assert found.errors == ()
    assert "a few minutes ago" in found.notes[0]
    clock.pass_time(STAND_IN_SECONDS)
    found = quote(cloud, cache)
    assert found.offers == ()
    assert [error.kind for error in found.errors] == ["RateLimited"]


def test_a_failure_never_makes_an_old_price_fresh(cache: OfferCache, clock: HandClock) -> None:
    cloud = Cloud([offer()])
    quote(cloud, cache)
    cloud.answer = RateLimited("acme takes no more requests.", 30)
    for _ in range(3):
        clock.pass_time(60)
        quote(cloud, cache)
    assert cache.young("acme", WANT, 100) is None


def test_another_question_key_or_clock_is_another_answer(
    cache: OfferCache, clock: HandClock
) -> None:
    cache.keep("acme", WANT, [offer()])
    assert cache.young("acme", WANT, 10) == (offer(),)
    assert cache.young("other", WANT, 10) is None
    assert cache.young("acme", replace(WANT, disk_gb=41), 10) is None
    assert replace(cache, environ={"RUNPOD_API_KEY": "two"}).young("acme", WANT, 10) is None
    behind = replace(cache, clock=HandClock(START - timedelta(hours=1)))
    assert behind.young("acme", WANT, 10) is None


def test_no_key_is_on_the_disk(cache: OfferCache, tmp_path: Path) -> None:
    cache.keep("acme", WANT, [offer()])
    [file] = (tmp_path / "offers").iterdir()
    assert b"one" not in file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600


@given(st.binary(max_size=200))
def test_whatever_is_there_is_an_answer_or_none(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = OfferCache(Path(folder), HandClock(START), {})
        made.keep("acme", WANT, [offer()])
        [file] = Path(folder).iterdir()
        file.write_bytes(content)
        assert made.young("acme", WANT, 10) is None


def test_every_field_comes_back(cache: OfferCache) -> None:
    whole = Offer(
        "acme",
        "o",
        None,
        0,
        None,
        True,
        Decimal("0.123456789"),
        "fsn1",
        vcpus=1.5,
        ram_gb=2,
        disk_gb=3,
        reliability=0.99,
        available=False,
        gb_in_price=Decimal("0.003"),
        gb_out_price=Decimal("0.09"),
        bill_step_seconds=3600,
        as_of=START,
        fx_rate=Decimal("1.17"),
        fx_date=date(2026, 1, 21),
        note="with a note",
    )
    cache.keep("acme", WANT, [whole])
    assert cache.young("acme", WANT, 10) == (whole,)


def test_a_folder_that_cannot_be_written_costs_nothing(tmp_path: Path, clock: HandClock) -> None:
    (tmp_path / "offers").write_text("a file in the way")
    cache = OfferCache(tmp_path / "offers", clock, {})
    assert [one.id for one in quote(Cloud([offer()]), cache).offers] == ["o1"]
