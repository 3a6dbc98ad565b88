"""Health of an AWS account, for `gpuctl doctor`: key, rights, quotas, network. Rents nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from providers import aws_ground, aws_schedule
from providers.aws_client import Aws
from providers.aws_errors import code_of, meaning, said, status_of
from providers.aws_notes import Notes
from providers.aws_types import QUOTAS
from providers.base import Finding, ProviderError

_SKEW_SECONDS = 240  # AWS refuses what is 15 minutes off
_PROBE = "t3.micro"
_EC2 = "ec2"


def findings(aws: Aws, notes: Notes, now: datetime) -> Sequence[Finding]:
    """Return what is right and wrong, one line each; the key first, and nothing after a bad one."""
    regions = aws.regions()
    try:
        with said("AWS does not say whose key this is"):
            whose = aws.sts(regions[0]).get_caller_identity()
    except ProviderError as error:
        return [Finding("key", False, str(error))]
    found = [
        Finding("key", True, f"{whose['Arn']}, account {whose['Account']}"),
        _clock(whose, now),
    ]
    for region in regions:
        found += [_network(aws, region), _rights(aws, notes, region), _quotas(aws, region)]
    role = aws.environ.get(aws_schedule.ROLE)
    words = f"machines are ended by {role}" if role else f"none: {aws_schedule.ROLE} is not set"
    return [*found, Finding("timer", True, words)]


def _clock(reply: Any, now: datetime) -> Finding:
    date = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    try:
        off = (now - parsedate_to_datetime(str(date))).total_seconds()
    except (ValueError, TypeError):
        return Finding("clock", True, "AWS did not say what time it is")
    words = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} AWS's"
    return Finding("clock", abs(off) < _SKEW_SECONDS, words)


def _network(aws: Aws, region: str) -> Finding:
    name = f"network {region}"
    try:
        zones = aws_ground.zones(aws, region)
    except ProviderError as error:
        return Finding(name, False, str(error))
    return Finding(name, True, f"{len(zones)} zones with a subnet")


def _rights(aws: Aws, notes: Notes, region: str) -> Finding:
    """Ask for a launch that is only played, tags included."""
    from botocore.exceptions import ClientError

    name = f"rights {region}"
    tags = [{"Key": "gpuctl:managed", "Value": "1"}]
    kinds = ("instance", "volume", "network-interface", "spot-instances-request")
    try:
        image = aws_ground.find_image(aws, notes, region, None, "x86_64", gpu=False)
        with said(f"AWS did not say whether the key may launch in {region}"):
            try:
                aws.launching(region).run_instances(
                    DryRun=True,
                    ImageId=image.id,
                    InstanceType=_PROBE,
                    MinCount=1,
                    MaxCount=1,
                    InstanceMarketOptions={"MarketType": "spot"},
                    TagSpecifications=[{"ResourceType": kind, "Tags": tags} for kind in kinds],
                )
            except ClientError as error:
                if code_of(error) != "DryRunOperation":
                    why = meaning(code_of(error), status_of(error), "A launch is refused")
                    return Finding(name, False, str(why))
    except ProviderError as error:
        return Finding(name, False, str(error))
    return Finding(name, True, "may launch and tag machines")


def _quotas(aws: Aws, region: str) -> Finding:
    """Say how many vCPUs of each family may run; a new account may have none."""
    name = f"quota {region}"
    values: dict[str, float] = {}

    def ask(code: str) -> float | ProviderError:
        try:
            with said(f"AWS did not tell the quota {code}"):
                found = aws.quotas(region).get_service_quota(ServiceCode=_EC2, QuotaCode=code)
        except ProviderError as error:
            return error
        return float(found["Quota"]["Value"])

    codes = sorted(QUOTAS)
    answers = dict(zip(codes, aws.each(ask, codes), strict=True))
    values = {code: value for code, value in answers.items() if isinstance(value, float)}
    if not values:
        # Without the right to ask, a launch still says so itself.
        return Finding(name, True, "not known: the key may not ask Service Quotas")
    words = ", ".join(f"{QUOTAS[code]} {value:g} ({code})" for code, value in values.items())
    advice = "" if any(values.values()) else "; ask for more in the Service Quotas console"
    return Finding(name, any(values.values()), f"vCPUs: {words}{advice}")
