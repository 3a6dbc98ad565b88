"""The server: keys, rate limit, headers, time; the routes are mixed in."""

from __future__ import annotations

import itertools
import secrets
import threading
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from providers.base import Clock
from tests.clouds.hetzner_cloud.errors import DRAINED, READ_ONLY, UNAUTHORIZED, ApiError
from tests.clouds.hetzner_cloud.machine import Machine
from tests.clouds.hetzner_cloud.metadata import Metadata
from tests.clouds.hetzner_cloud.project import Pace, Project, Server
from tests.clouds.hetzner_cloud.resources import ResourceRoutes
from tests.clouds.hetzner_cloud.rules import page
from tests.clouds.http_cloud import Reply, Request
from tests.remote.sshd import free_port

Json = dict[str, Any]
_TICK_SECONDS = 0.05
_QUICK = Pace(create=0.2, start=0.2, stop=0.1, shutdown=0.2, delete=0.1, other=0.1)
_CHANGES = ("POST", "PUT", "DELETE")


@dataclass
class Bucket:
    """What is left of the requests of an hour; one comes back a second."""

    size: int
    left: float
    at: datetime

    def take(self, now: datetime) -> bool:
        """Take one; False when there is none."""
        self.left = min(self.size, self.left + (now - self.at).total_seconds())
        self.at = now
        if self.left < 1:
            return False
        self.left -= 1
        return True


class HetznerCloud(ResourceRoutes):
    """One project with one token; a context manager.

    Args:
        clock: the cloud's own; a `HandClock` without machines.
        machines: a folder for the real machines behind the servers; None for none.
        pace: how long things take; quick by default when there are machines.
        port: 0 for any.
        rate_limit: requests an hour.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        machines: Path | None = None,
        pace: Pace | None = None,
        port: int = 0,
        rate_limit: int = 3600,
    ) -> None:
        super().__init__(clock=clock, port=port)
        self.token = secrets.token_hex(32)
        self.rate_limit = rate_limit
        self.ssh_port = free_port()
        self._machines = machines
        make = None if machines is None else self._make_machine
        self.project = Project(self.clock, pace or (Pace() if machines is None else _QUICK), make)
        self._buckets: dict[str, Bucket] = {}
        self._hosts = itertools.count(1)
        self._closed = threading.Event()

    @property
    def switches(self) -> Any:
        """What goes wrong; see `faults.Switches`."""
        return self.project.switches

    @property
    def endpoint(self) -> str:
        """The API's root as HCLOUD_ENDPOINT takes it."""
        return f"{self.url}/v1"

    def __enter__(self) -> HetznerCloud:
        super().__enter__()
        if self._machines is not None:
            threading.Thread(target=self._tick, daemon=True).start()
        return self

    def close(self) -> None:
        """Stop serving; every machine is ended."""
        self._closed.set()
        super().close()
        for server in list(self.project.servers.values()):
            if server.machine is not None:
                server.machine.remove()

    # ------------------------------------------------------------------ for tests

    def bills(self, kind: str | None = None) -> dict[str, str]:
        """What bills now: id -> name."""
        with self.lock:
            self.project.advance()
            open_ = self.project.books.open(kind)
        return {key.partition(":")[2]: name for key, name in open_.items()}

    def machine(self, name: str) -> Machine:
        """The real machine of a server."""
        with self.lock:
            servers = self.project.servers.values()
            found = next(s.machine for s in servers if s.facts["name"] == name)
        assert found is not None, f"{name} does not run yet"
        return found

    def add_foreign(self, name: str = "somebodys-server") -> str:
        """Rent something the way another tool would; return its id."""
        body = {"name": name, "server_type": "cx23", "image": "ubuntu-24.04", "location": "nbg1"}
        with self.lock:
            reply = self.server_create(_inside("POST", "/v1/servers", body))
        return str(reply.body["server"]["id"])

    # ------------------------------------------------------------------ serving

    def gate(self, request: Request) -> Reply | None:
        now, token = self.clock.now(), _token(request)
        self.project.advance()
        key = token if token == self.token else ""
        bucket = self._buckets.setdefault(key, Bucket(self.rate_limit, self.rate_limit, now))
        if not bucket.take(now):
            return DRAINED.reply()
        switches = self.project.switches
        if token != self.token or (switches.token_of_64 and len(token) != 64):
            return UNAUTHORIZED.reply()
        if request.method not in _CHANGES:
            return None
        if switches.read_only:
            return READ_ONLY.reply()
        if switches.maintenance:
            return ApiError(
                403, "maintenance", "cannot perform operation due to maintenance"
            ).reply()
        if switches.forbidden:
            return ApiError(403, "forbidden", "insufficient permissions for this request").reply()
        return None

    def _dispatch(self, request: Request) -> Reply:
        try:
            return super()._dispatch(request)
        except ApiError as error:
            if error.code == "invalid_input" and self.project.switches.details_null:
                error = ApiError(error.status, error.code, error.message)
            return error.reply()
        except (ValueError, TypeError, AttributeError, KeyError):
            return ApiError(400, "json_error", "invalid JSON").reply()

    def nothing_there(self, request: Request) -> Reply:
        if any(regex.match(request.path) for _, regex, _ in self._routes):
            return ApiError(405, "method_not_allowed", "method not allowed").reply()
        return ApiError(404, "not_found", "page not found").reply()

    def adorn(self, request: Request, reply: Reply) -> Reply:
        """Add the headers that every answer has."""
        key = self.token if _token(request) == self.token else ""
        bucket = self._buckets.get(key)
        left = bucket.left if bucket else self.rate_limit
        full = self.clock.now().timestamp() + self.rate_limit - left
        headers = {
            **reply.headers,
            "RateLimit-Limit": str(self.rate_limit),
            "RateLimit-Remaining": str(int(left)),
            "RateLimit-Reset": str(int(full)),
            "X-Correlation-Id": secrets.token_hex(8),
        }
        if links := self._links(request, reply):
            headers["Link"] = links
        return Reply(reply.status, reply.body, headers)

    def listing(self, request: Request, kind: str, rows: list[Json]) -> Reply:
        """One page of a list."""
        shown, meta = page(request, rows)
        if self.project.switches.partial_list and kind == "servers":
            shown = shown[:-1]
        return Reply(200, {kind: shown, "meta": meta})

    def next_address(self) -> str:
        """An IPv4 address: one of this computer's own where machines stand behind it."""
        number = next(self._hosts)
        net = "198.18" if self._machines is None else "127.88"
        return f"{net}.{number >> 8 & 255}.{number & 255}"

    def _links(self, request: Request, reply: Reply) -> str:
        meta = reply.body.get("meta") if isinstance(reply.body, dict) else None
        if not meta:
            return ""
        pages = meta["pagination"]
        root = f"{self.url}{request.path}?page="
        named = {"prev": "previous_page", "next": "next_page", "last": "last_page"}
        found = [f'<{root}{pages[key]}>; rel="{rel}"' for rel, key in named.items() if pages[key]]
        return ", ".join(found)

    # ------------------------------------------------------------------ machines

    def _tick(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            with self.lock:
                self.project.advance()

    def _make_machine(self, server: Server) -> Machine:
        assert self._machines is not None
        addresses = self.project.primary_ips.values()
        ip = next(x["ip"] for x in addresses if x["assignee_id"] == server.id)
        return Machine(
            self._machines / str(server.id),
            (ip, self.ssh_port),
            server.keys,
            server.user_data,
            self.project.switches.ssh_refused_for,
            Metadata(self.clock, server.facts, ip, server.user_data),
        )


def by_hand(folder: Path, *, machines: bool) -> HetznerCloud:
    """Return one to try things on, with times like the real ones' but quicker."""
    pace = Pace(create=3, start=2, stop=2, shutdown=3, delete=2)
    return HetznerCloud(machines=folder if machines else None, pace=pace)


def main_settings(cloud: HetznerCloud) -> dict[str, str]:
    """Return what to export so that gpuctl (and hcloud) works against the emulation."""
    return {
        "HCLOUD_ENDPOINT": cloud.endpoint,
        "HCLOUD_TOKEN": cloud.token,
        "GPUCTL_HETZNER_SSH_PORT": str(cloud.ssh_port),
    }


def _token(request: Request) -> str:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token if kind == "Bearer" else ""


def _inside(method: str, path: str, body: Json) -> Request:
    import json

    return Request(method, path, {}, {}, json.dumps(body).encode())
