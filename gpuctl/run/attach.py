"""Picking up an attempt that another process left behind."""

from __future__ import annotations

from gpuctl.agent.client import AgentClient
from gpuctl.errors import RemoteError, StoreError
from gpuctl.fleet.guard import agent_in, armed_agent
from gpuctl.fleet.ready import NotReady, Ready, reopen
from gpuctl.ledger import AttemptRow, MachineRow
from gpuctl.printable import printable
from gpuctl.run.follow import told_interrupted
from gpuctl.run.launch import agent_folder
from gpuctl.run.recover import AttemptEnd, Outcome
from gpuctl.run.relay import needs_relay, outbox_of
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
    return row, Live(attempt.number, row.name, ready.connection, agent, _outbox(work, ready, agent))


def _outbox(work: Work, ready: Ready, agent: AgentClient) -> str | None:
    try:
        return outbox_of(agent.directory) if needs_relay(work, ready.machine) else None
    except StoreError as error:
        # A store that is away must not cost the machine, which may have the only copy.
        work.report.warn(error.message)
        return None


def let_it_finish(work: Work, row: MachineRow, number: int) -> None:
    """From now on the machine carries the job on to its end, whoever dies here."""
    try:
        armed_agent(
            reopen(work.fleet, row),
            row,
            agent_folder(work.run_id, number),
            work.options.lease_seconds,
            on_lease_end="finish",
        )
    except (NotReady, RemoteError) as error:
        work.report.warn(f"{row.name} ends with its lease when we die: {error.message}")


def end_unwatched(work: Work, attempt: AttemptRow) -> AttemptEnd:
    """Say how an attempt ended that nobody watched to its end.

    Raises:
        StoreError: the store, where the machine left word of it, cannot be read.
    """
    told = end_in_store(work, attempt.number)
    if told is not None:
        return told
    if attempt.machine and told_interrupted(work, attempt.machine):
        return AttemptEnd("interrupted", f"{attempt.machine} was taken away")
    return AttemptEnd("lost", "its controller died before it ended")


def end_in_store(work: Work, number: int) -> AttemptEnd | None:
    """Say how an attempt ended by what its agent left in the store; None when it left nothing.

    Raises:
        StoreError: the store cannot be read.
    """
    ending = work.store.ending(number)
    if ending is None:
        return None
    there = {one.seq for one in work.store.manifests() if one.attempt == number}
    if any(output.shipped and output.seq not in there for output in ending.outputs):
        return None  # the store has lost some of it: then it does not count as done
    missing = [output.source for output in ending.outputs if not output.shipped]
    if ending.outcome == "completed":
        shortfall = f"outputs that were not there: {', '.join(missing)}" if missing else ""
        return AttemptEnd("completed", shortfall, ending.exit_code)
    if ending.outcome == "lease":
        return AttemptEnd("lost", ending.reason)
    outcome: Outcome = ending.outcome
    return AttemptEnd(outcome, printable(ending.reason), ending.exit_code)
