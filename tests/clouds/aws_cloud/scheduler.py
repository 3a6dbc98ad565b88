"""EventBridge Scheduler: schedules that fire on the cloud's clock."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tests.clouds.aws_cloud.wire import json_refusal
from tests.clouds.http_cloud import Reply

_NAME = re.compile(r"[0-9a-zA-Z-_.]{1,64}")
_ENDS = "arn:aws:scheduler:::aws-sdk:ec2:terminateInstances"
_TARGET = re.compile(r"arn:aws[a-z-]*:(scheduler:::aws-sdk:\w+:\w+|lambda:\S+|sqs:\S+|ssm:\S+)")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d+:role/\S+")
_RATE = re.compile(r"rate\((\d+) (minute|hour|day)s?\)")
_OLDEST = timedelta(seconds=86400)  # an event is tried again for so long
Json = dict[str, Any]


@dataclass
class Schedule:
    """One of them."""

    region: str
    group: str
    name: str
    body: Json
    created: datetime
    due: datetime | None  # None: it has fired for the last time
    every: timedelta | None = None

    @property
    def instance_ids(self) -> list[str]:
        """What it ends."""
        if self.body["Target"]["Arn"] != _ENDS:
            return []
        return list(json.loads(self.body["Target"]["Input"])["InstanceIds"])

    def told(self, account: str) -> Json:
        """As GetSchedule shows it."""
        return {
            "Arn": f"arn:aws:scheduler:{self.region}:{account}:schedule/{self.group}/{self.name}",
            "Name": self.name,
            "GroupName": self.group,
            "CreationDate": self.created.timestamp(),
            "LastModificationDate": self.created.timestamp(),
            "State": "ENABLED",
            "ScheduleExpressionTimezone": "UTC",
            "ActionAfterCompletion": "NONE",
            **{name: value for name, value in self.body.items() if name != "ClientToken"},
            "Target": {
                "RetryPolicy": {"MaximumEventAgeInSeconds": 86400, "MaximumRetryAttempts": 185},
                **self.body["Target"],
            },
        }


@dataclass
class Scheduler:
    """The schedules of an account.

    Attributes:
        role_denied: the role that schedules act with lacks the right; they are tried again for
            a day, then dropped.
    """

    account: str = "111122223333"
    role_denied: bool = False
    schedules: dict[tuple[str, str, str], Schedule] = field(default_factory=dict)
    groups: dict[tuple[str, str], Json] = field(default_factory=dict)

    # ------------------------------------------------------------------ groups

    def create_group(self, region: str, name: str, body: Json, now: datetime) -> Reply:
        """Make a group."""
        if (region, name) in self.groups or name == "default":
            return json_refusal("ConflictException", f"Schedule group {name} already exists.", 409)
        arn = f"arn:aws:scheduler:{region}:{self.account}:schedule-group/{name}"
        self.groups[region, name] = {
            "Arn": arn,
            "Name": name,
            "State": "ACTIVE",
            "CreationDate": now.timestamp(),
            "LastModificationDate": now.timestamp(),
            " tags": body.get("Tags", []),
        }
        return Reply(200, {"ScheduleGroupArn": arn})

    def get_group(self, region: str, name: str) -> Reply:
        """Show one."""
        found = self.groups.get((region, name))
        if found is None:
            return _absent("Schedule group", name)
        return Reply(200, {key: value for key, value in found.items() if key != " tags"})

    def delete_group(self, region: str, name: str) -> Reply:
        """Remove one, and every schedule in it."""
        if self.groups.pop((region, name), None) is None:
            return _absent("Schedule group", name)
        for key in [k for k in self.schedules if k[:2] == (region, name)]:
            del self.schedules[key]
        return Reply(200, {})

    def tags(self, arn: str) -> Reply:
        """Show the tags of a group."""
        found = next((one for one in self.groups.values() if one["Arn"] == arn), None)
        if found is None:
            return _absent("Schedule group", arn)
        return Reply(200, {"Tags": found[" tags"]})

    # ------------------------------------------------------------------ schedules

    def create(self, region: str, name: str, body: Json, now: datetime) -> Reply:
        """Make a schedule; the same token again changes nothing."""
        group = body.get("GroupName", "default")
        wrong = self._wrong(region, group, name, body, now)
        if wrong is not None:
            return wrong
        made = self.schedules.get((region, group, name))
        if made is not None and made.body != body:
            return json_refusal("ConflictException", f"Schedule {name} already exists.", 409)
        return self._keep(region, group, name, body, made.created if made else now, now)

    def update(self, region: str, name: str, body: Json, now: datetime) -> Reply:
        """Overwrite one: what is left out goes back to its default."""
        group = body.get("GroupName", "default")
        made = self.schedules.get((region, group, name))
        if made is None:
            return _absent("Schedule", name)
        wrong = self._wrong(region, group, name, body, now)
        return wrong or self._keep(region, group, name, body, made.created, now)

    def get(self, region: str, group: str, name: str) -> Reply:
        """Show one."""
        found = self.schedules.get((region, group, name))
        return _absent("Schedule", name) if found is None else Reply(200, found.told(self.account))

    def listed(self, region: str, group: str | None, prefix: str) -> Reply:
        """Show those that begin so, without what they do. A group that is not there is refused."""
        if group not in (None, "default") and (region, group) not in self.groups:
            return _absent("Schedule group", str(group))
        rows = [
            {"Name": one.name, "GroupName": one.group, "State": "ENABLED"}
            for one in self.schedules.values()
            if one.region == region and group in (None, one.group) and one.name.startswith(prefix)
        ]
        return Reply(200, {"Schedules": rows})

    def delete(self, region: str, group: str, name: str) -> Reply:
        """Remove one."""
        if self.schedules.pop((region, group, name), None) is None:
            return _absent("Schedule", name)
        return Reply(200, {})

    def ends_due(self, now: datetime) -> list[tuple[str, str]]:
        """What is to be ended now: (region, instance id)."""
        found: list[tuple[str, str]] = []
        for key, one in list(self.schedules.items()):
            if one.due is None or one.due > now:
                continue
            if self.role_denied and now - one.due < _OLDEST:
                continue  # tried again, in vain
            if not self.role_denied:
                found += [(one.region, instance_id) for instance_id in one.instance_ids]
            one.due = None if one.every is None else now + one.every
            if one.due is None and one.body.get("ActionAfterCompletion") == "DELETE":
                del self.schedules[key]
        return found

    # ------------------------------------------------------------------ inside

    def _keep(
        self, region: str, group: str, name: str, body: Json, created: datetime, now: datetime
    ) -> Reply:
        due, every = _when(body, now)
        self.schedules[region, group, name] = Schedule(
            region, group, name, body, created, due, every
        )
        arn = f"arn:aws:scheduler:{region}:{self.account}:schedule/{group}/{name}"
        return Reply(200, {"ScheduleArn": arn})

    def _wrong(self, region: str, group: str, name: str, body: Json, now: datetime) -> Reply | None:
        if group != "default" and (region, group) not in self.groups:
            return _absent("Schedule group", group)
        due, _ = _when(body, now)
        if not _NAME.fullmatch(name) or due is None:
            return json_refusal("ValidationException", "Invalid Schedule Expression.")
        if due <= now:
            return json_refusal("ValidationException", "The schedule time is in the past.")
        target = body.get("Target", {})
        if not _TARGET.fullmatch(target.get("Arn", "")):
            return json_refusal("ValidationException", "Provided Arn is not in correct format.")
        if not _ROLE.fullmatch(target.get("RoleArn", "")):
            return json_refusal("ValidationException", "Provided RoleArn is not valid.")
        if "Mode" not in body.get("FlexibleTimeWindow", {}):
            return json_refusal("ValidationException", "FlexibleTimeWindow is required.")
        return None


def _when(body: Json, now: datetime) -> tuple[datetime | None, timedelta | None]:
    """When it is due next, and how often; (None, None) for an expression that is none."""
    text = body.get("ScheduleExpression", "")
    if found := _RATE.fullmatch(text):
        every = timedelta(**{found[2] + "s": int(found[1])})
        return now + every, every
    once = re.fullmatch(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)", text)
    if once is None:
        return None, None
    zone = body.get("ScheduleExpressionTimezone") or "UTC"
    place = UTC if zone == "UTC" else ZoneInfo(zone)
    return datetime.fromisoformat(once[1]).replace(tzinfo=place).astimezone(UTC), None


def _absent(kind: str, name: str) -> Reply:
    return json_refusal("ResourceNotFoundException", f"{kind} {name} does not exist.", 404)
