"""Whole runs with data from a bucket and outputs to one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.buckets.conftest import bucket, endpoint, keys, moto_port, s3
from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import Ended, all_released, nothing_bills, run
from tests.store.endpoints import SECRET, settings
from tests.waiting import until

__all__ = ["bucket", "endpoint", "moto_port", "s3"]

SPEC = """
run: |
  mkdir -p out/deep
  cat data/tokens/a data/tokens/deep/b > out/result.txt
  cp data/one.bin out/deep/one.bin
  cp out/result.txt score.txt
  ls -a data/tokens
  grep -rls --exclude=train.yaml {secret} . && exit 9
  env | grep AWS && exit 8
  true
data: [{{from: "s3://{bucket}/tokens", to: data/tokens}},
       {{from: "s3://{bucket}/one.bin", to: data/}}]
outputs: [{{from: out, to: "s3://{bucket}/results"}}, {{from: score.txt, to: "s3://{bucket}/results"}}]
"""


@pytest.fixture
def ready(rehearsal: Rehearsal, s3: Any, bucket: str, endpoint: str) -> Rehearsal:
    rehearsal.settings.update(settings(endpoint))
    for key, body in (("tokens/a", b"one "), ("tokens/deep/b", b"two\n"), ("one.bin", b"\0\1")):
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    return rehearsal


def results(s3: Any, bucket: str) -> dict[str, bytes]:
    return {key: body for key, body in keys(s3, bucket).items() if key.startswith("results/")}


RESULTS = {
    "results/result.txt": b"one two\n",
    "results/deep/one.bin": b"\0\1",
    "results/score.txt": b"one two\n",
}


def test_in_and_out(ready: Rehearsal, s3: Any, bucket: str) -> None:
    ended = run(ready, SPEC.format(bucket=bucket, secret=SECRET))
    assert ended.code == 0, ended.err
    assert results(s3, bucket) == RESULTS
    assert [one["to"] for one in ended.run["outputs"]] == [f"s3://{bucket}/results"] * 2
    assert f"s3://{bucket}/tokens goes straight to the machine" in ended.err
    assert f"s3://{bucket}/results is written straight from the machine" in ended.err
    assert SECRET not in ended.err
    assert "X-Amz-Signature" not in ended.err
    ledger = (ready.home / "ledger.db").read_bytes()
    assert SECRET.encode() not in ledger
    assert b"X-Amz-Signature" not in ledger
    all_released(ready, ended)


@pytest.mark.parametrize(
    ("spec", "code", "said"),
    [
        ('data: [{from: "s3://BUCKET/nothing", to: x}]', 2, "data.0.from: There is nothing at"),
        ('data: [{from: "s3://no-such-bucket", to: x}]', 2, "there is no such bucket"),
        ('outputs: [{from: x, to: "s3://no-such-bucket"}]', 2, "outputs.0.to: s3://no-such"),
    ],
)
def test_a_bucket_is_asked_before_anything_is_rented(
    ready: Rehearsal, bucket: str, spec: str, code: int, said: str
) -> None:
    ended = run(ready, "run: echo never\n" + spec.replace("BUCKET", bucket) + "\n")
    assert ended.code == code, ended.err
    assert said in ended.error["message"]
    assert ended.error["next"]
    assert ready.kinds() == []


def test_without_credentials_nothing_is_rented(ready: Rehearsal, bucket: str) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del ready.settings[name]
    spec = f'run: echo never\ndata: [{{from: "s3://{bucket}/tokens", to: x}}]\n'
    ended = run(ready, spec)
    assert (ended.code, ended.error["kind"]) == (4, "Credentials"), ended.err
    assert ready.kinds() == []


@pytest.mark.slow
def test_an_endpoint_that_does_not_answer(ready: Rehearsal, bucket: str) -> None:
    ready.settings["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:9"
    ready.settings["AWS_MAX_ATTEMPTS"] = "1"
    spec = f'run: echo never\noutputs: [{{from: out, to: "s3://{bucket}/tokens"}}]\n'
    ended = run(ready, spec)
    assert (ended.code, ended.error["kind"]) == (2, "Spec"), ended.err
    assert ready.kinds() == []


GOES_ON = """
run: |
  while [ ! -e go ]; do sleep 0.05; done
  mkdir -p out; echo result > out/result.txt
outputs: [{{from: out, to: "s3://{bucket}/results"}}]
"""


@pytest.mark.slow
def test_delivered_from_the_store_when_the_machine_is_gone(
    ready: Rehearsal, s3: Any, bucket: str
) -> None:
    path = ready.write_spec(GOES_ON.format(bucket=bucket))
    process = ready.start("run", path, "--provider", "local", "--yes", "--json", "--detach")
    process.communicate(timeout=60)
    assert until(lambda: "run_state:running" in ready.kinds(), 30), ready.kinds()
    # The bucket goes away, so that the result gets no further than the store.
    for key in keys(s3, bucket):
        s3.delete_object(Bucket=bucket, Key=key)
    s3.delete_bucket(Bucket=bucket)
    (name,) = ready.machine_folders()
    (ready.home / "local/machines" / name / "root/work/go").touch()
    assert until(lambda: "run_state:failed" in ready.kinds(), 40), ready.kinds()
    assert until(ready.nothing_is_left, 20)
    s3.create_bucket(Bucket=bucket)
    again = Ended(*ready.gpuctl("resume", ready.run_id()))
    assert (again.code, again.run["state"]) == (0, "succeeded"), again.err
    assert "sending out from the store to s3://" in again.err
    assert results(s3, bucket) == {"results/result.txt": b"result\n"}
    once_more = Ended(*ready.gpuctl("resume", ready.run_id()))
    assert once_more.code == 0
    nothing_bills(ready)
