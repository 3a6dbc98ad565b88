"""Looking at AWS, ending, sweeping, and checking: listings that lag, lie or fail."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import boto3
import pytest

from providers.aws import AwsProvider
from providers.aws_client import Patience
from providers.base import ABSENT, Ambiguous, NotFound, ProviderError, RateLimited, State, Want
from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.aws_cloud.cloud import KEY, SECRET
from tests.clouds.aws_cloud.wire import form, refusal, throttled
from tests.clouds.http_cloud import Fault
from tests.clouds.memory_cloud import HandClock
from tests.providers.aws_bench import A10G, START, Account, account, launches, order, running, spot

__all__ = ["account"]


def client_of(cloud: AwsCloud, service: str = "ec2", region: str = "us-east-1") -> object:
    """The SDK as anybody uses it."""
    return boto3.client(
        service,
        region_name=region,
        endpoint_url=cloud.url,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
    )


# ------------------------------------------------------------------ eventual consistency


def test_an_ended_machine_is_shown_as_running_for_a_while(account: Account) -> None:
    account.cloud.rentals.times.stale = 6
    machine = running(account)
    account.provider.destroy(machine.provider_id)
    seen = []
    for _ in range(10):
        seen.append(account.provider.get(machine.provider_id).state)
        account.clock.pass_time(2)
    assert list(dict.fromkeys(seen)) == [State.READY, State.LOST, State.GONE]
    account.clock.pass_time(3600)
    with pytest.raises(NotFound):
        account.provider.get(machine.provider_id)
    assert account.provider.destroy(machine.provider_id) == ABSENT


def test_a_status_that_nobody_knows(account: Account) -> None:
    machine = running(account)
    rental = account.cloud.rentals.all[machine.provider_id.partition("/")[2]]
    rental.instance._state.name = "hibernating"
    shown = account.provider.get(machine.provider_id)
    assert (shown.state, shown.status) == (State.UNKNOWN, "hibernating")


def test_the_states_of_a_life(account: Account) -> None:
    machine = account.provider.create(order(spot(account)))
    assert (machine.state, machine.access) == (State.BOOTING, None)
    account.clock.pass_time(25)
    ready = account.provider.get(machine.provider_id)
    assert ready.state is State.READY
    assert ready.access is not None
    assert ready.self_end is not None
    assert "poweroff" in " ".join(ready.self_end.argv)


def test_an_interruption_is_told_as_one(account: Account) -> None:
    machine = running(account)
    account.cloud.interrupt(machine.provider_id.partition("/")[2], notice=120)
    assert account.provider.get(machine.provider_id).state is State.READY  # for two minutes
    account.clock.pass_time(121)
    gone = account.provider.get(machine.provider_id)
    assert (gone.state, gone.reason) == (State.GONE, "interrupted")
    assert account.provider.list() == []
    assert account.cloud.books.open() == {}


def test_our_own_end_is_no_interruption(account: Account) -> None:
    machine = running(account)
    account.provider.destroy(machine.provider_id)
    account.clock.pass_time(30)
    gone = account.provider.get(machine.provider_id)
    assert (gone.state, gone.reason) == (State.GONE, None)
    assert "UserInitiated" in gone.status


# ------------------------------------------------------------------ the end


def test_destroy_looks_nothing_up_before(account: Account) -> None:
    machine = running(account)
    before = len(account.cloud.log)
    account.cloud.faults.append(Fault("/Describe", how="answer", reply=throttled(), times=None))
    assert account.another().destroy(machine.provider_id) == "shutting-down"
    assert account.cloud.log[before].path.endswith("/TerminateInstances")
    assert form(account.cloud.log[before].body)["InstanceId.1"] in machine.provider_id
    assert account.cloud.rentals.rented() == {}


def test_the_spot_request_is_cancelled_so_that_the_quota_is_free_at_once(account: Account) -> None:
    offer = spot(account)
    account.cloud.market.quotas["us-east-1", "L-3819A6DF"] = 4  # one g5.xlarge
    machine = account.provider.create(order(offer))
    account.provider.destroy(machine.provider_id)
    account.provider.create(order(offer, "two"))
    assert len(launches(account)) == 2


def test_a_request_that_could_not_be_cancelled_is_left_over(account: Account) -> None:
    machine = running(account)
    account.cloud.denied.add("CancelSpotInstanceRequests")
    account.provider.destroy(machine.provider_id)
    account.cloud.denied.clear()
    [left] = account.provider.leftovers()
    assert (left.kind, left.name, left.mark) == ("spot-request", machine.name, machine.mark)
    account.provider.remove(left)
    assert account.provider.leftovers() == []


def test_a_failing_end_is_no_end(account: Account) -> None:
    machine = running(account)
    for reply, error in ((throttled(), RateLimited), (refusal("InternalError", "x"), Ambiguous)):
        account.cloud.faults.append(Fault("/TerminateInstances", how="answer", reply=reply))
        with pytest.raises(error):
            account.provider.destroy(machine.provider_id)
    assert machine.provider_id in account.cloud.rentals.rented()


def test_an_end_whose_answer_is_lost_can_be_asked_for_again(account: Account) -> None:
    machine = running(account)
    account.cloud.faults.append(Fault("/TerminateInstances", when="after"))
    with pytest.raises(Ambiguous):
        account.provider.destroy(machine.provider_id)
    assert account.provider.destroy(machine.provider_id)


# ------------------------------------------------------------------ what is left


def volume(account: Account, **tags: str) -> str:
    client = client_of(account.cloud)
    made = client.create_volume(  # type: ignore[attr-defined]
        AvailabilityZone="us-east-1a",
        Size=100,
        TagSpecifications=[
            {
                "ResourceType": "volume",
                "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
            }
        ]
        if tags
        else [],
    )
    return str(made["VolumeId"])


OURS = {
    "gpuctl:managed": "1",
    "gpuctl:name": "gpuctl-old-c0ffee-00000009",
    "gpuctl:owner": "c0ffee123456",
    "gpuctl:end": "1790000000",
}


def test_only_volumes_with_our_mark_are_ours(account: Account) -> None:
    ours = volume(account, **OURS)
    volume(account)  # a user's data
    volume(account, **{"gpuctl:managed": "1"})  # half a mark is none
    volume(account, **OURS, **{"gpuctl:managed-by": "terraform"})
    [left] = account.provider.leftovers()
    assert left.id == f"us-east-1/{ours}"
    assert left.price_month == 8
    account.provider.remove(left)
    assert ours not in account.cloud.books.open("volume")
    assert len(account.cloud.books.open("volume")) == 3
    account.provider.remove(left)


def test_the_volume_of_a_living_machine_is_not_left_over(account: Account) -> None:
    running(account)
    assert account.provider.leftovers() == []


def test_one_list_that_fails_is_not_an_empty_one(account: Account) -> None:
    volume(account, **OURS)
    for call in ("DescribeVolumes", "DescribeNetworkInterfaces", "DescribeSpotInstanceRequests"):
        account.cloud.faults.append(Fault(call, how="answer", reply=throttled()))
        with pytest.raises(RateLimited):
            account.another().leftovers()


# ------------------------------------------------------------------ regions


def two_regions(account: Account) -> AwsProvider:
    settings = account.cloud.settings(regions=("us-east-1", "us-west-2"))
    return AwsProvider(settings, account.home, account.clock, Patience(tries=1))


def test_a_machine_in_a_region_that_is_not_named_any_more_is_not_forgotten(
    account: Account,
) -> None:
    both = two_regions(account)
    west = next(o for o in both.offers(A10G) if o.region == "us-west-2" and o.spot)
    machine = both.create(order(west))
    assert machine.provider_id.startswith("us-west-2/i-")
    east_only = account.another()
    assert [one.provider_id for one in east_only.list()] == [machine.provider_id]
    elsewhere = AwsProvider(account.cloud.settings(), account.home / "none", account.clock)
    assert elsewhere.list() == []  # another computer knows only the regions it is told


def test_a_region_that_fails_costs_its_own_offers_and_every_listing(account: Account) -> None:
    both = two_regions(account)
    account.cloud.faults.append(
        Fault("/ec2/us-west-2/", how="answer", reply=refusal("OptInRequired", "x"), times=None)
    )
    offers = both.offers(A10G)
    assert {offer.region for offer in offers} == {"us-east-1"}
    assert all("us-west-2" in offer.note for offer in offers)
    with pytest.raises(ProviderError, match="us-west-2"):
        both.list()


@pytest.mark.slow
def test_five_hundred_machines_in_the_calls_that_paging_needs(account: Account) -> None:
    offer = spot(account)
    account.cloud.market.quotas["us-east-1", "L-3819A6DF"] = 10**6
    for number in range(500):
        account.provider.create(order(offer, f"m{number}"))
    account.cloud.log.clear()
    account.cloud.bucket = (100, 20)  # requests at once, and a second
    patient = account.another(Patience(read=60))  # moto needs its time for so many
    assert len(patient.list()) == 500
    assert patient.leftovers() == []
    assert len(account.cloud.log) == 5


# ------------------------------------------------------------------ health and credentials


def findings(provider: AwsProvider) -> dict[str, tuple[bool, str]]:
    return {one.name: (one.ok, one.detail) for one in provider.check()}


def test_check_rents_nothing_and_says_what_is_wrong(account: Account) -> None:
    assert all(ok for ok, _ in findings(account.provider).values())
    assert account.cloud.rentals.all == {}

    account.cloud.denied.add("RunInstances")
    ok, words = findings(account.another())["rights us-east-1"]
    assert (ok, "aws-policy" in words) == (False, True)

    for code in ("L-3819A6DF", "L-7212CCBC", "L-C4BD4855", "L-DB2E81BA", "L-417A185B"):
        account.cloud.market.quotas["us-east-1", code] = 0
    ok, words = findings(account.another())["quota us-east-1"]
    assert (ok, "L-3819A6DF" in words) == (False, True)


def test_check_stops_at_a_bad_key(account: Account) -> None:
    found = account.another(AWS_ACCESS_KEY_ID="AKIASTRANGER").check()
    assert [(one.name, one.ok) for one in found] == [("key", False)]
    assert "AKIA" not in found[0].detail


def test_check_tells_a_clock_that_is_off(account: Account) -> None:
    fast = HandClock(START + timedelta(minutes=6))
    found = findings(AwsProvider(account.cloud.settings(), account.home, fast))
    assert found["clock"] == (False, "360 s ahead of AWS's")


NONE = {"AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CONFIG_FILE": "/dev/null"}
KEYS = {**NONE, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (NONE, False),
        (KEYS, True),
        ({**NONE, "AWS_PROFILE": "work"}, True),
        ({**KEYS, "AWS_ENDPOINT_URL_S3": "https://r2.example"}, False),
        ({**KEYS, "AWS_ENDPOINT_URL_S3": "https://s3.eu-west-1.amazonaws.com"}, True),
        ({**KEYS, "AWS_ENDPOINT_URL": "http://minio:9000"}, False),
        (
            {**KEYS, "AWS_ENDPOINT_URL_S3": "http://minio:9000", "GPUCTL_AWS_REGIONS": "eu-west-1"},
            True,
        ),
    ],
)
def test_keys_of_another_s3_are_no_credentials_for_machines(
    account: Account, environ: dict[str, str], expected: bool
) -> None:
    assert AwsProvider(environ, account.home, account.clock).configured() is expected


def test_credentials_files_count_when_they_hold_some(account: Account, tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    environ = {**NONE, "AWS_SHARED_CREDENTIALS_FILE": str(file)}
    provider = AwsProvider(environ, account.home, account.clock)
    assert not provider.configured()
    file.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    assert provider.configured()


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({**NONE, "AWS_PROFILE": "none-such"}, "profile"),
        ({**NONE, "AWS_ACCESS_KEY_ID": "k"}, "AWS_SECRET_ACCESS_KEY"),
        ({**KEYS, "GPUCTL_AWS_REGIONS": "us east"}, "region"),
        ({**KEYS, "AWS_ENDPOINT_URL_EC2": "not an address"}, "address"),
    ],
)
def test_broken_settings_are_told_in_words(
    account: Account, environ: dict[str, str], words: str
) -> None:
    provider = AwsProvider({"AWS_REGION": "us-east-1", **environ}, account.home, account.clock)
    calls: list[Callable[[], object]] = [provider.list, lambda: provider.offers(Want())]
    for call in calls[:1] if words == "address" else calls:  # the rest asks prices first
        with pytest.raises(ProviderError, match=words):
            call()
