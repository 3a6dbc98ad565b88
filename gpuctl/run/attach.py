"""Picking up an attempt that another process left behind."""

from __future__ import annotations

from gpuctl.errors import RemoteError
from gpuctl.fleet.guard import agent_in
from gpuctl.fleet.ready import NotReady, reopen
from gpuctl.ledger import AttemptRow, MachineRow
from gpuctl.run.follow import told_interrupted
from gpuctl.run.launch import agent_folder
from gpuctl.run.recover import AttemptEnd
from gpuctl.run.work import Live, Work


def attach(work: Work, attempt: AttemptRow) -> tuple[MachineRow, Live] | None:
    """Reach the job of an attempt that has no end in the ledger; None when it cannot be.

    An older or newer gpuctl may have sent the agent: the protocol is the same.
    """
    row = work.fleet.ledger.machine(attempt.machine)
    if row is None or row.closed or row.destroy_asked_at is not None:
        return None
    try:
        ready = reopen(work.fleet, row)
        agent = agent_in(ready, row, agent_folder(work.run_id, attempt.number))
        if agent.status().job is None:
            return None  # its controller died before the job was handed over
    except (NotReady, RemoteError) as error:
        work.report.warn(f"{row.name} cannot be picked up: {error.message}")
        return None
    return row, Live(attempt.number, row.name, ready.connection, agent)


def end_unwatched(work: Work, attempt: AttemptRow) -> AttemptEnd:
    """Say how an attempt ended that nobody watched to its end."""
    if attempt.machine and told_interrupted(work, attempt.machine):
        return AttemptEnd("interrupted", f"{attempt.machine} was taken away")
    return AttemptEnd("lost", "its controller died before it ended")
