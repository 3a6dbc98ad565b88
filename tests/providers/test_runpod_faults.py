"""RunPod at its worst: what it hides, loses, refuses and takes away, and what that costs."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from providers import runpod_client, runpod_health
from providers.base import (
    Ambiguous,
    InsufficientFunds,
    InvalidRequest,
    Machine,
    NoCapacity,
    NotFound,
    SshAccess,
    State,
    Want,
)
from providers.runpod import RunpodProvider
from tests.clouds.http_cloud import Fault, Reply
from tests.clouds.memory_cloud import HandClock
from tests.clouds.runpod_cloud import RunpodCloud, catalog
from tests.providers.runpod_bench import (
    RTX_4090,
    clock,
    cloud,
    findings,
    foreign_pod,
    order,
    runpod,
)

__all__ = ["clock", "cloud", "runpod"]


# ---------------------------------------------------------------------------- what it hides


def test_pods_of_clusters_are_counted_and_left_alone(
    cloud: RunpodCloud, runpod: RunpodProvider
) -> None:
    """They bill, and the listing leaves them out unless it is asked for them."""
    id = foreign_pod(cloud)
    cloud.account.pods[id].cluster = "cluster_1"
    assert [one.provider_id for one in runpod.list()] == [id]
    with pytest.raises(InvalidRequest, match=r"409.*cluster"):
        runpod.destroy(id)
    assert list(cloud.books.open()) == [id]


# ---------------------------------------------------------------------------- what does not start


@pytest.mark.parametrize(
    "line",
    [
        "Error response from daemon: manifest for x/y:1 not found: manifest unknown",
        "pull access denied for x/y, repository does not exist or may require 'docker login'",
        "failed to register layer: container id 200043 cannot be mapped to a host ID",
    ],
)
def test_an_image_that_cannot_be_pulled_is_not_waited_for(
    cloud: RunpodCloud,
    runpod: RunpodProvider,
    clock: HandClock,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
) -> None:
    monkeypatch.setattr(runpod_client, "_QUIET_SECONDS", 0.3)
    cloud.switches.image_pull_error = line
    made = runpod.create(order(runpod, image="x/y:1"))
    clock.pass_time(59)
    assert runpod.get(made.provider_id).state is State.BOOTING
    assert cloud.requests("GET", "/logs") == []
    clock.pass_time(1)
    seen = runpod.get(made.provider_id)
    assert (seen.state, line[:40] in seen.status) == (State.LOST, True)
    assert made.provider_id in cloud.books.open()  # lost is not gone


def test_logs_that_say_nothing_change_nothing(
    cloud: RunpodCloud,
    runpod: RunpodProvider,
    clock: HandClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runpod_client, "_QUIET_SECONDS", 0.2)
    cloud.switches.image_pull_stuck = 1
    made = runpod.create(order(runpod))
    pod = cloud.account.pods[made.provider_id]
    clock.pass_time(60)
    for _ in range(3):
        assert runpod.get(pod.id).state is State.BOOTING
    assert len(cloud.requests("GET", "/logs")) == 1  # once a minute
    pod.say(clock.now(), "container", "pull access denied for x/y")  # a job's own words
    clock.pass_time(60)
    assert runpod.get(pod.id).state is State.BOOTING
    pod.say(clock.now(), "system", "pull access denied for x/y")
    for reply in (Reply(500, b"x"), Reply(403, b"x"), Reply(200, b"no stream")):
        cloud.faults.append(Fault("/logs", how="answer", reply=reply))
        clock.pass_time(60)
        assert runpod.get(pod.id).state is State.BOOTING
    clock.pass_time(60)
    assert runpod.get(pod.id).state is State.LOST


def test_logs_are_not_read_of_what_runs(
    cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock
) -> None:
    made = runpod.create(order(runpod))
    clock.pass_time(120)
    assert runpod.get(made.provider_id).state is State.READY
    pod = cloud.account.pods[made.provider_id]
    pod.say(clock.now(), "system", "pull access denied for x/y")
    pod.stuck = "no port"  # its host restarts, say
    clock.pass_time(120)
    assert runpod.get(made.provider_id).state is State.BOOTING
    assert cloud.requests("GET", "/logs") == []


def test_a_container_that_begins_again_and_again(
    cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock
) -> None:
    """The API has it running, with a port; only a command over SSH tells (`fleet/ready.py`)."""
    cloud.switches.container_restarts = 1
    made = runpod.create(order(runpod, image="x", ssh_public_key="ssh-ed25519 A b"))
    clock.pass_time(40)
    assert runpod.get(made.provider_id).state is State.READY
    shown = cloud.account.pods[made.provider_id]
    uptimes = []
    for _ in range(4):
        clock.pass_time(3)
        told = shown.json(clock.now(), eager=True, keeps_cost=True, word=None)
        uptimes.append(told["runtime"]["uptime"])
    assert sorted(uptimes) != uptimes


def test_an_old_driver_is_no_host_for_our_image(
    cloud: RunpodCloud, runpod: RunpodProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = order(runpod)
    monkeypatch.setattr(catalog, "CUDA", [12, 4])
    assert {offer.available for offer in runpod.offers(RTX_4090)} == {False}
    with pytest.raises(NoCapacity):
        runpod.create(asked)
    own = Want(gpus=("RTX-4090",), image="mine:cuda12.1")
    assert any(offer.available for offer in runpod.offers(own))


# ---------------------------------------------------------------------------- what is done to it


def test_a_pod_that_somebody_edits_is_still_found_and_ended(
    cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock
) -> None:
    """An edit replaces the environment, and with it the mark: the name is what is left."""
    made = runpod.create(order(runpod))
    clock.pass_time(40)
    before = runpod.get(made.provider_id)
    pod = cloud.account.pods[made.provider_id]
    cloud.account.change(pod, {"env": {"THEIR": "own"}, "image": "x"})
    clock.pass_time(40)
    [after] = runpod.list()
    assert (after.name, after.mark) == (made.name, None)
    assert isinstance(before.access, SshAccess)
    assert isinstance(after.access, SshAccess)
    assert before.access.port != after.access.port
    pod.locked = True  # it cannot be stopped; it can be deleted
    assert runpod.destroy(made.provider_id) == "204 deleted"
    assert cloud.books.open() == {}


def test_an_account_without_money_loses_its_pods(
    cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock
) -> None:
    made, asked = runpod.create(order(runpod)), order(runpod)
    cloud.account.balance = Decimal("0.30")
    clock.pass_time(3600)
    with pytest.raises(NotFound):
        runpod.get(made.provider_id)
    with pytest.raises(InsufficientFunds, match="too little money"):
        runpod.create(asked)
    assert cloud.books.open() == {}
    assert findings(runpod)["balance"][0] is False


def test_a_key_that_graphql_does_not_know(cloud: RunpodCloud, runpod: RunpodProvider) -> None:
    """`myself` is null then: nothing is known of the money, and nothing is concluded from it."""
    cloud.switches.myself_null = True
    assert runpod_health.ask_funds(runpod._api) is None
    assert findings(runpod)["balance"] == (True, "not told by RunPod's API; its console shows it")
    asked = order(runpod)
    cloud.switches.no_capacity = {("*", "*")}
    for _ in range(3):
        with pytest.raises(NoCapacity):
            runpod.create(asked)


# ---------------------------------------------------------------------------- what the edge says


def test_pages_of_the_edge_are_asked_again_and_then_told(
    cloud: RunpodCloud, runpod: RunpodProvider
) -> None:
    made: Machine = runpod.create(order(runpod))
    cloud.switches.html_502 = 2
    assert [one.name for one in runpod.list()] == [made.name]
    cloud.switches.html_502 = 3
    with pytest.raises(Ambiguous, match="502"):
        runpod.list()
    cloud.switches.html_502 = 1
    with pytest.raises(Ambiguous, match="502"):
        runpod.destroy(made.provider_id)
    assert list(cloud.books.open()) == [made.provider_id]


@pytest.mark.parametrize("body", [{"pods": None}, {}, [], {"pods": [1]}, None])
def test_a_list_that_is_none_is_not_an_empty_account(
    cloud: RunpodCloud, runpod: RunpodProvider, body: Any
) -> None:
    cloud.faults.append(Fault("/v2/pods", "GET", how="answer", reply=Reply(200, body), times=None))
    with pytest.raises(Ambiguous):
        runpod.list()
