"""One run at work: what its phases share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gpuctl.agent.client import AgentClient
from gpuctl.errors import GpuctlError
from gpuctl.fleet.context import Fleet
from gpuctl.ledger import RunRow
from gpuctl.remote.connection import Connection
from gpuctl.run.journal import Journal
from gpuctl.run.prepare import Options
from gpuctl.run.reporting import Reporter
from gpuctl.run.stopping import StopRequest
from gpuctl.spec import RunSpec
from gpuctl.store import Store


@dataclass(frozen=True, slots=True)
class Work:
    """A run, its spec and everything that its phases talk to."""

    fleet: Fleet
    run_id: str
    spec: RunSpec
    named: tuple[str, ...]  # providers that the command line named
    options: Options
    secrets: Mapping[str, str] = field(repr=False)
    store: Store
    stop: StopRequest
    report: Reporter
    journal: Journal

    def row(self) -> RunRow:
        """Return the run as the ledger has it now."""
        row = self.fleet.ledger.run(self.run_id)
        if row is None:
            raise GpuctlError(f"The ledger has no run {self.run_id}")
        return row


def scratch(work: Work) -> Path:
    """Return the folder here for what is only passed on."""
    return work.fleet.home.path / "scratch"


@dataclass(frozen=True, slots=True)
class Live:
    """An attempt whose job has been handed to its machine."""

    number: int
    machine: str
    connection: Connection
    agent: AgentClient
    outbox: str | None = None  # on the machine, where the store cannot be reached from there
