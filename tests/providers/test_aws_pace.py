"""EC2 is asked as often as it documents, and no more."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from providers.aws import AwsProvider
from providers.aws_pace import Pace, bucket_of
from providers.base import NotFound
from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.memory_cloud import HandClock

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("action", "at_once", "a_second"),
    [
        ("TerminateInstances", 100, 5),
        ("RunInstances", 5, 2),
        ("DescribeInstances", 100, 20),
        ("GetConsoleOutput", 100, 20),
        ("CancelSpotInstanceRequests", 50, 5),
        ("CreateTags", 50, 5),
    ],
)
def test_the_documented_buckets(action: str, at_once: int, a_second: int) -> None:
    clock = HandClock(NOON)
    pace, times = Pace(clock), []
    for _ in range(4 * at_once):
        pace.wait("us-east-1", action)
        times.append(clock.monotonic() - NOON.timestamp())
    bucket = bucket_of(action)
    assert (bucket.size, bucket.refill) == (at_once, a_second)
    for number, at in enumerate(times, 1):
        assert number <= at_once + at * a_second + 1e-3
    # All but a little of it is used.
    assert times[-1] <= (4 - 0.9) * at_once / a_second + 1


def test_a_region_and_an_action_do_not_wait_for_another() -> None:
    clock = HandClock(NOON)
    pace = Pace(clock)
    for action in ("TerminateInstances", "DescribeInstances"):
        for region in ("us-east-1", "eu-central-1"):
            for _ in range(90):
                pace.wait(region, action)
    assert clock.slept == []


def test_every_call_of_the_adapter_is_counted(tmp_path: Path) -> None:
    clock = HandClock(NOON)
    with AwsCloud(clock=clock) as cloud:
        cloud.bucket = (100, 20)
        provider = AwsProvider(cloud.settings(), tmp_path, clock)
        for _ in range(110):
            with pytest.raises(NotFound):
                provider.get("us-east-1/i-0123456789abcdef0")
        assert len(clock.slept) == 20
        assert {line.status for line in cloud.log} == {400}
