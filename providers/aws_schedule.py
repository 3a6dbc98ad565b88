"""The cloud's own timer: an EventBridge schedule that ends a machine at its hard end.

It works when everything of ours is dead, and needs a role that may end machines:
GPUCTL_AWS_SCHEDULER_ROLE. Without one the machine's own timer and `gpuctl reap` stand alone.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from providers.aws_client import Aws
from providers.aws_errors import said
from providers.aws_machines import split
from providers.base import Leftover, Machine, Mark, NotFound

ROLE = "GPUCTL_AWS_SCHEDULER_ROLE"
GROUP = "gpuctl"
_TARGET = "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances"
_PREFIX = "gpuctl-"


def arm(aws: Aws, role: str, machine: Machine, mark: Mark) -> None:
    """Have AWS end a machine at its hard end. Raises ProviderError."""
    region, instance_id = split(machine.provider_id)
    client = aws.scheduler(region)
    arguments: dict[str, Any] = {
        "Name": machine.name,
        "GroupName": GROUP,
        "ScheduleExpression": f"at({mark.end.astimezone(UTC):%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Description": json.dumps(
            {"owner": mark.owner, "end": int(mark.end.timestamp()), "run": mark.run}
        ),
        "Target": {
            "Arn": _TARGET,
            "RoleArn": role,
            "Input": json.dumps({"InstanceIds": [instance_id]}),
        },
        "ClientToken": machine.name[-64:],
    }
    with said(f"AWS made no schedule for {machine.name}"):
        try:
            client.create_schedule(**arguments)
        except client.exceptions.ResourceNotFoundException:
            with suppress(client.exceptions.ConflictException):  # made at this very moment
                client.create_schedule_group(Name=GROUP)
            client.create_schedule(**arguments)


def disarm(aws: Aws, region: str, name: str) -> None:
    """Remove a schedule; one that is not there is fine. Raises ProviderError."""
    try:
        with said(f"AWS did not remove the schedule {name}"):
            aws.scheduler(region).delete_schedule(Name=name, GroupName=GROUP)
    except NotFound:
        return


def left(aws: Aws, region: str, alive: frozenset[str]) -> list[Leftover]:
    """Return the schedules of machines that are no more. Raises ProviderError."""
    client = aws.scheduler(region)
    with said(f"AWS did not list the schedules of {region}"):
        try:
            pages = client.get_paginator("list_schedules")
            names = [
                str(row["Name"])
                for page in pages.paginate(GroupName=GROUP, NamePrefix=_PREFIX)
                for row in page["Schedules"]
            ]
        except client.exceptions.ResourceNotFoundException:
            return []  # the group was never made
    found = []
    for name in names:
        if name in alive:
            continue
        try:
            with said(f"AWS did not show the schedule {name}"):
                row = client.get_schedule(Name=name, GroupName=GROUP)
        except NotFound:
            continue  # it has fired meanwhile
        mark = read_description(str(row.get("Description", "")))
        if mark is not None:
            found.append(Leftover("aws", "schedule", f"{region}/{name}", name, mark))
    return found


def read_description(text: str) -> Mark | None:
    """Read whose a schedule is; None for what we did not write."""
    try:
        said_ = json.loads(text)
        return Mark(str(said_["owner"]), datetime.fromtimestamp(said_["end"], UTC), said_["run"])
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        return None
