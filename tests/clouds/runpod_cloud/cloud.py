"""The HTTP side: keys, quotas, routes, problem+json, and the faults that strike there."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from providers.base import Clock
from tests.clouds.http_cloud import Fault, Reply, Request, route
from tests.clouds.runpod_cloud import logs, validation
from tests.clouds.runpod_cloud.account import Account, Refused
from tests.clouds.runpod_cloud.answers import body_of, invalid, problem
from tests.clouds.runpod_cloud.legacy import PUBLIC, Legacy
from tests.clouds.runpod_cloud.limits import Limits
from tests.clouds.runpod_cloud.pods import ACTIONS, Pod, Times
from tests.clouds.runpod_cloud.resources import Resources
from tests.clouds.runpod_cloud.switches import Switches

_TICK_SECONDS = 0.1
_CLUSTER = "pod belongs to a cluster; use /v2/clusters/{id}"
_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body>cloudflare</body></html>"


class RunpodCloud(Resources):
    """One account at https://api.runpod.io.

    Args:
        clock: the cloud's own time.
        port: 0 for any.
        machines: a folder for the real machines behind the pods; None: the API alone.
        times: how long new pods take.
        key: the account's key.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        port: int = 0,
        machines: Path | None = None,
        times: Times | None = None,
        key: str = "rpa_EMULATEDACCOUNTKEY0123456789abcdefghijkl",
    ) -> None:
        super().__init__(clock=clock, port=port)
        self.key = key
        self.account = Account(self.clock, times or Times(), machines)
        self.books = self.account.books
        self.limits = Limits()
        self.agents: list[str] = []  # of every request
        self.replies: list[tuple[Request, Reply]] = []  # what was answered, for conformance
        self._legacy = Legacy(self.account)
        self._over = threading.Event()
        self._clockwork = threading.Thread(target=self._run_clock, daemon=True)

    @property
    def switches(self) -> Switches:
        """What goes wrong."""
        return self.account.switches

    def __enter__(self) -> Self:
        super().__enter__()
        if self.account.machines is not None:
            self._clockwork.start()  # what happens to machines does not wait for a request
        return self

    def close(self) -> None:
        """Stop serving, and kill the machines."""
        self._over.set()
        super().close()
        with self.lock:
            self.account.close()

    def _run_clock(self) -> None:
        while not self._over.wait(_TICK_SECONDS):
            with self.lock:
                self.account.settle()

    # ------------------------------------------------------------------ by hand, by tests

    def externally_terminated(self, pod_id: str) -> None:
        """Somebody deletes a pod in the console."""
        with self.lock:
            self.account.terminate(self.account.pods[pod_id])

    def host_lost(self, pod_id: str) -> None:
        """The machine dies; the API goes on saying RUNNING."""
        with self.lock:
            self.account.lose(self.account.pods[pod_id])

    def taken_away(self, pod_id: str) -> None:
        """Somebody bids more for a spot pod."""
        with self.lock:
            self.account.take_away(self.account.pods[pod_id])

    def rate_limit(self, a_minute: int) -> None:
        """Another quota."""
        self.limits.quota["minute"] = a_minute

    # ------------------------------------------------------------------ at the door

    def serve(self, request: Request) -> Reply | None:
        if self.switches.latency:
            threading.Event().wait(self.switches.latency)
        return super().serve(request)

    def gate(self, request: Request) -> Reply | None:
        self.account.settle()
        agent = request.headers.get("user-agent", "")
        self.agents.append(agent)
        if agent.startswith("Python-urllib") or not agent:
            return Reply(403, b"error code: 1010", {"Content-Type": "text/plain; charset=UTF-8"})
        if self.switches.hits("html_502"):
            return Reply(502, _PAGE, {"Content-Type": "text/html"})
        if request.path.startswith("/v1/"):
            return problem(410, "REST API v1 was retired on November 15, 2026. Use /v2.")
        if request.path == "/graphql" and self.switches.graphql_gone:
            return problem(410, "The GraphQL API was retired.")
        return self._keys(request)

    def _keys(self, request: Request) -> Reply | None:
        if request.path == "/graphql" and self._legacy_fields(request) <= PUBLIC:
            return None
        key = request.headers.get("authorization", "").removeprefix("Bearer ")
        pod = next((p for p in self.account.pods.values() if p.api_key == key), None)
        if pod is None and (key != self.key or self.switches.key_revoked):
            return problem(401, "invalid bearer token" if key else "missing bearer token")
        over = self.limits.take(self.clock.monotonic())
        if over is not None:
            window, seconds = over
            said = problem(429, f"rate limit exceeded for the {window} window")
            return replace(said, headers={**said.headers, "Retry-After": str(seconds)})
        if pod is not None and not self._pod_may(pod, request):
            return problem(403, "access denied")
        if self.switches.read_only and request.method != "GET" and request.path != "/graphql":
            return problem(403, "access denied")
        return None

    def _pod_may(self, pod: Pod, request: Request) -> bool:
        """What a pod's own key may do: something to its own pod, or nothing."""
        if pod.key_rights == "none" or pod.state == "terminated":
            return False
        own = f"/v2/pods/{pod.id}"
        may = {"stop", "terminate"} if pod.key_rights == "terminate" else {"stop"}
        if request.path == "/graphql":
            text = request.body.decode(errors="replace")
            return self._legacy_fields(request) == {"podStop"} and pod.id in text
        if request.path == f"{own}/action" and request.method == "POST":
            return body_of(request).get("action") in may
        return request.path == own and request.method == "DELETE" and "terminate" in may

    def adorn(self, request: Request, reply: Reply) -> Reply:
        headers = dict(reply.headers)
        if request.path.startswith("/v2/") and reply.status not in (401, 502):
            headers |= self.limits.headers(self.clock.monotonic())
        adorned = replace(reply, headers=headers)
        self.replies.append((request, adorned))
        return adorned

    def nothing_there(self, request: Request) -> Reply:
        allowed = sorted({method for method, regex, _ in self._routes if regex.match(request.path)})
        if allowed:
            said = problem(405, "The requested method is not allowed for this path.")
            return replace(said, headers={**said.headers, "Allow": ", ".join(allowed)})
        return problem(404, "resource not found")

    # ------------------------------------------------------------------ pods

    @route("GET", "/v2/pods")
    def list_pods(self, request: Request) -> Reply:
        members = request.query.get("includeClusterPods") == "true"
        pods = [pod for pod in self.account.listed() if members or pod.cluster is None]
        size = self.switches.paged_list
        if not size:
            return Reply(200, {"pods": [self._json(pod) for pod in pods]})
        start = int(request.query.get("cursor") or 0)
        page: dict[str, Any] = {"pods": [self._json(pod) for pod in pods[start : start + size]]}
        page["nextCursor"] = str(start + size) if start + size < len(pods) else None
        return Reply(200, page)

    @route("POST", "/v2/pods")
    def create_pod(self, request: Request) -> Reply:
        body = body_of(request)
        if errors := validation.create_errors(body):
            return invalid(errors)
        if self.switches.hits("create_5xx_before_commit"):
            return problem(500, "Something went wrong.")
        rule = validation.rule_broken(body)
        if self.switches.hits("create_rule_400"):
            rule = "request could not be processed"
        if rule is not None:
            return problem(400, rule)
        if "templateId" in body:
            return problem(404, "template not found")
        try:
            pod = self.account.create(body)
        except Refused as refused:
            return problem(refused.status, refused.detail)
        if self.switches.hits("create_5xx_after_commit"):
            return problem(500, "Something went wrong.")
        if self.switches.hits("drop_response"):
            self.faults.append(Fault("/v2/pods$", "POST", "after", "drop"))
        said = self._json(pod)
        if self.switches.status_word is None:
            said |= {"status": "PROVISIONING", "actions": ["start", "terminate"], "runtime": {}}
        return Reply(201, said)

    @route("GET", "/v2/pods/{id}")
    def get_pod(self, request: Request, id: str) -> Reply:
        pod = self.account.found(id)
        return Reply(200, self._json(pod)) if pod else problem(404, "pod not found")

    @route("DELETE", "/v2/pods/{id}")
    def delete_pod(self, request: Request, id: str) -> Reply:
        pod = self.account.found(id)
        if pod is None or self.switches.hits("delete_404_but_alive"):
            return problem(404, "pod not found")
        if pod.cluster:
            return problem(409, _CLUSTER)
        self.account.terminate(pod)
        return Reply(204)

    @route("PATCH", "/v2/pods/{id}")
    def change_pod(self, request: Request, id: str) -> Reply:
        body, pod = body_of(request), self.account.found(id)
        if errors := validation.patch_errors(body):
            return invalid(errors)
        if pod is None:
            return problem(404, "pod not found")
        if pod.cluster:
            return problem(409, _CLUSTER)
        if rule := validation.patch_rule_broken(pod.body, body):
            return problem(400, rule)
        self.account.change(pod, body)
        return Reply(200, self._json(pod))

    @route("GET", "/v2/pods/{id}/logs")
    def logs(self, request: Request, id: str) -> Reply:
        pod = self.account.found(id)
        if pod is None:
            return problem(404, "pod not found")
        try:
            asked = logs.Asked.read(request.query, request.headers)
        except logs.BadQuery as bad:
            return problem(400, str(bad))
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        headers["X-Accel-Buffering"] = "no"
        return Reply(200, None, headers, lambda: logs.events(pod, asked, self._over))

    @route("POST", "/v2/pods/{id}/action")
    def act(self, request: Request, id: str) -> Reply:
        body = body_of(request)
        if errors := validation.action_errors(body):
            return invalid(errors)
        pod = self.account.found(id)
        if pod is None:
            return problem(404, "pod not found")
        if pod.cluster:
            return problem(409, _CLUSTER)
        action = body["action"]
        if pod.locked and action in ("stop", "restart"):
            return problem(409, "pod is locked")
        if action not in ACTIONS[self._status(pod)]:
            return problem(409, f"cannot {action} a pod that is {self._status(pod)}")
        if action == "terminate":
            self.account.terminate(pod)
            return Reply(204)
        if action == "start" and self.switches.hits("resume_500"):
            return problem(500, "Something went wrong.")
        if action in ("stop", "restart"):
            self.account.stop(pod)
        if action in ("start", "restart"):
            self.account.start(pod)
        return Reply(200, self._json(pod))

    def _status(self, pod: Pod) -> str:
        return pod.status(self.clock.now(), self.switches.eager_running)

    def _json(self, pod: Pod) -> dict[str, Any]:
        said: dict[str, Any] = pod.json(
            self.clock.now(),
            eager=self.switches.eager_running,
            keeps_cost=self.switches.exited_keeps_cost,
            word=self.switches.status_word,
        )
        return said

    # ------------------------------------------------------------------ graphql

    @route("POST", "/graphql")
    def graphql(self, request: Request) -> Reply:
        body = body_of(request)
        return Reply(
            200, self._legacy.answer(str(body.get("query", "")), body.get("variables") or {})
        )

    def _legacy_fields(self, request: Request) -> set[str]:
        return self._legacy.fields(str(body_of(request).get("query", ""))) or {"?"}
