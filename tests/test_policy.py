"""What to rent next: never above the cap, never what was refused, cheapest to finish first."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.policy import (
    Candidate,
    History,
    Traffic,
    cannot_be_late,
    choose,
    expected_cost,
    expected_hours,
    offer_key,
    pool,
)
from providers.base import Offer

AT = datetime(2026, 11, 21, tzinfo=UTC)


def offer(
    id: str,
    price: str | Decimal,
    *,
    spot: bool = False,
    provider: str = "cloud",
    region: str = "here",
    source: str = "live",
    available: bool = True,
) -> Offer:
    return Offer(
        provider=provider,
        id=id,
        gpu="L4",
        gpu_count=1,
        vram_gb=24,
        spot=spot,
        price_hour=Decimal(price),
        region=region,
        available=available,
        source="reference" if source == "reference" else "live",
        as_of=AT,
    )


def ids(candidates: tuple[Candidate, ...]) -> list[str]:
    return [candidate.offer.id for candidate in candidates]


SPOT = offer("spot", "0.30", spot=True)
FIRM = offer("firm", "1.00")

prices = st.decimals(min_value="0.01", max_value="100", places=3)
offers = st.lists(
    st.builds(
        lambda number, price, spot, where, source, available: offer(
            f"o{number}", price, spot=spot, region=where, source=source, available=available
        ),
        st.integers(0, 40),
        prices,
        st.booleans(),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from(["live", "live", "live", "reference"]),
        st.sampled_from([True, True, True, False]),
    ),
    max_size=15,
    unique_by=lambda made: made.id,
)
rules = st.fixed_dictionaries(
    {
        "spot": st.sampled_from([None, True, False]),
        "hours": st.none() | st.floats(0, 200),
        "max_price_hour": st.none() | prices,
        "refused": st.sets(
            st.sampled_from(["o1", "o2", "cloud:o3", "cloud/a/1xL4/spot", "cloud/b/1xL4/on-demand"])
        ),
        "history": st.none()
        | st.builds(
            History,
            st.dictionaries(st.just("cloud/a/1xL4/spot"), st.integers(0, 9)),
            st.dictionaries(st.just("cloud/a/1xL4/spot"), st.floats(0, 99)),
        ),
        "recoveries_left": st.none() | st.integers(0, 5),
        "deadline_hours": st.none() | st.floats(0, 300),
        "window_hours": st.none() | st.floats(0, 300),
        "setup_minutes": st.floats(0, 120),
        "checkpoint_minutes": st.floats(0, 240),
        "hazard_per_hour": st.floats(0, 50),
    }
)


# ------------------------------------------------------------------------------ properties


@given(offers, rules)
def test_only_what_the_rules_allow(market: list[Offer], rule: dict) -> None:
    chosen = choose(market, **rule)
    for candidate in chosen:
        made = candidate.offer
        assert made in market
        assert made.source == "live"
        assert made.available
        assert rule["spot"] in (None, made.spot)
        assert rule["max_price_hour"] is None or made.price_hour <= rule["max_price_hour"]
        assert not {made.id, offer_key(made), pool(made)} & rule["refused"]
    # And all of it: a filter that is too keen would cost the user a machine.
    allowed = [
        made
        for made in market
        if made.source == "live"
        and made.available
        and rule["spot"] in (None, made.spot)
        and (rule["max_price_hour"] is None or made.price_hour <= rule["max_price_hour"])
        and not {made.id, offer_key(made), pool(made)} & rule["refused"]
    ]
    assert sorted(ids(chosen)) == sorted(made.id for made in allowed)


@given(offers, rules, st.randoms())
def test_the_order_of_the_offers_does_not_matter(market: list[Offer], rule: dict, random) -> None:
    shuffled = list(market)
    random.shuffle(shuffled)
    assert choose(shuffled, **rule) == choose(market, **rule)


@given(offers, rules, st.data())
def test_a_lower_price_never_makes_an_offer_rank_worse(
    market: list[Offer], rule: dict, data: st.DataObject
) -> None:
    before = ids(choose(market, **rule))
    if not before:
        return
    name = data.draw(st.sampled_from(before))
    factor = data.draw(st.decimals(min_value="0.01", max_value="1", places=2))
    cheaper = [
        made if made.id != name else offer(
            made.id, made.price_hour * factor, spot=made.spot, region=made.region
        )
        for made in market
    ]  # fmt: skip
    assert ids(choose(cheaper, **rule)).index(name) <= before.index(name)


@given(st.floats(0, 100), st.floats(0, 60), st.floats(0, 120), st.floats(0, 5), st.floats(0, 5))
def test_more_interruptions_never_make_it_shorter(
    hours: float, setup: float, checkpoint: float, one: float, two: float
) -> None:
    low, high = sorted((one, two))

    def rented(hazard: float) -> float:
        return expected_hours(
            hours, setup_minutes=setup, checkpoint_minutes=checkpoint, hazard_per_hour=hazard
        )

    assert rented(low) <= rented(high) * (1 + 1e-6)
    assert rented(low) >= (hours + setup / 60) * (1 - 1e-6)


@given(prices, prices, st.booleans(), st.floats(0, 100), st.floats(0, 10))
def test_cost_grows_with_the_price(
    one: Decimal, two: Decimal, spot: bool, hours: float, hazard: float
) -> None:
    low, high = sorted((one, two))
    costs = [
        expected_cost(offer("x", price, spot=spot), hours, hazard_per_hour=hazard)
        for price in (low, high)
    ]
    assert costs[0] <= costs[1]


# ------------------------------------------------------------------------------- the model


def test_without_interruptions_it_is_setup_and_work() -> None:
    assert expected_hours(8, setup_minutes=30) == pytest.approx(8.5)
    assert expected_cost(FIRM, 8, setup_minutes=30, hazard_per_hour=9) == Decimal("8.5")


@pytest.mark.parametrize(
    ("step", "hours", "cost"),
    [(0, 1.5, "1.5"), (3600, 1.5, 2), (3600, 2, 2), (3600, 0.1, 1), (60, 1.5, "1.5")],
)
def test_what_is_begun_is_paid_where_only_whole_hours_are_sold(
    step: float, hours: float, cost: str | int
) -> None:
    made = replace(FIRM, bill_step_seconds=step)
    assert expected_cost(made, hours, setup_minutes=0) == Decimal(cost)


def test_every_machine_of_a_run_has_its_traffic() -> None:
    def cost(spot: bool, price: int = 1) -> Decimal:
        made = replace(offer("x", price, spot=spot), gb_in_price=Decimal("0.1"))
        return expected_cost(made, 4, hazard_per_hour=0.5, traffic=Traffic(in_gb=10))

    assert cost(False, price=0) == 1
    assert cost(False) - expected_cost(FIRM, 4) == 1
    rented = expected_hours(4, hazard_per_hour=0.5)
    assert float(cost(True, price=0)) == pytest.approx(1 + 0.5 * rented)


def test_interruptions_cost_what_a_simulation_says() -> None:
    # One interruption an hour, half an hour between checkpoints, 15 minutes to set up. Every
    # machine is memoryless, so the run is a chain of tries: set up (again) and work on.
    import random

    dice = random.Random(1)
    total = 0.0
    runs = 4000
    for _ in range(runs):
        done = 0
        life = dice.expovariate(1.0)
        clock = 0.25  # into this machine's life, when the set-up ends
        while done < 8:
            end = clock + 0.5
            if life < end:
                total += life
                life, clock = dice.expovariate(1.0), 0.25
            else:
                clock, done = end, done + 1
        total += clock
    modelled = expected_hours(4, setup_minutes=15, checkpoint_minutes=30, hazard_per_hour=1)
    assert modelled == pytest.approx(total / runs, rel=0.06)


def test_a_machine_that_never_lives_long_enough_costs_without_end() -> None:
    endless = expected_cost(SPOT, 10, checkpoint_minutes=600, hazard_per_hour=100)
    assert endless == Decimal("Infinity")
    assert expected_cost(offer("free", 0, spot=True), 10, hazard_per_hour=10_000) == 0
    assert ids(choose([SPOT, FIRM], hours=10, checkpoint_minutes=600, hazard_per_hour=100)) == [
        "firm",
        "spot",
    ]


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_numbers_that_make_no_sense_are_named(bad: float) -> None:
    with pytest.raises(ValueError, match="hours"):
        expected_hours(bad)
    with pytest.raises(ValueError, match="hazard_per_hour"):
        expected_hours(1, hazard_per_hour=bad)


def test_the_hazard_follows_what_happens() -> None:
    fresh = History().hazard("a", 0.25)
    taken = History({"a": 2}, {"a": 1.0})
    assert fresh == pytest.approx(0.25)
    assert taken.hazard("a", 0.25) > taken.hazard("b", 0.25) > fresh
    assert History({}, {"a": 20.0}).hazard("a", 0.25) < fresh
    assert History({"a": 9}).hazard("a", 0.0) == 0


# ------------------------------------------------------------------------------- choosing


def test_auto_takes_what_is_expected_to_finish_cheaper() -> None:
    assert ids(choose([FIRM, SPOT], hours=8)) == ["spot", "firm"]
    dear = offer("spot", "0.99", spot=True)
    assert ids(choose([dear, FIRM], hours=8)) == ["firm", "spot"]
    assert ids(choose([FIRM, SPOT])) == ["spot", "firm"]  # nobody said how long


def test_spot_and_on_demand_only() -> None:
    assert ids(choose([FIRM, SPOT], spot=True, deadline_hours=1, hours=9)) == ["spot"]
    assert ids(choose([FIRM, SPOT], spot=False)) == ["firm"]


def test_a_market_that_keeps_taking_machines_loses_to_on_demand() -> None:
    spot = offer("spot", "0.70", spot=True)
    elsewhere = offer("elsewhere", "0.75", spot=True, region="there")
    market = [FIRM, spot, elsewhere]
    first = []
    for interruptions in range(7):
        history = History({pool(spot): interruptions}, {pool(spot): interruptions / 6})
        first.append(ids(choose(market, hours=8, history=history))[0])
    assert first[0] == "spot"
    assert first[-1] == "firm"
    assert first == sorted(first, key=["spot", "elsewhere", "firm"].index)  # and never back
    assert "elsewhere" in first  # another pool gets its chance in between


def test_refused_offers_and_pools() -> None:
    market = [SPOT, FIRM, offer("spot2", "0.31", spot=True)]
    assert ids(choose(market, refused={"spot"})) == ["spot2", "firm"]
    assert ids(choose(market, refused={"cloud:spot2"})) == ["spot", "firm"]
    assert ids(choose(market, refused={pool(SPOT)})) == ["firm"]


def test_the_last_recovery_goes_on_demand() -> None:
    assert ids(choose([FIRM, SPOT], hours=8, recoveries_left=1))[0] == "spot"
    assert ids(choose([FIRM, SPOT], hours=8, recoveries_left=0)) == ["firm", "spot"]


def test_cannot_be_late() -> None:
    slack = {"setup_minutes": 10, "checkpoint_minutes": 20}  # 40 minutes for one more loss
    assert ids(choose([FIRM, SPOT], hours=8, deadline_hours=20, **slack))[0] == "spot"
    # 8 hours of work in 8.6: nothing may go wrong any more.
    assert ids(choose([FIRM, SPOT], hours=8, deadline_hours=8.6, **slack)) == ["firm", "spot"]
    assert cannot_be_late(8, deadline_hours=8.66, **slack)
    assert not cannot_be_late(8, deadline_hours=8.67, **slack)
    assert not cannot_be_late(8, deadline_hours=None)
    # No on-demand to be had: better spot than nothing.
    assert ids(choose([SPOT], hours=8, deadline_hours=8, **slack)) == ["spot"]


def test_with_unknown_work_left_half_the_time_is_for_spot() -> None:
    assert not cannot_be_late(None, deadline_hours=7, window_hours=12)
    assert cannot_be_late(None, deadline_hours=6, window_hours=12)
    assert not cannot_be_late(None, deadline_hours=6)
    assert ids(choose([FIRM, SPOT], deadline_hours=5, window_hours=12))[0] == "firm"


def test_what_is_expected_to_be_late_comes_after_what_is_not() -> None:
    # 8 hours of work, 10 hours left; at one interruption every half hour spot would need 14.
    chosen = choose([FIRM, SPOT], hours=8, deadline_hours=10, hazard_per_hour=2)
    assert [(c.offer.id, c.in_time) for c in chosen] == [("firm", True), ("spot", False)]
    assert chosen[1].expected_cost < chosen[0].expected_cost


def test_reference_prices_are_never_rented() -> None:
    assert choose([offer("ref", "0.01", source="reference")]) == ()
