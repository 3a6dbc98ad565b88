"""Seeing to it that a watchdog guards a home: finding the one there is, starting one.

Apart from the watchdog itself, so that commands which only look are not slowed by what it needs.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from gpuctl.errors import GpuctlError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, alive, keeper_from
from gpuctl.home import Home

_START_DEADLINE_SECONDS = 15.0


def revive(fleet: Fleet) -> None:
    """Start a watchdog where machines are open and none lives: after a reboot, say.

    It settles and ends what is left over while the command goes on; that it cannot be started is
    said, and stops nothing.
    """
    try:
        if watchdog_of(fleet.home) is None and fleet.ledger.machines(open_only=True):
            _start(fleet.home, fleet.environ)
    except OSError as error:
        fleet.say(f"the watchdog could not be started: {error.strerror}; see `gpuctl doctor`")


def ensure_watchdog(home: Home, environ: Mapping[str, str]) -> Keeper:
    """Make sure that a watchdog guards this home; return it.

    Call it after an intent is in the ledger and before the create leaves: a watchdog that is
    just ending looks at the ledger once more after it has let go of its lock.

    Raises:
        GpuctlError: it could not be started; nothing may be rented then.
    """
    deadline = time.monotonic() + _START_DEADLINE_SECONDS
    child: subprocess.Popen[bytes] | None = None
    while time.monotonic() < deadline:
        keeper = _holder(home.watchdog_lock)
        if keeper is not None:
            return keeper
        if child is None or child.poll() is not None:
            child = _start(home, environ)
        time.sleep(0.02)
    raise GpuctlError(
        "The watchdog, which ends machines when everything else fails, could not be started",
        next=f"See {home.watchdog_log}; nothing was rented.",
    )


def watchdog_of(home: Home) -> Keeper | None:
    """Return the watchdog that guards a home now, or None."""
    return _holder(home.watchdog_lock)


def command(home: Home) -> list[str]:
    """Return what starts the watchdog of a home."""
    # -P: a folder called gpuctl in the working directory must not be taken for us.
    return [sys.executable, "-P", "-m", "gpuctl.fleet.watchdog", str(home.path)]


def _start(home: Home, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with home.watchdog_log.open("ab") as log:
        return subprocess.Popen(
            command(home),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**environ, "GPUCTL_HOME": str(home.path)},
            start_new_session=True,
        )


def _holder(lock: Path) -> Keeper | None:
    """Return who holds the lock, or None when nobody does."""
    try:
        with lock.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _named(file)
            return None
    except FileNotFoundError:
        return None


def _named(file: IO[bytes]) -> Keeper | None:
    """Return who wrote its name, or None while the holder of the lock is about to write its own."""
    try:
        keeper = keeper_from(json.loads(file.read()))
    except (ValueError, KeyError):
        return None
    # A dead one's name stands there until its successor has written its own.
    return keeper if keeper is not None and alive(keeper) is not False else None
