"""Facts are checked before anything is written."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.ledger import Ledger
from gpuctl.ledger.encoding import dump, moment_text, money_text, to_json
from gpuctl.ledger.events import MACHINE_KINDS, RUN_KINDS, checked
from providers.base import LocalAccess, State
from tests.ledger.facts import START, created, gone, intended, name

ME = name("demo")


@pytest.mark.parametrize(
    ("kind", "facts", "complaint"),
    [
        ("creatd", {}, "'creatd' is no kind of event"),
        ("created", {}, "created: provider_id, region, created_at missing"),
        ("created", created(provider_id=""), "provider_id must not be empty"),
        ("created", created(created_at=START.isoformat()), "created_at must be a datetime"),
        ("created", created(created_at=datetime(2026, 1, 1)), "has no time zone"),  # noqa: DTZ001
        ("created", created(price_hour=1.2), "price_hour must be a Decimal"),
        ("created", created(price_hour=True), "price_hour must be a Decimal"),
        ("created", created(price_hour=Decimal("NaN")), "is not an amount of money"),
        ("created", created(price_hour=Decimal(-1)), "is not an amount of money"),
        ("created", created(access="ssh"), "access must be a mapping"),
        ("created", created(access={1: 2}), "the key 1 is not text"),
        ("intended", intended(gpu_count=-1), "gpu_count must be a whole number"),
        ("intended", intended(gpu_count=2**63), "gpu_count must be a whole number"),
        ("intended", intended(spot=1), "spot must be true or false"),
        ("intended", intended(lease_seconds=float("nan")), "lease_seconds must be a number"),
        ("intended", intended(lease_seconds=float("inf")), "cannot be kept in JSON"),
        (
            "intended",
            intended(purpose="fun"),
            "purpose must be one of run, provision, borrowed, not 'fun'",
        ),
        ("intended", intended(keeper={"pid": 1}), "keeper lacks boot, host, role, started"),
        ("observed", {"state": "melted", "status": "x"}, "state must be one of"),
        ("gone", gone(confirmed_by=[]), "nothing was confirmed"),
        ("gone", gone(confirmed_by=[{"call": "get"}]), "mappings with call, at and answer"),
        ("absent", {"confirmed_by": []}, "nothing was confirmed"),
        ("refused", {"kind": "NoCapacity", "message": object()}, "message must be text"),
    ],
)
def test_a_mistake_in_the_code_writes_nothing(
    ledger: Ledger, kind: str, facts: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(complaint)):
        ledger.record(kind, machine=ME, **facts)
    assert ledger.events() == []


@pytest.mark.parametrize("kind", sorted(MACHINE_KINDS))
def test_machine_events_need_a_machine(kind: str) -> None:
    with pytest.raises(ValueError, match="the machine is missing"):
        checked(kind, None, "demo-1", {})


@pytest.mark.parametrize("kind", sorted(RUN_KINDS))
def test_run_events_need_a_run(kind: str) -> None:
    with pytest.raises(ValueError, match="the run is missing"):
        checked(kind, ME, None, {})


def test_facts_become_json() -> None:
    east = timezone(timedelta(hours=2))
    facts = checked(
        "created",
        ME,
        None,
        created(
            created_at=datetime(2026, 11, 21, 14, 0, tzinfo=east),
            price_hour=Decimal("1E+2"),
            access=LocalAccess("/root", ("nsenter", "--"), {"A": "b"}),
            more={"path": Path("/a"), "state": State.LOST, "cost": Decimal("0.10")},
        ),
    )
    assert facts == {
        "provider_id": "i-1",
        "region": "de-fra",
        "created_at": "2026-11-21T12:00:00.000000Z",
        "price_hour": "100",
        "access": {"root": "/root", "enter": ["nsenter", "--"], "env": {"A": "b"}},
        "more": {"path": "/a", "state": "lost", "cost": "0.10"},
    }


def test_bytes_that_were_never_text_do_not_stop_a_teardown(ledger: Ledger) -> None:
    ledger.record("intended", machine=ME, **intended())
    ledger.record("interrupted", machine=ME, reason="\udcff torn \x00 text")
    row = ledger.machine(ME)
    assert row is not None
    assert row.interrupted == "\\udcff torn \x00 text"


@given(st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.timezones()))  # noqa: DTZ001
def test_moments_survive(moment: datetime) -> None:
    text = moment_text(moment)
    assert datetime.fromisoformat(text) == moment.astimezone(UTC)
    assert text.endswith("Z")
    assert len(text) == len("2026-11-21T12:00:00.000000Z")


@given(st.lists(st.datetimes(timezones=st.just(UTC)), max_size=8))
def test_texts_of_moments_sort_by_time(moments: list[datetime]) -> None:
    assert [moment_text(one) for one in sorted(moments)] == sorted(map(moment_text, moments))


@given(st.decimals(min_value=0, max_value=10**12 - 1, allow_nan=False))
def test_money_survives(amount: Decimal) -> None:
    assert Decimal(money_text(amount)) == amount


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(_JSON)
def test_json_survives(value: Any) -> None:
    assert json.loads(dump(to_json(value))) == value
