"""RunPod's own client of REST v2, its MCP server, against the emulation.

The Python package speaks GraphQL only, and runpodctl the switched-off v1: of what RunPod itself
publishes, this alone speaks the API that gpuctl uses.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.clouds.conformance.environments import node_modules_with
from tests.clouds.conformance.test_runpod_openapi import FILE, wrong_with
from tests.clouds.runpod_cloud import RunpodCloud, Times

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(900)]

PACKAGE = "@runpod/mcp-server@4"
GOOD = {
    "name": "by-mcp",
    "image": "runpod/pytorch:1.0.2-cu1281-torch280-ubuntu2404",
    "gpu": {"id": "NVIDIA A40", "count": 1},
    "cloud": "SECURE",
    "disk": 20,
    "ports": ["22/tcp"],
    "env": {"PUBLIC_KEY": 'ssh-ed25519 AAAA "me"'},
}


class Client:
    """Speaks to the server over its stdin and stdout."""

    def __init__(self, argv: list[str], environ: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            argv,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._asked = 0
        hello = {"name": "gpuctl-conformance", "version": "1"}
        self._ask("initialize", protocolVersion="2024-11-05", capabilities={}, clientInfo=hello)
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def tool(self, tool: str, **arguments: Any) -> tuple[bool, Any]:
        """Use a tool; return whether it worked, and its JSON or text."""
        said = self._ask("tools/call", name=tool, arguments=arguments)["result"]
        text = said["content"][0]["text"] if said["content"] else ""
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        return not said.get("isError", False), value

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate(timeout=10)

    def _ask(self, method: str, **params: Any) -> Any:
        self._asked += 1
        self._send({"jsonrpc": "2.0", "id": self._asked, "method": method, "params": params})
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            if said.get("id") == self._asked:
                return said
        raise AssertionError("it ended")

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()


@pytest.fixture(scope="module")
def cloud() -> Iterator[RunpodCloud]:
    with RunpodCloud(times=Times(0, 0, 0)) as made:
        yield made


@pytest.fixture(scope="module")
def mcp(cloud: RunpodCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    modules = node_modules_with("runpod-mcp", PACKAGE)
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path_factory.mktemp("home")),
        "RUNPOD_API_KEY": cloud.key,
        "RUNPOD_API_BASE_URL": cloud.url,
    }
    client = Client(["node", str(modules / "@runpod/mcp-server/dist/stdio.mjs")], environ)
    yield client
    client.close()


def test_the_catalogue(mcp: Client) -> None:
    works, said = mcp.tool("list-gpu-types", include="AVAILABILITY", product="POD", count=2)
    assert works, said
    [card] = [one for one in said["gpus"] if one["id"] == "NVIDIA A40"]
    assert (card["memory"], card["price"]["secure"]) == (48, 0.44)
    works, said = mcp.tool("list-cpu-types")
    assert works, said
    assert {one["id"] for one in said["cpus"]} >= {"cpu3c", "cpu5m"}
    works, said = mcp.tool("get-gpu-type", id="NVIDIA GeForce RTX 4090")
    assert works, said
    assert said["memory"] == 24
    works, said = mcp.tool("list-data-centers", include="GPU_AVAILABILITY")
    assert works, said
    assert len(said["dataCenters"]) == 4


def test_a_pods_life(mcp: Client, cloud: RunpodCloud) -> None:
    works, pod = mcp.tool("create-pod", body=GOOD)
    assert works, pod
    assert cloud.account.pods[pod["id"]].body["env"] == GOOD["env"]
    works, said = mcp.tool("get-pod", id=pod["id"])
    assert works, said
    assert said["status"] == "RUNNING"
    assert said["ssh"]["direct"]["username"] == "root"
    works, said = mcp.tool("list-pods")
    assert works, said
    assert [one["name"] for one in said["pods"]] == ["by-mcp"]
    for action, status in (("stop", "EXITED"), ("start", "RUNNING"), ("restart", "RUNNING")):
        works, said = mcp.tool("pod-action", id=pod["id"], body={"action": action})
        assert works, said
        assert said["status"] == status
    works, said = mcp.tool("list-pod-billing", podId=pod["id"], bucketSize="hour")
    assert works, said
    works, said = mcp.tool("delete-pod", id=pod["id"])
    assert works, said
    assert cloud.books.open() == {}
    works, said = mcp.tool("get-pod", id=pod["id"])
    assert not works
    assert "pod not found" in json.dumps(said)


def test_no_capacity(mcp: Client, cloud: RunpodCloud) -> None:
    cloud.switches.no_capacity = {("*", "*")}
    works, said = mcp.tool("create-pod", body=GOOD)
    cloud.switches.no_capacity = set()
    assert not works
    assert "no longer any instances available" in json.dumps(said)


def test_volumes(mcp: Client, cloud: RunpodCloud) -> None:
    body = {"name": "data", "size": 10, "dataCenter": "EU-RO-1"}
    works, volume = mcp.tool("create-network-volume", body=body)
    assert works, volume
    works, said = mcp.tool("list-network-volumes")
    assert works, said
    assert said["networkVolumes"][0]["id"] == volume["id"]
    works, said = mcp.tool("update-network-volume", id=volume["id"], body={"size": 20})
    assert (works, said["size"]) == (True, 20)
    works, said = mcp.tool("delete-network-volume", id=volume["id"])
    assert works, said
    assert cloud.books.open() == {}


def test_changes_and_logs(mcp: Client, cloud: RunpodCloud) -> None:
    """RunPod's own reader of the logs understands our stream."""
    works, pod = mcp.tool("create-pod", body=GOOD)
    assert works, pod
    works, said = mcp.tool("update-pod", id=pod["id"], body={"name": "y", "env": {"A": "b"}})
    assert works, said
    assert (said["name"], said["env"]) == ("y", {"A": "b"})
    cloud.account.pods[pod["id"]].say(cloud.clock.now(), "container", "step 7")
    works, said = mcp.tool("stream-pod-logs", podId=pod["id"], source="container", maxWaitMs=1500)
    assert works, said
    assert "step 7" in json.dumps(said)
    assert "create container" not in json.dumps(said)  # that is the system's
    assert mcp.tool("delete-pod", id=pod["id"])[0]
    key = "ssh-ed25519 AAAA me"
    assert mcp.tool("update-ssh-keys", body={"keys": [key]}) == (True, {"keys": [key]})
    assert mcp.tool("update-ssh-keys", body={"keys": []}) == (True, {"keys": []})
    works, said = mcp.tool("get-cpu-type", id="cpu3c")
    assert (works, said["id"]) == (True, "cpu3c")
    works, said = mcp.tool("get-data-center", id="EU-RO-1")
    assert (works, said["id"]) == (True, "EU-RO-1")


def test_keys(mcp: Client, cloud: RunpodCloud) -> None:
    works, said = mcp.tool("get-ssh-keys")
    assert (works, said) == (True, {"keys": []})
    cloud.switches.key_revoked = True
    works, said = mcp.tool("list-pods")
    cloud.switches.key_revoked = False
    assert not works
    assert "401" in json.dumps(said)


@pytest.mark.skipif(not FILE.is_file(), reason=f"no {FILE}: set GPUCTL_CONTRACTS")
def test_all_of_it_is_as_described(mcp: Client, cloud: RunpodCloud) -> None:
    wrong = [one for exchange in cloud.replies for one in wrong_with(*exchange)]
    assert not wrong, "\n".join(wrong)
    assert cloud.replies
