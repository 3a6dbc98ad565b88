"""What a machine costs between two moments."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from gpuctl.ledger.costs import Price, cost_between, rounded, share
from tests.ledger.facts import START

_SECONDS = st.integers(0, 10_000_000)
_PRICE = st.decimals(min_value=0, max_value=100, places=4)


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_an_hour_costs_the_price_of_an_hour() -> None:
    assert cost_between([Price(None, Decimal("1.20"))], START, after(3600)) == Decimal("1.20")


def test_each_price_counts_for_its_time() -> None:
    prices = [
        Price(None, Decimal(1)),
        Price(after(3600), Decimal(3)),
        Price(after(7200), Decimal(0)),
    ]
    assert cost_between(prices, START, after(36_000)) == Decimal(4)
    assert cost_between(prices, after(1800), after(5400)) == Decimal("2.0")


def test_a_price_from_before_the_start_counts_from_the_start() -> None:
    prices = [Price(None, Decimal(9)), Price(after(-60), Decimal(1))]
    assert cost_between(prices, START, after(3600)) == Decimal(1)


def test_time_that_runs_backwards_costs_nothing() -> None:
    assert cost_between([Price(None, Decimal(1))], after(10), START) == 0


def test_rounding_keeps_a_millionth() -> None:
    assert rounded(Decimal("0.0000005")) == Decimal("0.000001")
    assert str(rounded(Decimal(2))) == "2.000000"


@given(
    first=_PRICE,
    changes=st.lists(st.tuples(_SECONDS, _PRICE), max_size=5, unique_by=lambda one: one[0]),
    length=_SECONDS,
    cut=st.floats(0, 1),
)
def test_parts_add_up(
    first: Decimal, changes: list[tuple[int, Decimal]], length: int, cut: float
) -> None:
    prices = [Price(None, first), *(Price(after(at), price) for at, price in sorted(changes))]
    middle, end = after(int(length * cut)), after(length)
    whole = cost_between(prices, START, end)
    parts = cost_between(prices, START, middle) + cost_between(prices, middle, end)
    assert abs(parts - whole) < Decimal("1e-18")
    dearest = max(price.per_hour for price in prices)
    assert 0 <= whole <= dearest * length / 3600 + Decimal("0.000001")


@given(amount=_PRICE, length=_SECONDS, since=st.integers(-1000, 20_000_000))
def test_a_share_is_never_more_than_the_whole(amount: Decimal, length: int, since: int) -> None:
    part = share(amount, START, after(length), after(since))
    assert 0 <= part <= amount
    if since <= 0:
        assert part == amount
