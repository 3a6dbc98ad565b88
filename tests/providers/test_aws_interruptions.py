"""The AWS adapter and machines that are taken away, stopped, or launched again by AWS itself."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from gpuctl.fleet.audit import whose
from gpuctl.fleet.survey import judge
from providers.base import State
from tests.providers.aws_bench import OWNER, START, Account, account, order, running, spot
from tests.providers.test_aws_reading import OURS, client_of
from tests.providers.test_aws_switches import ended

__all__ = ["account"]


# ------------------------------------------------------------------ requests that come back


def persistent(account: Account, tags: dict[str, str]) -> str:
    """Launch a machine the way nobody should; return its id."""
    ec2: Any = client_of(account.cloud)
    image = ec2.describe_images(Owners=["099720109477"])["Images"][0]["ImageId"]
    listed = [{"Key": key, "Value": value} for key, value in tags.items()]
    kinds = ("instance", "spot-instances-request") if tags else ()
    made = ec2.run_instances(
        ImageId=image,
        InstanceType="t3.micro",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": kind, "Tags": listed} for kind in kinds],
        InstanceMarketOptions={
            "MarketType": "spot",
            "SpotOptions": {
                "SpotInstanceType": "persistent",
                "InstanceInterruptionBehavior": "stop",
            },
        },
    )
    account.clock.pass_time(30)
    return f"us-east-1/{made['Instances'][0]['InstanceId']}"


def test_what_somebody_elses_request_brings_back_is_listed_and_never_touched(
    account: Account,
) -> None:
    theirs = persistent(account, {})
    ec2: Any = client_of(account.cloud)
    ec2.terminate_instances(InstanceIds=[theirs.partition("/")[2]])
    account.clock.pass_time(120)
    [back] = account.provider.list()
    assert back.provider_id != theirs
    assert whose(back, OWNER) == "unmarked"
    later = START + timedelta(days=400)
    assert judge(back, None, OWNER, later, lambda _: None).destroy is False
    assert account.provider.leftovers() == []
    [request] = account.cloud.rentals.requests.values()
    assert request.cancelled is None


def test_a_request_of_ours_that_would_launch_again_is_cancelled_with_its_machine(
    account: Account,
) -> None:
    machine = persistent(account, OURS)
    account.provider.destroy(machine)
    account.clock.pass_time(600)
    account.provider.list()
    assert account.cloud.rentals.rented() == {}
    assert account.cloud.books.open() == {}


def test_a_request_of_ours_that_did_launch_again_is_left_over(account: Account) -> None:
    machine = persistent(account, OURS)
    account.cloud.denied.add("CancelSpotInstanceRequests")
    account.provider.destroy(machine)
    account.cloud.denied.clear()
    account.clock.pass_time(120)
    [back] = account.provider.list()  # with no tags, so nobody here ends it; but it is shown
    assert back.mark is None
    [left] = account.provider.leftovers()
    assert (left.kind, left.name) == ("spot-request", OURS["gpuctl:name"])
    account.provider.remove(left)
    ec2: Any = client_of(account.cloud)
    ec2.terminate_instances(InstanceIds=[back.provider_id.partition("/")[2]])
    account.clock.pass_time(600)
    account.provider.list()
    assert account.cloud.books.open() == {}


def test_an_interruption_that_stops_is_told_as_one_that_still_costs(account: Account) -> None:
    machine = persistent(account, OURS)
    account.cloud.interrupt(machine.partition("/")[2], notice=120)
    account.clock.pass_time(121)
    seen = account.provider.get(machine)
    assert (seen.state, seen.reason) == (State.STOPPED, "interrupted")
    assert account.cloud.books.open("volume")
    ended(account, machine)
    account.clock.pass_time(600)
    account.provider.list()
    assert account.cloud.rentals.rented() == {}  # its request is cancelled: nothing comes back


# ------------------------------------------------------------------ interruptions


@pytest.mark.parametrize(
    "code", ["instance-terminated-no-capacity", "instance-terminated-by-experiment"]
)
def test_several_machines_taken_at_once(account: Account, code: str) -> None:
    offer = spot(account)
    machines = [account.provider.create(order(offer, f"m{number}")) for number in range(3)]
    account.clock.pass_time(60)
    account.provider.list()
    for one in machines[:2]:
        account.cloud.interrupt(one.provider_id.partition("/")[2], notice=120, code=code)
    assert len(account.provider.list()) == 3  # for two minutes
    account.clock.pass_time(121)
    assert [one.name for one in account.provider.list()] == [machines[2].name]
    reasons = [account.provider.get(one.provider_id).reason for one in machines]
    assert reasons == ["interrupted", "interrupted", None]
    assert len(account.cloud.events) == 2
    ended(account, machines[2].provider_id)


def test_a_recommendation_to_leave_is_no_interruption(account: Account) -> None:
    machine = running(account)
    account.cloud.rebalance(machine.provider_id.partition("/")[2])
    account.clock.pass_time(600)
    seen = account.provider.get(machine.provider_id)
    assert (seen.state, seen.reason) == (State.READY, None)
    [event] = account.cloud.events
    assert event["detail-type"] == "EC2 Instance Rebalance Recommendation"
