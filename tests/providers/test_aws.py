"""The AWS adapter against the emulated account: the shared suite, with the books as oracle."""

from __future__ import annotations

import boto3
import pytest

from providers import aws_machines
from tests.clouds.aws_cloud import AwsCloud
from tests.clouds.aws_cloud.wire import throttled
from tests.clouds.http_cloud import Fault
from tests.conformance.provider_suite import Bench, ProviderSuite
from tests.providers.aws_bench import A10G, Account, account

__all__ = ["account"]


def unmarked(cloud: AwsCloud) -> str:
    """Rent an instance the way another tool would."""
    settings = cloud.settings()
    client = boto3.client(
        "ec2",
        region_name="us-east-1",
        endpoint_url=cloud.url,
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
    )
    image = client.describe_images(Owners=["099720109477"])["Images"][0]["ImageId"]
    made = client.run_instances(ImageId=image, InstanceType="t3.micro", MinCount=1, MaxCount=1)
    return f"us-east-1/{made['Instances'][0]['InstanceId']}"


def break_reads(cloud: AwsCloud) -> None:
    """Have every description fail the way a busy region does."""
    cloud.faults.append(Fault("/ec2/.*/Describe", how="answer", reply=throttled(), times=None))


class TestAws(ProviderSuite):
    @pytest.fixture
    def bench(self, account: Account) -> Bench:
        return Bench(
            provider=account.provider,
            books=account.cloud.rentals.rented,
            want=A10G,
            pass_time=account.clock.pass_time,
            unknown_id="us-east-1/i-0123456789abcdef0",
            break_reads=lambda: break_reads(account.cloud),
            add_unmarked=lambda: unmarked(account.cloud),
            status_map=(aws_machines.STATES, aws_machines.state_of),
            ready_seconds=60,
        )
