"""Renting one machine for a person: rented, ready, guarded, and then left to the watchdog."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from gpuctl.agent.client import AgentRefused
from gpuctl.errors import (
    GpuctlError,
    RemoteError,
    UsageError,
)
from gpuctl.fleet.acquire import Need, acquire, why_refused
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.guard import agent_in, armed_agent
from gpuctl.fleet.guarding import ensure_watchdog
from gpuctl.fleet.keeper import alive, keeper_from, this_process
from gpuctl.fleet.lease import Renewal, keep, renew
from gpuctl.fleet.ready import NotReady, Ready, make_ready, reopen
from gpuctl.fleet.refusals import Refusal, may_say_yes, telling
from gpuctl.fleet.release import release
from gpuctl.ledger import MachineRow
from gpuctl.names import parse_machine_name, slug
from providers.base import Clock, Machine, Offer, ProviderError

AGENT_FOLDER = ".gpuctl/machine"
"""The agent's folder on a provisioned machine, relative to the machine's home."""

Pause = Callable[[float], None]
"""Lets seconds pass; raises when somebody asked to stop. 0 only asks."""


class TooFewGpus(GpuctlError):
    """A machine has fewer GPUs than were paid for. The next offer is tried."""

    kind = "TooFewGpus"


@dataclass(frozen=True, slots=True)
class Provisioned:
    """A machine that answers, is guarded, and is the caller's until its lease ends."""

    row: MachineRow
    ready: Ready


def provision(fleet: Fleet, offers: Sequence[Offer], need: Need, *, pause: Pause) -> Provisioned:
    """Walk down the offers until one machine is usable. Every way out before that releases.

    Args:
        offers: what may be rented, best first.
        pause: for waits that somebody may cut short.

    Raises:
        NothingRentable: no offer led to a usable machine.
        CapReached: no offer did, and one had become dearer than allowed.
        NoCredentials: the last word was that the credentials are refused.
        MayStillBill: something may still be billing; nothing else is rented meanwhile.
    """
    _settle_before(fleet, need)
    keeper = this_process("provision")
    refusals: list[Refusal] = []
    for offer in offers:
        pause(0)
        if not may_say_yes(offer, refusals):
            continue
        fleet.say(
            f"renting {described(offer)} from {offer.provider} at {offer.price_hour} USD an hour"
        )
        try:
            row, machine = acquire(
                fleet,
                offer,
                need,
                keeper,
                guard=lambda: ensure_watchdog(fleet.home, fleet.environ),
            )
        except ProviderError as refused:
            fleet.say(f"{offer.provider} refused: {refused}")
            refusals.append((offer, refused))
            continue
        # A machine may take longer to boot than a short lease lasts.
        renewal = Renewal(fleet, row.name, need.lease_seconds)
        renewal.start()
        try:
            return _handed_over(fleet, row, machine, offer, need, renewal, pause)
        except (NotReady, TooFewGpus, RemoteError) as unfit:
            fleet.say(f"{unfit.message}; releasing it")
            release(fleet, row, why=unfit.message)
            refusals.append((offer, unfit))
        except (Exception, KeyboardInterrupt) as broken:
            # A second Ctrl-C (a BaseException of its own) leaves at once: the watchdog ends it.
            fleet.say(f"releasing {row.name}")
            release(fleet, row, why=type(broken).__name__)
            raise
        finally:
            renewal.stop()
    raise why_refused(telling(refusals))


def _settle_before(fleet: Fleet, need: Need) -> None:
    """End what an earlier gpuctl, that is dead, was renting for the same need.

    Raises:
        MayStillBill: it cannot be shown to be gone; nothing else is rented meanwhile.
    """
    for row in fleet.ledger.machines(open_only=True):
        if _is_cut_short(row, slug(need.middle)):
            fleet.say(f"{row.name}: its provisioning was cut short; ending it first")
            release(fleet, row, why="its provisioning was cut short")


def _is_cut_short(row: MachineRow, middle: str) -> bool:
    keeper, name = keeper_from(row.keeper), parse_machine_name(row.name)
    return (
        name is not None
        and name.middle == middle
        and row.purpose == "provision"
        and keeper is not None
        and keeper.role == "provision"
        and alive(keeper) is False
    )


def described(offer: Offer) -> str:
    """Return what an offer is in a few words."""
    market = "spot" if offer.spot else "on-demand"
    return (
        f"{offer.gpu_count}x {offer.gpu} ({market})" if offer.gpu else f"a CPU machine ({market})"
    )


def extend(fleet: Fleet, row: MachineRow, seconds: float, *, agent_folder: str) -> datetime:
    """Renew a machine's lease, on the machine first; return until when it lasts.

    Args:
        seconds: from now on; cut at the hard end.
        agent_folder: where its agent is, relative to the machine's home.

    Raises:
        UsageError: it has ended, or a run renews it by itself.
        NotReady: it is gone or does not answer.
        RemoteError: its agent does not answer; the lease stays as it was.
    """
    if row.closed:
        raise UsageError(f"{row.name} has ended", machine=row.name)
    if row.borrowed:
        raise UsageError(
            f"{row.name} is Terraform's, and so is its end",
            machine=row.name,
            next="Give its module more hours and apply; that makes a new machine.",
        )
    keeper = keeper_from(row.keeper)
    if keeper is not None and keeper.role == "controller" and alive(keeper) is not False:
        raise UsageError(
            f"{row.name} belongs to the run {row.run}, whose controller renews its lease by itself",
            machine=row.name,
            next=f"Nothing to do; `gpuctl cancel {row.run}` ends it.",
        )
    ready = reopen(fleet, row)
    until = _renewed(fleet, ready, row, seconds, agent_folder)
    keep(fleet, row, ensure_watchdog(fleet.home, fleet.environ), detached=row.detached)
    return until


def _renewed(
    fleet: Fleet, ready: Ready, row: MachineRow, seconds: float, agent_folder: str
) -> datetime:
    """Renew a lease; a machine whose guard is dead, after a reboot say, is given one again."""
    agent = agent_in(ready, row, agent_folder)
    try:
        return renew(fleet, row, seconds, on_machine=agent.renew)
    except AgentRefused as refused:
        if refused.reason != "GuardDied":
            raise
    fleet.say(f"{row.name}: its guard was dead; arming it again")
    agent, _ = armed_agent(ready, row, agent_folder, seconds, clock=fleet.clock)
    return renew(fleet, row, seconds, on_machine=agent.renew)


def _handed_over(
    fleet: Fleet,
    row: MachineRow,
    machine: Machine,
    offer: Offer,
    need: Need,
    renewal: Renewal,
    pause: Pause,
) -> Provisioned:
    fleet.say(f"{row.name}: waiting until it answers")
    waiting = replace(fleet, clock=_Interruptible(fleet.clock, pause))
    ready = make_ready(waiting, row, machine)
    pause(0)
    agent, facts = armed_agent(
        ready, row, AGENT_FOLDER, need.lease_seconds, idle_seconds=need.idle_seconds
    )
    if ready.machine.self_end is None:
        _say_who_ends_it(fleet, row, idle=need.idle_seconds is not None)
    renewal.arm(agent.renew)
    found = len(facts.gpus)
    if found < offer.gpu_count:
        raise TooFewGpus(
            f"{row.name} has {found} GPUs; {offer.gpu_count} were paid for", machine=row.name
        )
    pause(0)
    renewal.stop()
    # The person gets the whole lease, however long the machine took to boot.
    renew(fleet, row, need.lease_seconds, on_machine=agent.renew)
    keep(fleet, row, ensure_watchdog(fleet.home, fleet.environ), detached=False)
    return Provisioned(fleet.ledger.machine(row.name) or row, ready)


def _say_who_ends_it(fleet: Fleet, row: MachineRow, *, idle: bool) -> None:
    more = "; --idle does nothing there" if idle else ""
    fleet.say(
        f"{row.name} cannot end itself: when its lease is over, the watchdog on this computer does "
        f"it; while this computer is away, only `gpuctl reap` elsewhere (docs/reaper.md){more}"
    )


class _Interruptible:
    """A clock whose sleep ends when somebody asks to stop."""

    def __init__(self, clock: Clock, pause: Pause) -> None:
        self._clock = clock
        self._pause = pause

    def now(self) -> datetime:
        return self._clock.now()

    def monotonic(self) -> float:
        return self._clock.monotonic()

    def sleep(self, seconds: float) -> None:
        self._pause(seconds)
