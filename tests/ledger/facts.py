"""Facts of events for tests: what each kind needs, with room for what a test is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
OWNER = "a1b2c3d4e5f6"
KEEPER = {"role": "controller", "host": "laptop", "boot": "b-1", "pid": 4711, "started": "123"}


class StepClock:
    """A clock that a test moves by hand."""

    def __init__(self, now: datetime = START) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time

    def monotonic(self) -> float:
        return self.time.timestamp()

    def sleep(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def name(middle: str, number: int = 0) -> str:
    return f"gpuctl-{middle}-a1b2c3-{number:08x}"


def intended(**changes: Any) -> dict[str, Any]:
    return {
        "provider": "vastai",
        "offer_id": "o-1",
        "gpu": "A100-SXM4-40GB",
        "gpu_count": 1,
        "spot": True,
        "price_hour": Decimal("1.20"),
        "region": "de",
        "disk_gb": 40,
        "owner": OWNER,
        "attempt": None,
        "hard_end": START + timedelta(hours=24),
        "lease_until": START + timedelta(minutes=10),
        "lease_seconds": 600,
        "detached": False,
        "keeper": KEEPER,
        "purpose": "provision",
    } | changes


def borrowed(**changes: Any) -> dict[str, Any]:
    return {
        "provider": "aws",
        "provider_id": "us-east-1/i-1",
        "gpu": "A10G",
        "gpu_count": 1,
        "spot": True,
        "price_hour": Decimal("0.45"),
        "region": "us-east-1",
        "hard_end": START + timedelta(hours=8),
        "access": {"kind": "ssh", "host": "h", "port": 22, "user": "root"},
        "owner": OWNER,
        "terraform": "/infra/trainer",
    } | changes


def created(**changes: Any) -> dict[str, Any]:
    return {
        "provider_id": "i-1",
        "price_hour": None,
        "region": "de-fra",
        "created_at": START,
        "access": {"kind": "ssh", "host": "192.0.2.1", "port": 22, "user": "root"},
    } | changes


def gone(**changes: Any) -> dict[str, Any]:
    return {
        "confirmed_by": [
            {"call": "get", "at": START + timedelta(hours=1), "answer": "absent"},
            {"call": "list", "at": START + timedelta(hours=1, minutes=1), "answer": "absent"},
        ],
        "cost_usd": None,
        "cost_source": "computed",
        "ended_at": START + timedelta(hours=1),
        "leftovers": [],
    } | changes


def run_opened(**changes: Any) -> dict[str, Any]:
    return {
        "name": "demo",
        "spec": {"run": "python train.py"},
        "spec_file": "/home/me/train.yaml",
        "owner": OWNER,
        "store": "/home/me/store",
        "detached": False,
    } | changes


def checkpoint(seq: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "attempt": 1,
        "seq": seq,
        "name": f"epoch-{seq}",
        "version": 1,
        "step": seq,
        "at": START,
        "bytes": 123,
    } | changes


SOME_FACTS: dict[str, dict[str, Any]] = {
    "created": created(),
    "refused": {"kind": "NoCapacity", "message": ""},
    "in_doubt": {"message": ""},
    "absent": {"confirmed_by": gone()["confirmed_by"]},
    "observed": {"state": "ready", "status": ""},
    "ready": {"steps": {}, "gpus": 0},
    "renewed": {"lease_until": START},
    "kept": {"keeper": None, "detached": True},
    "interrupted": {"reason": ""},
    "destroy_asked": {"why": ""},
    "destroy_accepted": {"answer": ""},
    "gone": gone(),
    "priced": {"price_hour": Decimal(1)},
    "forgotten": {"by": "", "why": ""},
    "run_state": {"state": "running"},
    "run_kept": {"keeper": None, "detached": False},
    "attempt_started": {"number": 1},
    "attempt_ended": {"number": 1, "outcome": "failed"},
    "checkpoint": checkpoint(),
    "checkpoint_pruned": {"attempt": 1, "seq": 1},
    "output": {"from": "a", "to": "b", "bytes": 1},
}
