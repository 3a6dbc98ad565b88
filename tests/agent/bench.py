"""A machine's agent on the bench: a folder, the verbs as a subprocess, and an end to everything."""

from __future__ import annotations

import functools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpuctl.agent import machine_agent
from gpuctl.store.manifest import Manifest, parse_manifest
from tests.waiting import until

AGENT = Path(machine_agent.__file__)
SECONDS = 20.0  # deadline of every wait; none is expected to take it


@functools.cache
def old_python() -> str | None:
    """Return a Python 3.8, the oldest that the agent must run on, if there is one that runs."""
    found = [*sorted(Path("~/.pyenv/versions").expanduser().glob("3.8.*/bin/python3.8"))]
    for python in [*map(str, found), shutil.which("python3.8")]:
        # pyenv puts names on PATH that lead nowhere.
        if (
            python
            and subprocess.run([python, "-V"], capture_output=True, check=False).returncode == 0
        ):
            return python
    return None


class Bench:
    """One attempt's folder, work folder, checkpoint folder and store."""

    def __init__(self, root: Path, python: str = sys.executable) -> None:
        self.root = root
        self.python = python
        self.dir = root / "agent"
        self.work = root / "work"
        self.checkpoints = self.work / "ckpt"
        self.store = root / "store" / "demo-1a2b3c"
        self.work.mkdir()
        self.marks = f"bench{os.getpid()}x{root.name}"  # in the environment of everything started

    # ---- verbs

    def argv(self, *arguments: str) -> list[str]:
        return [self.python, "-I", str(AGENT), *arguments]

    def call(
        self, *arguments: str, stdin: object = None, timeout: float = 30
    ) -> tuple[int, dict[str, Any]]:
        done = subprocess.run(
            self.argv(*arguments),
            input=b"" if stdin is None else json.dumps(stdin).encode(),
            capture_output=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "BENCH": self.marks},
        )
        lines = done.stdout.splitlines()
        assert len(lines) == 1, (done.stdout, done.stderr)
        assert done.stderr == b""
        answer = json.loads(lines[0])
        assert isinstance(answer, dict)
        return done.returncode, answer

    def verb(self, verb: str, *arguments: str, stdin: object = None) -> dict[str, Any]:
        code, answer = self.call(verb, str(self.dir), *arguments, stdin=stdin)
        assert code == 0, answer
        return answer

    def refused(self, verb: str, *arguments: str, stdin: object = None) -> dict[str, str]:
        code, answer = self.call(verb, str(self.dir), *arguments, stdin=stdin)
        assert code in (1, 2), answer
        error = answer["error"]
        assert set(error) == {"kind", "message"}
        assert isinstance(error, dict)
        return error

    def arm(self, **changes: Any) -> dict[str, Any]:
        orders = {
            "lease_seconds": 60,
            "hard_end": time.time() + 600,
            "end": {"argv": ["true"]},
            "on_lease_end": "end",
            "sync_grace_seconds": 5,
            "end_retry_seconds": 0.2,
        }
        return self.verb("arm", stdin={**orders, **changes})

    def job(self, command: str, **changes: Any) -> dict[str, Any]:
        """A job that ships to the store; `ck` is where its checkpoints go."""
        return {
            "run": "demo-1a2b3c",
            "attempt": 1,
            "workdir": str(self.work),
            "command": command,
            "env": {"CK": str(self.checkpoints), "BENCH": self.marks},
            "checkpoint_dir": str(self.checkpoints),
            "settle_seconds": 0.3,
            "poll_seconds": 0.05,
            "term_grace_seconds": 5,
            "sync_seconds": 10,
            "store": {"kind": "folder", "path": str(self.store)},
            **changes,
        }

    def submit(self, command: str, **changes: Any) -> dict[str, Any]:
        return self.verb("submit", stdin=self.job(command, **changes))

    def submit_python(self, program: str, **changes: Any) -> dict[str, Any]:
        (self.work / "job.py").write_text(program)
        return self.submit(f"exec {shlex.quote(sys.executable)} -u job.py", **changes)

    # ---- what came of it

    def state(self) -> dict[str, Any]:
        job = self.verb("status")["job"]
        assert isinstance(job, dict)
        return job

    def quick_state(self) -> dict[str, Any]:
        """Read the file itself: cheap enough to poll."""
        try:
            state = json.loads((self.dir / "state.json").read_bytes())
        except FileNotFoundError:
            return {}
        assert isinstance(state, dict)
        return state

    def guard(self) -> dict[str, Any]:
        try:
            state = json.loads((self.dir / "guard.json").read_bytes())
        except FileNotFoundError:
            return {}
        assert isinstance(state, dict)
        return state

    def ended(self, seconds: float = SECONDS) -> dict[str, Any]:
        """Wait for the end of the job; return its last state."""
        assert until(lambda: self.quick_state().get("phase") == "ended", seconds), (
            self.quick_state(),
            self.log(),
        )
        return self.state()

    def shipped(self, *names: str, seconds: float = SECONDS) -> None:
        """Wait until checkpoints of these names are in the store."""

        def there() -> bool:
            found = self.quick_state().get("checkpoints", [])
            return set(names) <= {c["name"] for c in found if c["shipped"]}

        assert until(there, seconds), (self.quick_state(), self.log())

    def said(self, text: str, seconds: float = SECONDS) -> None:
        assert until(lambda: text in self.log(), seconds), (self.log(), self.quick_state())

    def log(self, stream: str | None = None) -> str:
        records = machine_agent.read_log(str(self.dir / "log"), 0, 1 << 40)
        wanted = [r for r in records if stream is None or r.stream == stream]
        return b"".join(r.data for r in wanted).decode("utf-8", "backslashreplace")

    def manifests(self, kind: str = "checkpoint") -> list[Manifest]:
        """What is in the store, oldest first, read with the controller's own parser."""
        found = sorted((self.store / "manifests").glob("*.json"))
        read = [parse_manifest(path.read_bytes()) for path in found]
        return [manifest for manifest in read if manifest.kind == kind]

    def stored(self, manifest: Manifest) -> dict[str, bytes]:
        """Return the files of an entry as the store's blobs make them."""
        return {
            file.path: b"".join((self.store / blob.key).read_bytes() for blob in file.blobs)
            for file in manifest.files
        }

    def named(self) -> dict[str, bytes]:
        """Return {name: content} of checkpoints that are one file; the newest version counts."""
        return {m.name: self.stored(m)[""] for m in self.manifests() if "" in self.stored(m)}

    # ---- the end

    def processes(self) -> list[int]:
        """Everything alive that was started from here (Linux)."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environ = (folder / "environ").read_bytes()
                state = (folder / "stat").read_bytes().rpartition(b")")[2].split()[0]
                if f"BENCH={self.marks}".encode() in environ and state != b"Z":
                    found.append(int(folder.name))
        return found

    def clear(self) -> None:
        """End everything. A guard ignores all but SIGKILL."""
        if not Path("/proc/self/environ").exists():
            for pid in (self.guard().get("pid"), self.quick_state().get("pid")):
                if pid:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            return

        def none_left() -> bool:
            left = self.processes()
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        assert until(none_left, SECONDS)
