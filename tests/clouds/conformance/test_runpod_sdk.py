"""RunPod's own Python package against the GraphQL part of the emulation.

It lives in an environment of its own below .make/, made on demand; what it did and got is told as
JSON, one fact a check.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clouds.conformance.environments import python_with
from tests.clouds.runpod_cloud import RunpodCloud, Times

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(900)]

SESSION = """
import json, sys
import runpod
from runpod import error

said = {}

def tell(name, work):
    try:
        said[name] = work()
    except Exception as trouble:
        said[name] = f"{type(trouble).__name__}: {trouble}"

runpod.api_key = sys.argv[1]
CARD = "NVIDIA GeForce RTX 4090"
tell("user", runpod.get_user)
tell("cards", lambda: [one["id"] for one in runpod.get_gpus()])
tell("card", lambda: runpod.get_gpu(CARD))
tell("two cards", lambda: runpod.get_gpu(CARD, 2)["lowestPrice"])
tell("no such card", lambda: runpod.get_gpu("RTX 9090"))
pod = runpod.create_pod("sdk", "runpod/pytorch", CARD, container_disk_in_gb=20, volume_in_gb=10,
                        ports="22/tcp,8888/http", env={"A": "b"}, data_center_id=None)
said["created"] = pod
tell("listed", lambda: [(one["id"], one["name"]) for one in runpod.get_pods()])
tell("got", lambda: runpod.get_pod(pod["id"]))
tell("got nothing", lambda: runpod.get_pod("nosuchpod"))
tell("stopped", lambda: runpod.stop_pod(pod["id"]))
tell("shown stopped", lambda: runpod.get_pod(pod["id"])["desiredStatus"])
tell("resumed", lambda: runpod.resume_pod(pod["id"], 1))
tell("terminated", lambda: runpod.terminate_pod(pod["id"]))
tell("terminated again", lambda: runpod.terminate_pod(pod["id"]))
tell("nothing left", runpod.get_pods)
tell("a quote in a value", lambda: runpod.create_pod("x", "i", CARD, env={"A": 'say "hi"'}))
tell("a card that is not sold", lambda: runpod.create_pod("x", "i", "NVIDIA A100-SXM4-40GB"))
tell("cpu", lambda: runpod.create_pod("cpu", "runpod/base", instance_id="cpu3c-2-4")["id"])
tell("cpu gone", lambda: runpod.terminate_pod(said["cpu"]))
runpod.api_key = "rpa_wrong"
tell("a wrong key", runpod.get_pods)
print("\\n" + json.dumps(said))
"""


@pytest.fixture(scope="module")
def cloud() -> Iterator[RunpodCloud]:
    with RunpodCloud(times=Times(0, 0, 0)) as made:
        yield made


@pytest.fixture(scope="module")
def said(cloud: RunpodCloud, tmp_path_factory: pytest.TempPathFactory) -> Any:
    python = python_with("runpod", "runpod>=1.12")
    home = tmp_path_factory.mktemp("home")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "RUNPOD_API_BASE_URL": cloud.url,
    }
    done = subprocess.run(
        [python, "-I", "-c", SESSION, cloud.key],
        env=environ,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_it_is_not_taken_for_a_bot(said: Any, cloud: RunpodCloud) -> None:
    assert all(agent.startswith("RunPod-Python-SDK/") for agent in cloud.agents)
    assert {line.status for line in cloud.log} == {200, 401}


def test_the_user(said: Any) -> None:
    assert said["user"] == {"id": "user_emulated", "pubKey": "", "networkVolumes": []}


def test_the_cards(said: Any) -> None:
    assert {"unknown", "NVIDIA H200", "NVIDIA GeForce RTX 4090"} <= set(said["cards"])
    assert "NVIDIA A100-SXM4-40GB" not in said["cards"]
    assert (said["card"]["memoryInGb"], said["card"]["securePrice"]) == (24, 0.74)
    assert said["two cards"]["uninterruptablePrice"] == 0.74
    assert said["card"]["lowestPrice"]["minimumBidPrice"] is None  # no spot any more


def test_a_card_that_does_not_exist(said: Any) -> None:
    assert said["no such card"].startswith("ValueError: No GPU found")


def test_a_pod_is_made(said: Any, cloud: RunpodCloud) -> None:
    made = said["created"]
    assert made["env"] == ["A=b"]
    assert made["machine"]["podHostId"].startswith(made["id"])
    assert cloud.books.things[made["id"]].name == "sdk"


def test_it_is_listed_and_got(said: Any) -> None:
    assert said["listed"] == [[said["created"]["id"], "sdk"]]
    assert said["got"]["costPerHr"] == 0.74
    [port] = said["got"]["runtime"]["ports"]
    assert (port["privatePort"], port["isIpPublic"], port["type"]) == (22, True, "tcp")
    assert said["got nothing"] is None


def test_it_is_stopped_and_resumed(said: Any) -> None:
    assert said["stopped"]["desiredStatus"] == "EXITED"
    assert said["shown stopped"] == "EXITED"
    assert said["resumed"]["desiredStatus"] == "RUNNING"


def test_it_is_terminated(said: Any, cloud: RunpodCloud) -> None:
    assert said["terminated"] is None
    assert said["terminated again"] == "QueryError: pod not found to terminate"
    assert said["nothing left"] == []
    assert cloud.books.open() == {}


def test_values_are_pasted_and_break_the_mutation(said: Any) -> None:
    """The package's own fault, and why gpuctl does not use it: it must not rent anything here."""
    assert said["a quote in a value"].startswith("QueryError: Syntax Error")


def test_a_card_that_is_not_sold(said: Any) -> None:
    assert said["a card that is not sold"].startswith("ValueError: No GPU found")


def test_a_pod_without_a_gpu(said: Any, cloud: RunpodCloud) -> None:
    assert cloud.books.things[said["cpu"]].name == "cpu"
    assert said["cpu gone"] is None


def test_a_wrong_key(said: Any) -> None:
    assert said["a wrong key"].startswith("AuthenticationError")
