"""What was spent, and who says so."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper
from gpuctl.fleet.release import release
from gpuctl.fleet.spending import altogether, by_provider, by_run, is_billed, month_start
from tests.clouds.memory_cloud import HandClock, MemoryCloud


def test_billed_and_computed_are_kept_apart(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, keeper: Keeper
) -> None:
    need = Need("demo", 600, "provision")
    first, machine = acquire(fleet, cloud.offer(), need, keeper, guard=lambda: None)
    second, _ = acquire(fleet, cloud.offer(price="2.00"), need, keeper, guard=lambda: None)
    cloud.bills(machine.provider_id, "0.42")
    release(fleet, first, why="test")
    born = fleet.ledger.machine(second.name)
    assert born is not None
    assert born.created_at is not None
    clock.pass_time(3600)
    rows, now = fleet.ledger.machines(), clock.now()
    total = altogether(rows, now)
    assert total.billed == Decimal("0.42")
    hours = Decimal((now - born.created_at).total_seconds()) / 3600
    assert abs(total.computed - 2 * hours) < Decimal("0.0001")
    (one,) = by_provider(rows, now)
    assert (one.name, one.total, one.machines) == ("memory", total.total, 2)
    assert [group.name for group in by_run(rows, now)] == [""]


@pytest.mark.parametrize(
    ("source", "billed"),
    [
        ("GET /v2/billing/pods", True),
        ("Vast.ai charges", True),
        ("computed", False),
        ("computed by started hours", False),
        ("computed from AWS's spot price history", False),
        ("never created", False),
        ("nothing was rented", False),
        ("price unknown", False),
        (None, False),
    ],
)
def test_a_figure_is_billed_when_the_provider_gave_it(
    fleet: Fleet, cloud: MemoryCloud, keeper: Keeper, source: str | None, billed: bool
) -> None:
    row, _ = acquire(fleet, cloud.offer(), Need("x", 600, "run"), keeper, guard=lambda: None)
    assert is_billed(replace(row, cost_source=source)) is billed


def test_nothing_rented_costs_nothing() -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    assert altogether([], now).total == 0
    assert by_provider([], now) == by_run([], now) == []


@given(st.datetimes(min_value=datetime(2020, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_a_month_starts_on_its_first_day(now: datetime) -> None:
    start = month_start(now)
    assert (start.year, start.month, start.day) == (now.year, now.month, 1)
    assert timedelta() <= now - start < timedelta(days=31)
