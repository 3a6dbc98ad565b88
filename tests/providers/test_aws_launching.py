"""Renting on AWS when things go wrong: what is asked for, what an answer means, how often."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest
import yaml

from providers.aws_client import Patience
from providers.base import (
    Ambiguous,
    AuthFailed,
    InvalidRequest,
    NoCapacity,
    PriceChanged,
    ProviderError,
    QuotaExceeded,
    RateLimited,
)
from tests.clouds.aws_cloud.cloud import KEY, SECRET
from tests.clouds.aws_cloud.wire import refusal, tags, throttled
from tests.clouds.http_cloud import Fault, Reply
from tests.providers.aws_bench import (
    A10G,
    START,
    Account,
    account,
    launches,
    on_demand,
    order,
    running,
    spot,
)

__all__ = ["account"]

RUN = "/ec2/.*/RunInstances"
ZONES = 6  # of us-east-1 that have a g5.xlarge
KINDS = ("instance", "volume", "network-interface", "spot-instances-request")


# ------------------------------------------------------------------ what is asked for


def test_a_spot_launch_asks_for_what_ends_by_itself(account: Account) -> None:
    account.provider.create(order(spot(account), ssh_public_key="ssh-ed25519 AAAA me"))
    [asked] = launches(account)
    options = "InstanceMarketOptions.SpotOptions."
    assert asked["InstanceMarketOptions.MarketType"] == "spot"
    assert asked[options + "SpotInstanceType"] == "one-time"
    assert asked[options + "InstanceInterruptionBehavior"] == "terminate"
    assert options + "MaxPrice" not in asked
    assert asked["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert asked["MetadataOptions.HttpTokens"] == "required"
    assert asked["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"
    assert asked["NetworkInterface.1.DeleteOnTermination"] == "true"
    assert "NetworkInterface.2.DeviceIndex" not in asked
    assert re.fullmatch("[0-9a-f]{64}", asked["ClientToken"])
    made = tags(asked)
    assert set(made) == set(KINDS)
    for kind in KINDS:
        assert made[kind]["gpuctl:managed"] == "1"
        assert made[kind]["gpuctl:owner"] == "c0ffee123456"
        assert made[kind]["gpuctl:end"] == str(int((START + timedelta(hours=3)).timestamp()))


def test_user_data_lets_the_caller_in_and_ends_the_machine(account: Account) -> None:
    account.provider.create(order(spot(account), ssh_public_key="ssh-ed25519 AAAA me"))
    data = base64.b64decode(launches(account)[0]["UserData"]).decode()
    assert len(data) < 16384
    said = yaml.safe_load(data)
    assert data.startswith("#cloud-config\n")
    assert said["ssh_authorized_keys"] == ["ssh-ed25519 AAAA me"]
    assert said["disable_root"] is False
    assert str(int((START + timedelta(hours=3)).timestamp())) in said["bootcmd"][0][2]
    assert "halt" not in data  # it would bill on
    [machine] = account.provider.list()
    account.clock.pass_time(60)
    access = account.provider.get(machine.provider_id).access
    assert access is not None
    assert access.host_keys == (said["ssh_keys"]["ed25519_public"],)  # type: ignore[union-attr]


def test_no_key_of_the_account_leaves_but_in_signatures(account: Account) -> None:
    machine = running(account)
    account.provider.check()
    account.provider.leftovers()
    account.provider.destroy(machine.provider_id)
    for line in account.cloud.log:
        assert SECRET.encode() not in line.body
        assert KEY.encode() not in line.body
        assert SECRET not in str(line.query)
    assert all(agent.startswith("gpuctl/") for agent in account.cloud.user_agents)


def test_a_cap_is_sent_as_the_bid_without_what_stands_beside(account: Account) -> None:
    account.provider.create(order(spot(account), cap="0.60"))
    bid = Decimal(launches(account)[0]["InstanceMarketOptions.SpotOptions.MaxPrice"])
    assert Decimal("0.58") < bid < Decimal("0.595")  # disk and address are paid from the cap too


# ------------------------------------------------------------------ answers that are no answers


@pytest.mark.parametrize(
    "fault",
    [
        Fault(RUN, when="after", how="drop"),
        Fault(RUN, when="after", how="answer", reply=refusal("InternalError", "x")),
        Fault(RUN, when="after", how="answer", reply=Reply(500, b"<html>oops</html>")),
        Fault(RUN, when="after", how="answer", reply=Reply(200, b"<Run")),
        Fault(RUN, when="after", how="hang", seconds=3),
    ],
    ids=["dropped", "500", "html", "cut", "hang"],
)
def test_a_launch_whose_reply_is_lost_is_in_doubt_and_sent_once(
    account: Account, fault: Fault
) -> None:
    offer = spot(account)
    account.cloud.faults.append(fault)
    patient = account.another(Patience(connect=1, read=5, launch=0.5, tries=3))
    with pytest.raises(Ambiguous, match="us-east-1"):
        patient.create(order(offer))
    assert len(launches(account)) <= 1  # one that hangs is logged when it gives up
    [found] = account.provider.list()
    assert found.name == order(offer).name
    assert found.mark == order(offer).mark
    assert set(account.cloud.rentals.rented()) == {found.provider_id}


@pytest.mark.parametrize("code", ["InternalError", "ServiceUnavailable", "Unavailable"])
def test_a_failure_before_the_launch_is_in_doubt_too(account: Account, code: str) -> None:
    offer = spot(account)
    account.cloud.faults.append(Fault(RUN, how="answer", reply=refusal(code, "x"), times=None))
    with pytest.raises(Ambiguous):
        account.another(Patience(tries=3)).create(order(offer))
    assert len(launches(account)) == 1
    assert account.provider.list() == []


def test_a_token_that_was_used_otherwise_is_looked_into(account: Account) -> None:
    offer = spot(account)
    reply = refusal("IdempotentParameterMismatch", "inconsistent")
    account.cloud.faults.append(Fault(RUN, how="answer", reply=reply))
    with pytest.raises(Ambiguous, match="token"):
        account.provider.create(order(offer))


def test_the_wrong_market_is_ended_at_once(account: Account) -> None:
    offer = spot(account)

    def on_demand_instead(request: object, reply: Reply) -> Reply:
        content = reply.content().replace(b"<instanceLifecycle>spot</instanceLifecycle>", b"")
        return replace(reply, body=content)

    account.cloud.adorn = on_demand_instead  # type: ignore[method-assign]
    with pytest.raises(Ambiguous, match="wrong market"):
        account.provider.create(order(offer))
    assert account.cloud.rentals.rented() == {}


# ------------------------------------------------------------------ no


def test_an_empty_zone_leads_to_the_next_one_with_a_token_of_its_own(account: Account) -> None:
    offer = spot(account)
    zones = [f"us-east-1{letter}" for letter in "abcdef"]
    prices = {z: account.cloud.market.spot_changes("g5.xlarge", z)[0][1] for z in zones}
    first = min(prices, key=lambda zone: prices[zone])
    account.cloud.market.capacity["g5.xlarge", first, "spot"] = 0
    machine = account.provider.create(order(offer))
    one, two = launches(account)
    assert one["ClientToken"] != two["ClientToken"]
    assert one["NetworkInterface.1.SubnetId"] != two["NetworkInterface.1.SubnetId"]
    assert machine.price_hour is not None
    assert machine.price_hour > offer.price_hour

    # Another process does not ask there again for three minutes.
    account.another().create(order(offer, "two"))
    assert len(launches(account)) == 3
    account.clock.pass_time(181)
    account.another().create(order(offer, "three"))
    assert len(launches(account)) == 5


def test_no_capacity_anywhere_is_a_definite_no_asked_once_a_zone(account: Account) -> None:
    offer = on_demand(account)
    account.cloud.market.capacity["g5.xlarge", "*", "on-demand"] = 0
    with pytest.raises(NoCapacity, match="none of it"):
        account.another(Patience(tries=3)).create(order(offer))
    assert len(launches(account)) == ZONES
    with pytest.raises(NoCapacity, match="moment ago"):
        account.another().create(order(offer, "two"))
    assert len(launches(account)) == ZONES


@pytest.mark.parametrize("code", ["Unsupported", "InsufficientFreeAddressesInSubnet"])
def test_other_words_for_full_lead_on_too(account: Account, code: str) -> None:
    offer = on_demand(account)
    account.cloud.faults.append(Fault(RUN, how="answer", reply=refusal(code, "x")))
    account.provider.create(order(offer))
    assert len(launches(account)) == 2


def test_a_quota_is_named_with_its_code(account: Account) -> None:
    offers = {True: spot(account), False: on_demand(account)}
    account.cloud.market.quotas |= {
        ("us-east-1", "L-3819A6DF"): 0,
        ("us-east-1", "L-DB2E81BA"): 0,
    }
    for is_spot, code in ((True, "L-3819A6DF"), (False, "L-DB2E81BA")):
        with pytest.raises(QuotaExceeded, match=code):
            account.provider.create(order(offers[is_spot], f"q{is_spot}".lower()))
    assert len(launches(account)) == 2  # a quota is not a zone's


def test_a_throttled_launch_is_not_repeated_by_us(account: Account) -> None:
    offer = spot(account)
    account.cloud.faults.append(Fault(RUN, how="answer", reply=throttled(), times=None))
    with pytest.raises(RateLimited) as caught:
        account.another(Patience(tries=3)).create(order(offer))
    assert caught.value.retry_after > 0
    assert len(launches(account)) == 1


def test_a_missing_right_names_the_policy_and_not_aws_own_words(account: Account) -> None:
    offer = spot(account)
    account.cloud.denied.add("RunInstances")
    with pytest.raises(AuthFailed, match="aws-policy") as caught:
        account.provider.create(order(offer))
    assert "c2VjcmV0" not in str(caught.value)


def test_a_bad_key_is_told_without_it(account: Account) -> None:
    offer = spot(account)
    stranger = account.another(AWS_ACCESS_KEY_ID="AKIASTRANGER")
    for call in (
        lambda: stranger.create(order(offer)),
        stranger.list,
        lambda: stranger.offers(A10G),
    ):
        with pytest.raises(AuthFailed) as caught:
            call()
        assert "AKIA" not in str(caught.value)
        assert SECRET not in str(caught.value)
    assert account.cloud.rentals.rented() == {}


def test_a_clock_that_is_off_is_told(account: Account) -> None:
    account.cloud.expired = True
    with pytest.raises(AuthFailed, match="clock"):
        account.provider.list()


def test_nobody_there_costs_no_more_than_its_time(account: Account) -> None:
    account.cloud.close()
    with pytest.raises(Ambiguous, match="no whole answer"):
        account.provider.list()


# ------------------------------------------------------------------ prices that move


def test_a_price_that_rose_by_more_than_a_tenth_is_not_taken(account: Account) -> None:
    offer = spot(account)
    for letter in "abcdef":
        changes = account.cloud.market.spot_changes("g5.xlarge", f"us-east-1{letter}")
        account.cloud.market.spot["g5.xlarge", f"us-east-1{letter}"] = [
            *changes,
            (START, Decimal("0.90")),
        ]
    with pytest.raises(PriceChanged, match=r"0\.9"):
        account.provider.create(order(offer))
    with pytest.raises(PriceChanged, match="cap"):
        account.provider.create(order(offer, cap="0.80"))
    assert launches(account) == []
    machine = account.provider.create(order(offer, "dear", cap="1.00"))
    assert machine.price_hour is not None
    assert machine.price_hour > Decimal("0.90")


def test_a_price_that_rises_under_our_hands_is_refused_by_the_bid(account: Account) -> None:
    offer = spot(account)
    reply = refusal("SpotMaxPriceTooLow", "Your Spot request price of 0.5 is lower than")
    account.cloud.faults.append(Fault(RUN, how="answer", reply=reply))
    with pytest.raises(PriceChanged):
        account.provider.create(order(offer, cap="0.60"))
    assert account.cloud.rentals.rented() == {}


def test_what_is_not_sold_as_spot_any_more_is_no_capacity(account: Account) -> None:
    offer = spot(account)
    for letter in "abcdef":
        account.cloud.market.spot["g5.xlarge", f"us-east-1{letter}"] = []
    with pytest.raises(NoCapacity, match="not sold as spot"):
        account.provider.create(order(offer))


@pytest.mark.parametrize("offer_id", ["", "spot", "spot:us-east-1", "spot:us-east-1:", "a:b:c"])
def test_ids_that_are_no_offers(account: Account, offer_id: str) -> None:
    offer = replace(spot(account), id=offer_id)
    with pytest.raises(ProviderError) as caught:
        account.provider.create(order(offer))
    assert isinstance(caught.value, InvalidRequest)
