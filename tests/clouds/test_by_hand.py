"""`make clouds`: all emulated clouds at once, used by what it prints, and ended by Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clouds.__main__ import CLOUDS
from tests.clouds.rented import why_not
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def clouds(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The program, as `make clouds` starts it; its folders below ``tmp_path``."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.clouds"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    yield process
    process.kill()
    process.communicate(timeout=10)


def printed(process: subprocess.Popen[str]) -> dict[str, str]:
    """What is to be exported, up to the line that says that this was all."""
    assert process.stdout is not None
    found = {}
    for line in process.stdout:
        if line.startswith("#"):
            return found
        word, setting = shlex.split(line)
        assert word == "export"
        name, _, value = setting.partition("=")
        found[name] = value
    raise AssertionError("it ended")


def gpuctl(settings: dict[str, str], folder: Path, *arguments: str) -> tuple[int, Any, str]:
    """Exit code, JSON and stderr of a command, with those settings and nobody's own."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gpuctl", *arguments, "--json"],
        env={**kept, "HOME": str(folder), "NO_COLOR": "1", **settings},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def test_a_rehearsal_by_hand(clouds: subprocess.Popen[str], tmp_path: Path) -> None:
    settings = printed(clouds)
    assert {"RUNPOD_API_KEY", "VAST_API_KEY", "HCLOUD_TOKEN", "GPUCTL_HOME"} <= set(settings)
    home = tmp_path / "person"
    home.mkdir()
    code, document, err = gpuctl(settings, home, "quote", "--gpu", "none", "--limit", "5000")
    assert code == 0, err
    live = {one["provider"] for one in document["offers"] if one["source"] == "live"}
    assert live >= set(CLOUDS), (live, document["errors"])
    if why_not() is None:
        arguments = ("--provider", "vastai", "--gpu", "RTX-4090", "--yes")
        code, document, err = gpuctl(settings, home, "provision", *arguments)
        assert code == 0, err
        name = document["machine"]["name"]
        code, document, err = gpuctl(settings, home, "terminate", name, "--yes")
        assert (code, document["receipts"][0]["confirmed"]) == (0, True), err
    code, document, err = gpuctl(settings, home, "audit")
    assert (code, document["billing"]) == (0, []), (document, err)
    clouds.send_signal(signal.SIGINT)
    assert clouds.wait(60) == 0
    assert not list(tmp_path.glob("gpuctl-clouds-*"))
    mark = settings["GPUCTL_HOME"].encode()
    assert until(lambda: not running_with(mark), 60), running_with(mark)


def running_with(mark: bytes) -> list[str]:
    """Processes that have this in their command: the watchdog of a home that is gone, say."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it has just ended
            if mark in command:
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found
