"""Waiting until a machine can really be used: reachable, and a command on it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gpuctl.errors import GpuctlError, RemoteError
from gpuctl.fleet.acquire import access_facts
from gpuctl.fleet.context import Fleet
from gpuctl.ledger import MachineRow
from gpuctl.remote.connection import Connection
from gpuctl.remote.opening import connect
from providers.base import Machine, NotFound, Provider, ProviderError, State

BOOT_DEADLINE_SECONDS = 900.0
ANSWER_DEADLINE_SECONDS = 300.0
_COMMAND_TIMEOUT_SECONDS = 15.0


class NotReady(GpuctlError):
    """A rented machine never became usable. It is the machine's fault: the next offer is tried."""

    kind = "NotReady"


@dataclass(frozen=True, slots=True)
class Ready:
    """A machine that answers."""

    machine: Machine
    connection: Connection


def make_ready(
    fleet: Fleet,
    row: MachineRow,
    machine: Machine,
    *,
    boot_seconds: float = BOOT_DEADLINE_SECONDS,
    answer_seconds: float = ANSWER_DEADLINE_SECONDS,
    check: Callable[[], None] = lambda: None,
) -> Ready:
    """Wait until the machine answers a command; every phase has a deadline.

    Args:
        check: called between the looks; raises when nobody wants the machine any more.

    Raises:
        NotReady: it did not; the caller releases it.
    """
    provider = fleet.provider(row.provider)
    began = fleet.clock.monotonic()
    machine = _booted(fleet, provider, machine, began + boot_seconds, check)
    booted = fleet.clock.monotonic()
    connection = _answering(fleet, machine, booted + answer_seconds, check)
    answered = fleet.clock.monotonic()
    fleet.ledger.record(
        "ready",
        machine=row.name,
        steps={"boot": round(booted - began, 3), "answer": round(answered - booted, 3)},
        access=access_facts(machine.access),
        gpus=machine.gpu_count,
    )
    return Ready(machine, connection)


def reopen(fleet: Fleet, row: MachineRow) -> Ready:
    """Connect to a machine that was ready before.

    Raises:
        NotReady: it is gone, or does not answer.
    """
    provider = fleet.provider(row.provider)
    if row.provider_id is None:
        raise NotReady(f"{row.name} was never seen at {row.provider}", machine=row.name)
    try:
        machine = provider.get(row.provider_id)
    except NotFound as gone:
        raise NotReady(f"{row.name} is gone", machine=row.name) from gone
    except ProviderError as error:
        raise NotReady(
            f"{row.provider} does not say where {row.name} is: {error}",
            machine=row.name,
            may_bill=True,
            next="Try again; the watchdog ends it when its lease runs out.",
        ) from error
    if machine.state is not State.READY or machine.access is None:
        raise NotReady(
            f"{row.name} is {machine.state} ({machine.status})",
            machine=row.name,
            may_bill=machine.state is not State.GONE,
        )
    return Ready(machine, _answering(fleet, machine, fleet.clock.monotonic() + 30, lambda: None))


def _booted(
    fleet: Fleet,
    provider: Provider,
    machine: Machine,
    deadline: float,
    check: Callable[[], None],
) -> Machine:
    said = None
    while True:
        check()
        if machine.state is State.READY and machine.access is not None:
            return machine
        if machine.state in (State.GONE, State.LOST, State.STOPPED):
            raise NotReady(
                f"{machine.name} became {machine.state} ({machine.status}) before it was usable",
                machine=machine.name,
            )
        if machine.status != said:
            said = machine.status
            fleet.ledger.record(
                "observed", machine=machine.name, state=str(machine.state), status=machine.status
            )
        if fleet.clock.monotonic() >= deadline:
            raise NotReady(
                f"{machine.name} was still {machine.status} at the end of its time to boot",
                machine=machine.name,
            )
        fleet.clock.sleep(provider.capabilities.poll_seconds)
        try:
            machine = provider.get(machine.provider_id)
        except NotFound as gone:
            raise NotReady(
                f"{machine.name} vanished while it was booting", machine=machine.name
            ) from gone
        except ProviderError as error:
            fleet.say(f"{machine.name}: {provider.name} did not answer ({error}); asking again")


def _answering(
    fleet: Fleet, machine: Machine, deadline: float, check: Callable[[], None]
) -> Connection:
    pause = 0.2
    while True:
        check()
        try:
            assert machine.access is not None
            connection = connect(machine.access, machine=machine.name, home=fleet.home.path)
            done = connection.run(["true"], timeout=_COMMAND_TIMEOUT_SECONDS)
            if done.exit_code == 0:
                return connection
            trouble = f"a trivial command ended with {done.exit_code}"
        except RemoteError as error:
            trouble = error.message
        if fleet.clock.monotonic() >= deadline:
            raise NotReady(f"{machine.name} does not answer: {trouble}", machine=machine.name)
        fleet.clock.sleep(pause)
        pause = min(pause * 2, 5)
