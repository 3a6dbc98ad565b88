"""The rehearsals of `local`, on a machine that somebody else made and that gpuctl only borrows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from gpuctl.remote.keys import public_key
from tests.clouds.rented import Card, Rented
from tests.faults.rehearsal import Rehearsal

NAME = "gpuctl-trainer-a1b2c3-0123abcd"


@dataclass(frozen=True)
class BorrowedRehearsal(Rehearsal):
    """One home, one job folder, and a machine; what is left of a run is asked of the machine."""

    rented: Rented = field(kw_only=True)
    provider = "borrowed"

    def output(self, **changes: Any) -> dict[str, Any]:
        """What Terraform says of the machine. Nobody here has credentials for its cloud."""
        return {
            "provider": "hetzner",
            "id": "4711",
            "name": NAME,
            "host": "127.0.0.1",
            "port": self.rented.port,
            "user": "root",
            "price_hour": "0.36",
            "gpu": None,
            "gpu_count": 0,
            "region": "hel1",
            "spot": False,
            "expires_at": (datetime.now(UTC) + timedelta(hours=8)).isoformat(),
            "host_keys": [self.rented.public_host_key],
            "key_file": None,
            **changes,
        }

    def adopt(self, **changes: Any) -> Any:
        """Take the machine in, as piped from Terraform."""
        return self.adopt_from(json.dumps({"gpuctl_machine": {"value": self.output(**changes)}}))

    def adopt_from(self, outputs: str) -> Any:
        """Take in what `terraform output -json` printed."""
        done = subprocess.run(
            [sys.executable, "-P", "-m", "gpuctl", "adopt", "--terraform", "-", "--json"],
            input=outputs,
            env=self.environ,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["machines"][0]

    def run(self, spec: str | None = None, *more: str) -> tuple[int, Any, str]:
        """Carry a spec, or the job that counts, to its end on the machine."""
        path = self.write_spec(spec)
        return self.gpuctl("run", path, "--machine", "trainer", "--yes", *more)

    def machine_processes(self) -> list[int]:
        """None: those on the machine have other numbers; see `left_there`."""
        return []

    def machine_folders(self) -> list[str]:
        """What runs left on the machine: claims, folders, processes."""
        claims = [one.name for one in (self.rented.folder / "var-tmp").glob("gpuctl-claim")]
        folders = [one.name for one in (self.rented.folder / "root/.gpuctl").glob("gpuctl-*")]
        own = ("sshd", "sleep 3600")  # the second is its init's
        ours = [line for line in self.rented.processes() if not any(one in line for one in own)]
        return [*claims, *folders, *ours]


@contextmanager
def on_borrowed(folder: Path, card: Card | None = None) -> Iterator[BorrowedRehearsal]:
    """A machine that answers, and a home whose key it takes; nothing is adopted yet."""
    home = folder / "home"
    home.mkdir()
    rented = Rented(folder / "machine", keys=[public_key(home)], card=card)
    rented.boot()
    rented.start_sshd()
    made = BorrowedRehearsal(folder, rented=rented)
    try:
        yield made
    finally:
        made.kill_watchdog()
        rented.remove()
