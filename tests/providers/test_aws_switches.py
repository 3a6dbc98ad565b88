"""The AWS adapter where EC2 fails late, keeps things, brings them back or ends them by itself."""

from __future__ import annotations

from typing import Any

import pytest

from gpuctl.fleet.survey import judge
from providers.aws import AwsProvider
from providers.aws_errors import meaning
from providers.aws_schedule import ROLE
from providers.base import (
    Ambiguous,
    AuthFailed,
    InvalidRequest,
    NoCapacity,
    NotFound,
    PriceChanged,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    State,
)
from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.aws_cloud.rentals import FAILED_INSIDE, NO_KEY_FOR_DISK, NO_ROOM_AFTER_ALL
from tests.clouds.aws_cloud.wire import SERVER_ERRORS
from tests.providers.aws_bench import (
    OWNER,
    Account,
    account,
    launches,
    on_demand,
    order,
    running,
    spot,
)
from tests.providers.test_aws_reading import OURS, client_of

__all__ = ["account"]

REAPER = "arn:aws:iam::111122223333:role/gpuctl-reaper"


def ended(account: Account, provider_id: str) -> None:
    """End one, let AWS take its time, and look into the books."""
    account.provider.destroy(provider_id)
    account.clock.pass_time(120)
    assert account.cloud.books.open() == {}


def instances(cloud: AwsCloud) -> list[str]:
    return [one.id for one in cloud.rentals.all.values() if one.alive]


# ------------------------------------------------------------------ launches that come to nothing


@pytest.mark.parametrize("why", [NO_ROOM_AFTER_ALL, FAILED_INSIDE, NO_KEY_FOR_DISK])
def test_a_launch_that_is_accepted_and_then_fails_is_gone_with_its_reason(
    account: Account, why: tuple[str, str]
) -> None:
    account.cloud.rentals.launch_fails = [why]
    machine = account.provider.create(order(spot(account)))
    assert machine.state is State.BOOTING
    account.clock.pass_time(60)
    gone = account.provider.get(machine.provider_id)
    assert (gone.state, gone.reason) == (State.GONE, None)
    assert why[0] in gone.status
    assert account.provider.list() == []
    assert account.provider.destroy(machine.provider_id)
    assert account.cloud.books.open() == {}
    assert account.provider.leftovers() == []


def test_a_bucket_of_launches_that_is_empty(account: Account) -> None:
    offer = spot(account)
    account.cloud.launch_bucket = (1, 0.001)
    account.provider.create(order(offer))
    with pytest.raises(RateLimited):
        account.provider.create(order(offer, "two"))
    assert len(instances(account.cloud)) == 1


def test_a_key_that_may_launch_and_not_tag_launches_nothing(account: Account) -> None:
    """A machine or a volume without marks would be nobody's: it is not tried without them."""
    offer = spot(account)
    account.cloud.denied.add("CreateTags")
    with pytest.raises(AuthFailed, match="aws-policy"):
        account.provider.create(order(offer))
    assert len(launches(account)) == 1
    assert account.cloud.books.open() == {}


def test_it_asks_no_more_often_than_ec2_allows(account: Account) -> None:
    offer = spot(account)
    account.cloud.documented_limits = True
    began = account.clock.now()
    machines = [account.provider.create(order(offer, f"m{number}")) for number in range(9)]
    assert (account.clock.now() - began).total_seconds() > 1  # five at once, then two a second
    for one in machines:
        account.provider.destroy(one.provider_id)
    assert 503 not in {line.status for line in account.cloud.log}
    assert account.cloud.rentals.rented() == {}


TABLE: dict[type[ProviderError], str] = {
    NoCapacity: (
        "InsufficientInstanceCapacity InsufficientVolumeCapacity InsufficientAddressCapacity "
        "UnfulfillableCapacity InsufficientCapacity InsufficientHostCapacity Unsupported "
        "InsufficientReservedInstanceCapacity ReservationCapacityExceeded "
        "InsufficientFreeAddressesInSubnet"
    ),
    QuotaExceeded: (
        "MaxSpotInstanceCountExceeded VcpuLimitExceeded MaxFleetCountExceeded "
        "InstanceLimitExceeded VolumeLimitExceeded MaxIOPSLimitExceeded AddressLimitExceeded "
        "NetworkInterfaceLimitExceeded SecurityGroupLimitExceeded KeyPairLimitExceeded "
        "MaxTemplateLimitExceeded"
    ),
    PriceChanged: "SpotMaxPriceTooLow",
    InvalidRequest: (
        "InvalidParameterCombination InvalidParameterValue VPCIdNotSpecified DefaultVpcDoesNotExist"
    ),
    NotFound: (  # InvalidRequest where something was to be launched
        "InvalidAMIID.NotFound InvalidAMIID.Malformed InvalidGroup.NotFound "
        "InvalidSubnetID.NotFound InvalidZone.NotFound InvalidInstanceID.NotFound"
    ),
    RateLimited: "RequestLimitExceeded RequestResourceCountExceeded",
    AuthFailed: (
        "AuthFailure AuthFailure.ServiceLinkedRoleCreationNotPermitted UnauthorizedOperation "
        "OptInRequired PendingVerification Blocked TagPolicyViolation RequestExpired"
    ),
    Ambiguous: (
        "ServerInternal InternalFailure InternalError ServiceUnavailable Unavailable "
        "IdempotentParameterMismatch IdempotentInstanceTerminated"
    ),
}


@pytest.mark.parametrize(
    ("code", "kind"),
    [(code, kind) for kind, codes in TABLE.items() for code in codes.split()],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_every_error_of_a_launch_means_what_the_contract_says(
    code: str, kind: type[ProviderError]
) -> None:
    status = SERVER_ERRORS.get(code, 400)
    told = meaning(code, status, "AWS launched nothing", "Its own words.")
    assert isinstance(told, kind)
    assert str(told).startswith("AWS launched nothing")


# ------------------------------------------------------------------ what stays for a while


def test_disks_that_are_in_use_for_a_while_after_the_end_are_not_left_over(
    account: Account,
) -> None:
    account.cloud.rentals.times.disks = 60
    machine = running(account)
    account.provider.destroy(machine.provider_id)
    account.clock.pass_time(30)
    assert account.provider.get(machine.provider_id).state is State.GONE
    assert len(account.cloud.books.open("volume")) == 1
    assert account.provider.leftovers() == []
    account.clock.pass_time(60)
    assert account.cloud.books.open() == {}
    assert account.provider.leftovers() == []


def test_the_disk_is_the_root_of_every_image_that_can_be_named(account: Account) -> None:
    offer = spot(account)
    al2023 = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
    for name, image in (("one", al2023), ("two", None)):
        machine = account.provider.create(order(offer, name, image=image))
        assert len(account.cloud.books.open("volume")) == 1  # a wrong name would make a second one
        ended(account, machine.provider_id)


def test_an_interface_of_ours_that_stayed_is_found_and_removed(account: Account) -> None:
    ec2: Any = client_of(account.cloud)
    place = ec2.describe_subnets()["Subnets"][0]["SubnetId"]
    tags = [{"Key": key, "Value": value} for key, value in OURS.items()]
    marked = [{"ResourceType": "network-interface", "Tags": tags}]
    ec2.create_network_interface(SubnetId=place, TagSpecifications=marked)
    ec2.create_network_interface(SubnetId=place)  # somebody else's
    [left] = account.provider.leftovers()
    assert (left.kind, left.name) == ("interface", OURS["gpuctl:name"])
    account.provider.remove(left)
    account.provider.remove(left)
    assert account.provider.leftovers() == []
    assert len(ec2.describe_network_interfaces()["NetworkInterfaces"]) == 1


def test_a_machine_that_somebody_protected_is_told_and_ended_when_it_may_be(
    account: Account,
) -> None:
    machine = account.provider.create(order(on_demand(account)))
    ec2: Any = client_of(account.cloud)
    instance = machine.provider_id.partition("/")[2]
    ec2.modify_instance_attribute(InstanceId=instance, DisableApiTermination={"Value": True})
    with pytest.raises(InvalidRequest, match="disableApiTermination"):
        account.provider.destroy(machine.provider_id)
    assert instances(account.cloud) == [instance]
    ec2.modify_instance_attribute(InstanceId=instance, DisableApiTermination={"Value": False})
    ended(account, machine.provider_id)


# ------------------------------------------------------------------ the cloud's own timer


def timed(account: Account) -> AwsProvider:
    return account.another(**{ROLE: REAPER})


def test_the_schedule_needs_nobody_to_ask(account: Account) -> None:
    machine = timed(account).create(order(spot(account)))
    account.clock.pass_time(60)
    asked = len(account.cloud.log)
    account.clock.pass_time(3 * 3600 - 61)
    assert set(account.cloud.rentals.rented()) == {machine.provider_id}
    account.clock.pass_time(2)
    assert account.cloud.rentals.rented() == {}
    account.clock.pass_time(60)
    assert account.cloud.books.open() == {}
    assert len(account.cloud.log) == asked
    assert account.cloud.scheduler.schedules == {}


def test_a_role_without_the_right_leaves_it_to_reap(account: Account) -> None:
    provider = timed(account)
    account.cloud.scheduler.role_denied = True
    machine = provider.create(order(spot(account)))
    account.clock.pass_time(4 * 3600)
    [there] = provider.list()
    verdict = judge(there, None, OWNER, account.clock.now(), lambda _: None)
    assert (verdict.destroy, verdict.why) == (True, "past its hard end")
    provider.destroy(machine.provider_id)
    account.clock.pass_time(60)
    for left in provider.leftovers():
        provider.remove(left)
    assert account.cloud.scheduler.schedules == {}
    assert account.cloud.books.open() == {}


def test_a_role_that_is_none_does_not_cost_the_machine(account: Account) -> None:
    provider = account.another(**{ROLE: "gpuctl-reaper"})
    machine = provider.create(order(spot(account)))
    assert machine.state is State.BOOTING
    assert "no timer of AWS's own" in machine.notes[0]
    assert account.cloud.scheduler.schedules == {}


# ------------------------------------------------------------------ images


def test_an_image_whose_parameter_was_renamed_is_found_by_its_title(account: Account) -> None:
    from moto.ssm.models import ssm_backends

    offer = spot(account)
    known = ssm_backends[account.cloud.account]["us-east-1"]._parameters
    for name in [one for one in known if "deeplearning" in one]:
        del known[name]
    account.provider.create(order(offer))
    [asked] = launches(account)
    ec2: Any = client_of(account.cloud)
    [image] = ec2.describe_images(ImageIds=[asked["ImageId"]])["Images"]
    assert "Ubuntu 24.04" in image["Name"]
    assert image["Architecture"] == "x86_64"


def test_an_image_under_either_of_its_names(account: Account) -> None:
    from moto.ssm.models import ssm_backends

    offer = spot(account)
    known = ssm_backends[account.cloud.account]["us-east-1"]._parameters
    for name in [one for one in known if "driver-gpu-ubuntu-24.04" in one]:
        known[name.replace("-gpu-", "-")] = known.pop(name)
    account.provider.create(order(offer))
    assert account.cloud.requests("POST", "/DescribeImages$")
    assert len(instances(account.cloud)) == 1
