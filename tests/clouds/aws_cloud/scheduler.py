"""EventBridge Scheduler: one-time schedules that fire on the cloud's clock."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.clouds.aws_cloud.wire import json_refusal
from tests.clouds.http_cloud import Reply

_NAME = re.compile(r"[0-9a-zA-Z-_.]{1,64}")
_TARGET = "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances"


@dataclass
class Schedule:
    """One of them."""

    region: str
    group: str
    name: str
    at: datetime
    body: dict[str, Any]

    @property
    def instance_ids(self) -> list[str]:
        """What it ends."""
        return list(json.loads(self.body["Target"]["Input"])["InstanceIds"])


class Scheduler:
    """The schedules of an account."""

    def __init__(self) -> None:
        self.schedules: dict[tuple[str, str, str], Schedule] = {}
        self.groups: set[tuple[str, str]] = set()

    def create_group(self, region: str, name: str) -> Reply:
        """Make a group."""
        if (region, name) in self.groups:
            return json_refusal("ConflictException", f"Schedule group {name} already exists.", 409)
        self.groups.add((region, name))
        return Reply(200, {"ScheduleGroupArn": f"arn:aws:scheduler:{region}:1:group/{name}"})

    def create(self, region: str, name: str, body: dict[str, Any], now: datetime) -> Reply:
        """Make a schedule; the same token again changes nothing."""
        group = body.get("GroupName", "default")
        if group != "default" and (region, group) not in self.groups:
            text = f"Schedule group {group} does not exist."
            return json_refusal("ResourceNotFoundException", text, 404)
        found = re.fullmatch(r"at\(([0-9T:-]{19})\)", body.get("ScheduleExpression", ""))
        if not _NAME.fullmatch(name) or found is None:
            return json_refusal("ValidationException", "Invalid Schedule Expression.")
        at = datetime.fromisoformat(found[1]).replace(tzinfo=UTC)
        if at <= now:
            return json_refusal("ValidationException", "The schedule time is in the past.")
        target = body.get("Target", {})
        if target.get("Arn") != _TARGET or "RoleArn" not in target:
            return json_refusal("ValidationException", "Provided Arn is not in correct format.")
        if body.get("FlexibleTimeWindow") != {"Mode": "OFF"}:
            return json_refusal("ValidationException", "FlexibleTimeWindow is required.")
        made = self.schedules.get((region, group, name))
        if made is not None and made.body != body:
            text = f"Schedule {name} already exists."
            return json_refusal("ConflictException", text, 409)
        self.schedules[region, group, name] = Schedule(region, group, name, at, body)
        arn = f"arn:aws:scheduler:{region}:1:schedule/{group}/{name}"
        return Reply(200, {"ScheduleArn": arn})

    def get(self, region: str, group: str, name: str) -> Reply:
        """Show one."""
        found = self.schedules.get((region, group, name))
        if found is None:
            return self._absent(name)
        return Reply(200, {"Name": name, "GroupName": group, **found.body})

    def listed(self, region: str, group: str | None, prefix: str) -> Reply:
        """Show those that begin so, without what they do."""
        rows = [
            {"Name": one.name, "GroupName": one.group, "State": "ENABLED"}
            for one in self.schedules.values()
            if one.region == region and group in (None, one.group) and one.name.startswith(prefix)
        ]
        return Reply(200, {"Schedules": rows})

    def delete(self, region: str, group: str, name: str) -> Reply:
        """Remove one."""
        if self.schedules.pop((region, group, name), None) is None:
            return self._absent(name)
        return Reply(200, {})

    def due(self, now: datetime) -> list[Schedule]:
        """Those whose time has come; they are gone then."""
        found = [key for key, one in self.schedules.items() if one.at <= now]
        return [self.schedules.pop(key) for key in found]

    @staticmethod
    def _absent(name: str) -> Reply:
        text = f"Schedule {name} does not exist."
        return json_refusal("ResourceNotFoundException", text, 404)
