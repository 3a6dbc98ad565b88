"""The emulated Vast.ai and our adapter, held to the API description that Vast.ai publishes.

It is known to be wrong in places; each of those is named here, with what is right instead.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests

from providers.base import ProviderError, Want
from tests.clouds.http_cloud import Reply, Request
from tests.clouds.vastai_cloud import Host, VastCloud
from tests.clouds.vastai_cloud.switches import THRESHOLDS
from tests.providers.vastai_bench import VastBench, vast_bench

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(os.environ.get("GPUCTL_CONTRACTS", ROOT / "../shared/contracts"))
FILE = FOLDER / "openapi_vastai_operations.json"

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(not FILE.is_file(), reason=f"no {FILE}: set GPUCTL_CONTRACTS"),
]

# (operation, where) -> what is right instead; contracts/vastai.md, 9.2.
WRONG = {
    ("create_instance", "$.env"): "an object, as the guide says and the client sends it",
    ("create_instance", "$.runtype"): "several words, as the client sends them",
    ("create_instance", "$.price"): "null for on-demand, as the client sends it",
    ("search_offers", "$.order"): "a list of pairs, as its text says and the client sends it",
    ("search_offers", "$.type"): "on-demand, as its own example and the client have it",
    ("show_instance", "$.instances"): "null for an instance that does not exist",
    ("show_instance", "$.instances.ports"): "a map of ports; null before they are open",
    ("show_instances", "$.instances"): "null has been seen for none",
}


@cache
def operations() -> Any:
    """One description an operation."""
    return json.loads(FILE.read_text())


def operation_of(method: str, path: str) -> tuple[str, Any] | None:
    """The name of the operation that a request is for, and its description."""
    for name, file in operations().items():
        for template, verbs in file["paths"].items():
            pattern = re.sub(r"\\{[^/]+?\\}", r"[0-9]+", re.escape(template.rstrip("/")))
            if re.fullmatch(pattern, path.rstrip("/")) and method.lower() in verbs:
                return name, verbs[method.lower()]
    return None


def problems(name: str, schema: Any, value: object) -> list[str]:
    """What of a value breaks a schema, without what the schema itself has wrong."""
    from jsonschema import Draft202012Validator

    whole = {**_modern(schema), "components": _modern(operations()[name].get("components", {}))}
    return [
        f"{name} {error.json_path}: {error.message[:200]}"
        for error in Draft202012Validator(whole).iter_errors(value)
        if (name, re.sub(r"\[\d+\]", "", error.json_path)) not in WRONG
    ]


def _modern(schema: Any) -> Any:
    """OpenAPI 3.0 says nullable where JSON Schema has a type of its own."""
    if isinstance(schema, list):
        return [_modern(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _modern(value) for key, value in schema.items() if key != "example"}
    if made.pop("nullable", False) and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    if isinstance(made.get("required"), bool):
        del made["required"]
    return made


class Witness:
    """Checks everything that goes over the wire."""

    def __init__(self, vast: VastBench) -> None:
        self.found: list[str] = []
        self.seen: set[tuple[str, int]] = set()
        serve = vast.cloud.serve

        def watched(request: Request) -> Reply | None:
            reply = serve(request)
            if reply is not None:
                self._check(request, reply)
            return reply

        vast.cloud.serve = watched  # type: ignore[method-assign]

    def _check(self, request: Request, reply: Reply) -> None:
        described = operation_of(request.method, request.path)
        if described is None:
            self.seen.add((f"{request.method} {request.path}", 0))
            return
        name, operation = described
        self.seen.add((name, reply.status))
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        if request.body and "schema" in body and reply.status < 400:
            self.found += problems(name, body["schema"], request.json())
        answers = operation["responses"]
        answer = answers.get(str(reply.status), {}).get("content", {}).get("application/json", {})
        if "schema" in answer and not isinstance(reply.body, bytes):
            self.found += problems(name, answer["schema"], reply.body)


@pytest.fixture
def vast(tmp_path: Path) -> Iterator[VastBench]:
    """An account with nothing rented."""
    with vast_bench(tmp_path / "home") as made:
        yield made


def test_a_whole_life_of_our_adapter(vast: VastBench) -> None:
    witness = Witness(vast)
    for spot in (False, True):
        machine = vast.provider.create(vast.order(spot=spot))
        for _ in range(4):
            vast.clock.pass_time(20)
            vast.provider.get(machine.provider_id)
        vast.provider.list()
        vast.provider.check()
        vast.provider.destroy(machine.provider_id)
        with pytest.raises(ProviderError):
            vast.provider.get(machine.provider_id)
        vast.provider.billed(machine.provider_id)
        vast.clock.pass_time(60)
    assert witness.found == []
    met = {name for name, status in witness.seen if status == 200}
    assert {"search_offers", "create_instance", "show_instance", "show_instances"} <= met
    assert {"destroy_instance", "show_user", "show_charges", "create_ssh_key"} <= met
    assert "attach_ssh" in {name for name, _ in witness.seen}
    assert 0 not in {status for _, status in witness.seen}, witness.seen  # all are documented


@pytest.mark.parametrize(
    ("gone", "second", "form", "key"), [(404, 404, "detail", 404), (410, 200, "error", 401)]
)
def test_refusals(vast: VastBench, gone: int, second: int, form: str, key: int) -> None:
    witness = Witness(vast)
    switches = vast.cloud.switches
    switches.offer_gone = gone  # type: ignore[assignment]
    switches.second_delete = second  # type: ignore[assignment]
    switches.too_many = form  # type: ignore[assignment]
    switches.bad_key_status = key  # type: ignore[assignment]
    switches.taken_at_create = 1
    with pytest.raises(ProviderError):
        vast.provider.create(vast.order())
    vast.clock.pass_time(60)
    vast.provider.destroy("5")
    for secret in ("wrong", ""):
        headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        for path in ("/api/v0/charges/", "/api/v1/instances/", "/api/v0/instances/5/"):
            requests.get(vast.cloud.url + path, headers=headers, timeout=5)
    assert witness.found == []
    assert ("create_instance", gone) in witness.seen
    assert ("destroy_instance", second) in witness.seen
    assert ("show_charges", key) in witness.seen


def test_searches_of_every_kind(vast: VastBench) -> None:
    witness = Witness(vast)
    vast.cloud.contracts.hosts.append(Host(300, gpus=8))
    for want in (
        Want(),
        Want(gpus=("24GB+",), spot=True),
        Want(gpus=("A100", "48GB+"), cpus=4, memory_gb=8, min_reliability=0.5, disk_gb=100),
    ):
        vast.provider.offers(want)
        vast.clock.pass_time(60)
    assert witness.found == []
    assert witness.seen == {("search_offers", 200)}


def test_the_documented_thresholds_are_those_that_are_kept() -> None:
    """Ours, and the emulation's, are the numbers of the published description."""
    from providers.vastai_pace import LIMITS

    told = {
        "create": "create_instance",
        "show": "show_instance",
        "list": "show_instances",
        "destroy": "destroy_instance",
        "charges": "show_charges",
        "label": "label_instance",
        "add-key": "create_ssh_key",
    }
    for ours, theirs in told.items():
        rate = operations()[theirs].get("x-rate-limit", {})
        assert LIMITS[ours].seconds >= float(rate["threshold"]), theirs


def test_the_emulations_limits_are_the_published_ones() -> None:
    """Each that is published for something that the emulation serves, and no other number."""
    seen = 0
    for name, file in operations().items():
        rate = file.get("x-rate-limit", {})
        seconds = rate.get("threshold") or (60 if "requests" in rate else None)
        for template, verbs in file["paths"].items():
            path = re.sub(r"\{[^/]+?\}", "5", template).rstrip("/") + "/"
            for verb in verbs if seconds is not None else ():
                kept = [
                    (calls, kept_seconds)
                    for method, pattern, calls, kept_seconds in THRESHOLDS
                    if method == verb.upper() and re.search(pattern, path)
                ]
                served = any(
                    method == verb.upper() and regex.match(path)
                    for handler in dir(VastCloud)
                    for method, regex in getattr(getattr(VastCloud, handler), "routes", ())
                )
                if kept or served:
                    assert kept == [(rate.get("requests", 1), float(seconds))], (name, kept)
                    seen += 1
    assert seen >= 20


def test_what_gpuctl_never_asks(vast: VastBench) -> None:
    witness = Witness(vast)
    vast.cloud.switches.pacing = 0
    machine = vast.provider.create(vast.order())
    id, url = machine.provider_id, vast.cloud.url
    headers = {"Authorization": f"Bearer {vast.cloud.key}"}
    hook = {"name": "w", "webhook_url": "https://x.test", "event_types": ["client:outbid"]}
    copied = {"src_id": "1", "dst_id": "2", "src_path": "/a", "dst_path": "/b"}
    for method, path, body in (
        ("POST", "/webhooks/", hook),
        ("POST", "/webhooks/", {**hook, "webhook_url": "http://x.test"}),
        ("GET", "/webhooks/", None),
        ("DELETE", "/webhooks/5/", {}),
        ("PUT", "/volumes/", {"id": 101, "size": 20}),
        ("DELETE", "/volumes/", {"id": 5}),
        ("POST", "/volumes/search/", {}),
        ("PUT", f"/instances/{id}/", {"label": "x"}),
        ("PUT", f"/instances/prepay/{id}/", {"amount": 1.0}),
        ("PUT", f"/instances/prepay/{id}/", {"amount": 900.0}),
        ("PUT", f"/instances/reboot/{id}/", {}),
        ("PUT", "/instances/reboot/5/", {}),
        ("PUT", f"/instances/command/{id}/", {"command": "ls"}),
        ("PUT", f"/instances/command/{id}/", {"command": "cat"}),
        ("PUT", f"/instances/request_logs/{id}/", {"tail": "10"}),
        ("PUT", "/commands/copy_direct/", copied),
        ("GET", f"/instances/balance/{id}/", None),
        ("GET", f"/instances/{id}/ssh/", None),
    ):
        said = requests.request(
            method, f"{url}/api/v0{path}", json=body, headers=headers, timeout=5
        )
        assert said.status_code != 404 or "5" in path or body == {"id": 5}, path
    assert witness.found == []
    assert len({name for name, _ in witness.seen}) > 14, witness.seen
