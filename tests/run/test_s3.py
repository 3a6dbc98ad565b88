"""Whole runs with a store in S3: on moto, and on a double that dies and comes back."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.faults.rehearsal import STEPS, Rehearsal
from tests.run.test_losing import COUNT
from tests.run.whole_run import Ended, all_released, nothing_bills, run
from tests.store.faulty_s3 import FaultyS3
from tests.waiting import until

KEYS = {
    "AWS_ACCESS_KEY_ID": "canary-key-id-5d1f",
    "AWS_SECRET_ACCESS_KEY": "canary-secret-key-9a7c",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_MAX_ATTEMPTS": "2",
}
STORE = "checkpoints: {store: 's3://bucket/some/prefix', keep: 2, settle: 0.2s}\n"


@pytest.fixture(scope="module")
def moto() -> Iterator[Any]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_REGION"],
    )
    client.create_bucket(Bucket="bucket")
    yield client
    server.stop()


class Endpoint:
    """A double that can be switched off and on at one address."""

    def __init__(self) -> None:
        self.state = FaultyS3()
        self._server: ThreadingHTTPServer | None = self.state.server()
        self.port = self._server.server_address[1]
        self._serve(self._server)

    def _serve(self, server: ThreadingHTTPServer) -> None:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def die(self) -> None:
        """Refuse every connection from now on, and break off those that are open."""
        self.state.fail("GET", "", "drop reply", 10**6)
        self.state.fail("POST", "", "503", 10**6)
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def come_back(self) -> None:
        handler_state = self.state
        handler_state.rules.clear()
        server = handler_state.server()
        server.server_close()
        again = ThreadingHTTPServer(("127.0.0.1", self.port), server.RequestHandlerClass)
        again.daemon_threads = True
        self._server = again
        self._serve(again)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.die()


def use(rehearsal: Rehearsal, url: str) -> None:
    rehearsal.settings.update(KEYS | {"AWS_ENDPOINT_URL_S3": url})


def keys_of(client: Any, run_id: str) -> list[str]:
    prefix = f"some/prefix/{run_id}/"
    listed = client.list_objects_v2(Bucket="bucket", Prefix=prefix)["Contents"]
    return [item["Key"].removeprefix(prefix) for item in listed]


def test_interrupted_restored_and_delivered(rehearsal: Rehearsal, moto: Any) -> None:
    use(rehearsal, moto.meta.endpoint_url)
    ended = run(rehearsal, COUNT + STORE, "--rehearse-interruption", "1s")
    assert (ended.code, ended.outcomes) == (0, ["interrupted", "completed"]), ended.err
    assert "restored checkpoint step-" in ended.err
    result = (rehearsal.folder / "job/artifacts/result.txt").read_text()
    assert result == f"{STEPS} from attempt 2\n"
    manifests = [key for key in keys_of(moto, ended.run["id"]) if key.startswith("manifests/")]
    assert len(manifests) == 2 + 1  # what `keep` keeps, and the output
    code, document, err = rehearsal.gpuctl("checkpoints", ended.run["id"])
    assert code == 0, err
    assert [(one["name"], one["whole"]) for one in document["checkpoints"]] == [
        ("step-11", True),
        ("step-12", True),
    ]
    assert [one["name"] for one in ended.run["checkpoints"]] == ["step-11", "step-12"]
    all_released(rehearsal, ended)


def test_the_machine_has_a_grant_and_no_key(rehearsal: Rehearsal, moto: Any) -> None:
    use(rehearsal, moto.meta.endpoint_url)
    spec = 'run: \'env; cat /proc/*/environ 2>/dev/null | tr "\\0" "\\n" || true\'\n'
    ended = run(rehearsal, spec + STORE)
    assert ended.code == 0, ended.err
    assert "GPUCTL_RUN_ID=" in ended.err
    assert KEYS["AWS_SECRET_ACCESS_KEY"] not in ended.err
    assert not any(line.startswith("AWS_") for line in ended.err.splitlines())


@pytest.mark.parametrize(
    ("store", "said"),
    [
        ("s3://no-such-bucket/x", "there is no such bucket"),
        ("s3://bucket", None),
    ],
)
def test_the_store_is_asked_before_anything_is_rented(
    rehearsal: Rehearsal, moto: Any, store: str, said: str | None
) -> None:
    use(rehearsal, moto.meta.endpoint_url)
    ended = run(rehearsal, f"run: echo hi\ncheckpoints: {{store: '{store}'}}\n")
    assert ended.code == (0 if said is None else 1), ended.err
    if said is not None:
        assert ended.error["kind"] == "Store"
        assert said in ended.error["message"]
        assert ended.error["next"]
        assert rehearsal.kinds() == []


def test_no_credentials_for_the_store(rehearsal: Rehearsal, endpoint: Endpoint) -> None:
    use(rehearsal, f"http://127.0.0.1:{endpoint.port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del rehearsal.settings[name]
    rehearsal.settings["HOME"] = str(rehearsal.folder)
    ended = run(rehearsal, "run: echo never\n" + STORE)
    assert ended.code == 1, ended.err
    assert "no credentials" in ended.error["message"]
    assert rehearsal.kinds() == []


def test_a_store_that_no_machine_can_write_to(rehearsal: Rehearsal, endpoint: Endpoint) -> None:
    use(rehearsal, f"http://127.0.0.1:{endpoint.port}")
    endpoint.state.takes_posts = False
    ended = run(rehearsal, COUNT + STORE)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    assert "passed on by this computer" in ended.err
    assert ended.run["checkpoints"][-1]["name"] == f"step-{STEPS}"
    result = (rehearsal.folder / "job/artifacts/result.txt").read_text()
    assert result == f"{STEPS} from attempt 1\n"
    all_released(rehearsal, ended)


def test_the_store_dies_and_comes_back(rehearsal: Rehearsal, endpoint: Endpoint) -> None:
    use(rehearsal, f"http://127.0.0.1:{endpoint.port}")
    path = rehearsal.write_spec(COUNT + STORE)
    process = rehearsal.start("run", path, "--provider", "local", "--yes", "--json")
    assert until(lambda: rehearsal.kinds().count("checkpoint") >= 2, 20), rehearsal.kinds()
    endpoint.die()
    so_far = rehearsal.kinds().count("checkpoint")
    assert not until(lambda: rehearsal.kinds().count("checkpoint") > so_far + 1, 1)
    endpoint.come_back()
    out, err = process.communicate(timeout=60)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.outcomes) == (0, ["completed"]), err
    assert "the store does not take what" in err
    assert "the store takes it again" in err
    assert ended.run["checkpoints"][-1]["name"] == f"step-{STEPS}"
    result = (rehearsal.folder / "job/artifacts/result.txt").read_text()
    assert result == f"{STEPS} from attempt 1\n"
    all_released(rehearsal, ended)


DYING = """
run: |
  echo one > "$GPUCTL_CHECKPOINT_DIR/.s"; mv "$GPUCTL_CHECKPOINT_DIR/.s" \
"$GPUCTL_CHECKPOINT_DIR/step-1"
  while [ ! -e go ]; do sleep 0.05; done
  mkdir -p out/deep; echo result > out/result.txt; echo more > out/deep/more.txt
  echo single > score.txt
  echo two > "$GPUCTL_CHECKPOINT_DIR/.s"; mv "$GPUCTL_CHECKPOINT_DIR/.s" \
"$GPUCTL_CHECKPOINT_DIR/step-2"
  exit {code}
outputs: [{{from: out, to: ./artifacts}}, {{from: score.txt, to: ./score.txt}}, {{from: no, to: x}}]
budget: {{max_duration: 40s}}
"""


def dead_at_the_end(rehearsal: Rehearsal, endpoint: Endpoint, code: int) -> Ended:
    """A job whose store dies after its first checkpoint and stays dead."""
    use(rehearsal, f"http://127.0.0.1:{endpoint.port}")
    path = rehearsal.write_spec(DYING.format(code=code) + STORE)
    process = rehearsal.start("run", path, "--provider", "local", "--yes", "--json")
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 20), rehearsal.kinds()
    endpoint.die()
    (name,) = rehearsal.machine_folders()
    (rehearsal.home / "local/machines" / name / "root/work/go").touch()
    out, err = process.communicate(timeout=60)
    return Ended(process.returncode, json.loads(out), err)


def test_the_result_comes_from_the_machine_when_the_store_is_dead(
    rehearsal: Rehearsal, endpoint: Endpoint
) -> None:
    ended = dead_at_the_end(rehearsal, endpoint, 0)
    assert (ended.code, ended.run["state"], ended.outcomes) == (0, "succeeded", ["completed"]), (
        ended.err
    )
    job = rehearsal.folder / "job"
    assert (job / "artifacts/result.txt").read_text() == "result\n"
    assert (job / "artifacts/deep/more.txt").read_text() == "more\n"
    assert (job / "score.txt").read_text() == "single\n"
    assert [one["from"] for one in ended.run["outputs"]] == ["out", "score.txt"]
    assert "the store does not give out; fetching it from gpuctl-" in ended.err
    assert "the output no was not there" in ended.err
    # What is lost is said, and only what is safe is listed.
    assert "did not take the checkpoints step-2" in ended.err
    assert [one["name"] for one in ended.run["checkpoints"]] == ["step-1"]
    all_released(rehearsal, ended)


@pytest.mark.slow
def test_a_failed_job_and_a_dead_store(rehearsal: Rehearsal, endpoint: Endpoint) -> None:
    ended = dead_at_the_end(rehearsal, endpoint, 3)
    assert (ended.code, ended.run["state"], ended.run["exit_code"]) == (1, "failed", 3), ended.err
    assert (rehearsal.folder / "job/artifacts/result.txt").read_text() == "result\n"
    assert "did not take the checkpoints step-2" in ended.err
    all_released(rehearsal, ended)


@pytest.mark.slow
def test_a_cap_and_a_dead_store(rehearsal: Rehearsal, endpoint: Endpoint) -> None:
    """The machine does not spend on waiting for the store what the download needs."""
    use(rehearsal, f"http://127.0.0.1:{endpoint.port}")
    spec = """
run: |
  mkdir -p out
  i=0; while true; do
    i=$((i + 1)); echo $i > .steps; mv .steps out/steps
    echo $i > "$GPUCTL_CHECKPOINT_DIR/.s"
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$i"
    sleep 0.2
  done
outputs: [{from: out, to: ./artifacts}]
budget: {max_duration: 12s}
"""
    path = rehearsal.write_spec(spec + STORE)
    process = rehearsal.start("run", path, "--provider", "local", "--yes", "--json")
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 20), rehearsal.kinds()
    endpoint.die()
    out, err = process.communicate(timeout=60)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.outcomes) == (5, ["capped"]), err
    assert int((rehearsal.folder / "job/artifacts/steps").read_text()) > 10
    (attempt,) = ended.run["attempts"]
    assert attempt["machine"]["ended_at"] <= attempt["machine"]["hard_end"]
    all_released(rehearsal, ended)


@pytest.mark.slow
def test_an_interruption_while_the_store_is_dead(rehearsal: Rehearsal, endpoint: Endpoint) -> None:
    use(rehearsal, f"http://127.0.0.1:{endpoint.port}")
    path = rehearsal.write_spec(COUNT + STORE)
    process = rehearsal.start(
        "run", path, "--provider", "local", "--yes", "--rehearse-interruption", "2s", "--json"
    )
    assert until(lambda: "checkpoint" in rehearsal.kinds(), 20), rehearsal.kinds()
    endpoint.die()
    out, err = process.communicate(timeout=60)
    ended = Ended(process.returncode, json.loads(out), err)
    assert (ended.code, ended.run["state"]) == (1, "failed"), err
    assert ended.outcomes == ["interrupted"]  # no machine is rented only to find that out
    assert ended.error["kind"] == "Store"
    assert ended.error["may_bill"] is False
    nothing_bills(rehearsal)

    endpoint.come_back()
    again = Ended(*rehearsal.gpuctl("resume", ended.run["id"]))
    assert (again.code, again.run["state"]) == (0, "succeeded"), again.err
    assert "restored checkpoint step-" in again.err
    assert (rehearsal.folder / "job/artifacts/result.txt").is_file()


@pytest.mark.slow
def test_the_only_copy_is_not_thrown_away(rehearsal: Rehearsal, endpoint: Endpoint) -> None:
    """Neither the store nor this computer takes the result: its machine is held, and it is said."""
    job = rehearsal.folder / "job"
    job.mkdir()
    (job / "artifacts").write_text("a file is in the way")
    ended = dead_at_the_end(rehearsal, endpoint, 0)
    name = ended.run["attempts"][0]["machine"]["name"]
    assert (ended.code, ended.run["state"], ended.outcomes) == (1, "failed", ["completed"]), (
        ended.err
    )
    assert ended.error["kind"] == "OnlyOnMachine"
    assert ended.error["may_bill"] is True
    assert ended.error["machine"] == name
    assert "out is only on" in ended.error["message"]
    assert f"gpuctl resume {ended.run['id']}" in ended.error["next"]
    assert f"gpuctl terminate {name}" in ended.error["next"]
    _, listed, _ = rehearsal.gpuctl("list")
    assert [one["name"] for one in listed["machines"]] == [name]

    # Still in the way: still held.
    again = Ended(*rehearsal.gpuctl("resume", ended.run["id"]))
    assert (again.code, again.error["kind"], again.error["may_bill"]) == (1, "OnlyOnMachine", True)
    assert rehearsal.machine_folders() == [name]

    (job / "artifacts").unlink()
    last = Ended(*rehearsal.gpuctl("resume", ended.run["id"]))
    assert (last.code, last.run["state"], last.outcomes) == (0, "succeeded", ["completed"]), (
        last.err
    )
    assert (job / "artifacts/result.txt").read_text() == "result\n"
    assert [one["name"] for one in last.document["receipts"]] == [name]
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_an_only_copy_that_is_gone_is_made_again(rehearsal: Rehearsal, endpoint: Endpoint) -> None:
    job = rehearsal.folder / "job"
    job.mkdir()
    (job / "artifacts").write_text("a file is in the way")
    ended = dead_at_the_end(rehearsal, endpoint, 0)
    assert ended.error["kind"] == "OnlyOnMachine", ended.err
    assert rehearsal.gpuctl("terminate", "--all", "--yes")[0] == 0
    (job / "artifacts").unlink()
    (job / "go").touch()
    endpoint.come_back()
    again = Ended(*rehearsal.gpuctl("resume", ended.run["id"]))
    assert (again.code, again.outcomes) == (0, ["completed", "completed"]), again.err
    assert (job / "artifacts/result.txt").read_text() == "result\n"
    assert "was only on its machine, which is gone" in again.err
    nothing_bills(rehearsal)
