"""What following a job does besides listening."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from gpuctl.agent.messages import JobState, SyncState
from gpuctl.errors import StoreError
from gpuctl.run.follow import Follower
from tests.clouds.memory_cloud import HandClock


class Stubs:
    """A store and an agent that note what they are asked."""

    def __init__(self) -> None:
        self.granted: list[dict[str, Any]] = []
        self.warned: list[str] = []
        self.store_fails = False
        self.folder = None

    def write_grant(self) -> dict[str, Any]:
        if self.store_fails:
            raise StoreError("the bucket is away")
        return {"kind": "s3post", "number": len(self.granted)}

    def grant(self, grant: dict[str, Any]) -> None:
        self.granted.append(grant)

    def warn(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture
def stubs() -> Stubs:
    return Stubs()


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 11, 21, tzinfo=UTC))


@pytest.fixture
def follower(stubs: Stubs, clock: HandClock) -> Follower:
    ledger = SimpleNamespace(events=lambda **_: ())
    work: Any = SimpleNamespace(
        fleet=SimpleNamespace(clock=clock, ledger=ledger),
        run_id="demo-1a2b3c",
        store=stubs,
        report=SimpleNamespace(warn=stubs.warn, step=lambda _: None),
        journal=SimpleNamespace(next_offset=lambda _: 0),
    )
    live: Any = SimpleNamespace(number=1, machine="m-1", outbox=None, agent=stubs)
    return Follower(work, live)


def job(**changes: Any) -> JobState:
    return JobState.model_validate(
        {"run": "demo-1a2b3c", "attempt": 1, "phase": "running", **changes}
    )


def test_the_way_to_the_store_is_renewed_while_the_job_runs(
    follower: Follower, stubs: Stubs, clock: HandClock
) -> None:
    follower._renew_grant()
    follower._state = job()
    follower._renew_grant()
    assert stubs.granted == []
    for _ in range(4):
        clock.pass_time(600)
        follower._renew_grant()
    assert len(stubs.granted) == 2
    follower._state = job(phase="ended")
    clock.pass_time(6000)
    follower._renew_grant()
    assert len(stubs.granted) == 2


def test_trouble_at_the_store_renews_it_at_once(
    follower: Follower, stubs: Stubs, clock: HandClock
) -> None:
    follower._state = job()
    follower._note_sync(SyncState(ok=False, error="it answered 403"))
    follower._renew_grant()
    follower._renew_grant()
    assert len(stubs.granted) == 1


def test_a_store_that_does_not_answer_is_asked_again(
    follower: Follower, stubs: Stubs, clock: HandClock
) -> None:
    follower._state = job()
    stubs.store_fails = True
    clock.pass_time(1000)
    follower._renew_grant()
    follower._renew_grant()
    assert stubs.granted == []
    assert len(stubs.warned) == 1
    assert "the bucket is away" in stubs.warned[0]
    stubs.store_fails = False
    clock.pass_time(31)
    follower._renew_grant()
    assert len(stubs.granted) == 1


def test_a_silent_machine_is_asked_after(
    follower: Follower, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in a while, and only when it is silent."""
    asked: list[str] = []
    said = [False, True]
    monkeypatch.setattr(
        "gpuctl.run.follow.told_interrupted", lambda _, name: asked.append(name) or said.pop(0)
    )
    assert not follower._taken_away(2)
    assert not follower._taken_away(11)
    assert not follower._taken_away(12)
    assert asked == ["m-1"]
    clock.pass_time(10)
    assert follower._taken_away(22)
