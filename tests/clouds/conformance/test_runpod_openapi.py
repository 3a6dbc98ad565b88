"""The emulated RunPod and our adapter, held to the API description that RunPod publishes.

Everything that goes over the wire is checked: bodies of requests, replies of every kind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import requests

from providers.base import Mark, Order, ProviderError, Want
from providers.runpod import RunpodProvider
from tests.clouds.http_cloud import Reply, Request
from tests.clouds.memory_cloud import HandClock
from tests.clouds.runpod_cloud import RunpodCloud, main_settings
from tests.clouds.runpod_cloud.validation import create_errors

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path(os.environ.get("GPUCTL_CONTRACTS", ROOT / "../shared/contracts"))
FILE = FOLDER / "openapi_runpod_v2.json"

pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(not FILE.is_file(), reason=f"no {FILE}: set GPUCTL_CONTRACTS"),
]


@cache
def description() -> Any:
    return json.loads(FILE.read_text())


def problems(pointer: str, value: object) -> list[str]:
    """What of a value breaks the schema at a pointer into the description."""
    from jsonschema import Draft202012Validator

    schema = {"$ref": f"#{pointer}", **description()}
    errors = list(Draft202012Validator(schema).iter_errors(value))
    # A nested mistake makes the validator call everything beside it unevaluated.
    real = [error for error in errors if error.validator != "unevaluatedProperties"] or errors
    return [f"{error.json_path}: {error.message[:200]}" for error in real]


def operation_of(method: str, path: str) -> tuple[str, str] | None:
    """The path template and method that a request is for."""
    parts = path.strip("/").split("/")
    for template, operations in description()["paths"].items():
        wanted = template.strip("/").split("/")
        same = len(wanted) == len(parts) and all(
            ours == theirs or theirs.startswith("{")
            for ours, theirs in zip(parts, wanted, strict=True)
        )
        if same and method.lower() in operations:
            return template, method.lower()
    return None


def parameter(given: Any) -> Any:
    """One parameter, where it stands or where it points to."""
    if "$ref" not in given:
        return given
    return description()["components"]["parameters"][given["$ref"].rpartition("/")[2]]


def wrong_with(request: Request, reply: Reply) -> list[str]:
    """What of one exchange is not as it is described."""
    what = f"{request.method} {request.path} -> {reply.status}"
    if request.path == "/graphql":
        return []  # another API
    found = operation_of(request.method, request.path)
    if found is None:
        return [] if reply.status in (404, 405, 410) else [f"{what}: not described at all"]
    template, method = found
    operation = description()["paths"][template][method]
    here = f"/paths/{template.replace('~', '~0').replace('/', '~1')}/{method}"
    wrong = []
    if request.body and reply.status < 400:
        pointer = f"{here}/requestBody/content/application~1json/schema"
        wrong += problems(pointer, json.loads(request.body))
    odd = set(request.query) - {parameter(one)["name"] for one in operation.get("parameters", ())}
    if odd - {"cursor"}:  # of the pages that are announced and not described
        wrong.append(f"undescribed parameters {odd}")
    if reply.status < 400 and str(reply.status) not in operation["responses"]:
        wrong.append("an undescribed success")
    elif reply.status >= 400:
        if not str(reply.headers.get("Content-Type")).startswith("application/problem+json"):
            wrong.append(f"an error of type {reply.headers.get('Content-Type')}")
        wrong += problems("/components/schemas/ErrorResponse", reply.body)
    elif reply.stream is not None:
        described = operation["responses"]["200"]["content"]
        if list(described) != [reply.headers.get("Content-Type")]:
            wrong.append(f"a stream of type {reply.headers.get('Content-Type')}")
    elif reply.status != 204:
        pointer = f"{here}/responses/{reply.status}/content/application~1json/schema"
        wrong += problems(pointer, reply.body)
    return [f"{what}: {one}" for one in wrong]


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 11, 21, 12, tzinfo=UTC))


@pytest.fixture
def cloud(clock: HandClock) -> Iterator[RunpodCloud]:
    with RunpodCloud(clock=clock) as made:
        made.rate_limit(10_000)
        yield made
        wrong = [one for exchange in made.replies for one in wrong_with(*exchange)]
        assert not wrong, "\n".join(wrong)
        assert made.replies


@pytest.fixture
def runpod(cloud: RunpodCloud, clock: HandClock) -> RunpodProvider:
    environ = {**main_settings(cloud), "HOME": "/nonexistent"}
    return RunpodProvider.from_environment(environ, home=Path("/nonexistent"), clock=clock)


def order(runpod: RunpodProvider, want: Want, **changes: Any) -> Order:
    offer = next(offer for offer in runpod.offers(want) if offer.available)
    mark = Mark("c0ffee123456", datetime(2026, 11, 22, tzinfo=UTC), "demo-1a2b3c")
    return Order("gpuctl-suite-c0ffee-0a1b2c3d", offer, mark, ssh_public_key="ssh-ed25519 AAAA x",
                 **changes)  # fmt: skip


@pytest.mark.parametrize(
    "want",
    [
        Want(gpus=("RTX-4090",)),
        Want(gpus=("A100",), gpu_count=4, disk_gb=333.3),
        Want(cpus=8, memory_gb=20),
    ],
    ids=["one card", "four cards", "no card"],
)
def test_a_pods_life(
    runpod: RunpodProvider, cloud: RunpodCloud, clock: HandClock, want: Want
) -> None:
    for image in (None, "pytorch/pytorch:2.8.0"):
        machine = runpod.create(order(runpod, want, image=image))
        for _ in range(3):
            runpod.get(machine.provider_id)
            runpod.list()
            clock.pass_time(20)
        clock.pass_time(3600)
        runpod.billed(machine.provider_id)
        runpod.destroy(machine.provider_id)
        runpod.destroy(machine.provider_id)
    runpod.check()


def test_every_state_and_page(runpod: RunpodProvider, cloud: RunpodCloud, clock: HandClock) -> None:
    made = runpod.create(order(runpod, Want(gpus=("RTX-4090",))))
    pod = cloud.account.pods[made.provider_id]
    for eager in (True, False):
        cloud.switches.eager_running = eager
        for _ in range(5):
            runpod.get(pod.id)
            clock.pass_time(4)
    cloud.account.stop(pod)
    runpod.list()
    pod.state = "error"
    cloud.switches.paged_list = 1
    runpod.list()


def test_volumes(runpod: RunpodProvider, cloud: RunpodCloud) -> None:
    session = client(cloud)
    body = {"name": "gpuctl-x-c0ffee-0a1b2c3d", "size": 10, "dataCenter": "EU-RO-1"}
    assert session.post(f"{cloud.url}/v2/network-volumes", json=body).status_code == 201
    [left] = runpod.leftovers()
    assert session.get(f"{cloud.url}/v2/network-volumes/{left.id}").json()["size"] == 10
    runpod.remove(left)


def test_what_becomes_of_a_pod_besides(
    runpod: RunpodProvider, cloud: RunpodCloud, clock: HandClock
) -> None:
    """Changes, logs, a lock, a cluster: what people do to pods in the console."""
    made = runpod.create(order(runpod, Want(gpus=("RTX-4090",))))
    session, url = client(cloud), f"{cloud.url}/v2/pods/{made.provider_id}"
    for body, status in (
        ({"name": "renamed", "locked": True}, 200),
        ({"env": {"A": "b"}, "disk": 30, "ports": ["22/tcp"]}, 200),
        ({"mounts": {"persistent": {"size": 10, "path": "/w"}}}, 400),
        ({"spot": True}, 422),
    ):
        assert session.patch(url, json=body).status_code == status
    assert session.post(f"{url}/action", json={"action": "stop"}).status_code == 409
    with session.get(f"{url}/logs?source=system&tail=5", stream=True, timeout=5) as said:
        first = next(said.iter_lines(1))
    assert first.startswith(b"id: 2026-11-21T12:00:00Z/")
    assert session.get(f"{url}/logs?tail=9999").status_code == 400
    cloud.account.pods[made.provider_id].cluster = "cluster_1"
    assert [one.provider_id for one in runpod.list()] == [made.provider_id]
    assert session.get(f"{cloud.url}/v2/pods").json()["pods"] == []
    assert session.delete(url).status_code == session.patch(url, json={"name": "y"}).status_code
    assert session.delete(url).status_code == 409


def test_what_an_account_has_besides(cloud: RunpodCloud) -> None:
    session = client(cloud)
    keys = {"keys": ["ssh-ed25519 AAAA me"]}
    assert session.put(f"{cloud.url}/v2/account/ssh-keys", json=keys).json() == keys
    assert session.get(f"{cloud.url}/v2/account/ssh-keys").json() == keys
    assert session.put(f"{cloud.url}/v2/account/ssh-keys", json={}).status_code == 422
    body = {"name": "x", "size": 10, "dataCenter": "EU-RO-1", "type": "HIGH_PERFORMANCE"}
    volume = session.post(f"{cloud.url}/v2/network-volumes", json=body).json()
    url = f"{cloud.url}/v2/network-volumes/{volume['id']}"
    assert session.patch(url, json={"size": 20}).json()["size"] == 20
    assert session.patch(url, json={"size": 10}).status_code == 400
    assert session.patch(url, json={}).status_code == 422
    for path in ("cpus/cpu3c", "datacenters/EU-RO-1"):
        assert session.get(f"{cloud.url}/v2/catalog/{path}").status_code == 200
    for path in ("cpus/cpu9z", "datacenters/MOON-1"):
        assert session.get(f"{cloud.url}/v2/catalog/{path}").status_code == 404
    query = "include=AVAILABILITY&product=POD&cudaVersions=12.8&minCudaVersion=12.8"
    assert session.get(f"{cloud.url}/v2/catalog/gpus?{query}").status_code == 400


REFUSED: list[tuple[str, Callable[[RunpodCloud], object]]] = [
    ("400", lambda c: setattr(c.switches, "create_rule_400", 1)),
    ("400 no capacity", lambda c: c.switches.no_capacity.add(("*", "*"))),
    ("401", lambda c: setattr(c.switches, "key_revoked", True)),
    ("402", lambda c: setattr(c.switches, "insufficient_balance", True)),
    ("403", lambda c: setattr(c.switches, "read_only", True)),
    ("429", lambda c: c.rate_limit(0)),
    ("500", lambda c: setattr(c.switches, "create_5xx_after_commit", 1)),
]


@pytest.mark.parametrize(("name", "fault"), REFUSED, ids=[name for name, _ in REFUSED])
def test_refusals(
    runpod: RunpodProvider, cloud: RunpodCloud, name: str, fault: Callable[[RunpodCloud], object]
) -> None:
    asked = order(runpod, Want(gpus=("RTX-4090",)))
    fault(cloud)
    with pytest.raises(ProviderError):
        runpod.create(asked)
    assert str(cloud.log[-1].status) == name.split()[0]


def test_actions_and_their_refusals(runpod: RunpodProvider, cloud: RunpodCloud) -> None:
    made = runpod.create(order(runpod, Want(gpus=("RTX-4090",))))
    session, url = client(cloud), f"{cloud.url}/v2/pods/{made.provider_id}/action"
    said = [
        session.post(url, json={"action": action}).status_code
        for action in ("start", "explode", "restart", "stop", "stop", "start", "terminate", "stop")
    ]
    assert said == [409, 422, 200, 200, 409, 200, 204, 404]
    assert session.put(f"{cloud.url}/v2/pods").status_code == 405
    assert session.get(f"{cloud.url}/v2/nothing").status_code == 404
    assert session.get(f"{cloud.url}/v1/pods").status_code == 410


def client(cloud: RunpodCloud) -> requests.Session:
    session = requests.Session()
    session.headers.update({"Authorization": f"Bearer {cloud.key}", "User-Agent": "conformance"})
    return session


GOOD: dict[str, Any] = {"name": "x", "image": "i", "gpu": {"id": "NVIDIA A40", "count": 1}}
BODIES: list[tuple[str, Any]] = [
    ("good", {}),
    ("interruptible", {"interruptible": True}),
    ("a bid", {"bidPerGpu": 0.2}),
    ("tags", {"tags": {"a": "b"}}),
    ("stopAfter", {"stopAfter": "2026-11-22T00:00:00Z"}),
    ("no name", {"name": None}),
    ("an empty name", {"name": ""}),
    ("a disk of 0", {"disk": 0}),
    ("half a disk", {"disk": 20.5}),
    ("ports as text", {"ports": "22/tcp"}),
    ("environment of numbers", {"env": {"A": 1}}),
    ("an odd cloud", {"cloud": "secure"}),
    ("no card", {"gpu": {"id": "NVIDIA A40", "count": 0}}),
    ("a card without a name", {"gpu": {"count": 1}}),
    ("an odd CUDA", {"gpu": {"id": "A", "count": 1, "minCudaVersion": "12"}}),
    ("an odd key of the card", {"gpu": {"id": "A", "count": 1, "spot": True}}),
    ("a volume", {"mounts": {"persistent": {"size": 20, "path": "/w"}}}),
    ("a small volume", {"mounts": {"persistent": {"size": 5, "path": "/w"}}}),
    ("an odd mount", {"mounts": {"nfs": {}}}),
    ("two network volumes", {"mounts": {"network": [{"volumeId": "a", "path": "/a"}] * 2}}),
    ("args", {"args": "bash -c 'x'"}),
    ("data centers", {"dataCenterIds": ["EU-RO-1"]}),
]


@pytest.mark.parametrize(("name", "change"), BODIES, ids=[name for name, _ in BODIES])
def test_the_emulation_refuses_what_the_schema_refuses(name: str, change: Any) -> None:
    body = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    theirs = problems("/components/schemas/CreatePodRequest", body)
    assert bool(create_errors(body)) == bool(theirs), (create_errors(body), theirs)


def test_catalogue_without_stock(cloud: RunpodCloud) -> None:
    session = client(cloud)
    for path in ("gpus", "cpus"):
        assert session.get(f"{cloud.url}/v2/catalog/{path}").status_code == 200
        wrong = session.get(f"{cloud.url}/v2/catalog/{path}", params={"include": "AVAILABILITY"})
        assert wrong.status_code == 400
    for path in ("NVIDIA%20A40", "NVIDIA%20A40?include=AVAILABILITY&product=POD"):
        assert session.get(f"{cloud.url}/v2/catalog/gpus/{path}").json()["memory"] == 48
    assert session.get(f"{cloud.url}/v2/catalog/gpus/A40").status_code == 404
    for query in ("", "?include=GPU_AVAILABILITY"):
        found = session.get(f"{cloud.url}/v2/catalog/datacenters{query}").json()["dataCenters"]
        assert len(found) == 4
    assert session.get(f"{cloud.url}/v2/account/ssh-keys").json() == {"keys": []}
    assert cloud.account.balance == Decimal(25)
