"""Only ours, and only what has no living keeper."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.errors import LedgerError
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.audit import audit
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper, this_process
from gpuctl.fleet.reap import reap
from gpuctl.fleet.survey import judge
from gpuctl.ledger import MachineRow
from gpuctl.names import new_machine_name
from providers.base import Ambiguous, Machine, Mark, State
from tests.clouds.memory_cloud import HandClock, MemoryCloud
from tests.fleet.conftest import OWNER

NEED = Need(middle="demo", lease_seconds=600, purpose="run")
OTHER = "ffffffffffff"
DEAD = Keeper("controller", this_process("controller").host, "an earlier boot", 1, "0")


def stranger(clock: HandClock, **changes: object) -> Machine:
    machine = Machine(
        name=new_machine_name("demo", OWNER),
        provider="memory",
        provider_id="x1",
        state=State.READY,
        status="RUNNING",
        mark=Mark(owner=OWNER, end=clock.now() + timedelta(hours=1)),
        created_at=clock.now(),
    )
    return replace(machine, **changes)  # type: ignore[arg-type]


@pytest.fixture
def row(fleet: Fleet, cloud: MemoryCloud, keeper: Keeper) -> MachineRow:
    return acquire(fleet, cloud.offer(), NEED, keeper, guard=lambda: None)[0]


def test_a_living_keeper_keeps_it(fleet: Fleet, cloud: MemoryCloud, row: MachineRow) -> None:
    assert reap(fleet).receipts == ()
    assert cloud.books() == (1, 1, 0)


def test_a_dead_keeper_does_not(fleet: Fleet, cloud: MemoryCloud) -> None:
    acquire(fleet, cloud.offer(), NEED, DEAD, guard=lambda: None)
    reaped = reap(fleet)
    assert [r.confirmed for r in reaped.receipts] == [True]
    assert cloud.books() == (1, 0, 0)


def test_a_detached_machine_survives_its_keeper(fleet: Fleet, cloud: MemoryCloud) -> None:
    acquire(fleet, cloud.offer(), replace(NEED, detached=True), DEAD, guard=lambda: None)
    assert reap(fleet).receipts == ()
    assert cloud.books() == (1, 1, 0)


def test_a_lease_that_ran_out(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock, row: MachineRow
) -> None:
    clock.pass_time(601)
    assert len(reap(fleet).receipts) == 1
    assert cloud.books() == (1, 0, 0)


def test_ours_without_a_row(fleet: Fleet, cloud: MemoryCloud, clock: HandClock) -> None:
    cloud.put(stranger(clock))
    (receipt,) = reap(fleet).receipts
    assert receipt.provider_id == "x1"
    assert cloud.machines == {}


def test_a_ledger_that_cannot_be_written_saves_only_what_has_no_row(
    fleet: Fleet,
    cloud: MemoryCloud,
    clock: HandClock,
    row: MachineRow,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock.pass_time(601)
    cloud.put(stranger(clock))

    def full(*_: object, **__: object) -> None:
        raise LedgerError("the disk is full")

    monkeypatch.setattr(fleet.ledger, "record", full)
    done = reap(fleet)
    assert set(cloud.machines) == {"x1"}
    assert sorted("was not ended" in one.message for one in done.errors) == [False, True]
    assert "is gone" in next(one.message for one in done.errors if one.machine == row.name)


def test_dry_run_touches_nothing(fleet: Fleet, cloud: MemoryCloud, clock: HandClock) -> None:
    cloud.put(stranger(clock))
    found = reap(fleet, dry_run=True)
    assert [one.machine.provider_id for one in found.would_reap] == ["x1"]
    assert cloud.books()[1] == 1
    assert not any(call.startswith("destroy") for call in cloud.calls)


@pytest.mark.parametrize(
    ("changes", "destroyed"),
    [
        ({"mark": None}, False),
        ({"name": "my-own-box"}, False),
        ({"mark": Mark(OWNER, datetime(2020, 1, 1, tzinfo=UTC), managed_by="terraform")}, False),
    ],
    ids=["unmarked", "other name", "terraform"],
)
def test_what_is_never_touched(
    fleet: Fleet,
    cloud: MemoryCloud,
    clock: HandClock,
    changes: dict[str, object],
    destroyed: bool,
) -> None:
    cloud.put(stranger(clock, **changes))
    reap(fleet)
    assert ("x1" not in cloud.machines) is destroyed


def test_another_owners_machine_only_past_its_hard_end(
    fleet: Fleet, cloud: MemoryCloud, clock: HandClock
) -> None:
    mark = Mark(OTHER, clock.now() + timedelta(minutes=10))
    cloud.put(stranger(clock, name=new_machine_name("theirs", OTHER), mark=mark))
    assert reap(fleet).receipts == ()
    assert [one.whose for one in audit(fleet).billing] == ["other"]
    assert audit(fleet).clean
    clock.pass_time(601)
    assert len(reap(fleet).receipts) == 1


def test_a_provider_that_cannot_be_asked_is_not_clean(
    fleet: Fleet, cloud: MemoryCloud, row: MachineRow
) -> None:
    assert audit(fleet).clean
    cloud.faults.list = [Ambiguous("503")]
    answer = audit(fleet)
    assert not answer.clean
    assert answer.errors[0].provider == "memory"


def test_an_open_row_whose_machine_vanished_is_closed_with_proof(
    fleet: Fleet, cloud: MemoryCloud
) -> None:
    acquire(fleet, cloud.offer(), NEED, DEAD, guard=lambda: None)
    cloud.machines.clear()
    (receipt,) = reap(fleet).receipts
    assert receipt.confirmed
    assert fleet.ledger.machines(open_only=True) == []


@given(
    owner=st.sampled_from([OWNER, OTHER]),
    named=st.booleans(),
    managed=st.sampled_from(["gpuctl", "terraform"]),
    marked=st.booleans(),
    offset=st.integers(-10, 10),
    lives=st.sampled_from([True, False, None]),
)
def test_only_ours_or_past_its_hard_end(
    owner: str, named: bool, managed: str, marked: bool, offset: int, lives: bool | None
) -> None:
    now = datetime(2026, 11, 21, tzinfo=UTC)
    mark = Mark(owner, now + timedelta(seconds=offset), managed_by=managed) if marked else None
    name = new_machine_name("demo", owner) if named else "web-server-1"
    machine = Machine(name, "memory", "x", State.READY, "RUNNING", mark=mark)
    verdict = judge(machine, None, OWNER, now, lambda _: lives)
    if verdict.destroy:
        assert marked
        assert named
        assert managed == "gpuctl"
        assert owner == OWNER or offset <= 0
