"""GPUCTL_HOME on a disk that fills up while the job runs: what bills is ended all the same."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import nothing_bills
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small tmpfs")

COUNTS = """
name: counts
resources: {disk: 100MB}
run: |
  start=1
  if [ -n "$GPUCTL_RESUME_FROM" ]; then start=$(( $(cat "$GPUCTL_RESUME_FROM") + 1 )); fi
  for i in $(seq $start 30); do
    echo "step $i"
    echo $i > "$GPUCTL_CHECKPOINT_DIR/.s"
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$i"
    sleep 0.2
  done
  mkdir -p out
  echo "30 from attempt $GPUCTL_ATTEMPT" > out/result.txt
outputs: [{from: out, to: ./artifacts}]
"""
# Each checkpoint is there twice until it is pruned: on the machine and in the store.
FILLS = """
name: fills
resources: {disk: 100MB}
run: |
  for i in $(seq 12); do
    until head -c 12000000 /dev/urandom > "$GPUCTL_CHECKPOINT_DIR/.s"; do
      echo "full at $i"
      rm -f "$GPUCTL_CHECKPOINT_DIR"/step-*
      sleep 0.5
    done
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$i"
    sleep 0.1
  done
  rm -f "$GPUCTL_CHECKPOINT_DIR"/step-?
  echo done > result.txt
checkpoints: {keep: 2}
outputs: [{from: result.txt, to: ./artifacts}]
"""
RUN = ("--provider", "local", "--yes")


@pytest.fixture
def small(rehearsal: Rehearsal) -> Iterator[Rehearsal]:
    """A home of 128 MB."""
    rehearsal.home.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", "size=128m,mode=0700", "tmpfs", str(rehearsal.home)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this container may not mount")
    yield rehearsal
    for file in rehearsal.home.rglob("ballast-of-the-test"):
        file.unlink()
    rehearsal.gpuctl("terminate", "--all", "--yes")
    rehearsal.kill_watchdog()
    subprocess.run(["umount", "-l", str(rehearsal.home)], check=True)


def fill(folder: Path) -> None:
    """Leave not one free byte there."""
    with (folder / "ballast-of-the-test").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass
        try:
            while True:
                file.write(b"\0")
        except OSError:
            pass


@pytest.mark.slow
def test_a_disk_that_is_full_for_longer_than_the_lease(small: Rehearsal) -> None:
    spec = small.write_spec(COUNTS)
    process = small.start("run", spec, *RUN, "--json", "--lease", "6s")
    assert until(lambda: small.kinds().count("checkpoint") >= 3, 30)
    before = small.events()
    fill(small.home)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    document = json.loads(out)
    assert document["error"]["kind"] == "Ledger"
    assert "full" in document["error"]["message"]
    assert document["error"]["may_bill"] is False
    assert "the lease could not be renewed" in err
    assert until(small.nothing_is_left, 20), small.machine_processes()
    (small.home / "ballast-of-the-test").unlink()
    # Nothing that was written is lost, and the run goes on from what is durable.
    assert list(small.events())[: len(before)] == list(before)
    code, document, err = small.gpuctl("resume", "counts")
    assert code == 0, err
    assert [one["outcome"] for one in document["run"]["attempts"]] == ["lost", "completed"]
    assert "restored checkpoint step-" in err
    assert (small.folder / "job/artifacts/result.txt").read_text() == "30 from attempt 2\n"
    nothing_bills(small)


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_moment(small: Rehearsal) -> None:
    process = small.start("run", small.write_spec(COUNTS), *RUN, "--json")
    assert until(lambda: small.kinds().count("checkpoint") >= 3, 30)
    fill(small.home)
    until(lambda: False, 2)
    (small.home / "ballast-of-the-test").unlink()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    run = json.loads(out)["run"]
    assert [one["outcome"] for one in run["attempts"]] == ["completed"]
    assert "full" in err
    # What could not be noted then was noted later.
    noted = [event.facts["name"] for event in small.events() if event.kind == "checkpoint"]
    assert sorted(noted, key=lambda name: int(name[5:])) == noted
    assert noted[-1] == "step-30"
    assert (small.folder / "job/artifacts/result.txt").read_text() == "30 from attempt 1\n"
    nothing_bills(small)


def test_checkpoints_that_fill_the_store(small: Rehearsal) -> None:
    process = small.start("run", small.write_spec(FILLS), *RUN, "--json")
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    run = json.loads(out)["run"]
    assert [one["outcome"] for one in run["attempts"]] == ["completed"]
    assert "full at" in err  # it was
    durable = small.gpuctl("checkpoints", "fills")[1]["checkpoints"]
    assert [(one["name"], one["whole"]) for one in durable][-1] == ("step-12", True)
    assert (small.folder / "job/artifacts/result.txt").read_text() == "done\n"
    nothing_bills(small)
