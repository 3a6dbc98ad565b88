"""The emulated RunPod by itself: what our adapter never asks for, and what things cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.clouds.memory_cloud import HandClock
from tests.clouds.rented import needs_machines
from tests.clouds.runpod_cloud import RunpodCloud, Times
from tests.waiting import until

CARD = "NVIDIA A40"
BODY = {"name": "x", "image": "i", "gpu": {"id": CARD, "count": 1}, "ports": ["22/tcp"]}
RENT = """mutation { podRentInterruptable(input: {bidPerGpu: %s, gpuTypeId: "NVIDIA A40",
    gpuCount: 1, name: "bid", imageName: "i", ports: "22/tcp"}) { id podType costPerHr } }"""


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 11, 21, 12, tzinfo=UTC))


@pytest.fixture
def cloud(clock: HandClock) -> Iterator[RunpodCloud]:
    with RunpodCloud(clock=clock) as made:
        yield made


def call(cloud: RunpodCloud, method: str, path: str, body: Any = None, **more: Any) -> Any:
    """Ask as a client does; the status, and the JSON."""
    headers = {"Authorization": f"Bearer {cloud.key}", "User-Agent": "somebody"}
    url = f"{cloud.url}/{path}"
    said = requests.request(method, url, json=body, headers=headers, timeout=5, **more)
    return said.status_code, said.json() if said.content else None


def rented(cloud: RunpodCloud, **more: Any) -> str:
    """The id of a new pod."""
    status, pod = call(cloud, "POST", "v2/pods", {**BODY, **more})
    assert status == 201, pod
    return str(pod["id"])


def graphql(cloud: RunpodCloud, text: str) -> Any:
    return call(cloud, "POST", "graphql", {"query": text})[1]


# ---------------------------------------------------------------------------- changes


def test_a_change_replaces_the_environment_and_begins_anew(
    cloud: RunpodCloud, clock: HandClock
) -> None:
    id = rented(cloud, env={"A": "1", "B": "2"})
    clock.pass_time(60)
    before = call(cloud, "GET", f"v2/pods/{id}")[1]
    status, said = call(cloud, "PATCH", f"v2/pods/{id}", {"env": {"A": "3"}, "disk": 500})
    assert (status, said["env"], said["disk"]) == (200, {"A": "3"}, 500)
    assert said["ssh"]["direct"] is None  # it starts again
    clock.pass_time(60)
    after = call(cloud, "GET", f"v2/pods/{id}")[1]
    assert after["ssh"]["direct"]["port"] != before["ssh"]["direct"]["port"]
    price = cloud.books.things[id].spans[-1].price_hour
    assert price == pytest.approx(Decimal("0.44") + 500 * Decimal("0.10") / 730)


def test_another_name_disturbs_nothing(cloud: RunpodCloud, clock: HandClock) -> None:
    id = rented(cloud)
    clock.pass_time(60)
    status, said = call(cloud, "PATCH", f"v2/pods/{id}", {"name": "y", "locked": True})
    assert (status, said["name"], said["locked"]) == (200, "y", True)
    assert said["ssh"]["direct"] is not None


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"gpu": {"id": CARD, "count": 2}}, 422),
        ({"name": ""}, 422),
        ({"locked": "yes"}, 422),
        ({"disk": 0}, 422),
        ({"mounts": {"network": [{"volumeId": "a", "path": "/a"}]}}, 400),
        ({"mounts": {"persistent": {"size": 10, "path": "/w"}}}, 400),
        ({"mounts": {"persistent": {"size": 30, "path": "/w"}}}, 200),
        ({}, 200),
    ],
)
def test_changes_that_are_refused(cloud: RunpodCloud, change: Any, status: int) -> None:
    id = rented(cloud, mounts={"persistent": {"size": 20, "path": "/w"}})
    assert call(cloud, "PATCH", f"v2/pods/{id}", change)[0] == status
    assert call(cloud, "PATCH", "v2/pods/nosuchpod", {"name": "x"})[0] == 404


def test_a_locked_pod_is_not_stopped(cloud: RunpodCloud) -> None:
    id = rented(cloud)
    call(cloud, "PATCH", f"v2/pods/{id}", {"locked": True})
    for action in ("stop", "restart"):
        assert call(cloud, "POST", f"v2/pods/{id}/action", {"action": action})[0] == 409
    stop = f'mutation {{ podStop(input: {{podId: "{id}"}}) {{ id }} }}'
    assert graphql(cloud, stop)["errors"]
    assert call(cloud, "DELETE", f"v2/pods/{id}")[0] == 204


# ---------------------------------------------------------------------------- starts


def test_starts_that_fail_and_ports_that_stay(cloud: RunpodCloud, clock: HandClock) -> None:
    id = rented(cloud)
    cloud.switches.port_changes_on_start = False
    cloud.switches.resume_500 = 1
    port = cloud.account.pods[id].port
    call(cloud, "POST", f"v2/pods/{id}/action", {"action": "stop"})
    assert call(cloud, "POST", f"v2/pods/{id}/action", {"action": "start"})[0] == 500
    assert cloud.account.pods[id].state == "stopped"
    assert call(cloud, "POST", f"v2/pods/{id}/action", {"action": "start"})[0] == 200
    assert cloud.account.pods[id].port == port


def test_what_a_stopped_pod_is_said_to_cost(cloud: RunpodCloud) -> None:
    id = rented(cloud)
    call(cloud, "POST", f"v2/pods/{id}/action", {"action": "stop"})
    assert call(cloud, "GET", f"v2/pods/{id}")[1]["cost"] == 0.44  # as was recorded
    cloud.switches.exited_keeps_cost = False
    assert call(cloud, "GET", f"v2/pods/{id}")[1]["cost"] == 0  # as is described


# ---------------------------------------------------------------------------- logs


def events(cloud: RunpodCloud, id: str, count: int, query: str = "", **headers: str) -> list[Any]:
    """The next events of a pod's logs: the ids, and what they say."""
    found: list[Any] = []
    with requests.get(
        f"{cloud.url}/v2/pods/{id}/logs{query}",
        headers={"Authorization": f"Bearer {cloud.key}", "User-Agent": "somebody", **headers},
        stream=True,
        timeout=5,
    ) as said:
        assert said.headers["Content-Type"] == "text/event-stream"
        for line in said.iter_lines(1):
            if line.startswith(b"data:"):
                found.append(json.loads(line.removeprefix(b"data:")))
            if len(found) == count:
                return found
    raise AssertionError("the stream ended")


def test_logs_go_on(cloud: RunpodCloud, clock: HandClock) -> None:
    id = rented(cloud)
    pod = cloud.account.pods[id]
    for number in range(5):
        clock.pass_time(1)
        pod.say(clock.now(), "container", f"line {number}")
    said = events(cloud, id, 3, "?source=container&tail=3")
    assert [one["line"] for one in said] == ["line 2", "line 3", "line 4"]
    assert events(cloud, id, 1, "?source=system")[0]["line"] == "create container i"
    since = said[0]["ts"]
    assert events(cloud, id, 1, f"?since={since}")[0]["line"] == "line 3"
    resumed = events(cloud, id, 1, **{"Last-Event-ID": said[1]["ts"]})
    assert resumed[0]["line"] == "line 4"
    for query in ("?source=x", "?tail=5001", "?tail=x", "?since=yesterday"):
        assert call(cloud, "GET", f"v2/pods/{id}/logs{query}")[0] == 400
    assert call(cloud, "GET", "v2/pods/nosuchpod/logs")[0] == 404


# ---------------------------------------------------------------------------- what an account has


def test_keys_are_replaced_all_at_once_and_used_where_asked_for(cloud: RunpodCloud) -> None:
    assert (
        cloud.account.environment(cloud.account.pods[rented(cloud, startSsh=True)]).get(
            "PUBLIC_KEY"
        )
        is None
    )  # no key, so nothing is done
    first, second = "ssh-ed25519 AAAA me", "ssh-ed25519 BBBB you"
    assert call(cloud, "PUT", "v2/account/ssh-keys", {"keys": [first]})[0] == 200
    assert call(cloud, "PUT", "v2/account/ssh-keys", {"keys": [second]})[1] == {"keys": [second]}
    assert call(cloud, "PUT", "v2/account/ssh-keys", {"keys": ["no key"]})[0] == 422
    asked = cloud.account.pods[rented(cloud, startSsh=True)]
    assert cloud.account.environment(asked)["PUBLIC_KEY"] == second
    assert asked.body["env"] == {}
    own = cloud.account.pods[rented(cloud, startSsh=True, env={"PUBLIC_KEY": first})]
    assert cloud.account.environment(own)["PUBLIC_KEY"] == first


def test_a_network_volume_pins_its_pod_and_outlives_it(
    cloud: RunpodCloud, clock: HandClock
) -> None:
    body = {"name": "data", "size": 1500, "dataCenter": "EU-RO-1"}
    volume = call(cloud, "POST", "v2/network-volumes", body)[1]
    price = cloud.books.things[volume["id"]].spans[-1].price_hour
    assert price * 730 == pytest.approx(Decimal(1000) * Decimal("0.07") + 500 * Decimal("0.05"))
    cloud.account.stock[CARD] = {"US-KS-2": "HIGH", "EU-RO-1": "LOW"}
    mounts = {"network": [{"volumeId": volume["id"], "path": "/data"}]}
    pod = cloud.account.pods[rented(cloud, mounts=mounts)]
    assert pod.data_center == "EU-RO-1"
    assert cloud.account.environment(pod)["RUNPOD_VOLUME_ID"] == volume["id"]
    for wrong, status in (
        ({"mounts": mounts, "dataCenterIds": ["US-KS-2"]}, 400),
        ({"mounts": mounts, "cloud": "COMMUNITY"}, 400),
        ({"mounts": {"network": [{"volumeId": "none", "path": "/d"}]}}, 404),
        ({"ports": [f"{port}/http" for port in range(80, 91)]}, 400),
    ):
        assert call(cloud, "POST", "v2/pods", {**BODY, **wrong})[0] == status
    call(cloud, "DELETE", f"v2/pods/{pod.id}")
    assert list(cloud.books.open()) == [volume["id"]]
    assert call(cloud, "PATCH", f"v2/network-volumes/{volume['id']}", {"size": 20})[0] == 400
    grown = call(cloud, "PATCH", f"v2/network-volumes/{volume['id']}", {"size": 2000})[1]
    assert grown["size"] == 2000
    assert call(cloud, "PATCH", f"v2/network-volumes/{volume['id']}", {})[0] == 422
    assert call(cloud, "POST", "v2/network-volumes", {**body, "size": 9})[0] == 422


def test_money_that_runs_out(cloud: RunpodCloud, clock: HandClock) -> None:
    """It is looked every five minutes; what has a network volume is stopped, the rest is gone."""
    volume = cloud.account.create_volume("data", 10, "EU-RO-1")
    cloud.account.stock[CARD] = {"EU-RO-1": "HIGH"}
    mounts = {"network": [{"volumeId": volume.id, "path": "/data"}]}
    kept, lost = rented(cloud, mounts=mounts), rented(cloud)
    cloud.account.balance = Decimal("0.50")
    clock.pass_time(3600)
    assert call(cloud, "GET", f"v2/pods/{lost}")[0] == 404
    assert call(cloud, "GET", f"v2/pods/{kept}")[1]["status"] == "EXITED"
    assert cloud.books.things[lost].gone
    balance = graphql(cloud, "{ myself { clientBalance } }")["data"]["myself"]["clientBalance"]
    assert balance < 0


@pytest.mark.parametrize("size", ["hour", "day", "week", "month", "year"])
def test_a_bill_adds_up_whatever_its_buckets(
    cloud: RunpodCloud, clock: HandClock, size: str
) -> None:
    cloud.account.balance = Decimal(10**6)
    id = rented(cloud)
    clock.pass_time(29 * 86400 - 60)
    said = call(cloud, "GET", f"v2/billing/pods?bucketSize={size}")[1]
    total = sum(record["totalAmount"] for record in said["records"])
    assert total == pytest.approx(float(cloud.books.billed(id, clock.now())))
    assert len(said["records"]) == {"hour": 696, "day": 30, "week": 5, "month": 2, "year": 1}[size]
    last = call(cloud, "GET", f"v2/billing/pods?bucketSize={size}&lastN=1")[1]["records"]
    assert last == said["records"][-1:]
    for wrong in ("bucketSize=minute", "lastN=1&startTime=2026-01-01T00:00:00Z"):
        assert call(cloud, "GET", f"v2/billing/pods?{wrong}")[0] == 400


# ---------------------------------------------------------------------------- spot, as it was


def test_there_is_no_spot(cloud: RunpodCloud) -> None:
    said = graphql(cloud, RENT % 9)
    assert said["data"] == {"podRentInterruptable": None}
    assert said["errors"][0]["extensions"]["code"] == "SUPPLY_CONSTRAINT"
    price = 'query { gpuTypes(input: {id: "NVIDIA A40"}) { secureSpotPrice } }'
    assert graphql(cloud, price)["data"]["gpuTypes"] == [{"secureSpotPrice": None}]


def test_spot_behind_its_flag(cloud: RunpodCloud, clock: HandClock) -> None:
    cloud.switches.graphql_spot = True
    cloud.switches.interruption_lag_s = 595
    asked = 'query { gpuTypes(input: {id: "NVIDIA A40"}) { lowestPrice { minimumBidPrice } } }'
    [card] = graphql(cloud, asked)["data"]["gpuTypes"]
    floor = card["lowestPrice"]["minimumBidPrice"]
    assert floor == pytest.approx(0.44 * 0.6)
    assert graphql(cloud, RENT % (floor / 2))["errors"]
    pod = graphql(cloud, RENT % floor)["data"]["podRentInterruptable"]
    assert (pod["podType"], pod["costPerHr"]) == ("INTERRUPTABLE", pytest.approx(floor))
    cloud.taken_away(pod["id"])
    clock.pass_time(599)
    assert call(cloud, "GET", f"v2/pods/{pod['id']}")[1]["status"] == "RUNNING"  # it lies
    clock.pass_time(1)
    assert call(cloud, "GET", f"v2/pods/{pod['id']}")[1]["status"] == "EXITED"
    resume = 'mutation { podBidResume(input: {podId: "%s", bidPerGpu: %s}) { desiredStatus } }'
    assert graphql(cloud, resume % (pod["id"], floor / 2))["errors"]
    said = graphql(cloud, resume % (pod["id"], floor * 2))["data"]["podBidResume"]
    assert said == {"desiredStatus": "RUNNING"}
    assert cloud.books.things[pod["id"]].spans[-1].price_hour > Decimal(str(floor)) * 2


@pytest.mark.slow
@needs_machines
def test_who_is_outbid_is_asked_to_end_and_killed_a_moment_later(tmp_path: Path) -> None:
    with RunpodCloud(machines=tmp_path, times=Times(0, 0, 0)) as cloud:
        cloud.switches.graphql_spot = True
        id = graphql(cloud, RENT % 0.4)["data"]["podRentInterruptable"]["id"]
        host = cloud.account.pods[id].host
        assert host is not None
        assert until(lambda: host.rented.alive and (host.rented.folder / "run/up").exists(), 10)
        polite = host.rented.start(
            "trap 'touch /root/asked; exit 0' TERM; touch /root/here; sleep 99 & wait"
        )
        deaf = host.rented.start("trap '' TERM; touch /root/deaf; sleep 99; sleep 99")
        for name in ("here", "deaf"):
            assert until((host.rented.folder / "root" / name).exists, 5)
        cloud.taken_away(id)
        assert until((host.rented.folder / "root/asked").exists, 5)
        for one in (polite, deaf):
            one.wait(20)
        assert until(lambda: not host.rented.alive, 10)
