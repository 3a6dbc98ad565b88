"""One project of the emulated Hetzner Cloud: what is in it, and how it lives."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from providers.base import Clock
from tests.clouds.books import Books
from tests.clouds.hetzner_cloud.catalog import Catalog, images
from tests.clouds.hetzner_cloud.errors import ApiError
from tests.clouds.hetzner_cloud.faults import Switches
from tests.clouds.hetzner_cloud.machine import Machine
from tests.clouds.hetzner_cloud.meter import Meter

Json = dict[str, Any]
_HOURS_A_MONTH = 624


@dataclass
class Pace:
    """How many seconds things take."""

    create: float = 8
    start: float = 5
    stop: float = 3
    shutdown: float = 6
    delete: float = 3
    other: float = 1


@dataclass
class Server:
    """A server: its facts as the API tells them, and what it does not tell."""

    facts: Json
    seen_from: datetime  # in listings
    locked_until: datetime
    user_data: str = ""
    keys: list[str] = field(default_factory=list)
    machine: Machine | None = None

    @property
    def id(self) -> int:
        return int(self.facts["id"])

    @property
    def status(self) -> str:
        return str(self.facts["status"])

    @status.setter
    def status(self, status: str) -> None:
        self.facts["status"] = status


class Project:
    """Everything in it. Time passes when somebody looks (`advance`).

    Args:
        clock: the cloud's own.
        pace: how long things take.
        make_machine: makes the real machine behind a server; None for none.
    """

    def __init__(
        self, clock: Clock, pace: Pace, make_machine: Callable[[Server], Machine] | None
    ) -> None:
        self.clock = clock
        self.pace = pace
        self.catalog = Catalog()
        self.switches = Switches()
        self.books = Books()
        self.meters: dict[str, Meter] = {}
        self.servers: dict[int, Server] = {}
        self.actions: dict[int, Json] = {}
        self.ssh_keys: dict[int, Json] = {}
        self.primary_ips: dict[int, Json] = {}
        self.volumes: dict[int, Json] = {}
        self.placement_groups: dict[int, Json] = {}
        self.firewalls: dict[int, Json] = {}
        self.floating_ips: dict[int, Json] = {}
        self.images: dict[int, Json] = {image["id"]: image for image in images()}
        self._make_machine = make_machine
        self._ids = itertools.count(4_000_001)
        self._order = itertools.count()
        self._due: list[tuple[datetime, int, Callable[[], None]]] = []

    # ------------------------------------------------------------------ time

    def now(self) -> datetime:
        return self.clock.now()

    def stamp(self, moment: datetime | None = None) -> str:
        """A moment as the API writes it."""
        return (moment or self.now()).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def advance(self) -> None:
        """Let everything happen that is due."""
        for server in list(self.servers.values()):
            if server.machine and server.machine.asked_to_stop and server.status == "running":
                self._power_off(server)
        while self._due and self._due[0][0] <= self.now():
            heapq.heappop(self._due)[2]()

    def after(self, seconds: float, what: Callable[[], None]) -> None:
        """Have something happen later."""
        due = self.now() + timedelta(seconds=seconds)
        heapq.heappush(self._due, (due, next(self._order), what))

    def new_id(self) -> int:
        """An id that nothing had before."""
        return next(self._ids)

    # ------------------------------------------------------------------ actions

    def action(
        self,
        command: str,
        resources: list[tuple[str, int]],
        seconds: float,
        then: Callable[[], None] = lambda: None,
        *,
        error: ApiError | None = None,
    ) -> Json:
        """Begin an action that ends after so many seconds, with ``then`` or with an error."""
        number = self.new_id()
        made: Json = {
            "id": number,
            "command": command,
            "status": "running",
            "progress": 0,
            "started": self.stamp(),
            "finished": None,
            "resources": [{"id": one, "type": kind} for kind, one in resources],
            "error": None,
        }
        self.actions[number] = made

        def end() -> None:
            made.update(progress=100, finished=self.stamp(), status="error" if error else "success")
            if error:
                made["error"] = {"code": error.code, "message": error.message}
            else:
                then()

        self.after(seconds, end)
        return made

    # ------------------------------------------------------------------ a server's life

    def begin_server(self, server: Server, *, start: bool) -> tuple[Json, list[Json]]:
        """Let a new server come about; return the action and those after it."""
        self.servers[server.id] = server
        kind = [("server", server.id)]
        fails = self.switches.create_action_fails
        error = ApiError(412, "resource_unavailable", "error during placement") if fails else None
        made = self.action("create_server", kind, self.pace.create, error=error)
        if error or not start:
            self.after(self.pace.create, lambda: self._set(server, "off"))
            return made, []
        self.after(self.pace.create, lambda: self._set(server, "starting"))
        whole = self.pace.create + self.pace.start
        return made, [self.action("start_server", kind, whole, lambda: self._power_on(server))]

    def power_on(self, server: Server) -> Json:
        self._set(server, "starting")
        kind = [("server", server.id)]
        return self.action("start_server", kind, self.pace.start, lambda: self._power_on(server))

    def power_off(self, server: Server) -> Json:
        kind = [("server", server.id)]
        self._set(server, "stopping")
        return self.action("stop_server", kind, self.pace.stop, lambda: self._power_off(server))

    def shut_down(self, server: Server) -> Json:
        """ACPI: the action only says that it was sent."""
        if not self.switches.shutdown_ignored:
            self.after(self.pace.shutdown, lambda: self._power_off(server))
        return self.action("shutdown_server", [("server", server.id)], self.pace.other)

    def delete_server(self, server: Server) -> Json:
        before = server.status
        self._set(server, "deleting")
        if self.switches.delete_action_fails:
            self.switches.delete_action_fails -= 1
            self.after(self.pace.delete, lambda: setattr(server, "status", before))
            error = ApiError(500, "server_error", "the server could not be deleted")
            kind = [("server", server.id)]
            return self.action("delete_server", kind, self.pace.delete, error=error)
        for volume in self.volumes.values():
            if volume["server"] == server.id:
                volume["server"] = None
        kind = [("server", server.id)]
        return self.action("delete_server", kind, self.pace.delete, lambda: self._gone(server))

    def _set(self, server: Server, status: str) -> None:
        if server.status != "deleting":
            server.status = status

    def _power_on(self, server: Server) -> None:
        if server.status == "deleting" or server.id not in self.servers:
            return
        self._set(server, "running")
        if self._make_machine is None:
            return
        if server.machine is None:
            server.machine = self._make_machine(server)
        server.machine.start()

    def _power_off(self, server: Server) -> None:
        self._set(server, "off")
        if server.machine is not None:
            server.machine.end()

    def _gone(self, server: Server) -> None:
        self.servers.pop(server.id, None)
        if server.machine is not None:
            server.machine.remove()
        self.end_billing("server", server.id)
        for image in [x for x in self.images.values() if x["bound_to"] == server.id]:
            self.images.pop(image["id"])  # backups go with it
        for wall in self.firewalls.values():
            wall["applied_to"] = [
                to for to in wall["applied_to"] if to.get("server", {}).get("id") != server.id
            ]
        for group in self.placement_groups.values():
            group["servers"] = [one for one in group["servers"] if one != server.id]
        for address in [x for x in self.primary_ips.values() if x["assignee_id"] == server.id]:
            if address["auto_delete"]:
                self.drop_address(address)
            else:
                address.update(assignee_id=None, assignee_type="unassigned")

    def addresses_of(self, server: int) -> list[Json]:
        """The primary IPs that a server has."""
        return [x for x in self.primary_ips.values() if x["assignee_id"] == server]

    def drop_address(self, address: Json) -> None:
        self.primary_ips.pop(address["id"])
        if address["type"] == "ipv4":
            self.end_billing("primary_ip", address["id"])

    # ------------------------------------------------------------------ money

    def begin_billing(
        self, kind: str, number: int, name: str, hour: Decimal, month: Decimal | None = None
    ) -> None:
        """Something costs from now on."""
        key = f"{kind}:{number}"
        self.books.begin(kind, key, name, hour, self.now())
        self.meters[key] = Meter(self.now(), hour, month or hour * _HOURS_A_MONTH)

    def end_billing(self, kind: str, number: int) -> None:
        """It costs nothing any more."""
        key = f"{kind}:{number}"
        self.books.end(key, self.now())
        self.meters[key].end = self.meters[key].end or self.now()

    def charged(self) -> Decimal:
        """What the account has been charged for everything until now, net."""
        return sum((meter.charged(self.now()) for meter in self.meters.values()), Decimal(0))
