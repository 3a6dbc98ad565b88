"""How a pod ends itself: with its own key only, by whatever that key may do."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from providers import runpod_self_end
from providers.runpod_self_end import command, found_there, main
from tests.clouds.http_cloud import Fault, Reply
from tests.clouds.runpod_cloud import RunpodCloud, Times
from tests.clouds.runpod_cloud.answers import problem
from tests.clouds.runpod_cloud.pods import Pod

AGENT = "gpuctl/test"
BODY = {"name": "x", "image": "x", "gpu": {"id": "NVIDIA A40", "count": 1}}


@pytest.fixture
def cloud() -> Iterator[RunpodCloud]:
    with RunpodCloud(times=Times(0, 0, 0)) as made:
        yield made


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the container's environment is told, as its first process has it."""
    place = tmp_path / "environ"
    monkeypatch.setattr(runpod_self_end, "PLACES", (str(tmp_path / "none"), str(place)))
    monkeypatch.setenv("PATH", str(tmp_path))  # no runpodctl
    monkeypatch.setenv("RUNPOD_API_KEY", "somebody-elses")
    return place


def pod_of(cloud: RunpodCloud, inside: Path, rights: str) -> Pod:
    cloud.switches.scoped_rights = rights  # type: ignore[assignment]
    pod = cloud.account.create(BODY)
    told = "\0".join(f"{k}={v}" for k, v in cloud.account.environment(pod).items())
    inside.write_text(told)
    return pod


def ended(cloud: RunpodCloud, pod: Pod) -> int:
    return main([cloud.url, pod.id, AGENT])


@pytest.mark.parametrize(
    ("rights", "code", "state", "said"),
    [
        ("terminate", 0, "terminated", [("DELETE", 204)]),
        ("stop", 0, "stopped", [("DELETE", 403), ("POST", 200)]),
        ("none", 1, "live", [("DELETE", 403), ("POST", 403), ("POST", 403)]),
    ],
)
def test_by_what_the_key_may_do(
    cloud: RunpodCloud,
    inside: Path,
    rights: str,
    code: int,
    state: str,
    said: list[tuple[str, int]],
) -> None:
    other = cloud.account.create(BODY)
    pod = pod_of(cloud, inside, rights)
    assert ended(cloud, pod) == code
    assert pod.state == state
    assert [(line.method, line.status) for line in cloud.log] == said
    assert other.state == "live"
    assert set(cloud.agents) == {AGENT}


def test_by_graphql_when_the_rest_is_switched_off(cloud: RunpodCloud, inside: Path) -> None:
    """A 410 is no success: a v1 that always answers so has fooled others."""
    pod = pod_of(cloud, inside, "stop")
    cloud.faults.append(Fault("/v2/", how="answer", reply=problem(410, "gone"), times=None))
    assert ended(cloud, pod) == 0
    assert pod.state == "stopped"


def test_graphql_says_no_with_a_200(cloud: RunpodCloud, inside: Path) -> None:
    pod = pod_of(cloud, inside, "none")
    no = Reply(200, {"errors": [{"message": "no"}], "data": {"podStop": None}})
    cloud.faults.append(Fault("/graphql", how="answer", reply=no))
    assert ended(cloud, pod) == 1


def test_an_api_that_does_not_answer(inside: Path) -> None:
    inside.write_text("RUNPOD_API_KEY=rpa_x")
    assert main(["http://127.0.0.1:9", "x", AGENT]) == 1


def test_without_a_key_of_its_own_nothing_is_asked(cloud: RunpodCloud, inside: Path) -> None:
    inside.write_text("A=b")
    assert main([cloud.url, "x", AGENT]) == 1
    assert cloud.agents == []


def test_a_pod_that_was_moved_has_another_id(cloud: RunpodCloud, inside: Path) -> None:
    pod = pod_of(cloud, inside, "terminate")
    assert main([cloud.url, "its-old-id", AGENT]) == 0
    assert pod.state == "terminated"


def test_runpodctl_is_the_last_way(
    cloud: RunpodCloud, inside: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pod = pod_of(cloud, inside, "none")
    program = tmp_path / "runpodctl"
    program.write_text(f'#!/bin/sh\n[ "$1" = pod ] || exit 2\necho "$@" > {tmp_path}/said\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert ended(cloud, pod) == 0
    assert (tmp_path / "said").read_text() == f"pod stop {pod.id}\n"


def test_a_locked_pod_cannot_stop_itself(cloud: RunpodCloud, inside: Path) -> None:
    """Somebody locked it in the console: then only our side can end it."""
    pod = pod_of(cloud, inside, "stop")
    pod.locked = True
    assert ended(cloud, pod) == 1
    assert pod.state == "live"


@pytest.mark.parametrize(
    "text",
    [
        "A=b\0RUNPOD_API_KEY=rpa_x\0C=d",
        'export A="b"\nexport RUNPOD_API_KEY="rpa_x"\n',
        "RUNPOD_API_KEY='rpa_x'",
    ],
)
def test_where_the_key_is_read(inside: Path, text: str) -> None:
    inside.write_text(text)
    assert found_there("RUNPOD_API_KEY") == "rpa_x"
    assert found_there("API_KEY") == ""


def test_it_runs_on_old_pythons_without_anything_else() -> None:
    [source] = [part for part in command("https://x", "y") if "def main" in part]
    tree = ast.parse(source, feature_version=(3, 8))
    names = {
        alias.name.split(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert names <= set(sys.stdlib_module_names)
