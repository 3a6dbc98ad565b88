"""The rights that gpuctl needs on AWS, and no more: what `gpuctl doctor --aws-policy` prints."""

from __future__ import annotations

from typing import Any

_EC2 = "arn:aws:ec2:*:*:"
_TAGGED = {"StringEquals": {"aws:RequestTag/gpuctl:managed": "1"}}
_OURS = {"StringEquals": {"aws:ResourceTag/gpuctl:managed": "1"}}


def policy() -> dict[str, Any]:
    """Return an IAM policy: it reads, launches only what carries our tag, and ends only that."""
    read = ["ec2:Describe*", "ec2:GetSpotPlacementScores", "pricing:GetProducts"]
    read += ["servicequotas:GetServiceQuota", "ssm:GetParameter", "sts:GetCallerIdentity"]
    made = ("instance", "volume", "network-interface", "spot-instances-request")
    used = [f"{_EC2}{kind}/*" for kind in ("subnet", "security-group")]
    end = ["ec2:TerminateInstances", "ec2:DeleteVolume", "ec2:DeleteNetworkInterface"]
    end += ["ec2:CancelSpotInstanceRequests"]
    group = ["ec2:CreateSecurityGroup", "ec2:AuthorizeSecurityGroupIngress"]
    timers = [f"scheduler:{verb}Schedule" for verb in ("Create", "Delete", "Get")]
    timers += ["scheduler:CreateScheduleGroup", "scheduler:ListSchedules"]
    return {
        "Version": "2012-10-17",
        "Statement": [
            _allow("Read", read, "*"),
            _allow("LaunchTagged", "ec2:RunInstances", [f"{_EC2}{k}/*" for k in made], _TAGGED),
            _allow("LaunchInto", "ec2:RunInstances", ["arn:aws:ec2:*::image/*", *used]),
            _allow(
                "TagOnlyAtCreation",
                "ec2:CreateTags",
                f"{_EC2}*/*",
                {"StringEquals": {"ec2:CreateAction": ["RunInstances", "CreateSecurityGroup"]}},
            ),
            _allow("LetSshIn", group, [f"{_EC2}security-group/*", f"{_EC2}vpc/*"]),
            _allow("EndOnlyOurs", end, "*", _OURS),
            _allow("Timers", timers, "*"),
            _allow(
                "TimersAct",
                "iam:PassRole",
                "arn:aws:iam::*:role/gpuctl-*",
                {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}},
            ),
            _allow(
                "SpotOnce",
                "iam:CreateServiceLinkedRole",
                "*",
                {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}},
            ),
        ],
    }


def _allow(
    sid: str, action: str | list[str], resource: str | list[str], condition: Any = None
) -> dict[str, Any]:
    rule = {"Sid": sid, "Effect": "Allow", "Action": action, "Resource": resource}
    return rule | ({"Condition": condition} if condition else {})
