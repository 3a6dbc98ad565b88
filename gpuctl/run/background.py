"""A controller without a terminal: what `--detach` leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime

from gpuctl.errors import GpuctlError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import keeper_from
from gpuctl.home import open_home
from gpuctl.ledger import Ledger, RunRow
from gpuctl.run.controller import Controller
from gpuctl.run.stopping import StopRequest, stopping_on_signals
from providers.base import SystemClock

_TAKE_OVER_SECONDS = 30.0


def detach(fleet: Fleet, run_id: str) -> RunRow:
    """Start a background controller for a run; return when it has taken charge.

    Raises:
        GpuctlError: it did not; nothing was rented.
    """
    log_file = fleet.home.runs / run_id / "controller.log"
    log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with log_file.open("ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "gpuctl.run.background", run_id],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**fleet.environ, "GPUCTL_HOME": str(fleet.home.path)},
            start_new_session=True,
        )
    deadline = time.monotonic() + _TAKE_OVER_SECONDS
    while time.monotonic() < deadline and child.poll() is None:
        run = fleet.ledger.run(run_id)
        keeper = keeper_from(run.keeper) if run else None
        if run is not None and keeper is not None and keeper.pid == child.pid:
            return run
        time.sleep(0.05)
    raise GpuctlError(
        f"The background controller of {run_id} did not start", next=f"See {log_file}."
    )


class _LogReporter:
    """Writes steps and warnings to the process's log. The job's output is in the journal."""

    def step(self, text: str) -> None:
        """Write one line."""
        stamp = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError):  # a full disk must not end a run that could go on
            sys.stdout.write(f"{stamp} {text}\n")
            sys.stdout.flush()

    def warn(self, text: str) -> None:
        """Write one line that stands out."""
        self.step(f"warning: {text}")

    def output(self, stream: str, text: str) -> None:
        """Leave it to the journal."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Say nothing: nobody is watching."""


def main() -> None:
    """Carry the run that is named on the command line."""
    os.umask(0o077)
    report = _LogReporter()
    stop = StopRequest()
    home = open_home()
    clock = SystemClock()
    with stopping_on_signals(stop), Ledger.open(home.ledger, clock=clock) as ledger:
        fleet = Fleet(home, ledger, clock, dict(os.environ), report.step)
        end = Controller(fleet, sys.argv[1], stop, report, in_background=True).carry()
    if end.error is not None:
        report.warn(end.error.message)
        sys.exit(int(end.error.exit_code))


if __name__ == "__main__":
    main()
