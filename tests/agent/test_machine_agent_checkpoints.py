"""What is taken as a checkpoint, when, and what never is."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gpuctl.agent import machine_agent
from gpuctl.agent.machine_agent import (
    Candidate,
    Changed,
    Log,
    Shipper,
    State,
    Unshippable,
    read_tree,
)
from tests.agent.bench import Bench
from tests.waiting import until

LINUX = sys.platform.startswith("linux")
needs_proc = pytest.mark.skipif(not LINUX, reason="needs Linux's /proc and inotify")


class TestTaken:
    def test_a_quiet_file_and_a_quiet_folder(self, every_bench: Bench) -> None:
        every_bench.submit(
            "umask 022; echo 1 > $CK/epoch-1; mkdir -p $CK/epoch-2/sub/empty;"
            " echo w > $CK/epoch-2/w;"
            " : > $CK/epoch-2/nothing; echo x > $CK/epoch-2/sub/x; ln -s sub/x $CK/epoch-2/latest;"
            " chmod 700 $CK/epoch-2/w; sleep 600"
        )
        every_bench.shipped("epoch-1", "epoch-2")
        one, two = sorted(every_bench.manifests(), key=lambda manifest: manifest.name)
        assert (one.name, one.step, one.version, one.attempt, one.run) == (
            "epoch-1", 1, 1, 1, "demo-1a2b3c",
        )  # fmt: skip
        assert every_bench.stored(one) == {"": b"1\n"}
        assert every_bench.stored(two) == {"nothing": b"", "sub/x": b"x\n", "w": b"w\n"}
        assert [folder.path for folder in two.dirs] == ["", "sub", "sub/empty"]
        assert [(link.path, link.target) for link in two.links] == [("latest", "sub/x")]
        assert {file.path: file.mode for file in two.files}["w"] == 0o700
        assert two.bytes == 4

    @needs_proc
    def test_what_is_renamed_into_place_is_taken_at_once(self, every_bench: Bench) -> None:
        every_bench.submit(
            "echo 1 > $CK/.part; mv $CK/.part $CK/epoch-1;"
            " mkdir .d; echo x > .d/x; mv .d $CK/epoch-2;"
            " sleep 600",
            settle_seconds=600,
        )
        every_bench.shipped("epoch-1", "epoch-2")

    @needs_proc
    def test_a_folder_that_was_made_anew_is_watched_again(self, bench: Bench) -> None:
        bench.submit(
            "rmdir $CK; sleep 0.3; mkdir $CK; sleep 1.3;"
            " echo 1 > .part; mv .part $CK/epoch-1; sleep 600",
            settle_seconds=600,
        )
        bench.shipped("epoch-1")

    def test_rewritten_ones_are_new_versions(self, every_bench: Bench) -> None:
        every_bench.submit(
            "echo one > $CK/last; while [ ! -e go ]; do sleep 0.05; done;"
            " echo two > $CK/last; sleep 600"
        )
        every_bench.shipped("last")
        (every_bench.work / "go").touch()
        assert until(lambda: len(every_bench.manifests()) == 2, 10)
        first, second = every_bench.manifests()
        assert [(m.name, m.version, m.seq) for m in (first, second)] == [
            ("last", 1, 1),
            ("last", 2, 2),
        ]
        assert every_bench.stored(second) == {"": b"two\n"}
        versions = [(c["version"], c["shipped"]) for c in every_bench.state()["checkpoints"]]
        assert versions == [(1, True), (2, True)]

    def test_a_change_of_one_file_ships_only_that(self, bench: Bench) -> None:
        bench.submit(
            "mkdir $CK/e; head -c 100000 /dev/urandom > $CK/e/big; echo 1 > $CK/e/small;"
            " while [ ! -e go ]; do sleep 0.05; done; echo 2 > $CK/e/small; sleep 600"
        )
        bench.shipped("e")
        before = {path: path.stat().st_mtime_ns for path in bench.store.glob("blobs/*/*")}
        (bench.work / "go").touch()
        assert until(lambda: len(bench.manifests()) == 2, 10)
        after = {path: path.stat().st_mtime_ns for path in bench.store.glob("blobs/*/*")}
        assert before.items() <= after.items()
        assert len(after) == len(before) + 1

    def test_what_was_there_at_the_start_is_not_new(self, bench: Bench) -> None:
        bench.checkpoints.mkdir()
        (bench.checkpoints / "epoch-1").write_text("restored")
        bench.submit("sleep 0.8; echo 2 > $CK/epoch-2")
        bench.ended()
        assert bench.named() == {"epoch-2": b"2\n"}

    def test_but_it_is_when_it_is_rewritten(self, bench: Bench) -> None:
        bench.checkpoints.mkdir()
        (bench.checkpoints / "last").write_text("restored")
        bench.submit("echo again > $CK/last")
        bench.ended()
        assert bench.named() == {"last": b"again\n"}

    def test_large_files_are_cut_into_blobs(self, bench: Bench) -> None:
        size = 130 * 1024 * 1024
        bench.submit(f"head -c {size} /dev/zero > $CK/big")
        bench.ended(60)
        (manifest,) = bench.manifests()
        (file,) = manifest.files
        assert [blob.size for blob in file.blobs] == [64 << 20, 64 << 20, 2 << 20]
        assert bench.stored(manifest)[""] == bytes(size)

    def test_without_a_store_it_is_listed_and_not_shipped(self, bench: Bench) -> None:
        bench.submit(
            "echo 1 > $CK/epoch-1; echo r > result", store=None, outputs=[{"from": "result"}]
        )
        state = bench.ended()
        assert [(c["name"], c["shipped"]) for c in state["checkpoints"]] == [("epoch-1", False)]
        assert state["outputs"][0]["shipped"] is False
        assert not bench.store.exists()


class TestNotTaken:
    def test_hidden_temporary_and_special_ones(self, every_bench: Bench) -> None:
        every_bench.submit(
            "echo x > $CK/.hidden; mkdir $CK/tmp-save; echo x > $CK/tmp-save/x;"
            " echo x > $CK/tmpfile; mkfifo $CK/pipe; ln -s /etc/passwd $CK/link;"
            " mkdir $CK/e; echo 1 > $CK/e/f; mkfifo $CK/e/p"
        )
        state = every_bench.ended()
        assert [m.name for m in every_bench.manifests()] == ["e"]
        assert list(every_bench.stored(every_bench.manifests()[0])) == ["f"]
        assert [item["name"] for item in state["skipped"]] == ["e/p"]

    @needs_proc
    def test_one_that_is_open_for_writing(self, every_bench: Bench) -> None:
        every_bench.submit(
            "exec 5> $CK/epoch-1; echo half >&5; echo opened;"
            " while [ ! -e go ]; do sleep 0.05; done;"
            " echo whole >&5; exec 5>&-; sleep 600"
        )
        every_bench.said("opened")
        assert not until(every_bench.manifests, 1.2)
        (every_bench.work / "go").touch()
        every_bench.shipped("epoch-1")
        assert every_bench.named() == {"epoch-1": b"half\nwhole\n"}

    def test_one_that_keeps_changing(self, bench: Bench) -> None:
        bench.submit("for i in $(seq 20); do echo $i >> $CK/log-like; sleep 0.05; done")
        bench.ended()
        (manifest,) = bench.manifests()
        assert bench.stored(manifest)[""].endswith(b"20\n"), "only the last state, whole"

    @pytest.mark.parametrize("name", [b"caf\xe9", b"x\xff1"])
    def test_a_name_that_no_store_can_hold(self, bench: Bench, name: bytes) -> None:
        try:
            (bench.work / os.fsdecode(name)).touch()
        except OSError:
            pytest.skip("this file system takes only UTF-8")
        octal = "".join(f"\\{byte:03o}" for byte in name)
        bench.submit(f"echo 1 > \"$CK/$(printf '{octal}')\"; echo 2 > $CK/good")
        state = bench.ended()
        assert [m.name for m in bench.manifests()] == ["good"]
        (skipped,) = state["skipped"]
        assert "UTF-8" in skipped["why"]
        assert "\\x" in skipped["name"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
    def test_one_that_cannot_be_read(self, bench: Bench) -> None:
        bench.submit("echo 1 > $CK/secret; chmod 000 $CK/secret; echo 2 > $CK/good")
        state = bench.ended()
        assert [m.name for m in bench.manifests()] == ["good"]
        assert state["skipped"][0]["name"] == "secret"


class TestTorn:
    WRITER = """
import os, pathlib, signal, sys, time
ckpt = pathlib.Path(os.environ["CK"])
(ckpt / "epoch-1").write_text("whole")
(ckpt / ".epoch-2").write_text("renamed")
time.sleep({settle})
(ckpt / ".epoch-2").rename(ckpt / "epoch-2")
half = open(ckpt / "epoch-3", "w")
half.write("half of wh")
half.flush()
{then}
"""

    @needs_proc
    @pytest.mark.parametrize("then", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(137)"])
    def test_killed_in_the_middle_of_a_checkpoint(self, every_bench: Bench, then: str) -> None:
        every_bench.submit_python(self.WRITER.format(settle=0.8, then=then))
        state = every_bench.ended()
        assert every_bench.named() == {"epoch-1": b"whole", "epoch-2": b"renamed"}
        (skipped,) = state["skipped"]
        assert skipped["name"] == "epoch-3"
        assert "killed" in skipped["why"]

    @needs_proc
    def test_sigterm_in_the_middle_of_a_checkpoint(self, every_bench: Bench) -> None:
        then = (
            "def last(*_):\n    (ckpt / 'epoch-4').write_text('from the handler'); sys.exit(143)\n"
            "signal.signal(signal.SIGTERM, last)\nprint('halfway')\ntime.sleep(600)"
        )
        every_bench.submit_python(self.WRITER.format(settle=0.8, then=then), settle_seconds=0.7)
        every_bench.said("halfway")
        every_bench.verb("stop", "--why", "interrupted", "--grace", "5")
        state = every_bench.ended()
        assert every_bench.named() == {
            "epoch-1": b"whole",
            "epoch-2": b"renamed",
            "epoch-4": b"from the handler",
        }
        assert [item["name"] for item in state["skipped"]] == ["epoch-3"]

    def test_what_was_cut_off_stays_torn_however_long_the_handler_takes(self, bench: Bench) -> None:
        bench.submit_python(
            """
import os, pathlib, signal, sys, threading, time
ckpt = pathlib.Path(os.environ["CK"])
def last(*_):
    time.sleep(2)  # twice as long as it takes to look quiet
    (ckpt / "epoch-2").write_text("from the handler")
    sys.exit(143)
signal.signal(signal.SIGTERM, last)
half = open(ckpt / "epoch-1", "w")
while True:
    half.write("half of wh")
    half.flush()
    print("halfway")
    time.sleep(0.2)
""",
            settle_seconds=1,
        )
        bench.said("halfway")
        bench.verb("stop", "--why", "interrupted", "--grace", "5")
        state = bench.ended()
        assert bench.named() == {"epoch-2": b"from the handler"}
        assert [item["name"] for item in state["skipped"]] == ["epoch-1"]

    @needs_proc
    def test_sigkill_at_the_end_of_the_grace(self, bench: Bench) -> None:
        bench.submit_python(
            "import os, pathlib, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "ckpt = pathlib.Path(os.environ['CK'])\nprint('ready')\n"
            "while True:\n    (ckpt / 'epoch-1').open('a').write('x' * 10)\n",
        )
        bench.said("ready")
        bench.verb("stop", "--why", "cancelled", "--grace", "0.5")
        state = bench.ended()
        assert bench.manifests() == []
        assert "end of its grace" in state["skipped"][0]["why"]

    @pytest.mark.parametrize("ending", ["exit 0", "exit 1", "set -e; false"])
    def test_an_exit_of_its_own_ships_what_was_written_last(
        self, every_bench: Bench, ending: str
    ) -> None:
        every_bench.submit(f"echo last > $CK/last; {ending}")
        every_bench.ended()
        assert every_bench.named() == {"last": b"last\n"}


class MeddlingStore:
    """Takes everything, and something changes in the entry while it does."""

    keep = None

    def __init__(self, meddle: Callable[[], object]) -> None:
        self.meddle = meddle
        self.keys: list[str] = []

    def put(self, key: str, pieces: Sequence[bytes]) -> None:
        self.keys.append(key)
        self.meddle()


def shipper_of(tmp_path: Path, meddle: Callable[[], object]) -> tuple[Shipper, MeddlingStore]:
    """A shipper that does not run, and its store."""
    job = machine_agent.checked_job(
        {"run": "r", "attempt": 1, "workdir": str(tmp_path), "command": "true"}
    )
    state = State(str(tmp_path / "state.json"), {"checkpoints": [], "skipped": []}, lambda: None)
    shipper = Shipper(job, state, Log(str(tmp_path / "log"), 1 << 30))
    store = MeddlingStore(meddle)
    shipper._store = store
    return shipper, store


@pytest.mark.parametrize("meddling", ["a file more", "a file less", "a file longer", "none"])
def test_what_changes_while_it_is_read_is_not_shipped(tmp_path: Path, meddling: str) -> None:
    entry = tmp_path / "e"
    entry.mkdir()
    for name in ("a", "b"):
        (entry / name).write_text(name)
    meddle: dict[str, Callable[[], object]] = {
        "a file more": lambda: (entry / "c").write_text("c"),
        "a file less": lambda: (entry / "b").unlink(missing_ok=True),
        "a file longer": lambda: (entry / "a").write_text("longer"),
        "none": lambda: None,
    }
    shipper, store = shipper_of(tmp_path, meddle[meddling])
    candidate = Candidate("checkpoint", "e", str(entry), read_tree(str(entry)), 1, 1)
    if meddling == "none":
        shipper._send(candidate)
        assert store.keys[-1] == "manifests/a0001-000001.json"
    else:
        with pytest.raises((Changed, FileNotFoundError)):
            shipper._send(candidate)
        assert not [key for key in store.keys if key.startswith("manifests/")]


def test_an_entry_of_too_many_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = tmp_path / "e"
    entry.mkdir()
    for number in range(20):
        (entry / str(number)).touch()
    monkeypatch.setattr(machine_agent, "MANIFEST_BYTES", 1000)
    shipper, store = shipper_of(tmp_path, lambda: None)
    with pytest.raises(Unshippable, match="too many files"):
        shipper._send(Candidate("checkpoint", "e", str(entry), read_tree(str(entry)), 1, 1))
    assert store.keys == []


class TestOutputs:
    def test_files_folders_and_what_is_missing(self, every_bench: Bench) -> None:
        every_bench.submit(
            "mkdir -p out/adapter; echo a > out/adapter/a; echo m > metrics.json; exit 1",
            outputs=[{"from": "out/adapter"}, {"from": "metrics.json"}, {"from": "nope"}],
        )
        state = every_bench.ended()
        by_name = {m.name: m for m in every_bench.manifests("output")}
        assert every_bench.stored(by_name["out/adapter"]) == {"a": b"a\n"}
        assert every_bench.stored(by_name["metrics.json"]) == {"": b"m\n"}
        assert [o.get("missing", False) for o in state["outputs"]] == [False, False, True]
        assert [o.get("shipped") for o in state["outputs"]] == [True, True, None]

    def test_they_come_after_the_checkpoints(self, bench: Bench) -> None:
        bench.submit("echo 1 > $CK/e1; echo r > result", outputs=[{"from": "result"}])
        bench.ended()
        assert bench.manifests("output")[0].seq > bench.manifests()[0].seq


def test_a_machine_that_dies_leaves_no_manifest_with_holes(bench: Bench) -> None:
    """The supervisor is killed while it ships; what the store lists is whole all the same."""
    bench.submit(
        "for i in $(seq 100); do head -c 3000000 /dev/urandom > $CK/.p; mv $CK/.p $CK/e$i;"
        " sleep 0.02; done"
    )
    bench.shipped("e1")
    os.kill(bench.quick_state()["pid"], signal.SIGKILL)
    for manifest in bench.manifests():
        for blob in manifest.blobs():
            assert (bench.store / blob.key).stat().st_size == blob.size
