"""Routes beside machines and money: volumes, webhooks, scheduled jobs, copies, secrets, odds."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import secrets
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from providers.base import Clock
from tests.clouds.http_cloud import Reply, Request, route
from tests.clouds.vastai_cloud import answers
from tests.clouds.vastai_cloud.account import Account
from tests.clouds.vastai_cloud.market import HOURS_A_MONTH, Host

_MOST_WEBHOOKS = 4
_FREED_AFTER = timedelta(seconds=30)  # a volume, from the end of the instance that used it
_USUAL_GB = 15


class Extras(Account):
    """What gpuctl never asks for, and Vast.ai's own tools do."""

    def __init__(self, *, clock: Clock | None, machines: Path | None, port: int) -> None:
        super().__init__(clock=clock, machines=machines, port=port)
        self.volumes: dict[int, dict[str, Any]] = {}
        self.webhooks: dict[int, dict[str, Any]] = {}
        self.delivered: list[dict[str, Any]] = []  # what webhooks were told, signed
        self.jobs: dict[int, dict[str, Any]] = {}
        self._serial = itertools.count(20_118_481)

    # ------------------------------------------------------------------ volumes

    @route("GET", "/api/v0/volumes")
    def show_volumes(self, request: Request) -> Reply:
        """Disks that outlive instances, each on one host."""
        return Reply(200, {"success": True, "volumes": list(self.volumes.values())})

    @route("POST", "/api/v0/volumes/search")
    def volume_offers(self, request: Request) -> Reply:
        """Where there is room for one; the offer's number is the host's."""
        rows = [
            {"id": host.id, "machine_id": host.id, "disk_space": host.disk, **_place(host)}
            for host in self.contracts.hosts
        ]
        return Reply(200, {"success": True, "offers": rows})

    @route("PUT", "/api/v0/volumes")
    def rent_volume(self, request: Request) -> Reply:
        """Another one; it bills until it is deleted."""
        body = _object(request)
        host = next((one for one in self.contracts.hosts if one.id == body.get("id")), None)
        if host is None:
            return answers.failed(404, "no_such_ask", "No such volume offer.")
        return Reply(200, {"success": True, "volume_name": self._volume(host, body)["name"]})

    def _volume(self, host: Host, body: dict[str, Any]) -> dict[str, Any]:
        id, size = next(self._serial), body.get("size") or _USUAL_GB
        name = f"V.{id}"
        made = {"id": id, "label": body.get("name") or name, "disk_space": size}
        about = {"machine_id": host.id, "status": "created", "verification": host.verification}
        since = self.clock.now().timestamp()
        self.volumes[id] = {**made, "name": name, **about, "start_date": since}
        price = host.storage_cost * Decimal(str(size)) / HOURS_A_MONTH
        self.contracts.books.begin("volume", name, made["label"], price, self.clock.now())
        return self.volumes[id]

    @route("DELETE", "/api/v0/volumes")
    def delete_volume(self, request: Request) -> Reply:
        """End one, unless an instance uses it, running or stopped, or did a moment ago."""
        text = str(request.query.get("id") or _object(request).get("id") or "")
        volume = self.volumes.get(int(text)) if text.isdigit() else None
        if volume is None:
            return answers.failed(404, "no_such_volume", "Volume with that ID does not exist.")
        if self._is_used(volume):
            return answers.failed(400, "invalid_args", "Volume is attached to an instance.")
        del self.volumes[volume["id"]]
        self.contracts.books.end(volume["name"], self.clock.now())
        return Reply(200, {"success": True})

    def _is_used(self, volume: dict[str, Any]) -> bool:
        books, now = self.contracts.books, self.clock.now()
        for thing in books.things.values():
            contract = self.contracts.uses.get(thing.id)
            if contract == volume["id"] and (thing.gone is None or now - thing.gone < _FREED_AFTER):
                return True
        return False

    # ------------------------------------------------------------------ webhooks

    @route("GET", "/api/v0/webhooks")
    def show_webhooks(self, request: Request) -> Reply:
        """Who is told; the secrets are not shown again."""
        rows = [{k: v for k, v in one.items() if k != "secret"} for one in self.webhooks.values()]
        return Reply(200, {"success": True, "webhooks": rows})

    @route("POST", "/api/v0/webhooks")
    def add_webhook(self, request: Request) -> Reply:
        """Another one; its secret is told this once."""
        body, wrong = _object(request), ""
        if not str(body.get("webhook_url", "")).startswith("https://"):
            wrong = "webhook_url must be an https address."
        elif len(self.webhooks) >= _MOST_WEBHOOKS:
            wrong = f"At most {_MOST_WEBHOOKS} webhooks are allowed."
        elif not body.get("event_types"):
            wrong = "event_types is required."
        if wrong:
            return answers.failed(400, "invalid_args", wrong)
        id = next(self._serial)
        hook = {key: body.get(key) for key in ("name", "webhook_url", "event_types")}
        self.webhooks[id] = {"id": id, **hook, "secret": secrets.token_hex(16)}
        enabled = {"enabled_notification_preferences": body["event_types"]}
        return Reply(200, {"success": True, "webhook": self.webhooks[id], **enabled})

    @route("DELETE", "/api/v0/webhooks/{id}")
    def remove_webhook(self, request: Request, id: str) -> Reply:
        """Tell it nothing more."""
        if not id.isdigit() or self.webhooks.pop(int(id), None) is None:
            return answers.failed(404, "not_found", "Webhook not found.")
        return Reply(200, {"success": True})

    @route("POST", "/api/v0/webhooks/{id}/test")
    def try_webhook(self, request: Request, id: str) -> Reply:
        """Tell it something."""
        hook = self.webhooks.get(int(id)) if id.isdigit() else None
        if hook is None:
            return answers.failed(404, "not_found", "Webhook not found.")
        self._deliver(hook, "test", {})
        return Reply(200, {"success": True, "msg": "Test webhook delivered"})

    def outbid(self, id: int) -> None:
        """Somebody bids more for an instance; webhooks are told, after the fact."""
        self.contracts.outbid(id)
        for hook in self.webhooks.values():
            if "client:outbid" in hook["event_types"]:
                self._deliver(hook, "client:outbid", {"instance_id": id})

    def _deliver(self, hook: dict[str, Any], event: str, about: dict[str, Any]) -> None:
        body = json.dumps({"event_type": event, **about})
        signed = hmac.new(hook["secret"].encode(), body.encode(), hashlib.sha256).hexdigest()
        headers = {"X-Vast-Signature-256": f"sha256={signed}"}
        self.delivered.append({"url": hook["webhook_url"], "headers": headers, "body": body})

    # ------------------------------------------------------------------ jobs and copies

    @route("GET", "/api/v0/commands/schedule_job")
    def show_jobs(self, request: Request) -> Reply:
        """What is to be done at certain times; nothing of it is ever done here."""
        return Reply(200, list(self.jobs.values()))

    @route("POST", "/api/v0/commands/schedule_job")
    def schedule_job(self, request: Request) -> Reply:
        """One for an instance; 422 when it has one."""
        body = _object(request)
        key = (body.get("instance_id"), body.get("api_endpoint"))
        for id, job in self.jobs.items():
            if (job.get("instance_id"), job.get("api_endpoint")) == key:
                msg = "A scheduled job exists already."
                return answers.failed(422, "already_exists", msg, scheduled_job_id=id)
        id = next(self._serial)
        self.jobs[id] = {"id": id, **body}
        return Reply(200, {"success": True, "scheduled_job_id": id})

    @route("PUT", "/api/v0/commands/copy_direct")
    def copy(self, request: Request) -> Reply:
        """From one instance to another."""
        body = _object(request)
        if not body.get("src_path"):
            return answers.failed(400, "invalid_args", "Invalid src_path.")
        told = "Remote to Remote copy initiated - check instance status bar for progress updates."
        return Reply(200, {"success": True, "msg": told})

    @route("DELETE", "/api/v0/commands/copy_direct")
    def cancel_copy(self, request: Request) -> Reply:
        """Never mind."""
        return Reply(200, {"success": True, "msg": "Remote copy canceled"})

    # ------------------------------------------------------------------ instances, further looks

    @route("GET", "/api/v0/instances/balance/{id}")
    def deposit(self, request: Request, id: str) -> Reply:
        """What is paid in advance for one: nothing."""
        if self._contract(id) is None:
            return answers.no_instance(id)
        none = {"refundable_deposit": 0.0, "total_discount": 0.0, "discount_months": 0}
        return Reply(200, {"success": True, **none})

    @route("GET", "/api/v0/instances/pending-price-increases")
    def price_increases(self, request: Request) -> Reply:
        """None."""
        return Reply(200, {"success": True, "pending_price_increases": []})

    @route("POST", "/api/v0/instances/take_snapshot/{id}")
    def snapshot(self, request: Request, id: str) -> Reply:
        """Nothing is kept here."""
        there = self._contract(id) is not None
        return Reply(200, {"success": True}) if there else answers.no_instance(id)

    # ------------------------------------------------------------------ cards, secrets and odds

    @route("GET", "/api/v0/gpu_types")
    def gpu_types(self, request: Request) -> Reply:
        """The cards on offer, with their memory."""
        cards = {(host.gpu_name, host.gpu_ram) for host in self.contracts.hosts}
        rows = [{"canonical_name": name, "gpu_ram_mb": ram} for name, ram in sorted(cards)]
        return Reply(200, {"gpu_types": rows})

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


def _place(host: Host) -> dict[str, Any]:
    return {"storage_cost": float(host.storage_cost), "geolocation": host.geolocation or ""}


def _object(request: Request) -> dict[str, Any]:
    try:
        body = request.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
