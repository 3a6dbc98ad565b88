"""The tables that are read are nothing but the events, whatever valid sequence came."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpuctl.ledger import Ledger, tables
from gpuctl.ledger.events import OUTCOMES, RUN_STATES
from gpuctl.ledger.projection import TABLE_OF
from providers.base import State
from tests.ledger.facts import (
    KEEPER,
    SOME_FACTS,
    START,
    StepClock,
    borrowed,
    intended,
    name,
    run_opened,
)

_AT = st.integers(-1000, 100_000).map(lambda seconds: START + timedelta(seconds=seconds))
_PRICE = st.decimals(0, 50, places=3)
_MAYBE_PRICE = st.none() | _PRICE
_KEEPER = st.none() | st.just(KEEPER) | st.just(KEEPER | {"role": "watchdog"})
_ACCESS = st.none() | st.just({"kind": "ssh", "host": "h", "port": 22})
_TEXT = st.text(max_size=6)
_CODE = st.none() | st.integers(-1, 255)
_NUMBER = st.integers(1, 3)

_VARIED: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "intended": {"price_hour": _PRICE, "keeper": _KEEPER, "attempt": st.none() | _NUMBER},
    "created": {"price_hour": _MAYBE_PRICE, "created_at": _AT, "access": _ACCESS},
    "observed": {"state": st.sampled_from(State), "status": _TEXT},
    "ready": {"access": _ACCESS},
    "renewed": {"lease_until": _AT},
    "kept": {"keeper": _KEEPER, "detached": st.booleans()},
    "interrupted": {"reason": _TEXT},
    "gone": {"cost_usd": _MAYBE_PRICE, "cost_source": st.none() | _TEXT, "ended_at": _AT},
    "priced": {"price_hour": _PRICE},
    "adopted": {
        "provider_id": st.just("i-7"),
        "provider": st.just("aws"),
        "price_hour": _MAYBE_PRICE,
        "created_at": st.none() | _AT,
        "lease_until": st.none() | _AT,
        "spot": st.none() | st.booleans(),
        "access": _ACCESS,
    },
    "run_state": {"state": st.sampled_from(RUN_STATES), "reason": st.none() | _TEXT,
                  "exit_code": _CODE},
    "run_kept": {"keeper": _KEEPER, "detached": st.booleans()},
    "attempt_started": {"number": _NUMBER},
    "attempt_ended": {"number": _NUMBER, "outcome": st.sampled_from(OUTCOMES),
                      "exit_code": _CODE, "cost_usd": _MAYBE_PRICE},
    "checkpoint": {"attempt": _NUMBER, "seq": _NUMBER, "name": _TEXT},
    "checkpoint_pruned": {"attempt": _NUMBER, "seq": _NUMBER},
    "output": {"to": _TEXT, "bytes": st.integers(0, 9)},
}  # fmt: skip
_FIRST = {"intended": intended(), "run_opened": run_opened(), "adopted": {}, "borrowed": borrowed()}


@st.composite
def _events(draw: st.DrawFn) -> tuple[str, int, int, int, dict[str, Any]]:
    kind = draw(st.sampled_from(sorted(TABLE_OF)))
    facts = (SOME_FACTS | _FIRST)[kind] | {
        fact: draw(values) for fact, values in _VARIED.get(kind, {}).items()
    }
    return (
        kind,
        draw(st.integers(0, 2)),
        draw(st.integers(0, 1)),
        draw(st.integers(-60, 600)),
        facts,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_events(), min_size=10, max_size=60))
def test_the_tables_are_nothing_but_the_events(
    sequence: list[tuple[str, int, int, int, dict[str, Any]]],
) -> None:
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "ledger.db")
        with Ledger.open(path, clock=clock) as ledger:
            for number in (0, 1):
                ledger.record("intended", machine=name("m", number), **intended())
            ledger.record("run_opened", run="r-0", **run_opened())
            kept = 3
            for kind, machine, run, pause, facts in sequence:
                clock.sleep(pause)
                try:
                    ledger.record(kind, machine=name("m", machine), run=f"r-{run}", **facts)
                    kept += 1
                except ValueError:
                    continue  # it did not fit those before it
            assert len(ledger.events()) == kept
            before = tables.tables_as_kept(ledger._connection)
            assert tables.tables_from_events(ledger._connection) == before
            assert ledger.check() == []
            rows, runs = ledger.machines(borrowed=True), ledger.runs()
            for row in rows:
                assert row.closed or row.ended_at is None
                assert row.cost_so_far(clock.now()) >= 0
            ledger.rebuild()
            assert tables.tables_as_kept(ledger._connection) == before
            assert (ledger.machines(borrowed=True), ledger.runs()) == (rows, runs)
