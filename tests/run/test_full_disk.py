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

FILLS = """
name: fills
resources: {{disk: 100MB}}
run: |
  echo 1 > "$GPUCTL_CHECKPOINT_DIR/.s"
  mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-1"
  sleep 0.5
  for i in $(seq 2 40); do
    head -c 12000000 /dev/urandom > "$GPUCTL_CHECKPOINT_DIR/.s" || {at_full}
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$i"
    sleep 0.1
  done
outputs: [{{from: nowhere, to: ./artifacts}}]
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


@pytest.mark.parametrize("at_full", ["exit 5", "sleep 600"])
def test_a_job_that_fills_the_disk(small: Rehearsal, at_full: str) -> None:
    process = small.start("run", small.write_spec(FILLS.format(at_full=at_full)), *RUN, "--json")
    out, err = process.communicate(timeout=100)
    print(process.returncode, out, err)
    assert 0
