"""The emulated Hetzner Cloud and our adapter, held to the published description of the API.

Everything that goes over the wire in these sessions is checked: queries, bodies, replies of every
kind. The description is of February 2026; what changed after it is patched here.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests

from gpuctl.remote.keys import public_key
from providers.base import Mark, Order, ProviderError, Want
from providers.hetzner import HetznerProvider
from tests.clouds.hetzner_cloud import HetznerCloud, main_settings
from tests.clouds.http_cloud import Reply, Request
from tests.clouds.memory_cloud import HandClock

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(os.environ.get("GPUCTL_CONTRACTS", ROOT / "../shared/contracts"))
FILE = FOLDER / "openapi_hetzner_2026-02.json"

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(not FILE.is_file(), reason=f"no {FILE}: set GPUCTL_CONTRACTS"),
]


@cache
def description() -> Any:
    """The description as of today."""
    found = json.loads(FILE.read_text())
    schemas = found["components"]["schemas"]
    for schema in with_key(schemas, "datacenter"):
        schema["properties"].pop("datacenter")
        schema["required"] = [x for x in schema.get("required", []) if x != "datacenter"]
    wanted = schemas["create_server_request"]["properties"]
    # "ID or name": the vendor's own libraries send numbers where they mean ids.
    wanted["image"] = {"anyOf": [wanted["image"], {"type": "integer"}]}
    keys = wanted["ssh_keys"]
    keys["items"] = {"anyOf": [keys["items"], {"type": "integer"}]}
    # null for an address that is not assigned to anything.
    action = schemas["create_primary_ip_response"]["properties"]["action"]
    schemas["create_primary_ip_response"]["properties"]["action"] = {
        "nullable": True,
        "allOf": [action],
    }
    image = schemas["image"]  # `deprecated` gave way to `deprecation`
    image["required"].remove("deprecated")
    for schema in with_key(schemas, "assignee_type"):
        kind = schema["properties"]["assignee_type"]
        if "enum" in kind:
            kind["enum"] = [*kind["enum"], "unassigned"]
    return null_where_it_says_so(found)


def null_where_it_says_so(schema: Any) -> Any:
    """Let null be where a schema without a type of its own says nullable, beside an allOf.

    A strict reading of OpenAPI 3.0.3 makes that keyword void; the file means it.
    """
    if isinstance(schema, list):
        return [null_where_it_says_so(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: null_where_it_says_so(value) for key, value in schema.items()}
    if made.get("nullable") is True and "type" not in made:
        rest = {key: value for key, value in made.items() if key != "nullable"}
        return {"anyOf": [{"enum": [None], "nullable": True}, rest]}
    return made


def with_key(schemas: Any, key: str) -> Iterator[Any]:
    """Every object schema, wherever it stands, that has a property."""
    todo = [schemas]
    while todo:
        one = todo.pop()
        if isinstance(one, dict):
            properties = one.get("properties")
            if isinstance(properties, dict) and key in properties:
                yield one
            todo += one.values()
        elif isinstance(one, list):
            todo += one


def problems(schema: Any, value: object) -> list[str]:
    """What of a value breaks a schema."""
    from openapi_schema_validator import OAS30Validator

    whole = {**copy.copy(schema), "components": description()["components"]}
    errors = OAS30Validator(whole).iter_errors(value)
    return [f"{error.json_path}: {error.message[:200]}" for error in errors]


def operation_of(method: str, path: str) -> Any:
    """The described operation that a request is for."""
    parts = path.removeprefix("/v1").strip("/").split("/")
    best: Any = None
    for template, operations in description()["paths"].items():
        wanted = template.strip("/").split("/")
        same = len(wanted) == len(parts) and all(
            ours == theirs or theirs.startswith("{")
            for ours, theirs in zip(parts, wanted, strict=True)
        )
        if same and method.lower() in operations and (best is None or "{" not in template):
            best = operations[method.lower()]
    return best


def content(described: Any) -> Any:
    return described.get("content", {}).get("application/json", {}).get("schema")


def wrong_with(request: Request, reply: Reply) -> list[str]:
    """What of one exchange is not as it is described."""
    what = f"{request.method} {request.path} -> {reply.status}"
    operation = operation_of(request.method, request.path)
    if operation is None:
        return [] if reply.status in (404, 410) else [f"{what}: not described at all"]
    wrong = []
    known = {one["name"].removesuffix("[]") for one in operation.get("parameters", ())}
    if odd := set(request.query) - known - {"page", "per_page"}:
        wrong.append(f"undescribed parameters {sorted(odd)}")
    if request.body and reply.status < 400:
        wrong += problems(content(operation["requestBody"]), json.loads(request.body))
    answers = operation["responses"]
    described = answers.get(str(reply.status)) or answers.get(f"{reply.status // 100}xx")
    if described is None:
        wrong.append("an undescribed status")
    elif (schema := content(described)) is not None:
        wrong += problems(schema, json.loads(reply.content()))
    elif reply.content():
        wrong.append("a body where none is described")
    return [f"{what}: {one}" for one in wrong]


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 11, 21, 12, tzinfo=UTC))


class Watched(HetznerCloud):
    """Keeps what goes over the wire."""

    exchanges: list[tuple[Request, Reply]]

    def adorn(self, request: Request, reply: Reply) -> Reply:
        kept = Reply(reply.status, json.loads(reply.content() or b"null"))
        self.exchanges.append((request, kept))
        return super().adorn(request, reply)


@pytest.fixture
def cloud(clock: HandClock) -> Iterator[Watched]:
    with Watched(clock=clock) as made:
        made.exchanges = []
        yield made
        wrong = [one for exchange in made.exchanges for one in wrong_with(*exchange)]
        assert not wrong, "\n".join(dict.fromkeys(wrong))
        assert made.exchanges


@pytest.fixture
def hetzner(cloud: Watched, clock: HandClock) -> HetznerProvider:
    return HetznerProvider(main_settings(cloud), clock)


@pytest.fixture
def order(hetzner: HetznerProvider, clock: HandClock, tmp_path: Path) -> Order:
    offer = next(offer for offer in hetzner.offers(Want(cpus=4)) if offer.available)
    mark = Mark("c0ffee123456", clock.now() + timedelta(hours=24), "demo-1a2b3c")
    key = public_key(tmp_path)
    return Order("gpuctl-suite-c0ffee-0a1b2c3d", offer, mark, ssh_public_key=key)


def ask(cloud: HetznerCloud, method: str, path: str, body: Any = None) -> Any:
    headers = {"Authorization": f"Bearer {cloud.token}"}
    answer = requests.request(
        method, f"{cloud.endpoint}{path}", json=body, headers=headers, timeout=5
    )
    return answer.json() if answer.content else None


def test_what_the_adapter_does(
    hetzner: HetznerProvider, cloud: Watched, clock: HandClock, order: Order
) -> None:
    machine = hetzner.create(order)
    hetzner.create(order)  # adopted
    for _ in range(4):
        hetzner.get(machine.provider_id)
        hetzner.list()
        clock.pass_time(5)
    hetzner.leftovers()
    hetzner.check()
    for _ in range(3):
        hetzner.destroy(machine.provider_id)
        clock.pass_time(2)
    hetzner.leftovers()


def test_what_it_is_refused(hetzner: HetznerProvider, cloud: Watched, order: Order) -> None:
    cloud.switches.capacity_out.add(("*", "*"))
    with pytest.raises(ProviderError):
        hetzner.create(order)
    cloud.switches.capacity_out.clear()
    cloud.switches.servers_limit = 0
    with pytest.raises(ProviderError):
        hetzner.create(order)
    with pytest.raises(ProviderError):
        hetzner.create(replace(order, image="1"))
    cloud.switches.read_only = True
    with pytest.raises(ProviderError):
        hetzner.create(order)
    with pytest.raises(ProviderError):
        hetzner.destroy("1")


def test_the_rest_of_the_api(cloud: Watched, clock: HandClock) -> None:
    number = cloud.add_foreign()
    clock.pass_time(30)
    server = f"/servers/{number}"
    for path in (
        *("/servers?sort=name:desc&per_page=5", server, f"{server}/actions", "/pricing", "/isos"),
        *("/server_types", "/server_types/101", "/locations", "/images?type=system", "/volumes"),
        *("/images/161547269", "/ssh_keys", "/primary_ips", "/placement_groups", "/firewalls"),
        *("/floating_ips", "/load_balancers", "/servers?label_selector=a%20in%20(b)", "/nowhere"),
    ):
        ask(cloud, "GET", path)
    for verb, body in (
        ("enable_backup", None),
        ("change_protection", {"delete": True, "rebuild": True}),
        ("change_protection", {"delete": False, "rebuild": False}),
        ("create_image", {"type": "snapshot", "description": "s", "labels": {"a": "b"}}),
        ("reboot", None),
        ("shutdown", None),
        ("poweroff", None),
        ("poweron", None),
    ):
        ask(cloud, "POST", f"{server}/actions/{verb}", body)
        clock.pass_time(10)
    ask(cloud, "PUT", server, {"name": "other", "labels": {"a": "b"}})
    place = {"name": "data", "size": 10, "location": "fsn1"}
    volume = ask(cloud, "POST", "/volumes", place)["volume"]["id"]
    ask(cloud, "GET", f"/volumes/{volume}")
    ask(cloud, "DELETE", f"/volumes/{volume}")
    address = {"name": "ip", "type": "ipv4", "location": "fsn1", "assignee_type": "server"}
    ip = ask(cloud, "POST", "/primary_ips", address)["primary_ip"]["id"]
    ask(cloud, "PUT", f"/primary_ips/{ip}", {"auto_delete": True, "name": "b", "labels": {}})
    ask(cloud, "DELETE", f"/primary_ips/{ip}")
    for kind, more in (("placement_groups", {"type": "spread"}), ("firewalls", {})):
        made = ask(cloud, "POST", f"/{kind}", {"name": "x", **more})
        [number] = [one["id"] for one in made.values() if isinstance(one, dict)]
        ask(cloud, "DELETE", f"/{kind}/{number}")
    ask(cloud, "DELETE", server)
    ask(cloud, "GET", "/actions?id=4000001&id=4000002")


def test_what_hangs_together(cloud: Watched, clock: HandClock) -> None:
    number = int(cloud.add_foreign())  # in nbg1
    clock.pass_time(30)
    server = f"/servers/{number}"
    to = [{"type": "server", "server": {"id": number}}]
    rule = {"direction": "in", "protocol": "tcp", "port": "22", "source_ips": ["0.0.0.0/0"]}
    wall = ask(cloud, "POST", "/firewalls", {"name": "w", "rules": [rule]})["firewall"]["id"]
    volume = ask(cloud, "POST", "/volumes", {"name": "v", "size": 10, "location": "nbg1"})
    volume = volume["volume"]["id"]
    address = {"name": "ip", "type": "ipv4", "location": "nbg1", "assignee_type": "server"}
    spare = ask(cloud, "POST", "/primary_ips", address)["primary_ip"]["id"]
    floating = {"type": "ipv4", "home_location": "nbg1", "name": "f", "description": "d"}
    float_id = ask(cloud, "POST", "/floating_ips", floating)["floating_ip"]["id"]
    assign = {"assignee_id": number, "assignee_type": "server"}
    protect = ({"delete": True}, {"delete": False})
    shown = ask(cloud, "GET", server)["server"]["public_net"]["ipv4"]["id"]
    for method, path, body in (
        ("POST", f"/firewalls/{wall}/actions/apply_to_resources", {"apply_to": to}),
        ("POST", f"/firewalls/{wall}/actions/apply_to_resources", {"apply_to": to}),
        ("POST", f"/firewalls/{wall}/actions/set_rules", {"rules": [rule]}),
        ("GET", "/firewalls", None),
        ("DELETE", f"/firewalls/{wall}", None),
        ("POST", f"/volumes/{volume}/actions/attach", {"server": number}),
        ("POST", f"/volumes/{volume}/actions/attach", {"server": number}),
        ("GET", server, None),
        ("POST", f"/volumes/{volume}/actions/detach", None),
        *(("POST", f"/volumes/{volume}/actions/change_protection", one) for one in protect),
        ("DELETE", f"/volumes/{volume}", None),
        ("POST", f"/primary_ips/{spare}/actions/assign", assign),
        ("POST", f"{server}/actions/poweroff", None),
        ("POST", f"/primary_ips/{shown}/actions/unassign", None),
        ("POST", f"/primary_ips/{spare}/actions/assign", assign),
        *(("POST", f"/primary_ips/{spare}/actions/change_protection", one) for one in protect),
        ("GET", "/primary_ips", None),
        ("GET", "/floating_ips", None),
        ("DELETE", f"/floating_ips/{float_id}", None),
        ("POST", f"/firewalls/{wall}/actions/remove_from_resources", {"remove_from": to}),
        ("DELETE", server, None),
    ):
        ask(cloud, method, path, body)
        clock.pass_time(10)
    assert list(cloud.bills("server")) == []
    assert set(cloud.bills("primary_ip")) == {str(spare), str(shown)}
