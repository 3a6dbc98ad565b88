"""EC2's instances as machines: states, tags, who ended them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from providers.aws_boot import PATH, POWEROFF
from providers.aws_prices import usd
from providers.aws_types import card_of
from providers.base import Machine, Mark, NotFound, Order, SelfEnd, SshAccess, State

USER = "root"
SSH_PORT = 22
METADATA_ROOT = "http://169.254.169.254"
MANAGED = "gpuctl:managed"
STATES: Mapping[str, State] = {
    "pending": State.BOOTING,
    "running": State.READY,
    "shutting-down": State.LOST,  # on its way, and not yet proof
    "terminated": State.GONE,
    "stopping": State.STOPPED,
    "stopped": State.STOPPED,
}
_INTERRUPTED = ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown")
_LONGEST_TAG = 256


def state_of(name: str) -> State:
    """Return the state for EC2's word."""
    return STATES.get(name, State.UNKNOWN)


def split(provider_id: str) -> tuple[str, str]:
    """Return region and instance id. Raises NotFound for what never was an id of ours."""
    region, _, instance_id = provider_id.partition("/")
    if not region or not instance_id.startswith("i-"):
        raise NotFound(f"{provider_id!r} is no machine on AWS: expected region/i-...")
    return region, instance_id


def marks(name: str, mark: Mark) -> dict[str, str]:
    """Return the tags that say whose something is."""
    tags = {
        MANAGED: "1",
        "gpuctl:name": name,
        "gpuctl:owner": mark.owner,
        "gpuctl:end": str(int(mark.end.timestamp())),
    }
    if mark.managed_by != "gpuctl":
        tags["gpuctl:managed-by"] = mark.managed_by
    return tags | ({"gpuctl:run": mark.run} if mark.run else {})


def machine_tags(order: Order, price_hour: Decimal, host_key: str) -> dict[str, str]:
    """Return the tags of a machine: its marks, and what any computer must know of it."""
    return {
        **marks(order.name, order.mark),
        "Name": order.name,
        "gpuctl:price": f"{price_hour:f}",
        "gpuctl:host-key": host_key[:_LONGEST_TAG],
    }


def read_mark(tags: Mapping[str, str]) -> Mark | None:
    """Return whose something is; None when nobody of ours says so, or not so that it counts."""
    owner, end = tags.get("gpuctl:owner"), tags.get("gpuctl:end", "")
    if tags.get(MANAGED) != "1" or not owner or not end.isdecimal():
        return None
    try:
        moment = datetime.fromtimestamp(int(end), UTC)
    except (ValueError, OverflowError, OSError):
        return None
    return Mark(owner, moment, tags.get("gpuctl:run"), tags.get("gpuctl:managed-by", "gpuctl"))


def tags_of(row: Mapping[str, Any]) -> dict[str, str]:
    """Read the tags of anything that EC2 describes."""
    return {str(tag["Key"]): str(tag["Value"]) for tag in row.get("Tags") or ()}


def tag_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Return tags as EC2 takes them."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def read_machine(row: Mapping[str, Any], region: str, ssh_port: int) -> Machine:
    """Read an instance as Describe or a launch shows it."""
    tags = tags_of(row)
    mark = read_mark(tags)
    status = str(row.get("State", {}).get("Name", ""))
    why = str((row.get("StateReason") or {}).get("Code", ""))
    gpu, count = card_of(str(row.get("InstanceType", "")))
    host = row.get("PublicIpAddress")
    key = tags.get("gpuctl:host-key")
    price = usd(tags["gpuctl:price"]) if "gpuctl:price" in tags else None
    return Machine(
        name=tags.get("gpuctl:name") or tags.get("Name") or str(row["InstanceId"]),
        provider="aws",
        provider_id=f"{region}/{row['InstanceId']}",
        state=state_of(status),
        status=f"{status} ({why})" if why else status,
        gpu=gpu,
        gpu_count=count,
        spot=row.get("InstanceLifecycle") == "spot",
        price_hour=price,
        region=region,
        access=_access(str(host), ssh_port, key) if host else None,
        mark=mark,
        created_at=_moment(row.get("LaunchTime")),
        reason="interrupted" if why in _INTERRUPTED else None,
        self_end=SelfEnd(argv=("sh", "-c", POWEROFF)),
        notice_root=METADATA_ROOT if row.get("InstanceLifecycle") == "spot" else None,
    )


def _access(host: str, port: int, key: str | None) -> SshAccess:
    return SshAccess(host, port, USER, (key,) if key else (), path=PATH)


def _moment(found: object) -> datetime | None:
    return found.astimezone(UTC) if isinstance(found, datetime) else None
