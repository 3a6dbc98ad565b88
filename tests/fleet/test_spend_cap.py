"""Caps on everything that is rented: refused before an intent is written, warned about before."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from gpuctl.errors import CapReached, UsageError
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import this_process
from gpuctl.fleet.release import release
from gpuctl.fleet.spend_cap import DAY, MONTH
from gpuctl.ledger import MachineRow
from tests.clouds.memory_cloud import HandClock, MemoryCloud


def rent(fleet: Fleet, cloud: MemoryCloud, price: str = "1.00") -> MachineRow:
    offer = cloud.offer(id="o1", price=price)
    need = Need("demo", 600, "provision")
    return acquire(fleet, offer, need, this_process("provision"), guard=lambda: None)[0]


def spend(fleet: Fleet, cloud: MemoryCloud, clock: HandClock, hours: float) -> None:
    row = rent(fleet, cloud)
    clock.pass_time(hours * 3600)
    release(fleet, row, why="test")


@pytest.fixture
def said() -> list[str]:
    return []


def with_caps(fleet: Fleet, said: list[str], **caps: str) -> Fleet:
    return replace(fleet, environ=caps, say=said.append)


def test_nothing_more_is_rented_past_a_cap(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, said: list[str]
) -> None:
    spend(fleet, cloud, clock, 3)
    limited = with_caps(fleet, said, **{DAY: "3.50"})
    intents = len(fleet.ledger.machines())
    with pytest.raises(CapReached, match=r"MAX_SPEND_DAY is \$3.50; \$3.00\S* were spent"):
        rent(limited, cloud)
    assert len(fleet.ledger.machines()) == intents
    assert cloud.books()[0] == 1
    release(fleet, rent(limited, cloud, price="0.40"), why="test")  # an hour of it still fits
    clock.pass_time(24 * 3600)
    release(fleet, rent(limited, cloud), why="test")  # another day


def test_a_month_counts_too_and_free_machines_never(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, said: list[str]
) -> None:
    spend(fleet, cloud, clock, 3)
    clock.pass_time(24 * 3600)
    limited = with_caps(fleet, said, **{MONTH: "3", DAY: "100"})
    with pytest.raises(CapReached, match="GPUCTL_MAX_SPEND_MONTH"):
        rent(limited, cloud)
    release(fleet, rent(limited, cloud, price="0"), why="test")


def test_a_cap_that_is_near_is_said(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, said: list[str]
) -> None:
    spend(fleet, cloud, clock, 8)
    release(fleet, rent(with_caps(fleet, said, **{DAY: "20"}), cloud), why="test")
    assert said == []
    release(fleet, rent(with_caps(fleet, said, **{DAY: "10"}), cloud), why="test")
    assert any("of $10.00 (GPUCTL_MAX_SPEND_DAY)" in text for text in said)


@pytest.mark.parametrize("text", ["lots", "-1", "nan", "inf"])
def test_a_cap_that_is_no_number(fleet: Fleet, cloud: MemoryCloud, text: str) -> None:
    with pytest.raises(UsageError, match="GPUCTL_MAX_SPEND_DAY"):
        rent(replace(fleet, environ={DAY: text}), cloud)
    assert cloud.books()[0] == 0


def test_what_runs_counts_as_it_runs(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, said: list[str]
) -> None:
    row = rent(fleet, cloud)
    clock.pass_time(2 * 3600)
    limited = with_caps(fleet, said, **{DAY: "2.50"})
    with pytest.raises(CapReached):
        rent(limited, cloud)
    assert fleet.ledger.spend_since(clock.now().replace(hour=0)) == Decimal(2)
    release(fleet, row, why="test")
