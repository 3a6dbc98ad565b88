"""Waiting until a machine can really be used: reachable, and a command on it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from gpuctl.errors import GpuctlError, RemoteError
from gpuctl.fleet.access import access_facts, as_machine
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.ssh_config import follow_ledger
from gpuctl.fleet.under_way import seconds_under_way
from gpuctl.ledger import MachineRow
from gpuctl.remote.connection import Connection
from gpuctl.remote.keys import key_path
from gpuctl.remote.opening import connect
from providers.base import LocalAccess, Machine, NotFound, Provider, ProviderError, SshAccess, State

BOOT_DEADLINE_SECONDS = 900.0
ANSWER_DEADLINE_SECONDS = 300.0
_COMMAND_TIMEOUT_SECONDS = 15.0


class NotReady(GpuctlError):
    """A rented machine never became usable. It is the machine's fault: the next offer is tried."""

    kind = "NotReady"


@dataclass(frozen=True, slots=True)
class _Answer:
    """The first command that a machine answered."""

    connection: Connection
    access: SshAccess | LocalAccess | None  # the way in that worked comes first
    steps: Mapping[str, float]  # seconds; see `make_ready`
    identity: str | None = None  # the key that it took, unless that is the home's own


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

    The ledger gets the seconds of each step: "boot", as its provider tells; "wait" from there to
    the attempt that succeeded; over SSH that attempt's "tcp", "banner" and "login"; and "answer",
    the first command.

    Args:
        check: called between the looks; raises when nobody wants the machine any more.

    Raises:
        NotReady: it did not; the caller releases it.
    """
    provider = fleet.provider(row.provider)
    began = fleet.clock.monotonic()
    machine = _booted(fleet, provider, row, machine, began + boot_seconds, check)
    booted = fleet.clock.monotonic()
    answer = _answering(fleet, machine, booted + answer_seconds, check)
    steps = {"boot": booted - began, **answer.steps}
    fleet.ledger.record(
        "ready",
        machine=row.name,
        steps={name: round(seconds, 3) for name, seconds in steps.items()},
        access=access_facts(answer.access, identity=answer.identity),
        gpus=machine.gpu_count,
    )
    follow_ledger(fleet)
    return Ready(machine, answer.connection)


def reopen(fleet: Fleet, row: MachineRow) -> Ready:
    """Connect to a machine that was ready before.

    Raises:
        NotReady: it is gone, or does not answer.
    """
    if row.borrowed:
        answer = _answering(fleet, as_machine(row), fleet.clock.monotonic() + 30, lambda: None)
        return Ready(as_machine(row), answer.connection)
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
    answer = _answering(fleet, machine, fleet.clock.monotonic() + 30, lambda: None)
    return Ready(machine, answer.connection)


def _booted(
    fleet: Fleet,
    provider: Provider,
    row: MachineRow,
    machine: Machine,
    deadline: float,
    check: Callable[[], None],
) -> Machine:
    said, shown = None, False
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
            machine, shown = provider.get(machine.provider_id), True
        except NotFound as gone:
            if shown or seconds_under_way(fleet, row, provider.capabilities) <= 0:
                raise NotReady(
                    f"{machine.name} vanished while it was booting", machine=machine.name
                ) from gone
        except ProviderError as error:
            fleet.say(f"{machine.name}: {provider.name} did not answer ({error}); asking again")


def _answering(
    fleet: Fleet, machine: Machine, deadline: float, check: Callable[[], None]
) -> _Answer:
    connection = connect(machine.access, machine=machine.name, home=fleet.home.path)
    try:
        return _first_answer(fleet, machine, connection, deadline, check)
    except BaseException:
        connection.close()
        raise


def _first_answer(
    fleet: Fleet,
    machine: Machine,
    connection: Connection,
    deadline: float,
    check: Callable[[], None],
) -> _Answer:
    began = fleet.clock.monotonic()
    pause = 0.2
    while True:
        check()
        tried = fleet.clock.monotonic()
        try:
            done = connection.run(["true"], timeout=_COMMAND_TIMEOUT_SECONDS)
            if done.exit_code == 0:
                took = fleet.clock.monotonic() - tried
                return _answer(fleet, machine, connection, tried - began, took)
            trouble = f"a trivial command ended with {done.exit_code}"
        except RemoteError as error:
            trouble = error.message
        if fleet.clock.monotonic() >= deadline:
            raise NotReady(f"{machine.name} does not answer: {trouble}", machine=machine.name)
        fleet.clock.sleep(pause)
        pause = min(pause * 2, 5)


def _answer(
    fleet: Fleet, machine: Machine, connection: Connection, waited: float, took: float
) -> _Answer:
    if not isinstance(machine.access, SshAccess):
        return _Answer(connection, machine.access, {"wait": waited, "answer": took})
    from gpuctl.remote.ssh import SshConnection

    assert isinstance(connection, SshConnection)
    login = connection.steps
    answer = max(0.0, took - sum(login.values()))
    identity = connection.identity
    own = str(key_path(fleet.home.path))
    return _Answer(
        connection,
        _first(machine.access, connection.address),
        {"wait": waited, **login, "answer": answer},
        None if identity == own else identity,
    )


def _first(access: SshAccess, worked: SshAccess) -> SshAccess:
    """Put the way in that worked first; folder and environment stay as they are."""
    if worked is access:
        return access
    ways = (access, *access.alternatives)
    others = tuple(replace(way, alternatives=()) for way in ways if way is not worked)
    return replace(
        worked, folder=access.folder, env=access.env, path=access.path, alternatives=others
    )
