"""Opening what a command works on: the home, its ledger and the fleet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from gpuctl.fleet.context import Fleet, Say, silent
from gpuctl.home import open_home
from gpuctl.ledger import Ledger
from providers.base import SystemClock


@contextmanager
def opened(say: Say = silent) -> Iterator[Fleet]:
    """Open the home that the environment names; closed again at the end.

    Raises:
        UsageError: the home cannot be used.
        LedgerError: the ledger cannot.
    """
    environ = dict(os.environ)
    home = open_home(environ)
    clock = SystemClock()
    with Ledger.open(home.ledger, clock=clock) as ledger:
        yield Fleet(home, ledger, clock, environ, say)
