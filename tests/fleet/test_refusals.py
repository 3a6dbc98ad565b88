"""Pools that said no are tried last, for a while, by every command of this home."""

from __future__ import annotations

from datetime import timedelta

import pytest

from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import this_process
from gpuctl.fleet.refusals import REMEMBERED, refused_last
from providers.base import NoCapacity
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
