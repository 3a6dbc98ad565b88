"""Pools that said no are tried last, for a while, by every command of this home."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gpuctl.errors import GpuctlError
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import this_process
from gpuctl.fleet.refusals import REMEMBERED, may_say_yes, refused_last, telling
from gpuctl.fleet.release import release
from providers.base import (
    AuthFailed,
    InsufficientFunds,
    NoCapacity,
    PriceChanged,
    ProviderError,
)
from tests.clouds.memory_cloud import HandClock, MemoryCloud, no_capacity


def test_what_was_refused_is_tried_last_for_a_while(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock
) -> None:
    one, two = cloud.offer(id="o1"), cloud.offer(id="o2", price="1.10")
    assert refused_last(fleet, [one, two]) == [one, two]
    cloud.faults.create.append(no_capacity())
    need = Need("demo", 600, "provision")
    with pytest.raises(NoCapacity):
        acquire(fleet, one, need, this_process("provision"), guard=lambda: None)
    assert refused_last(fleet, [one, two]) == [two, one]
    clock.pass_time((REMEMBERED + timedelta(seconds=1)).total_seconds())
    assert refused_last(fleet, [one, two]) == [one, two]


def test_what_ended_before_it_was_ready_is_tried_last_too(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock
) -> None:
    one, two = cloud.offer(id="o1"), cloud.offer(id="o2", price="1.10")
    need = Need("demo", 600, "provision")
    rented = [
        acquire(fleet, offer, need, this_process("provision"), guard=lambda: None)[0]
        for offer in (one, two)
    ]
    fleet.ledger.record("ready", machine=rented[1].name, steps={}, access=None, gpus=1)
    for row in rented:
        release(fleet, row, why="the test is over")
    assert refused_last(fleet, [one, two]) == [two, one]


@pytest.mark.parametrize("refusal", [AuthFailed("revoked"), InsufficientFunds("no money")])
def test_who_refuses_the_account_twice_is_not_asked_again(
    cloud: MemoryCloud, refusal: ProviderError
) -> None:
    offer = cloud.offer()
    other = MemoryCloud(cloud.clock, name="other").offer()
    assert may_say_yes(offer, [(offer, refusal)])
    assert not may_say_yes(offer, [(offer, refusal), (offer, refusal)])
    assert may_say_yes(other, [(offer, refusal), (offer, refusal)])
    assert may_say_yes(offer, [(offer, no_capacity())] * 9)


def test_a_price_that_could_be_raised_says_more_than_what_came_last(cloud: MemoryCloud) -> None:
    offer = cloud.offer()
    dear, empty, unfit = PriceChanged("dearer now"), no_capacity(), GpuctlError("never answered")
    assert telling([]) is None
    assert telling([(offer, empty), (offer, unfit)]) is unfit
    assert telling([(offer, dear), (offer, empty)]) is dear
