"""`gpuctl doctor --aws-policy`: enough for what the adapter does, and for nothing else."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from typing import Any

import pytest

from providers.aws_policy import policy
from tests.cli.conftest import Gpuctl
from tests.providers.aws_bench import A10G, Account, account, order

__all__ = ["account"]

ROLE = "arn:aws:iam::111122223333:role/gpuctl-reaper"
_SERVICES = {"servicequotas": "servicequotas", "pricing": "pricing", "ssm": "ssm", "sts": "sts"}
_VERBS = {"POST": "Create", "GET": "Get", "DELETE": "Delete"}


def actions(statements: list[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    for one in statements:
        found += [one["Action"]] if isinstance(one["Action"], str) else one["Action"]
    return found


def used(account: Account) -> set[str]:
    """The rights that the requests so far needed."""
    needed = set()
    for line in account.cloud.log:
        _, service, _, action = line.path.split("/", 3)
        if service == "scheduler":
            kind = "ScheduleGroup" if action.startswith("schedule-groups") else "Schedule"
            verb = _VERBS[line.method]
            needed.add(
                "scheduler:ListSchedules" if action == "schedules" else f"{service}:{verb}{kind}"
            )
        else:
            needed.add(f"{service}:{action}")
    return needed


def test_the_policy_allows_all_that_the_adapter_does(account: Account) -> None:
    provider = account.another(GPUCTL_AWS_SCHEDULER_ROLE=ROLE)
    provider.check()
    for offer in provider.offers(A10G)[:1]:
        machine = provider.create(order(offer))
        provider.list()
        provider.get(machine.provider_id)
        provider.destroy(machine.provider_id)
    account.clock.pass_time(60)
    for left in provider.leftovers():
        provider.remove(left)
    allowed = actions(policy()["Statement"])
    missing = {one for one in used(account) if not any(fnmatchcase(one, a) for a in allowed)}
    assert missing == set()


def test_the_policy_ends_only_what_carries_our_tag() -> None:
    for one in policy()["Statement"]:
        for action in actions([one]):
            if action.startswith(("ec2:Terminate", "ec2:Delete", "ec2:Cancel", "ec2:Run")):
                into = one["Sid"] == "LaunchInto"
                assert into or "gpuctl:managed" in json.dumps(one["Condition"])
            assert action != "*"
    assert len(json.dumps(policy(), separators=(",", ":"))) < 6144  # IAM's limit


@pytest.mark.parametrize("flag", [(), ("--json",)])
def test_it_is_printed_as_it_is_pasted(gpuctl: Gpuctl, flag: tuple[str, ...]) -> None:
    answer = gpuctl("doctor", "--aws-policy", *flag)
    assert answer.code == 0
    assert json.loads(answer.out) == policy()
