"""The JSON of the design, key by key."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.cli import shapes
from gpuctl.fleet.access import access_facts
from gpuctl.fleet.keeper import this_process
from gpuctl.fleet.receipt import Confirmation, Receipt
from gpuctl.ledger import Ledger, MachineRow, RunRow
from providers.base import Leftover, Machine, Offer, SshAccess, State
from tests.clouds.memory_cloud import HandClock

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
OWNER = "a1b2c3d4e5f6"
NAME = "gpuctl-demo-a1b2c3-01234567"

OFFER_KEYS = [
    "provider",
    "id",
    "gpu",
    "gpu_count",
    "vram_gb",
    "spot",
    "price_hour",
    "region",
    "vcpus",
    "ram_gb",
    "disk_gb",
    "reliability",
    "available",
    "source",
    "as_of",
    "run_cost",
    "runs_in_budget",
    "price_gpu_hour",
    "gb_in_price",
    "gb_out_price",
    "fx_rate",
    "fx_date",
    "note",
]
MACHINE_KEYS = [
    "name",
    "provider",
    "provider_id",
    "state",
    "gpu",
    "gpu_count",
    "spot",
    "price_hour",
    "region",
    "ssh",
    "lease_expires_at",
    "run",
    "created_at",
    "cost_usd",
]
RUN_KEYS = [
    "id",
    "name",
    "state",
    "exit_code",
    "reason",
    "attempts",
    "cost_usd",
    "checkpoints",
    "outputs",
]
ATTEMPT_KEYS = ["number", "machine", "started_at", "ended_at", "outcome", "cost_usd"]
RECEIPT_KEYS = [
    "name",
    "provider",
    "provider_id",
    "confirmed",
    "confirmed_by",
    "cost_usd",
    "leftovers",
]


@pytest.fixture
def ledger(tmp_path: Path) -> Any:
    clock = HandClock(NOW)
    with Ledger.open(tmp_path / "ledger.db", clock=clock) as opened:
        yield opened


def rented(ledger: Ledger, *, access: dict[str, Any] | None = None) -> MachineRow:
    ledger.record(
        "run_opened", run="demo-1a2b3c", name="demo", spec={}, owner=OWNER, detached=False,
        store="/store", keeper=this_process("controller").facts(),
    )  # fmt: skip
    ledger.record(
        "intended", machine=NAME, run="demo-1a2b3c", provider="memory", offer_id="o1",
        gpu="A100-40GB-PCIe", gpu_count=2, spot=True, price_hour=Decimal("1.50"), region="here",
        disk_gb=40.0, owner=OWNER, attempt=1, hard_end=NOW + timedelta(hours=24),
        lease_until=NOW + timedelta(minutes=10), lease_seconds=600.0, detached=False, keeper=None,
        purpose="run",
    )  # fmt: skip
    ledger.record(
        "created", machine=NAME, provider_id="m1", price_hour=None, region="here",
        created_at=NOW, access=access,
    )  # fmt: skip
    ledger.record("attempt_started", run="demo-1a2b3c", number=1, machine=NAME)
    row = ledger.machine(NAME)
    assert row is not None
    return row


def the_run(ledger: Ledger) -> RunRow:
    row = ledger.run("demo-1a2b3c")
    assert row is not None
    return row


@given(st.datetimes(timezones=st.just(timezone(timedelta(hours=5, minutes=45)))))
def test_moments_are_utc_with_z_and_read_back_the_same(when: datetime) -> None:
    if not datetime(2, 1, 1, tzinfo=UTC) < when:
        return
    text = shapes.moment(when)
    assert text is not None
    assert text.endswith("Z")
    assert datetime.fromisoformat(text) == when


def test_an_offer_has_every_key_and_money_is_a_number() -> None:
    offer = Offer(
        provider="hetzner", id="x", gpu=None, gpu_count=0, vram_gb=None, spot=False,
        price_hour=Decimal("0.0437"), region="nbg1", as_of=NOW, fx_rate=Decimal("1.16"),
        fx_date=NOW.date(), source="reference", note="EUR",
    )  # fmt: skip
    shape = shapes.offer(offer, run_cost=Decimal("0.25"), runs=4)
    assert list(shape) == OFFER_KEYS
    assert (shape["price_hour"], shape["run_cost"], shape["runs_in_budget"]) == (0.0437, 0.25, 4)
    assert (shape["fx_rate"], shape["fx_date"]) == (1.16, "2026-11-21")
    assert shape["as_of"] == "2026-11-21T12:00:00Z"
    json.dumps(shape)


def test_a_machine_has_every_key_and_costs_what_it_has_cost_so_far(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCTL_HOME", "/home/of/mine")
    access = {"kind": "ssh", "host": "1.2.3.4", "port": 2222, "user": "root", "host_keys": []}
    shape = shapes.machine(rented(ledger, access=access), NOW + timedelta(hours=2))
    assert list(shape)[: len(MACHINE_KEYS)] == MACHINE_KEYS
    assert shape["cost_usd"] == 3.0
    key = "/home/of/mine/ssh/id_ed25519"
    assert shape["ssh"] == {"host": "1.2.3.4", "port": 2222, "user": "root", "key_file": key}
    assert shape["lease_expires_at"] == "2026-11-21T12:10:00Z"
    json.dumps(shape)


@pytest.mark.parametrize(
    ("identity", "file"), [("/keys/lab", "/keys/lab"), ("ssh-ed25519 in ssh-agent", None)]
)
def test_the_key_that_a_machine_took_is_named(
    ledger: Ledger, identity: str, file: str | None
) -> None:
    way = SshAccess("1.2.3.4", 22, "me", identities=("/keys/lab",))
    facts = access_facts(way, identity=identity)
    assert facts is not None
    row = rented(ledger, access=dict(facts))
    assert shapes.machine(row, NOW)["ssh"]["key_file"] == file
    found = Machine(NAME, "memory", "m1", State.READY, "RUNNING", access=way)
    assert shapes.found_machine(found, row, NOW)["ssh"]["key_file"] == file


def test_a_local_machine_has_no_ssh(ledger: Ledger) -> None:
    row = rented(ledger, access={"kind": "local", "root": "/x"})
    assert shapes.machine(row, NOW)["ssh"] is None


def test_a_run_has_every_key_and_its_attempts_their_machines(ledger: Ledger) -> None:
    rented(ledger)
    ledger.record(
        "checkpoint", run="demo-1a2b3c", attempt=1, seq=1, name="epoch-5", version=1, step=5,
        at=NOW, bytes=7,
    )  # fmt: skip
    shape = shapes.run(the_run(ledger), NOW + timedelta(hours=1))
    assert list(shape)[: len(RUN_KEYS)] == RUN_KEYS
    (attempt,) = shape["attempts"]
    assert set(ATTEMPT_KEYS) <= set(attempt)
    assert attempt["machine"]["name"] == NAME
    assert attempt["cost_usd"] == shape["cost_usd"] == 1.5
    assert shape["checkpoints"][0] | {"attempt": 1, "version": 1} == {
        "name": "epoch-5", "step": 5, "at": "2026-11-21T12:00:00Z", "bytes": 7, "whole": True,
        "attempt": 1, "version": 1,
    }  # fmt: skip
    json.dumps(shape)


@pytest.mark.parametrize("lives", [True, None])
def test_a_run_whose_keeper_may_live_gives_its_own_reason(
    ledger: Ledger, lives: bool | None
) -> None:
    rented(ledger)
    assert shapes.reason(the_run(ledger), lambda _: lives) is None


def test_a_run_whose_keeper_is_dead_says_how_to_carry_on(ledger: Ledger) -> None:
    rented(ledger)
    row = the_run(ledger)
    said = "its keeper died; `gpuctl resume demo-1a2b3c` carries on"
    assert shapes.reason(row, lambda _: False) == said
    ended = replace(row, state="failed", reason="exit code 1")
    assert shapes.reason(ended, lambda _: False) == "exit code 1"


def test_a_receipt_has_every_key() -> None:
    receipt = Receipt(
        NAME, "memory", "m1", True, (Confirmation("get", NOW, "404"),) * 2, Decimal("0.12"),
        "computed", (Leftover("memory", "volume", "v1", NAME, None, Decimal("4")),),
    )  # fmt: skip
    shape = shapes.receipt(receipt)
    assert set(RECEIPT_KEYS) <= set(shape)
    assert shape["confirmed_by"][0] == {
        "call": "get",
        "at": "2026-11-21T12:00:00Z",
        "answer": "404",
    }
    assert shape["leftovers"][0]["id"] == "v1"
    json.dumps(shape)
