"""Every way out of `provision` before its end releases what was rented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from gpuctl.agent.client import AgentRefused
from gpuctl.errors import (
    CapReached,
    Interrupted,
    MayStillBill,
    NoCredentials,
    NothingRentable,
    RemoteError,
    UsageError,
)
from gpuctl.fleet import provision as phase
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, this_process
from gpuctl.fleet.lease import keep
from gpuctl.fleet.provision import extend, provision
from gpuctl.fleet.ready import NotReady, Ready
from gpuctl.ledger import MachineRow
from providers.base import Ambiguous, AuthFailed, Machine, Offer, PriceChanged, ProviderError
from tests.clouds.memory_cloud import HandClock, MemoryCloud, no_capacity

NEED = Need("demo", 7200, "provision", timedelta(hours=24))
DEAD = Keeper("provision", this_process("provision").host, "an earlier boot", 1, "0")


class StubConnection:
    home = "/home"


class StubAgent:
    """Stands in for the agent on a machine of a cloud in memory, which has none."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.renewed: list[float] = []

    def armed(self) -> tuple[StubAgent, Any]:
        class Found:
            gpus = (None,) * self.gpus

        return self, Found

    def renew(self, seconds: float) -> float:
        self.renewed.append(seconds)
        return seconds


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> StubAgent:
    stub = StubAgent()
    monkeypatch.setattr(phase, "make_ready", lambda _f, _r, m: Ready(m, StubConnection()))
    monkeypatch.setattr(phase, "armed_agent", lambda *_, **__: stub.armed())
    monkeypatch.setattr(phase, "ensure_watchdog", lambda *_: this_process("watchdog"))
    return stub


def readiness(monkeypatch: pytest.MonkeyPatch, *outcomes: BaseException | None) -> None:
    """Let the machines, one after the other, be ready or fail."""
    left = list(outcomes)

    def make_ready(_fleet: Fleet, _row: MachineRow, machine: Machine) -> Ready:
        if left and (error := left.pop(0)):
            raise error
        return Ready(machine, StubConnection())  # type: ignore[arg-type]

    monkeypatch.setattr(phase, "make_ready", make_ready)


def go(_seconds: float) -> None:
    """Nobody asks to stop."""


def two(cloud: MemoryCloud) -> list[Offer]:
    return [cloud.offer(id="o1"), cloud.offer(id="o2", price="1.10")]


def test_a_machine_is_left_to_the_watchdog_with_a_whole_lease(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent, clock: HandClock
) -> None:
    done = provision(fleet, two(cloud), NEED, pause=go)
    assert done.row.keeper is not None
    assert done.row.keeper["role"] == "watchdog"
    assert done.row.lease_until == clock.now() + timedelta(seconds=7200)
    assert agent.renewed == [7200]
    assert cloud.books()[:2] == (1, 1)


def test_it_says_what_guards_the_machine_does_not_have(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = cloud.create
    note = "no timer of the cloud's own ends it"
    monkeypatch.setattr(cloud, "create", lambda order: replace(create(order), notes=(note,)))
    said: list[str] = []
    fleet.say = said.append
    done = provision(fleet, two(cloud), NEED, pause=go)
    assert f"{done.row.name}: {note}" in said
    [line] = [one for one in said if "cannot end itself" in one]
    assert "gpuctl reap" in line, "a machine without a way to end itself, as Hetzner's are"


@pytest.mark.parametrize(
    "trouble", [NotReady("never answered"), RemoteError("needs python3"), None]
)
def test_an_unfit_machine_is_released_and_the_next_is_tried(
    fleet: Fleet,
    cloud: MemoryCloud,
    agent: StubAgent,
    monkeypatch: pytest.MonkeyPatch,
    trouble: BaseException | None,
) -> None:
    readiness(monkeypatch, trouble)
    if trouble is None:  # it answers, and has fewer GPUs than were paid for
        counts = iter([0, 1])
        monkeypatch.setattr(phase, "armed_agent", lambda *_, **__: StubAgent(next(counts)).armed())
    done = provision(fleet, two(cloud), NEED, pause=go)
    assert cloud.books()[:2] == (2, 1)
    assert done.row.offer_id == "o2"
    first = fleet.ledger.machines()[0]
    assert (first.closed_by, len(first.confirmed_by)) == ("gone", 2)


@pytest.mark.parametrize("trouble", [KeyboardInterrupt(), ZeroDivisionError(), Interrupted("x")])
def test_whatever_breaks_releases_and_goes_on(
    fleet: Fleet,
    cloud: MemoryCloud,
    agent: StubAgent,
    monkeypatch: pytest.MonkeyPatch,
    trouble: BaseException,
) -> None:
    readiness(monkeypatch, trouble)
    with pytest.raises(type(trouble)):
        provision(fleet, two(cloud), NEED, pause=go)
    assert cloud.books()[:2] == (1, 0)
    assert fleet.ledger.machines(open_only=True) == []


def test_asked_to_stop_before_anything_is_rented_rents_nothing(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent
) -> None:
    def stop(_seconds: float) -> None:
        raise Interrupted("Stopped by SIGINT")

    with pytest.raises(Interrupted):
        provision(fleet, two(cloud), NEED, pause=stop)
    assert cloud.books() == (0, 0, 0)


@pytest.mark.parametrize("moment", [1, 2])
def test_asked_to_stop_at_any_moment_leaves_nothing(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent, moment: int
) -> None:
    asked = iter(range(10))

    def stop(_seconds: float) -> None:
        if next(asked) == moment:
            raise Interrupted("Stopped by SIGTERM")

    with pytest.raises(Interrupted):
        provision(fleet, two(cloud), NEED, pause=stop)
    assert cloud.books()[:2] == (1, 0)


def test_leaving_at_once_releases_nothing_here(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    class AtOnce(BaseException):
        pass

    readiness(monkeypatch, AtOnce())
    with pytest.raises(AtOnce):
        provision(fleet, two(cloud), NEED, pause=go)
    # The row stays open with a dead keeper soon: that is the watchdog's work.
    (row,) = fleet.ledger.machines(open_only=True)
    assert row.keeper is not None
    assert row.keeper["role"] == "provision"


def test_a_release_that_cannot_be_proven_is_the_louder_error(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    readiness(monkeypatch, NotReady("never answered"))
    cloud.faults.destroy = [AuthFailed("revoked")]
    with pytest.raises(MayStillBill):
        provision(fleet, two(cloud), NEED, pause=go)
    assert cloud.books()[:2] == (1, 1)  # and nothing else was rented meanwhile


@pytest.mark.parametrize(
    ("refusal", "error"),
    [
        (no_capacity, NothingRentable),
        (lambda: PriceChanged("dearer now"), CapReached),
        (lambda: AuthFailed("revoked"), NoCredentials),
    ],
)
def test_when_every_offer_is_refused_the_last_word_decides(
    fleet: Fleet,
    cloud: MemoryCloud,
    agent: StubAgent,
    refusal: Callable[[], ProviderError],
    error: type[Exception],
) -> None:
    cloud.faults.create = [refusal(), refusal()]
    with pytest.raises(error):
        provision(fleet, two(cloud), NEED, pause=go)
    assert cloud.books() == (0, 0, 0)


def cut_short(fleet: Fleet, cloud: MemoryCloud, need: Need) -> str:
    """A machine that a gpuctl was renting when it was killed; its create was never answered."""
    cloud.faults.create_reply_lost = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpuctl.fleet.acquire.settle", _killed)
        with pytest.raises(RuntimeError):  # as if killed before the answer was written down
            acquire(fleet, cloud.offer(), need, DEAD, guard=lambda: None)
    return fleet.ledger.machines()[-1].name


def _killed(*_: object) -> None:
    raise RuntimeError("killed")


def test_what_a_dead_gpuctl_was_renting_is_settled_first(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent
) -> None:
    before = cut_short(fleet, cloud, NEED)
    assert cloud.books()[:2] == (1, 1)
    provision(fleet, two(cloud), NEED, pause=go)
    first = fleet.ledger.machine(before)
    assert first is not None
    assert first.closed_by == "gone"
    assert cloud.books()[:2] == (2, 1), "one machine for one need"
    order = [call.split()[0] for call in cloud.calls]
    assert order.index("destroy") < len(order) - 1 - order[::-1].index("create")


def test_while_it_cannot_be_settled_no_second_machine_is_rented(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent
) -> None:
    cut_short(fleet, cloud, NEED)
    cloud.faults.list = [Ambiguous("503")] * 10_000
    with pytest.raises(MayStillBill):
        provision(fleet, two(cloud), NEED, pause=go)
    assert cloud.books()[0] == 1
    cloud.faults.list = []
    provision(fleet, two(cloud), replace(NEED, middle="other"), pause=go)  # another need


def test_who_refuses_the_account_is_not_asked_for_all_it_has(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent
) -> None:
    cloud.faults.create = [AuthFailed("revoked") for _ in range(9)]
    with pytest.raises(NoCredentials):
        provision(fleet, [cloud.offer(id=f"o{n}") for n in range(9)], NEED, pause=go)
    assert len(fleet.ledger.machines()) == 2


def test_a_price_above_the_cap_on_the_reply_is_released(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent
) -> None:
    cloud.faults.create_price = Decimal("5")
    need = Need("demo", 7200, "provision", max_price_hour=Decimal("1.50"))
    with pytest.raises(CapReached):
        provision(fleet, two(cloud), need, pause=go)
    assert cloud.books()[:2] == (2, 0)


def test_a_runs_machine_is_not_extended_by_hand(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent, keeper: Keeper
) -> None:
    row = provision(fleet, two(cloud), NEED, pause=go).row
    keep(fleet, row, keeper, detached=False)
    kept = fleet.ledger.machine(row.name)
    assert kept is not None
    with pytest.raises(UsageError, match="renews its lease by itself"):
        extend(fleet, kept, 60, agent_folder="x")


def test_a_machine_that_was_rebooted_can_be_extended(
    fleet: Fleet, cloud: MemoryCloud, agent: StubAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guard died with the boot, where the cloud starts nothing of ours again."""
    row = provision(fleet, two(cloud), NEED, pause=go).row
    machine = cloud.get("m1")

    class Dead(StubAgent):
        def renew(self, seconds: float) -> float:
            raise AgentRefused("the guard is dead; arm it again", "GuardDied")

    fresh = StubAgent()
    monkeypatch.setattr(phase, "reopen", lambda *_: Ready(machine, StubConnection()))
    monkeypatch.setattr(phase, "agent_in", lambda *_: Dead())
    monkeypatch.setattr(phase, "armed_agent", lambda *_, **__: fresh.armed())
    said: list[str] = []
    fleet.say = said.append
    extend(fleet, row, 3600, agent_folder=".gpuctl/machine")
    assert fresh.renewed == [3600]
    assert any("arming it again" in line for line in said)
