"""A job that counts, run by the real command line; what is left of it asked of the system."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpuctl.fleet.keeper import process_started
from gpuctl.ledger import Event, Ledger
from providers.base import SystemClock
from tests.waiting import until

STEPS = 12

TRAIN = """
name: count
run: |
  start=1
  if [ -n "$GPUCTL_RESUME_FROM" ]; then start=$(( $(cat "$GPUCTL_RESUME_FROM") + 1 )); fi
  for i in $(seq $start {steps}); do
    echo "step $i"
    echo $i > "$GPUCTL_CHECKPOINT_DIR/.s"
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$i"
    sleep 0.2
  done
  mkdir -p out
  echo "$(cat "$GPUCTL_CHECKPOINT_DIR/step-{steps}") from attempt $GPUCTL_ATTEMPT" > out/result.txt
checkpoints: {{keep: 3}}
outputs: [{{from: out, to: ./artifacts}}]
"""

# Waits of minutes for a machine that never answers, shortened; see `Rehearsal.hasty`.
IMPATIENT = (
    "from gpuctl.fleet import ready; "
    "ready.make_ready.__kwdefaults__.update(boot_seconds=8.0, answer_seconds=8.0)"
)


@dataclass(frozen=True)
class Rehearsal:
    """One home, one job folder, and the command line as a user has it."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)  # added to the caller's environment
    provider = "local"
    hasty = ""  # Python that shortens, in gpuctl's own process, waits that are right for a cloud

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def environ(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("GPUCTL_", "AWS_"))}
        return {**kept, "GPUCTL_HOME": str(self.home), "NO_COLOR": "1", **self.settings}

    def write_spec(self, text: str | None = None) -> Path:
        job = self.folder / "job"
        job.mkdir(exist_ok=True)
        path = job / "train.yaml"
        path.write_text(text if text is not None else TRAIN.format(steps=STEPS))
        return path

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        program = ["-m", "gpuctl"]
        if self.hasty:
            program = ["-c", f"{self.hasty}\nfrom gpuctl.cli.entry import main\nmain()"]
        return subprocess.Popen(
            [sys.executable, "-P", *program, *map(str, arguments)],
            env=self.environ,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def gpuctl(self, *arguments: str | Path, seconds: float = 90) -> tuple[int, Any, str]:
        """Return exit code, the JSON on stdout, and stderr."""
        process = self.start(*arguments, "--json")
        out, err = process.communicate(timeout=seconds)
        return process.returncode, json.loads(out) if out.strip() else None, err

    def events(self) -> Sequence[Event]:
        if not (self.home / "ledger.db").exists():
            return ()
        with Ledger.open(self.home / "ledger.db", clock=SystemClock()) as ledger:
            return ledger.events()

    def kinds(self) -> list[str]:
        return [
            f"run_state:{e.facts['state']}" if e.kind == "run_state" else e.kind
            for e in self.events()
        ]

    def run_id(self) -> str:
        return next(e.run for e in self.events() if e.kind == "run_opened" and e.run)

    def machine_processes(self) -> list[int]:
        """Processes that belong to a machine of this home, by their environment or command."""
        mark = str(self.home / "local").encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if mark in told and process_started(int(entry.name)) is not None:
                found.append(int(entry.name))
        return found

    def machine_folders(self) -> list[str]:
        folder = self.home / "local" / "machines"
        return sorted(p.name for p in folder.iterdir()) if folder.exists() else []

    def nothing_is_left(self) -> bool:
        return not self.machine_folders() and not self.machine_processes()

    def watchdog_pid(self) -> int | None:
        try:
            return int(json.loads((self.home / "watchdog.lock").read_text())["pid"])
        except (OSError, ValueError, KeyError):
            return None

    def kill_watchdog(self) -> None:
        pid = self.watchdog_pid()
        if pid is not None and process_started(pid) is not None:
            os.kill(pid, signal.SIGKILL)
            until(lambda: process_started(pid) is None, 5)
