"""One pod: what was asked for, what became of it, and how the API shows it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from tests.clouds.runpod_cloud.hosts import Host

HOURS_A_MONTH = 730
DISK_MONTH = Decimal("0.10")  # USD a GB while it runs; nothing when stopped, for it is erased
VOLUME_MONTH = Decimal("0.10")
STOPPED_VOLUME_MONTH = Decimal("0.20")
PROXY = "ssh.runpod.io"
_LIFE_SECONDS = 7  # of a container that ends and is started again
ACTIONS = {
    "PROVISIONING": ("stop", "terminate"),
    "STARTING": ("stop", "terminate"),
    "RUNNING": ("stop", "restart", "terminate"),
    "EXITED": ("start", "terminate"),
    "ERROR": ("start", "terminate"),
    "TERMINATED": (),
}


@dataclass(frozen=True)
class Times:
    """Seconds from a pod's start to what it shows then."""

    starting: float = 4
    running: float = 8
    ready: float = 30  # its SSH port is published


@dataclass
class Span:
    """A time at one price; of the GPUs or CPUs, and of the disks."""

    begin: datetime
    compute: Decimal
    disks: Decimal
    end: datetime | None = None


@dataclass
class Pod:
    """One pod."""

    id: str
    body: dict[str, Any]
    price: Decimal  # USD an hour for its GPUs or CPUs
    created_at: datetime
    data_center: str | None
    times: Times
    api_key: str  # scoped to this pod
    key_rights: str
    state: Literal["live", "stopped", "error", "terminated"] = "live"
    started_at: datetime | None = None  # this start
    ended_at: datetime | None = None
    host: Host | None = None
    real: bool = False  # there is a real machine behind it
    port: int = 0  # without one
    gpus: int = 0  # that are really there
    stuck: Literal["", "starting", "no port", "restarting", "lost"] = ""
    bid: Decimal | None = None  # USD an hour for a GPU; None: on-demand
    taken_at: datetime | None = None  # somebody bid more, and the API does not show it yet
    locked: bool = False  # it cannot be stopped or reset
    cluster: str | None = None  # then it is ended with its cluster only
    injected: dict[str, str] = field(default_factory=dict)  # variables that no look shows
    logged: list[tuple[datetime, str, str]] = field(default_factory=list)  # when, source, line
    proxy_user: str = ""
    spans: list[Span] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.proxy_user = f"{self.id}-{secrets.token_hex(4)}"

    def say(self, at: datetime, source: str, line: str) -> None:
        """Write a line into its logs."""
        self.logged.append((at, source, line))

    # ------------------------------------------------------------------ money

    @property
    def volume_id(self) -> str:
        """Its network volume; "" for none."""
        mounts = self.body.get("mounts", {}).get("network")
        return str(mounts[0]["volumeId"]) if mounts else ""

    @property
    def _persistent(self) -> int:
        return int(self.body.get("mounts", {}).get("persistent", {}).get("size", 0))

    def disk_price(self) -> Decimal:
        """USD an hour for its disks, as it is now."""
        if self.state == "stopped":
            return self._persistent * STOPPED_VOLUME_MONTH / HOURS_A_MONTH
        whole = self.body["disk"] * DISK_MONTH + self._persistent * VOLUME_MONTH
        return Decimal(whole) / HOURS_A_MONTH

    def meter(self, now: datetime) -> Decimal:
        """Begin a new span at the price of now; return that price, USD an hour."""
        self.stop_meter(now)
        compute = self.price if self.state == "live" else Decimal(0)
        self.spans.append(Span(now, compute, self.disk_price()))
        return compute + self.disk_price()

    def stop_meter(self, now: datetime) -> None:
        """End the span that runs."""
        if self.spans and self.spans[-1].end is None:
            self.spans[-1].end = now

    # ------------------------------------------------------------------ what it shows

    def status(self, now: datetime, eager: bool) -> str:
        """The API's word for it."""
        fixed = {"stopped": "EXITED", "error": "ERROR", "terminated": "TERMINATED"}
        if self.state != "live":
            return fixed[self.state]
        age = self.age(now)
        if self.stuck == "starting":
            return "PROVISIONING" if age < self.times.starting else "STARTING"
        if eager or age >= self.times.running:
            return "RUNNING"
        return "PROVISIONING" if age < self.times.starting else "STARTING"

    def age(self, now: datetime) -> float:
        """Seconds since it was started."""
        return (now - (self.started_at or self.created_at)).total_seconds()

    def published_port(self, now: datetime) -> int | None:
        """Its public SSH port, once there is one."""
        if self.state != "live" or self.stuck in ("starting", "no port"):
            return None
        if self.age(now) < self.times.ready or not any(
            port.endswith("/tcp") for port in self.body["ports"]
        ):
            return None
        return (self.host.port if self.host else None) if self.real else self.port

    def json(self, now: datetime, *, eager: bool, keeps_cost: bool, word: str | None) -> Any:
        """The whole object."""
        status = word or self.status(now, eager)
        port = self.published_port(now)
        cost = self.price if self.state == "live" or keeps_cost else Decimal(0)
        compute = {"cpu": self._cpu()} if "cpu" in self.body else {"gpu": self.body["gpu"]}
        member = {"cluster": {"id": self.cluster, "rank": 0}} if self.cluster else {}
        return {
            **member,
            "id": self.id,
            "name": self.body["name"],
            "image": self.body["image"],
            "args": self.body["args"],
            "disk": self.body["disk"],
            "ports": self.body["ports"],
            "env": self.body["env"],
            "registry": self.body.get("registry"),
            "status": status,
            "actions": list(ACTIONS.get(status, ())),
            "mounts": self.body.get("mounts", {}),
            **compute,
            "cloud": self.body["cloud"],
            "dataCenterId": self.data_center,
            "cudaVersion": "12.8" if "gpu" in self.body else None,
            "ssh": {
                "proxy": _endpoint(PROXY, 22, self.proxy_user),
                "direct": self._direct(port),
            },
            "template": None,
            "cost": float(cost),
            "locked": self.locked,
            "globalNetworking": {"enabled": False},
            "runtime": self._runtime(now, port),
            "createdAt": _moment(self.created_at),
            "startedAt": _moment(self.started_at) if self.started_at else None,
        }

    def _cpu(self) -> dict[str, Any]:
        cpu = self.body["cpu"]
        return {**cpu, "memory": cpu["vcpuCount"] * 2}

    def _direct(self, port: int | None) -> dict[str, Any] | None:
        if port is None or "22/tcp" not in self.body["ports"]:
            return None
        return _endpoint(self.address, port, "root")

    @property
    def address(self) -> str:
        """Where its ports are published."""
        return "127.0.0.1" if self.real else "213.173.104.74"

    def _runtime(self, now: datetime, port: int | None) -> dict[str, Any] | None:
        if port is None or self.stuck == "lost":
            return None
        private = next(int(p.split("/")[0]) for p in self.body["ports"] if p.endswith("/tcp"))
        return {
            "uptime": int(self.age(now)) % (_LIFE_SECONDS if self.stuck == "restarting" else 10**9),
            "gpus": [{"util": 0, "memoryUtil": 0} for _ in range(self.gpus)],
            "cpu": {"util": 0},
            "memory": {"util": 0},
            "ports": [
                {"ip": self.address, "private": private, "public": port, "type": "tcp"},
                # Nobody asked for that one; it was in the recording.
                {"ip": "100.65.14.155", "private": 19123, "public": 60821, "type": "http"},
            ],
        }


def _endpoint(host: str, port: int, user: str) -> dict[str, Any]:
    where = f"ssh {user}@{host}" + (f" -p {port}" if port != 22 else "")
    return {"host": host, "port": port, "username": user, "command": where}


def _moment(at: datetime) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
