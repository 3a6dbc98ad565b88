"""What is secret reaches the job, and nothing else: no file, no command line, no other machine."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import Ended, all_released, run
from tests.waiting import until

ACCOUNT_KEYS = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "RUNPOD_API_KEY",
    "VAST_API_KEY",
    "HCLOUD_TOKEN",
    "LAMBDA_API_KEY",
]
SPEC = """
name: secret
secrets: [HF_TOKEN]
preflight: {{run: 'test -n "$HF_TOKEN"'}}
setup: test -n "$HF_TOKEN"
run: |
  printf %s "$HF_TOKEN" | sha256sum | cut -c1-64
  mkdir -p out; env | cut -d= -f1 | sort > out/names
  echo one > "$GPUCTL_CHECKPOINT_DIR/step-1"
  sleep 1.5
  {then}
outputs: [{{from: out, to: ./artifacts}}]
checkpoints: {{settle: 0.2s}}
"""


def canary() -> str:
    return f"canary-{secrets.token_hex(12)}"


def files_with(folder: Path, text: str) -> list[str]:
    """Files below a folder that hold a text, in their content or their name."""
    found = []
    for path in folder.rglob("*"):
        if text in str(path):
            found.append(str(path))
        if path.is_symlink() or not path.is_file():
            continue
        try:
            if text.encode() in path.read_bytes():
                found.append(str(path))
        except FileNotFoundError:
            continue
    return found


@contextmanager
def watched_command_lines(texts: list[str]) -> Iterator[list[str]]:
    """Look at every process's command line again and again; give those that hold a text."""
    seen: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.005):
            for entry in Path("/proc").iterdir():
                if not entry.name.isdigit():
                    continue
                try:
                    said = (entry / "cmdline").read_bytes().decode(errors="replace")
                except OSError:
                    continue
                seen.extend(said for text in texts if text in said)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def with_canaries(rehearsal: Rehearsal) -> dict[str, str]:
    canaries = {name: canary() for name in [*ACCOUNT_KEYS, "HF_TOKEN"]}
    rehearsal.settings.update(canaries)
    return canaries


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="asks /proc")
@pytest.mark.parametrize("then", ["exit 0", "exit 3"])
def test_nowhere_but_in_the_job(rehearsal: Rehearsal, then: str) -> None:
    canaries = with_canaries(rehearsal)
    with watched_command_lines(list(canaries.values())) as seen:
        path = rehearsal.write_spec(SPEC.format(then=then))
        process = rehearsal.start("run", path, "--provider", "local", "--yes", "--json")
        assert until(lambda: "run_state:running" in rehearsal.kinds(), 20), rehearsal.kinds()
        # While it runs: the machine's folder, the ledger and its journal, the agent's own files.
        for text in canaries.values():
            assert files_with(rehearsal.home, text) == []
        out, err = process.communicate(timeout=30)
    assert seen == []
    assert process.returncode == (0 if then == "exit 0" else 1), err
    assert hashlib.sha256(canaries["HF_TOKEN"].encode()).hexdigest() in err
    for text in canaries.values():
        assert text not in out
        assert text not in err
        assert files_with(rehearsal.folder, text) == []
    names = (rehearsal.folder / "job/artifacts/names").read_text().split()
    assert "HF_TOKEN" in names
    assert not {name for name in names if name in ACCOUNT_KEYS}
    assert not {name for name in names if name.startswith(("AWS_", "RUNPOD_", "VAST_", "HCLOUD_"))}
    assert "GPUCTL_HOME" not in names


def test_no_process_of_the_machine_has_an_account_key(rehearsal: Rehearsal) -> None:
    canaries = with_canaries(rehearsal)
    path = rehearsal.write_spec(SPEC.format(then="sleep 60"))
    process = rehearsal.start("run", path, "--provider", "local", "--yes", "--json")
    assert until(lambda: "run_state:running" in rehearsal.kinds(), 20), rehearsal.kinds()
    environments = {}
    for pid in rehearsal.machine_processes():
        try:
            environments[pid] = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
    assert len(environments) >= 3  # its host, the agent's two daemons, the job
    for environment in environments.values():
        for name in ACCOUNT_KEYS:
            assert canaries[name].encode() not in environment
    process.terminate()
    process.communicate(timeout=30)


def test_only_the_job_itself_may_print_it(rehearsal: Rehearsal) -> None:
    canaries = with_canaries(rehearsal)
    ended = run(rehearsal, 'secrets: [HF_TOKEN]\nrun: echo "it is $HF_TOKEN"\n')
    assert ended.code == 0, ended.err
    assert f"it is {canaries['HF_TOKEN']}" in ended.err
    journal = rehearsal.home / "runs" / ended.run["id"] / "log.jsonl"
    assert files_with(rehearsal.home, canaries["HF_TOKEN"]) == [str(journal)]


def test_a_secret_survives_a_recovery(rehearsal: Rehearsal) -> None:
    canaries = with_canaries(rehearsal)
    spec = """
secrets: [HF_TOKEN]
run: |
  [ "$GPUCTL_ATTEMPT" = 1 ] && sleep 60
  test -n "$HF_TOKEN"
"""
    ended = run(rehearsal, spec, "--rehearse-interruption", "1s")
    assert (ended.code, ended.outcomes) == (0, ["interrupted", "completed"]), ended.err
    assert files_with(rehearsal.folder, canaries["HF_TOKEN"]) == []
    rehearsal.settings.clear()  # with those keys `audit` would ask every cloud
    all_released(rehearsal, ended)


def test_a_crash_report_has_no_secret(rehearsal: Rehearsal) -> None:
    """A store that cannot be opened is an error; its text is not the key that it was tried with."""
    canaries = with_canaries(rehearsal)
    rehearsal.settings["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:9"
    rehearsal.settings["AWS_MAX_ATTEMPTS"] = "1"
    ended = Ended(
        *rehearsal.gpuctl(
            "run",
            rehearsal.write_spec("run: echo x\ncheckpoints: {store: 's3://bucket/x'}\n"),
            "--provider",
            "local",
            "--yes",
        )
    )
    assert ended.code == 1
    for text in canaries.values():
        assert text not in ended.err
        assert files_with(rehearsal.folder, text) == []


def test_a_missing_secret_rents_nothing(rehearsal: Rehearsal) -> None:
    rehearsal.settings["HF_TOKEN"] = ""
    path = rehearsal.write_spec("secrets: [HF_TOKEN, WANDB_API_KEY]\nrun: echo x\n")
    code, document, err = rehearsal.gpuctl("run", path, "--provider", "local", "--yes")
    assert code == 2, err
    assert "WANDB_API_KEY" in document["error"]["message"]
    assert "nothing was rented" in document["error"]["next"]
    assert rehearsal.kinds() == []
    assert rehearsal.machine_folders() == []
