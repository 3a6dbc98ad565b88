"""The emulated Vast.ai: its HTTP API, see contracts/vastai.md. Nothing here is a real cloud."""

from __future__ import annotations

import json
import threading
from collections import Counter
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from providers.base import Clock
from tests.clouds.http_cloud import Fault, Reply, Request, route
from tests.clouds.vastai_cloud import answers
from tests.clouds.vastai_cloud.contract import Contract, Gone, TooLow
from tests.clouds.vastai_cloud.extras import Extras
from tests.clouds.vastai_cloud.listing import BadList, ListQuery, token
from tests.clouds.vastai_cloud.market import Ask, BadQuery, found, offer_row
from tests.clouds.vastai_cloud.rows import instance_row
from tests.clouds.vastai_cloud.rules import LEAST_BID, LEAST_DISK, wrong

_TICK_SECONDS = 0.02
_LONGEST_LABEL = 1024  # of one that is changed; at the create it is less
_LONGEST_COMMAND = 512
_COMMANDS = ("ls", "rm", "du")
_MOST_AT_ONCE = 64
_BAD_GATEWAY = Reply(502, b"<html>502 Bad Gateway</html>", {"Content-Type": "text/html"})


class VastCloud(Extras):
    """One Vast.ai with one account.

    Args:
        clock: the cloud's own time.
        machines: a folder; then a real machine stands behind every instance.
    """

    def __init__(
        self, *, clock: Clock | None = None, machines: Path | None = None, port: int = 0
    ) -> None:
        super().__init__(clock=clock, machines=machines, port=port)
        self._over = threading.Event()
        self._clockwork = threading.Thread(target=self._run_clock, daemon=True)
        self._real = machines is not None

    def __enter__(self) -> Self:
        super().__enter__()
        if self._real:
            self._clockwork.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        self._over.set()
        if self._real:
            self._clockwork.join(10)
        with self.lock:
            for contract in list(self.contracts.all.values()):
                self.contracts.destroy(contract)

    def _run_clock(self) -> None:
        while not self._over.wait(_TICK_SECONDS):
            with self.lock:
                self.contracts.tick()

    # ------------------------------------------------------------------ searching

    @route("POST", "/api/v0/bundles")
    def bundles(self, request: Request) -> Reply:
        """Search offers."""
        return self._search(_object(request))

    @route("GET", "/api/v0/bundles")
    def old_bundles(self, request: Request) -> Reply:
        """Search offers, the oldest way."""
        try:
            return self._search(json.loads(request.query.get("q", "")))
        except ValueError:
            return self._search(None)

    @route("PUT", "/api/v0/search/asks")
    def search_asks(self, request: Request) -> Reply:
        """Search offers, the newer way."""
        body = _object(request)
        return self._search(None if body is None else body.get("q"))

    def _search(self, query: Any) -> Reply:
        if self.switches.search_quota:
            return answers.quota_used_up(self.clock.now())
        if not isinstance(query, dict):
            return Reply(400, {"error": "invalid_request", "msg": "Invalid json body"})
        disk = float(query.get("allocated_storage") or LEAST_DISK)
        bids = self.switches.bids_in_total and query.get("type") in ("bid", "interruptible")
        try:
            rows = found(
                [self._offer(ask, disk, bids) for ask in self.contracts.asks()],
                query,
                defaults=self.switches.default_filters,
                ignored=self.switches.filters_ignored,
            )
        except (BadQuery, KeyError, TypeError, ValueError) as error:
            return Reply(400, {"error": "invalid_request", "msg": f"Invalid query: {error}"})
        limit = int(query.get("limit") or 64)
        if self.switches.search_cap is not None:
            limit = min(limit, self.switches.search_cap)
        odd = self.switches.odd_rows
        return Reply(
            200,
            {"offers": [{k: None if k in odd else v for k, v in r.items()} for r in rows[:limit]]},
        )

    def _offer(self, ask: Ask, disk: float, bids: bool) -> dict[str, Any]:
        row = offer_row(
            ask,
            now=self.clock.now().timestamp(),
            disk=disk,
            floor=self.contracts.floor(ask),
            rented=self.contracts.rented(ask),
        )
        if bids:
            row["dph_base"] = row["min_bid"]
            row["dph_total"] = row["min_bid"] + row["storage_total_cost"]
        return row

    # ------------------------------------------------------------------ renting

    @route("PUT", "/api/v0/asks/{id}")
    def create(self, request: Request, id: str) -> Reply:
        """Rent an offer."""
        body = _object(request)
        if body is None or not id.isdigit():
            msg = "error 400/3467: Invalid args: 'id' is required and must be a valid offer ID"
            return answers.failed(400, "invalid_args", msg)
        reply = self._rent(int(id), body)
        if reply.status != 200:
            return reply
        if self.switches.counted("too_many_but_created"):
            return answers.too_many(self.switches, 4.5)
        if self.switches.counted("create_502_after_commit"):
            return _BAD_GATEWAY
        if self.switches.counted("create_timeout_after_commit"):
            self.faults.append(Fault("/asks/", "PUT", "after", "hang"))
        return reply

    @route("POST", "/api/v0/asks/bulk")
    def create_many(self, request: Request) -> Reply:
        """Rent several offers."""
        body = _object(request) or {}
        made = [self._rent(int(id), body) for id in body.get("ids", [])[:_MOST_AT_ONCE]]
        return Reply(200, {"success": True, "results": [reply.body for reply in made]})

    @route("PUT", "/api/v0/launch_instance")
    def launch(self, request: Request) -> Reply:
        """Search and rent the first."""
        body = _object(request) or {}
        hits = self._search(body.get("q")).body.get("offers") or []
        return self._rent(hits[0]["id"], body) if hits else answers.offer_gone(self.switches, 0)

    def _rent(self, id: int, body: dict[str, Any]) -> Reply:
        if (refused := wrong(body)) is not None:
            return refused
        ask = next((ask for ask in self.contracts.asks() if ask.id == id), None)
        if ask is None:
            return answers.offer_gone(self.switches, id)
        if self.contracts.credit_left <= 0:
            msg = "Your account lacks credit; see the billing page."
            return answers.failed(400, "insufficient_credit", msg)
        if self.switches.spend_rate_limit:
            msg = "Your account is new; its spend rate is limited. Verify it or add credit."
            return answers.failed(400, "spend_rate_limit", msg)
        bid = body.get("price")
        try:
            contract = self.contracts.rent(
                ask, body, None if bid is None else Decimal(str(bid)), self.ssh_keys.values()
            )
        except Gone:
            return answers.offer_gone(self.switches, id)
        except TooLow as low:
            msg = f"error 400/3811: the bid is below the minimum for ask {id}"
            return answers.failed(400, "bid_too_low", msg, new_contract=low.contract.id)
        return Reply(
            200,
            {"success": True, "new_contract": contract.id, "instance_api_key": contract.key},
        )

    # ------------------------------------------------------------------ reading

    @route("GET", "/api/v0/instances")
    def list_retired(self, request: Request) -> Reply:
        """The old list."""
        if self.switches.v0_list == "ok":
            return Reply(200, {"instances": [self._row(one) for one in self._visible()]})
        msg = "/api/v0/instances/ is deprecated. Use /api/v1/instances/ instead."
        return answers.failed(int(self.switches.v0_list), "deprecated_endpoint", msg)

    @route("GET", "/api/v1/instances")
    def list_instances(self, request: Request) -> Reply:
        """One page of the instances."""
        try:
            asked = ListQuery(request.query)
            rows = [row for row in map(self._row, self._visible()) if asked.wants(row)]
        except BadList as bad:
            return Reply(400, {"success": False, "error": bad.error, "msg": str(bad)})
        if self.switches.counted("list_lies_empty"):
            rows = []
        page = [row for row in asked.sorted(rows) if row["id"] > asked.after][: asked.limit]
        more = len(page) == asked.limit and page[-1]["id"] != asked.sorted(rows)[-1]["id"]
        total = len(rows)
        if self.switches.counted("list_short"):
            page, more = page[:-1], False
        shown: Any = page
        if not rows and self.switches.null_when_empty:
            shown = None
        return Reply(
            200,
            {
                "success": True,
                "instances_found": len(page),
                "total_instances": total,
                "label_counts": dict(Counter(row["label"] or "" for row in rows)),
                "next_token": token(page[-1]["id"]) if more else None,
                "instances": shown,
            },
        )

    @route("GET", "/api/v0/instances/filters")
    def list_filters(self, request: Request) -> Reply:
        """What the table view asks for first."""
        columns = ("actual_status", "verification", "gpu_name")
        rows = [self._row(one) for one in self._visible()]
        shown = [{column: row[column] for column in columns} for row in rows]
        return Reply(200, {"success": True, "filters": shown})

    @route("GET", "/api/v0/instances/count")
    def count(self, request: Request) -> Reply:
        """How many there are."""
        return Reply(200, {"success": True, "count": len(self._visible())})

    @route("GET", "/api/v0/instances/{id}")
    def show(self, request: Request, id: str) -> Reply:
        """One instance; null when there is none."""
        contract = self._contract(id)
        if contract is not None and self.switches.counted("get_lies_null"):
            contract = None
        return Reply(200, {"instances": self._row(contract) if contract else None})

    def _visible(self) -> list[Contract]:
        return [one for one in self.contracts.all.values() if self._shows(one)]

    def _shows(self, contract: Contract) -> bool:
        age = (self.clock.now() - contract.created).total_seconds()
        return age >= self.switches.times.list_lag

    def _contract(self, id: str) -> Contract | None:
        contract = self.contracts.all.get(int(id)) if id.isdigit() else None
        return contract if contract is not None and self._shows(contract) else None

    def _row(self, contract: Contract) -> dict[str, Any]:
        return instance_row(contract, self.switches, now=self.clock.now().timestamp())

    # ------------------------------------------------------------------ changing

    @route("PUT", "/api/v0/instances/{id}")
    def manage(self, request: Request, id: str) -> Reply:
        """Start, stop or label one."""
        contract, body = self._contract(id), _object(request) or {}
        if contract is None:
            return answers.no_instance(id)
        if len(str(body.get("label") or "")) > _LONGEST_LABEL:
            return answers.failed(400, "label_too_long", "The label is too long.")
        if "label" in body:
            contract.label = str(body["label"])
            msg = f"label for {id} set to '{contract.label}'"
            return Reply(200, {"success": True, "msg": msg})
        if body.get("state") == "stopped":
            self.contracts.stop(contract)
        elif body.get("state") != "running":
            return answers.failed(400, "invalid_args", "state must be running or stopped")
        elif self.contracts.credit_left <= 0:
            return answers.failed(400, "missing_billing", "Please add credit.")
        elif not self.contracts.start(contract):
            msg = "Required resources are currently unavailable, state change queued."
            return Reply(200, {"success": True, "msg": msg})
        return Reply(200, {"success": True})

    @route("PUT", "/api/v0/instances")
    def manage_many(self, request: Request) -> Reply:
        """Start or stop several."""
        for id in (_object(request) or {}).get("ids", []):
            self.manage(request, str(id))
        return Reply(200, {"success": True})

    @route("POST", "/api/v0/instances/start")
    def start_many(self, request: Request) -> Reply:
        """Start several."""
        for id in (_object(request) or {}).get("IDs", []):
            if (contract := self._contract(str(id))) is not None:
                self.contracts.start(contract)
        return Reply(200, {"success": True})

    @route("DELETE", "/api/v0/instances")
    def destroy_many(self, request: Request) -> Reply:
        """Destroy several."""
        for id in (_object(request) or {}).get("instance_ids", []):
            self.destroy(request, str(id))
        return Reply(200, {"success": True})

    @route("DELETE", "/api/v0/instances/{id}")
    def destroy(self, request: Request, id: str) -> Reply:
        """Destroy one; also what listings do not show yet."""
        if not id.isdigit():
            return answers.failed(400, "invalid_args", "invalid instance_id")
        contract = self.contracts.all.get(int(id))
        hidden = contract and self.switches.lag_hides_from_destroy and not self._shows(contract)
        if contract is None or hidden:
            return answers.no_instance(id, self.switches.second_delete)
        if not self.switches.counted("destroy_ignored"):
            self.contracts.destroy(contract)
        return Reply(200, {"success": True, "msg": "Instance destroyed successfully"})

    @route("PUT", "/api/v0/instances/bid_price/{id}")
    def change_bid(self, request: Request, id: str) -> Reply:
        """Bid something else."""
        contract, body = self._contract(id), _object(request) or {}
        if contract is None or contract.bid is None:
            return answers.no_instance(id)
        price = body.get("price")
        bid = self.contracts.floor(contract.ask) if price is None else Decimal(str(price))
        if bid < LEAST_BID:
            return answers.failed(400, "invalid_args", "Please set a bid price >= 0.001.")
        self.contracts.change_bid(contract, bid)
        return Reply(200, {"success": True})

    @route("PUT", "/api/v0/instances/{verb}/{id}")
    def restart(self, request: Request, verb: str, id: str) -> Reply:
        """Reboot or recycle one; the other verbs of an instance only say yes."""
        contract, body = self._contract(id), _object(request)
        if contract is None:
            told = {"reboot": "invalid_args", "recycle": "invalid_id", "prepay": "invalid_args"}
            if verb in told:
                return answers.failed(400, told[verb], "No such instance")
            return answers.failed(404, "invalid_id", f"Instance {id} not found.")
        if verb in ("reboot", "recycle"):
            self.contracts.reboot(contract, "rebooting" if verb == "reboot" else "recycling")
        elif verb == "prepay":
            if Decimal(str((body or {}).get("amount") or 0)) > self.contracts.credit_left:
                return Reply(411, {"success": False, "msg": "Insufficient credit"})
            return Reply(200, {"success": True, "timescale": 3.5, "discount_rate": 0.3})
        elif verb == "command" and body is None:
            return Reply(483, {"success": False, "msg": "invalid json"})
        elif verb == "command" and not _is_command(str((body or {}).get("command", ""))):
            return answers.failed(400, "invalid_args", "Invalid command given.")
        elif verb in ("command", "request_logs"):
            url = f"{self.url}/results/{id}"
            told = {"success": True, "result_url": url, "writeable_path": "/", "msg": ""}
            return Reply(200, told)
        return Reply(200, {"success": True})

    @route("GET", "/results/{id}")
    def result(self, request: Request, id: str) -> Reply:
        """What a command said; not protected."""
        return Reply(200, f"output of {id}\n".encode(), {"Content-Type": "text/plain"})


def _is_command(text: str) -> bool:
    """Whether it is one of the few that may be executed from outside."""
    return text.split(" ")[0] in _COMMANDS and len(text) <= _LONGEST_COMMAND


def _object(request: Request) -> dict[str, Any] | None:
    try:
        body = request.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
