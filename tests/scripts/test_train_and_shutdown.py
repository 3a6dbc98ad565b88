"""`scripts/train-and-shutdown.sh` on emulated EC2 machines: whatever happens to the job, its files
are in S3 and the machine ends.
"""

from __future__ import annotations

import fcntl
import json
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.clouds.rented import Rented, needs_machines
from tests.faults.at_aws import AwsRehearsal, at_aws
from tests.scripts.on_machine import SCRIPTS
from tests.waiting import until

pytestmark = [needs_machines, pytest.mark.slow, pytest.mark.timeout(400)]

SCRIPT = SCRIPTS / "train-and-shutdown.sh"
PYTHON = "/usr/bin/python3"  # machines do not see what is in our /root
JOB = "mkdir -p out/deep; echo weights > out/model; echo log > out/deep/log; "


@pytest.fixture(scope="module")
def aws_tools() -> Path:
    """The folder of an environment with the AWS command line, which machines can see."""
    place = SCRIPTS.parent / ".make" / "aws-command-line"
    place.parent.mkdir(exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "made").exists():
            try:
                subprocess.run([PYTHON, "-m", "venv", "--clear", place], check=True, timeout=100)
                pip = [place / "bin/python", "-m", "pip", "install", "--quiet", "awscli"]
                subprocess.run(pip, check=True, timeout=280)
            except (subprocess.SubprocessError, OSError) as error:
                pytest.skip(f"awscli cannot be installed: {error}")
            (place / "made").touch()
    return place


@dataclass
class Training:
    """A rented machine on which the script runs, and the bucket."""

    cloud: AwsRehearsal
    machine: Rented
    s3: Any
    bucket: str
    environ: str

    def start(self, *options: str, job: str) -> subprocess.Popen[bytes]:
        """Start the script in the machine's home, the way a person does and leaves."""
        command = f"sh {SCRIPT} --to s3://{self.bucket}/run --every 1 {' '.join(options)}"
        # `cd`: what starts there has the working folder of this computer's own /root.
        return self.machine.start(
            f"cd /root && exec env {self.environ} {command} -- sh -c '{job}' >log 2>&1"
        )

    def has_ended(self) -> bool:
        """By the cloud's own books."""
        return self.cloud.cloud.books.open() == {}

    def objects(self) -> dict[str, bytes]:
        """What is in the bucket."""
        listed = self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", ())
        return {
            one["Key"]: self.s3.get_object(Bucket=self.bucket, Key=one["Key"])["Body"].read()
            for one in listed
        }

    def exit_code(self) -> int | None:
        """What exit.json says."""
        told = json.loads(self.objects()["run/exit.json"])
        assert told["ended"].endswith("Z")
        code: int | None = told["exit_code"]
        return code

    def log(self) -> str:
        """What the script said, as long as the machine's disk is there."""
        return (self.machine.folder / "root/log").read_text()


@pytest.fixture
def training(tmp_path: Path, aws_tools: Path) -> Iterator[Training]:
    """A machine, and a bucket that it can reach."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    s3 = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="AKIATEST",
        aws_secret_access_key="secret",
    )
    bucket = f"artifacts-{secrets.token_hex(4)}"  # the servers of a process share their buckets
    s3.create_bucket(Bucket=bucket)
    environ = (
        f"SETUP_VENV={aws_tools} AWS_ENDPOINT_URL={url} AWS_REGION=us-east-1 "
        "AWS_ACCESS_KEY_ID=AKIATEST AWS_SECRET_ACCESS_KEY=secret"
    )
    with at_aws(tmp_path) as cloud:
        code, document, err = cloud.gpuctl("provision", "--provider", "aws", "--yes")
        assert code == 0, err
        machine = cloud.cloud.machine(document["machine"]["name"]).rented
        yield Training(cloud, machine, s3, bucket, environ)
        cloud.gpuctl("terminate", "--all", "--yes")
    server.stop()


@pytest.mark.parametrize(("ending", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_the_machine_ends_with_its_files_in_the_bucket(
    training: Training, ending: str, code: int
) -> None:
    training.start(job=JOB + ending)
    assert until(training.has_ended, 60), training.log()
    found = training.objects()
    assert found["run/out/model"] == b"weights\n"
    assert found["run/out/deep/log"] == b"log\n"
    assert training.exit_code() == code


def test_a_job_that_goes_on_is_synced_meanwhile_and_stopped_at_its_cap(training: Training) -> None:
    training.start("--max-hours 0.004", job=JOB + 'trap "echo last > out/last; exit 3" TERM; '
                   "while :; do sleep 0.2; done")  # fmt: skip
    assert until(lambda: "run/out/model" in training.objects(), 30), training.log()
    assert not training.has_ended()
    assert until(training.has_ended, 90), training.log()
    assert training.objects()["run/out/last"] == b"last\n"
    assert training.exit_code() == 3


def test_sigterm_reaches_the_job_and_its_last_words_the_bucket(training: Training) -> None:
    process = training.start(job=JOB + 'trap "echo last > out/last; exit 5" TERM; touch out/ready; '
                             "while :; do sleep 0.2; done")  # fmt: skip
    assert until(lambda: "run/out/ready" in training.objects(), 30), training.log()
    training.machine.start("pkill -TERM -o -f train-and-shutdown.sh").wait(10)
    assert until(training.has_ended, 60), training.log()
    assert training.objects()["run/out/last"] == b"last\n"
    assert training.exit_code() == 5
    process.wait(20)


def test_kill_9_of_the_script_itself_changes_nothing(training: Training) -> None:
    training.start(job=JOB + "touch out/ready; sleep 4; echo late > out/late")
    assert until(lambda: "run/out/ready" in training.objects(), 30), training.log()
    training.machine.start("pkill -KILL -o -f train-and-shutdown.sh").wait(10)
    assert until(training.has_ended, 60), training.log()
    assert training.objects()["run/out/late"] == b"late\n"
    assert training.exit_code() is None, "nobody was there to hear it"


def test_a_bucket_that_takes_nothing_is_found_out_before_the_training(training: Training) -> None:
    training.s3.delete_bucket(Bucket=training.bucket)
    process = training.start(job="touch /root/began")
    assert process.wait(60) == 3
    assert "does not take anything; nothing was started" in training.log()
    assert not (training.machine.folder / "root/began").exists()
    assert not training.has_ended()


def test_keep_does_everything_but_end_the_machine(training: Training) -> None:
    process = training.start(
        "--keep", "--dir out", "--dir more", job=JOB + "mkdir more; touch more/x"
    )
    assert process.wait(60) == 0
    assert {"run/out/model", "run/more/x", "run/exit.json"} <= set(training.objects())
    assert not training.has_ended()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--to nowhere -- true", "--to"),
        ("--to s3://b/x", "the command is missing"),
        ("--to s3://b/x --every soon -- true", "--every"),
        ("--to s3://b/x --max-hours 0 -- true", "--max-hours"),
        ("--to s3://b/x --dir", "--dir needs a value"),
    ],
)
def test_wrong_usage_starts_nothing(options: str, said: str) -> None:
    argv = ["sh", SCRIPT, *options.split()]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert said in done.stderr
