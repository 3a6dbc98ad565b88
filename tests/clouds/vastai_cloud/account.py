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
from tests.clouds.vastai_cloud.switches import CREATE_PENALTY_SECONDS, THRESHOLDS, Switches

_OPEN = re.compile(r"/api/v0/(bundles|gpu_names/unique|gpu_types)/?|/results/\d+")
_OWN_INSTANCE = re.compile(r"/api/v0/instances/(\d+)/?")
_SECONDS_AN_HOUR = 3600


class Account(HttpCloud):
    """Who asks, how often, and what is not an instance or an offer."""

    def __init__(self, *, clock: Clock | None, machines: Path | None, port: int) -> None:
        super().__init__(clock=clock, port=port)
        self.switches = Switches()
        self.contracts = Contracts(self.clock, self.switches, machines)
        self.key = "vast-account-key-5f2d0b7c91"
        self.readers: set[str] = set()  # further keys that may only read
        self.ssh_keys: dict[int, dict[str, Any]] = {}
        self.secrets: dict[str, str] = {}
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
        return {self.key, *self.readers, *scoped}

    def _refused(self, request: Request, key: str) -> Reply | None:
        if not key:
            return answers.no_key()
        if key == self.key or (key in self.readers and request.method == "GET"):
            return None
        if key in self.readers:
            return answers.no_right()
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
            who = (f"{method} {path}", key)
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
                "items": [],
            }
            for thing in self.contracts.books.things.values()
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

    # ------------------------------------------------------------------ volumes, secrets and odds

    @route("GET", "/api/v0/volumes")
    def volumes(self, request: Request) -> Reply:
        """None."""
        return Reply(200, {"success": True, "volumes": []})

    @route("POST", "/api/v0/volumes/search")
    def volume_offers(self, request: Request) -> Reply:
        """None."""
        return Reply(200, {"success": True, "offers": []})

    @route("GET", "/api/v0/secrets")
    def show_secrets(self, request: Request) -> Reply:
        """The account's environment variables, masked."""
        return Reply(200, {"success": True, "secrets": dict.fromkeys(self.secrets, "********")})

    @route("POST", "/api/v0/secrets")
    @route("PUT", "/api/v0/secrets")
    def set_secret(self, request: Request) -> Reply:
        """Add or change one."""
        body = request.json()
        self.secrets[body["key"]] = body["value"]
        return Reply(200, {"success": True, "msg": "Secret saved"})

    @route("DELETE", "/api/v0/secrets")
    def remove_secret(self, request: Request) -> Reply:
        """Forget one."""
        self.secrets.pop(request.json()["key"], None)
        return Reply(200, {"success": True, "msg": "Secret deleted"})

    @route("GET", "/api/v0/gpu_names/unique")
    def gpu_names(self, request: Request) -> Reply:
        """The names of the cards on offer."""
        return Reply(200, {"gpu_names": sorted({host.gpu_name for host in self.contracts.hosts})})

    @route("GET", "/api/v0/audit_logs")
    @route("GET", "/api/v0/commands/schedule_job")
    @route("GET", "/api/v0/users/cloud_integrations")
    def nothing(self, request: Request) -> Reply:
        """Lists of what nobody here has."""
        return Reply(200, [])

    @route("GET", "/api/v0/subaccounts")
    def subaccounts(self, request: Request) -> Reply:
        """None."""
        return Reply(200, {"users": []})

    @route("GET", "/api/v0/users/me/ipaddrs")
    def addresses(self, request: Request) -> Reply:
        """None."""
        return Reply(200, {"results": []})

    @route("GET", "/api/v0/tfa/status")
    def second_factor(self, request: Request) -> Reply:
        """Off."""
        return Reply(200, {"success": True, "tfa_enabled": False, "methods": []})

    @route("GET", "/api/v0/template")
    def templates(self, request: Request) -> Reply:
        """None."""
        return Reply(200, {"success": True, "templates": []})

    @route("GET", "/api/v0/machines")
    def machines(self, request: Request) -> Reply:
        """None: this account hosts nothing."""
        return Reply(200, {"machines": []})

    @route("GET", "/api/v0/auth/apikeys")
    def api_keys(self, request: Request) -> Reply:
        """The account's keys, without their text."""
        return Reply(200, {"apikeys": [{"id": 9, "name": "gpuctl"}]})

    @route("GET", "/api/v0/endptjobs")
    @route("GET", "/api/v0/workergroups")
    def serverless(self, request: Request) -> Reply:
        """None."""
        return Reply(200, {"success": True, "results": []})


def _cost_until(thing: Thing, moment: datetime) -> Decimal:
    """What it had cost by then."""
    begun = [span for span in thing.spans if span.begin <= moment]
    return sum(
        (replace(s, end=min(s.end or moment, moment)).cost(moment) for s in begun), Decimal()
    )


def _may_itself(request: Request) -> bool:
    """What the key of one instance may do with it: show, destroy, start and stop."""
    if request.method in ("GET", "DELETE"):
        return True
    try:
        body = request.json()
    except ValueError:
        return False
    return request.method == "PUT" and isinstance(body, dict) and set(body) == {"state"}
