"""What an AWS launch stands on: images, subnets, a security group; and the cloud's own timer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from providers.aws import AwsProvider
from providers.base import InvalidRequest, Machine, State, Unsupported
from tests.clouds.aws_cloud.wire import refusal
from tests.clouds.http_cloud import Fault
from tests.providers.aws_bench import A10G, Account, account, launches, order, spot

__all__ = ["account"]

RUN = "/ec2/.*/RunInstances"


# ------------------------------------------------------------------ what it stands on


def test_an_image_of_ones_own(account: Account) -> None:
    offer = spot(account)
    al2023 = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
    account.another(GPUCTL_AWS_IMAGE=al2023).create(order(offer))
    [asked] = launches(account)
    assert asked["BlockDeviceMapping.1.DeviceName"] == "/dev/xvda"  # else a second disk is left
    account.provider.create(order(offer, "two", image=asked["ImageId"]))
    assert launches(account)[1]["ImageId"] == asked["ImageId"]


@pytest.mark.parametrize("image", ["ami-0123456789abcdef0", "/aws/service/none"])
def test_an_image_that_is_not_there(account: Account, image: str) -> None:
    with pytest.raises(InvalidRequest, match="no image"):
        account.provider.create(order(spot(account), image=image))
    assert launches(account) == []


def test_a_container_is_no_image_of_a_machine(account: Account) -> None:
    with pytest.raises(Unsupported, match="AMI"):
        account.provider.offers(replace(A10G, image="pytorch/pytorch:2.8.0"))
    with pytest.raises(Unsupported, match="AMI"):
        account.provider.create(order(spot(account), image="pytorch/pytorch:2.8.0"))


def test_the_disk_is_never_smaller_than_the_image(account: Account) -> None:
    account.provider.create(order(spot(account)))
    assert launches(account)[0]["BlockDeviceMapping.1.Ebs.VolumeSize"] == "75"


def test_without_a_default_vpc_the_setting_is_named(account: Account) -> None:
    offer = spot(account)
    with pytest.raises(InvalidRequest, match="GPUCTL_AWS_SUBNETS"):
        account.another(GPUCTL_AWS_SUBNETS="subnet-0123456789abcdef0").create(order(offer))


def test_named_subnets_are_the_only_ones(account: Account) -> None:
    offer = spot(account)
    client = account.provider._aws.ec2("us-east-1")
    [subnet] = client.describe_subnets(
        Filters=[{"Name": "availability-zone", "Values": ["us-east-1c"]}]
    )["Subnets"]
    account.another(GPUCTL_AWS_SUBNETS=subnet["SubnetId"]).create(order(offer))
    assert launches(account)[0]["NetworkInterface.1.SubnetId"] == subnet["SubnetId"]


def test_one_security_group_is_made_and_used_again(account: Account) -> None:
    offer = spot(account)
    account.provider.create(order(offer))
    client = account.provider._aws.ec2("us-east-1")
    [group] = client.describe_security_groups(GroupNames=["gpuctl"])["SecurityGroups"]
    [rule] = group["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
    account.provider.create(order(offer, "two"))
    assert len(account.cloud.requests("POST", "/CreateSecurityGroup")) == 1

    # One that was left without a rule, by a crash between the two calls, gets it.
    client.revoke_security_group_ingress(GroupId=group["GroupId"], IpPermissions=[rule])
    account.provider.create(order(offer, "three"))
    [group] = client.describe_security_groups(GroupNames=["gpuctl"])["SecurityGroups"]
    assert len(group["IpPermissions"]) == 1


def test_a_group_that_is_not_known_everywhere_yet_is_asked_for_again(account: Account) -> None:
    offer = spot(account)
    reply = refusal("InvalidGroup.NotFound", "The security group 'sg-1' does not exist")
    account.cloud.faults.append(Fault(RUN, how="answer", reply=reply))
    account.provider.create(order(offer))
    one, two = launches(account)
    assert one["ClientToken"] == two["ClientToken"]


def test_a_wrong_port_is_told_before_anything_is_rented(account: Account) -> None:
    offer = spot(account)
    with pytest.raises(InvalidRequest, match="GPUCTL_AWS_SSH_PORT"):
        account.another(GPUCTL_AWS_SSH_PORT="ssh").create(order(offer))
    assert account.cloud.rentals.rented() == {}


# ------------------------------------------------------------------ the cloud's own timer

ROLE = "arn:aws:iam::111122223333:role/gpuctl-reaper"


def test_the_schedule_ends_what_everybody_forgot(account: Account) -> None:
    provider = account.another(GPUCTL_AWS_SCHEDULER_ROLE=ROLE)
    assert provider.capabilities.ttl
    machine = provider.create(order(spot(account)))
    [schedule] = account.cloud.scheduler.schedules.values()
    assert schedule.name == machine.name
    assert provider.leftovers() == []  # it serves a machine that lives
    account.clock.pass_time(3 * 3600 + 1)
    provider.list()
    assert account.cloud.rentals.rented() == {}


def test_without_a_role_it_says_that_there_is_no_such_timer(account: Account) -> None:
    [note] = account.provider.create(order(spot(account))).notes
    assert "GPUCTL_AWS_SCHEDULER_ROLE is not set" in note
    armed = account.another(GPUCTL_AWS_SCHEDULER_ROLE=ROLE)
    assert armed.create(order(spot(account), "other")).notes == ()


# ------------------------------------------------------------------ regions


def asked_for(account: Account, action: str) -> list[object]:
    return [one for one in account.cloud.log if f"/{action}" in str(one)]


def elsewhere(account: Account) -> Machine:
    """A machine in a region that this home neither names nor has ever used."""
    settings = {**account.cloud.settings(), "GPUCTL_AWS_REGIONS": "eu-west-1"}
    other = AwsProvider(settings, account.home.parent / "another", account.clock)
    return other.create(order(other.offers(replace(A10G, spot=True))[0], "far"))


def test_it_looks_where_the_ledger_has_machines(account: Account) -> None:
    far = elsewhere(account)
    assert account.provider.list() == []
    account.provider.look_in(["eu-west-1", ""])
    assert [one.provider_id for one in account.provider.list()] == [far.provider_id]
    account.provider.destroy(far.provider_id)
    account.clock.pass_time(60)
    assert account.provider.list() == []


def test_it_looks_in_all_regions_that_the_account_may_use(account: Account) -> None:
    far = elsewhere(account)
    reaper = account.another(GPUCTL_AWS_REGIONS="all")
    assert [one.provider_id for one in reaper.list()] == [far.provider_id]
    assert len(asked_for(account, "DescribeRegions")) == 1
    assert len(asked_for(account, "DescribeInstances")) > 10
    reaper.list()
    assert len(asked_for(account, "DescribeRegions")) == 1


# ------------------------------------------------------------------ schedules, once more


def test_the_schedule_of_a_machine_that_is_gone_is_swept(account: Account) -> None:
    provider = account.another(GPUCTL_AWS_SCHEDULER_ROLE=ROLE)
    machine = provider.create(order(spot(account)))
    provider.destroy(machine.provider_id)
    account.clock.pass_time(60)
    [left] = provider.leftovers()
    assert (left.kind, left.name) == ("schedule", machine.name)
    assert left.mark == order(spot(account)).mark
    provider.remove(left)
    provider.remove(left)
    assert provider.leftovers() == []


def test_a_schedule_that_cannot_be_made_does_not_lose_the_machine(account: Account) -> None:
    provider = account.another(GPUCTL_AWS_SCHEDULER_ROLE=ROLE)
    account.cloud.faults.append(Fault("/scheduler/", how="drop", times=None))
    machine = provider.create(order(spot(account)))
    assert machine.state is State.BOOTING
    assert "no timer of AWS's own" in machine.notes[0]
