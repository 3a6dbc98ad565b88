"""The machine's own timer: armed before anything else happens there (promise 5)."""

from __future__ import annotations

from typing import Literal

from gpuctl.agent.client import AgentClient, Probe, find_python, guard_orders
from gpuctl.fleet.deadlines import by_this_clock
from gpuctl.fleet.lease import sync_grace
from gpuctl.fleet.ready import Ready
from gpuctl.ledger import MachineRow
from providers.base import Clock, SelfEnd, SystemClock

_CLOCK = SystemClock()


def armed_agent(
    ready: Ready,
    row: MachineRow,
    folder: str,
    lease_seconds: float,
    *,
    on_lease_end: Literal["end", "finish"] = "end",
    idle_seconds: float | None = None,
    clock: Clock = _CLOCK,
) -> tuple[AgentClient, Probe]:
    """Send the agent and have it guard the lease; return it, and the facts of the machine.

    Args:
        folder: of the agent, relative to the machine's home.
        on_lease_end: "finish" lets a job that runs come to its end first.
        idle_seconds: end the machine when nobody has used it for so long.

    Raises:
        RemoteError: the machine does not answer, or has no Python for the agent.
    """
    end = ready.machine.self_end or SelfEnd()
    row = by_this_clock(row, clock)
    home = ready.connection.home
    return AgentClient.begin(
        ready.connection,
        f"{home}/{folder}",
        home,
        guard_orders(
            lease_seconds=lease_seconds,
            hard_end=row.hard_end,
            hard_seconds=(row.hard_end - clock.now()).total_seconds(),
            end_argv=end.argv,
            end_signal_pid=end.signal_pid,
            on_lease_end=on_lease_end,
            sync_grace_seconds=sync_grace(lease_seconds),
            idle_seconds=idle_seconds,
        ),
        machine=row.name,
    )


def agent_in(ready: Ready, row: MachineRow, folder: str) -> AgentClient:
    """Return the client of an agent that is on a machine, or will be.

    Raises:
        RemoteError: the machine does not answer, or has no Python for the agent.
    """
    connection = ready.connection
    python = find_python(connection, machine=row.name)
    return AgentClient(connection, python, f"{connection.home}/{folder}", machine=row.name)
