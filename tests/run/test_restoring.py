"""Resuming from checkpoints that are not what they were: the one before counts, and it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import Ended, all_released, run

FAIL_ONCE = """
run: |
  echo "from [${GPUCTL_RESUME_FROM##*/}]"
  if [ "$GPUCTL_ATTEMPT" -gt 1 ]; then
    mkdir -p out; ls "$GPUCTL_CHECKPOINT_DIR" > out/there; exit 0
  fi
  for i in 1 2 3; do
    mkdir "$GPUCTL_CHECKPOINT_DIR/.s"
    echo "weights of step $i" > "$GPUCTL_CHECKPOINT_DIR/.s/weights"
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$i"
    sleep 0.1
  done
  exit 3
outputs: [{from: out, to: ./artifacts}]
"""

Damage = Callable[[Path, dict[str, Any]], None]


def blob_of(store: Path, manifest: dict[str, Any]) -> Path:
    sha: str = manifest["files"][0]["blobs"][0]["sha256"]
    return store / "blobs" / sha[:2] / sha


def flip(store: Path, manifest: dict[str, Any]) -> None:
    blob = blob_of(store, manifest)
    content = bytearray(blob.read_bytes())
    content[3] ^= 1
    blob.write_bytes(content)


def cut(store: Path, manifest: dict[str, Any]) -> None:
    blob = blob_of(store, manifest)
    blob.write_bytes(blob.read_bytes()[:-1])


def remove(store: Path, manifest: dict[str, Any]) -> None:
    blob_of(store, manifest).unlink()


def lie(store: Path, manifest: dict[str, Any]) -> None:
    path = store / "manifests" / f"a{manifest['attempt']:04d}-{manifest['seq']:06d}.json"
    path.write_text(json.dumps({**manifest, "step": 99}))


def tear(store: Path, manifest: dict[str, Any]) -> None:
    path = store / "manifests" / f"a{manifest['attempt']:04d}-{manifest['seq']:06d}.json"
    path.write_bytes(path.read_bytes()[:-20])


def damaged(rehearsal: Rehearsal, run_id: str, damage: Damage, names: set[str]) -> None:
    store = rehearsal.home / "store" / run_id
    for path in (store / "manifests").iterdir():
        manifest = json.loads(path.read_bytes())
        if manifest["name"] in names:
            damage(store, manifest)


def failed_once(rehearsal: Rehearsal) -> Ended:
    ended = run(rehearsal, FAIL_ONCE)
    assert (ended.code, ended.outcomes) == (1, ["failed"]), ended.err
    assert [one["name"] for one in ended.run["checkpoints"]] == ["step-1", "step-2", "step-3"]
    return ended


def test_the_newest_is_taken(rehearsal: Rehearsal) -> None:
    ended = failed_once(rehearsal)
    again = Ended(*rehearsal.gpuctl("resume", ended.run["id"]))
    assert (again.code, again.outcomes) == (0, ["failed", "completed"]), again.err
    assert "from [step-3]" in again.err
    assert "restored checkpoint step-3" in again.err
    assert "passed over" not in again.err
    assert (rehearsal.folder / "job/artifacts/there").read_text() == "step-3\n"


@pytest.mark.parametrize(
    "damage",
    [flip, tear, *(pytest.param(one, marks=pytest.mark.slow) for one in (cut, remove, lie))],
)
def test_the_one_before(rehearsal: Rehearsal, damage: Damage) -> None:
    ended = failed_once(rehearsal)
    damaged(rehearsal, ended.run["id"], damage, {"step-3"})
    again = Ended(*rehearsal.gpuctl("resume", ended.run["id"]))
    assert (again.code, again.outcomes) == (0, ["failed", "completed"]), again.err
    assert "from [step-2]" in again.err
    assert "restored checkpoint step-2" in again.err
    (told,) = [line for line in again.err.splitlines() if "passed over" in line]
    assert told.startswith("warning: checkpoint ")
    assert "step-3" in told or "manifests/a0001-000003.json" in told
    # Nothing of the damaged one was left on the machine.
    assert (rehearsal.folder / "job/artifacts/there").read_text() == "step-2\n"
    all_released(
        rehearsal, Ended(0, {**again.document, "receipts": all_receipts(ended, again)}, "")
    )


def all_receipts(*ends: Ended) -> list[Any]:
    return [receipt for end in ends for receipt in end.document["receipts"]]


@pytest.mark.parametrize("damage", [flip, tear])
def test_none_is_good(rehearsal: Rehearsal, damage: Damage) -> None:
    ended = failed_once(rehearsal)
    damaged(rehearsal, ended.run["id"], damage, {"step-1", "step-2", "step-3"})
    again = Ended(*rehearsal.gpuctl("resume", ended.run["id"]))
    assert (again.code, again.outcomes) == (0, ["failed", "completed"]), again.err
    assert "from []" in again.err
    assert sum("passed over" in line for line in again.err.splitlines()) == 3
    assert "no checkpoint can be used; the job starts from the beginning" in again.err
    assert (rehearsal.folder / "job/artifacts/there").read_text() == ""
