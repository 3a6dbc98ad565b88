"""Keys and limits at the gate, and the routes of the account: ssh keys, secrets, money, odds."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from providers.base import Clock
from tests.clouds.books import Thing
from tests.clouds.http_cloud import HttpCloud, Reply, Request, route
from tests.clouds.vastai_cloud import answers
from tests.clouds.vastai_cloud.contract import Contract
from tests.clouds.vastai_cloud.contracts import Contracts
from tests.clouds.vastai_cloud.switches import (
    CREATE_PENALTY_SECONDS,
    SEARCH,
    THRESHOLDS,
    Switches,
)

_OPEN = re.compile(r"/api/v0/(bundles|gpu_names/unique|gpu_types)/?|/results/\d+")
_SCOPES = {  # of a path: to read, and to change
    r"/asks/\d+|/asks/bulk": ("misc", "instance_write"),
    r"/launch_instance|/search/asks|/bundles": ("misc", "misc"),
    r"/request_logs/": ("instance_read", "instance_read"),
    r"/instances|/commands/|/volumes": ("instance_read", "instance_write"),
    r"/charges|/invoices": ("billing_read", "billing_write"),
    r"/users|/ssh|/auth/apikeys": ("user_read", "user_write"),
}
_OWN_INSTANCE = re.compile(r"/api/v0/instances/(\d+)/?")
_SECONDS_AN_HOUR = 3600


class Account(HttpCloud):
    """Who asks, how often, and what is not an instance or an offer."""

    def __init__(self, *, clock: Clock | None, machines: Path | None, port: int) -> None:
        super().__init__(clock=clock, port=port)
        self.switches = Switches()
        self.contracts = Contracts(self.clock, self.switches, machines)
        self.key = "vast-account-key-5f2d0b7c91"
        self.scopes: dict[str, set[str]] = {}  # further keys, and what they may do
        self.ssh_keys: dict[int, dict[str, Any]] = {}
        self.secrets: dict[str, str] = {}  # environment variables of the account
        self.agents: set[str] = set()  # how clients call themselves
        self.refused: list[str] = []  # what was limited: method and path
        self._last: dict[tuple[str, str], list[float]] = {}
        self._until: dict[tuple[str, str], float] = {}
        self._ids = itertools.count(501)

    # ------------------------------------------------------------------ the gate

    def gate(self, request: Request) -> Reply | None:
        self.contracts.tick()
        self.agents.add(request.headers.get("user-agent", ""))
        key = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        limited = self._limited(request, key)
        if limited is not None:
            self.refused.append(f"{request.method} {request.path}")
            return limited
        if not _OPEN.fullmatch(request.path) and (refusal := self._refused(request, key)):
            return refusal
        if self.switches.session_expired:
            return answers.session_expired()
        if key and key not in self._keys() and _OPEN.fullmatch(request.path):
            return answers.bad_key(self.switches)
        if self.switches.slash_308 and not request.path.endswith("/"):
            return Reply(308, None, {"Location": f"{request.path}/"})
        return None

    def adorn(self, request: Request, reply: Reply) -> Reply:
        # Just so: the official command refuses a type with a character set.
        return replace(reply, headers={"Content-Type": "application/json", **reply.headers})

    def _keys(self) -> set[str]:
        scoped = {one.key for one in self.contracts.all.values()}
        return {self.key, *self.scopes, *scoped}

    def _refused(self, request: Request, key: str) -> Reply | None:
        if not key:
            return answers.no_key(request.path)
        if key == self.key:
            return None
        if key in self.scopes:
            return None if _scope(request) in self.scopes[key] else answers.no_right()
        owner = next((one for one in self.contracts.all.values() if one.key == key), None)
        if owner is None:
            return answers.bad_key(self.switches)
        own = _OWN_INSTANCE.fullmatch(request.path)
        allowed = own and int(own[1]) == owner.id and _may_itself(request)
        return None if allowed else answers.no_right()

    def _limited(self, request: Request, key: str) -> Reply | None:
        """429 for who asks an endpoint too often."""
        if not self.switches.pacing:
            return None
        now = self.clock.now().timestamp()
        for method, path, calls, seconds in THRESHOLDS:
            if method != request.method or not re.search(path, request.path):
                continue
            who = (f"{method} {path}", "" if path == SEARCH else key)
            window = seconds * self.switches.pacing
            past = [at for at in self._last.get(who, []) if now - at < window]
            if len(past) >= calls or now < self._until.get(who, 0):
                if "/asks/" in path:
                    self._until[who] = now + CREATE_PENALTY_SECONDS * self.switches.pacing
                return answers.too_many(self.switches, seconds)
            self._last[who] = [*past, now]
        return None

    # ------------------------------------------------------------------ ssh keys

    @route("GET", "/api/v0/ssh")
    def list_keys(self, request: Request) -> Reply:
        """The account's keys; 404 when there are none."""
        if not self.ssh_keys:
            return answers.failed(404, "no_such_ssh_key", "No ssh keys found.")
        return Reply(200, list(self.ssh_keys.values()))

    @route("POST", "/api/v0/ssh")
    def add_key(self, request: Request) -> Reply:
        """Another key; instances made from now on let it in."""
        if self.switches.team_account:
            return answers.failed(400, "team_ssh_keys_not_supported", "Teams have no ssh keys.")
        text = (request.json() or {}).get("ssh_key")
        if not text:
            return answers.failed(400, "no_ssh_key", "No ssh key given.")
        key = self._new_key(text)
        self.ssh_keys[key["id"]] = key
        return Reply(200, {"success": True, "key": key})

    @route("PUT", "/api/v0/ssh/{id}")
    def change_key(self, request: Request, id: str) -> Reply:
        """Another text under the same number."""
        if int(id) not in self.ssh_keys:
            return answers.failed(404, "no_such_ssh_key", f"SSH key {id} not found.")
        text = (request.json() or {}).get("ssh_key")
        self.ssh_keys[int(id)] |= {"public_key": text, "key": text}
        return Reply(200, {"success": True, "key": self.ssh_keys[int(id)]})

    @route("DELETE", "/api/v0/ssh/{id}")
    def remove_key(self, request: Request, id: str) -> Reply:
        """Forget a key."""
        if self.ssh_keys.pop(int(id), None) is None:
            return answers.failed(404, "no_such_ssh_key", f"SSH key {id} not found.")
        return Reply(200, {"success": True})

    @route("POST", "/api/v0/instances/{id}/ssh")
    def attach_key(self, request: Request, id: str) -> Reply:
        """Let a key into one instance."""
        contract = self._contract(id)
        if contract is None:
            return answers.no_instance(id)
        text = (request.json() or {}).get("ssh_key")
        if any(key["public_key"] == text for key in contract.ssh_keys):
            return answers.failed(400, "already", "SSH key is already associated with instance")
        key = self._new_key(text)
        contract.ssh_keys.append(key)
        if contract.machine is not None:
            file = contract.machine.folder / "root/.ssh/authorized_keys"
            with file.open("a") as out:
                out.write(f"{text}\n")
        told = "SSH key added to instance."
        return Reply(200, {"success": True, "msg": told, "key": json.dumps(key)})

    @route("GET", "/api/v0/instances/{id}/ssh")
    def attached_keys(self, request: Request, id: str) -> Reply:
        """The keys of one instance, as JSON in a string."""
        contract = self._contract(id)
        if contract is None:
            return answers.no_instance(id)
        return Reply(200, {"success": True, "ssh_keys": json.dumps(contract.ssh_keys)})

    @route("DELETE", "/api/v0/instances/{id}/ssh/{key_id}")
    def detach_key(self, request: Request, id: str, key_id: str) -> Reply:
        """Take a key from one instance."""
        contract = self._contract(id)
        if contract is None:
            return answers.no_instance(id)
        contract.ssh_keys[:] = [key for key in contract.ssh_keys if str(key["id"]) != key_id]
        return Reply(200, {"success": True})

    def _new_key(self, text: str) -> dict[str, Any]:
        at = self.clock.now().isoformat()
        about = {"created_at": at, "deleted_at": None, "user_id": 456}
        return {"id": next(self._ids), "public_key": text, "key": text, **about}

    def _contract(self, id: str) -> Contract | None:
        raise NotImplementedError

    # ------------------------------------------------------------------ money

    @route("GET", "/api/v0/users/current")
    def user(self, request: Request) -> Reply:
        """Who this is, and what credit is left."""
        credit = float(round(self.contracts.credit_left, 6))
        about = {"id": 456, "key_id": 9, "email": "somebody@example.com", "sid": "s"}
        return Reply(200, {**about, "balance": 0.0, "credit": credit, "ssh_key": ""})

    @route("GET", "/api/v0/charges")
    def charges(self, request: Request) -> Reply:
        """What each instance was charged."""
        days = json.loads(request.query.get("select_filters", "{}")).get("day", {})
        if not {"gte", "lte"} <= set(days):
            told = "Must provide both 'day' gte and lte filters for instance charges"
            return Reply(400, {"success": False, "msg": told})
        rows = [
            row
            for row in self._charges()
            if row["end"] >= days["gte"] - 86400 and row["start"] <= days["lte"]
        ]
        limit = min(int(request.query.get("limit", 100)), 500)
        first = int(request.query.get("after_token") or 0)
        page, rest = rows[first : first + limit], rows[first + limit :]
        return Reply(
            200,
            {
                "success": True,
                "count": len(page),
                "total": len(rows),
                "next_token": str(first + limit) if rest else None,
                "results": page,
            },
        )

    def _charges(self) -> list[dict[str, Any]]:
        now = self.clock.now() - timedelta(seconds=self.switches.charges_lag)
        return [
            {
                "start": int(thing.spans[0].begin.timestamp()),
                "end": int(min(thing.gone or now, now).timestamp()),
                "type": "instance",
                "source": f"instance-{thing.id}",
                "description": f"Instance {thing.id} Charges",
                "amount": float(round(_cost_until(thing, now), 6)),
                "metadata": {"label": thing.name},
                "items": self._items(thing, now),
            }
            for thing in self.contracts.books.things.values()
            if thing.kind == "instance"
        ]

    def _items(self, thing: Thing, now: datetime) -> list[dict[str, Any]]:
        """What it was for: time, and traffic either way."""
        moved = {kind: self.contracts.moved[int(thing.id), kind] for kind in ("bwd", "bwu")}
        time = _cost_until(thing, now) - sum(moved.values(), Decimal(0))
        amounts = {"gpu": max(time, Decimal(0)), **moved}
        return [
            {"type": kind, "description": kind, "amount": float(round(amount, 6))}
            for kind, amount in amounts.items()
            if amount
        ]

    @route("GET", "/api/v1/invoices")
    def invoices(self, request: Request) -> Reply:
        """Payments; none."""
        if "select_filters" not in request.query:
            return Reply(
                200, {"success": False, "error": "invalid_request", "msg": "Invalid date range"}
            )
        return Reply(
            200, {"success": True, "count": 0, "total": 0, "next_token": None, "results": []}
        )

    @route("GET", "/api/v0/users/me/invoices")
    def old_invoices(self, request: Request) -> Reply:
        """Payments in their older shape."""
        current = {"charges": 0, "service_fee": 0, "total": 0, "credit": float(Decimal(25))}
        return Reply(200, {"invoices": [], "current": current})


def _cost_until(thing: Thing, moment: datetime) -> Decimal:
    """What it had cost by then."""
    begun = [span for span in thing.spans if span.begin <= moment]
    once = sum((amount for at, amount in thing.charges if at <= moment), Decimal())
    return once + sum(
        (replace(s, end=min(s.end or moment, moment)).cost(moment) for s in begun), Decimal()
    )


def _scope(request: Request) -> str:
    """Which right a call needs, as in the table that Vast.ai's command ships."""
    for path, (reading, writing) in _SCOPES.items():
        if re.search(path, request.path):
            return reading if request.method == "GET" else writing
    return "misc"


def _may_itself(request: Request) -> bool:
    """What the key of one instance may do with it: show, destroy, start and stop."""
    if request.method in ("GET", "DELETE"):
        return True
    try:
        body = request.json()
    except ValueError:
        return False
    return request.method == "PUT" and isinstance(body, dict) and set(body) == {"state"}
