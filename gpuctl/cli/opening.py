"""Opening what a command works on: the home, its ledger and the fleet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from gpuctl.fleet import guarding
from gpuctl.fleet.context import Fleet, Say, silent
from gpuctl.home import open_home
from gpuctl.ledger import Ledger
from providers.base import SystemClock


@contextmanager
def opened(say: Say = silent, *, guard: bool = True) -> Iterator[Fleet]:
    """Open the home that the environment names; closed again at the end.

    Args:
        guard: see that a watchdog lives where machines are open.

    Raises:
        UsageError: the home cannot be used.
        LedgerError: the ledger cannot.
    """
    home = open_home(os.environ)
    environ = {**os.environ, "GPUCTL_HOME": str(home.path)}
    clock = SystemClock()
    with Ledger.open(home.ledger, clock=clock) as ledger:
        fleet = Fleet(home, ledger, clock, environ, say)
        if guard:
            guarding.revive(fleet)
        yield fleet
