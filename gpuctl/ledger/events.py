"""The kinds of events and the facts that each must carry.

An event is never changed and never removed. A fact that may be null may also be left out.
More facts than the kind demands may be given: they are kept with the event, and nothing is read
from them but the event itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from os import PathLike
from typing import Any

from gpuctl.ledger.encoding import moment_text, money_text, plain_text, to_json
from providers.base import State

Check = Callable[[object], Any]
"""Takes a fact, returns it as JSON; raises ValueError when it is not of its type."""

_INT_MAX = 2**63 - 1  # what an SQLite integer holds

RUN_STATES = (
    "pending",
    "provisioning",
    "preparing",
    "running",
    "recovering",
    "finishing",
    "succeeded",
    "failed",
    "cancelled",
)
RUN_ENDED = frozenset({"succeeded", "failed", "cancelled"})
OUTCOMES = ("completed", "failed", "interrupted", "cancelled", "lost", "capped")
PURPOSES = ("run", "provision", "borrowed")
ROLES = ("controller", "watchdog", "provision", "terminate")


@dataclass(frozen=True, slots=True)
class Event:
    """One fact, as it stands in the ledger."""

    seq: int  # from 1, in the order in which they were committed
    at: datetime  # UTC
    kind: str
    machine: str | None  # a machine's name
    run: str | None  # a run's id
    facts: Mapping[str, Any]  # JSON: money and moments are text


def _text(value: object) -> str:
    if not isinstance(value, str | PathLike):
        raise ValueError("must be text")
    return plain_text(str(value))


def _filled(value: object) -> str:
    text = _text(value)
    if not text:
        raise ValueError("must not be empty")
    return text


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _INT_MAX:
        raise ValueError("must be a whole number from 0")
    return value


def _code(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > _INT_MAX:
        raise ValueError("must be a whole number")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError("must be a number from 0")
    return float(to_json(value))


def _money(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, Decimal | int):
        raise ValueError("must be a Decimal")
    return money_text(Decimal(value))


def _moment(value: object) -> str:
    if not isinstance(value, datetime):
        raise ValueError("must be a datetime")
    return moment_text(value)


def _json(value: object) -> Any:
    return to_json(value)


def _object(value: object) -> dict[str, Any]:
    made = to_json(value)
    if not isinstance(made, dict):
        raise ValueError("must be a mapping")
    return made


def _list(value: object) -> list[Any]:
    made = to_json(value)
    if not isinstance(made, list):
        raise ValueError("must be a list")
    return made


def _confirmations(value: object) -> list[Any]:
    made = _list(value)
    for one in made:
        if not isinstance(one, dict) or not {"call", "at", "answer"} <= set(one):
            raise ValueError("must hold mappings with call, at and answer")
    if not made:
        raise ValueError("must not be empty: nothing was confirmed")
    return made


def _keeper(value: object) -> dict[str, Any]:
    made = _object(value)
    missing = {"role", "host", "boot", "pid", "started"} - set(made)
    if missing:
        raise ValueError(f"lacks {', '.join(sorted(missing))}")
    if made["role"] not in ROLES:
        raise ValueError(f"has a role that is none of {', '.join(ROLES)}")
    return made


def _one_of(*allowed: str) -> Check:
    def check(value: object) -> str:
        text = _text(value)
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}, not {text!r}")
        return text

    return check


class _OrNull:
    """A fact that may be null or left out."""

    def __init__(self, check: Check) -> None:
        self.check = check

    def __call__(self, value: object) -> Any:
        return None if value is None else self.check(value)


_null = _OrNull
_state = _one_of(*State)

MACHINE_KINDS: Mapping[str, Mapping[str, Check]] = {
    # Before the create call leaves.
    "intended": {
        "provider": _filled,
        "offer_id": _text,
        "gpu": _null(_text),
        "gpu_count": _count,
        "spot": _flag,
        "price_hour": _money,
        "region": _text,
        "disk_gb": _number,
        "owner": _filled,
        "attempt": _null(_count),
        "hard_end": _moment,
        "lease_until": _moment,
        "lease_seconds": _number,
        "detached": _flag,
        "keeper": _null(_keeper),
        "purpose": _one_of(*PURPOSES),
        "setup": _null(_object),
        # Its lease and hard end by this computer's own count of seconds: `gpuctl.fleet.deadlines`.
        "ticks": _null(_object),
        # What a part of so many seconds costs, all of it does; null: by the second.
        "bill_step_seconds": _null(_number),
    },
    # The create call was answered.
    "created": {
        "provider_id": _filled,
        "price_hour": _null(_money),
        "region": _text,
        "created_at": _moment,
        "access": _null(_object),
    },
    # It was answered with a no: nothing was rented.
    "refused": {"kind": _text, "message": _text},
    # It may or may not have happened.
    "in_doubt": {"message": _text},
    # An ambiguous create is proven never to have made a machine.
    "absent": {"confirmed_by": _confirmations},
    "observed": {"state": _state, "status": _text},
    "ready": {"steps": _object, "access": _null(_object), "gpus": _json},
    "renewed": {"lease_until": _moment, "ticks": _null(_object)},
    # Another process looks after it from now on.
    "kept": {"keeper": _null(_keeper), "detached": _flag},
    # The provider took it away.
    "interrupted": {"reason": _text},
    "destroy_asked": {"why": _text},
    "destroy_accepted": {"answer": _text},
    "gone": {
        "confirmed_by": _confirmations,
        "cost_usd": _null(_money),
        "cost_source": _null(_text),
        "ended_at": _moment,
        "leftovers": _null(_list),
    },
    # The provider charges another price from now on.
    "priced": {"price_hour": _money},
    # Found alive: after an ambiguous create, after it counted as gone, or without a row of ours.
    # A machine without a row needs at least its provider.
    "adopted": {
        "provider_id": _filled,
        "provider": _null(_filled),
        "gpu": _null(_text),
        "gpu_count": _null(_count),
        "spot": _null(_flag),
        "price_hour": _null(_money),
        "region": _null(_text),
        "created_at": _null(_moment),
        "access": _null(_object),
        "owner": _null(_text),
        "hard_end": _null(_moment),
        "lease_until": _null(_moment),
        "lease_seconds": _null(_number),
        "attempt": _null(_count),
        "purpose": _null(_one_of(*PURPOSES)),
    },
    "forgotten": {"by": _text, "why": _text},
    # Made by Terraform, and Terraform's to end; said again when it has another id or address.
    "borrowed": {
        "provider": _filled,
        "provider_id": _filled,
        "gpu": _null(_text),
        "gpu_count": _count,
        "spot": _flag,
        "price_hour": _money,
        "region": _text,
        "hard_end": _moment,
        "access": _object,
        "owner": _filled,
        "terraform": _text,  # the folder that it belongs to; "" when nobody said
    },
}

RUN_KINDS: Mapping[str, Mapping[str, Check]] = {
    "run_opened": {
        "name": _filled,
        "spec": _object,
        "spec_file": _null(_text),
        "owner": _text,
        "store": _text,
        "detached": _flag,
        "keeper": _null(_keeper),
    },
    "run_state": {
        "state": _one_of(*RUN_STATES),
        "reason": _null(_text),
        "exit_code": _null(_code),
    },
    "run_kept": {"keeper": _null(_keeper), "detached": _flag},
    "attempt_started": {"number": _count},
    "attempt_ended": {
        "number": _count,
        "outcome": _one_of(*OUTCOMES),
        "exit_code": _null(_code),
        "reason": _null(_text),
        "cost_usd": _null(_money),
    },
    "checkpoint": {
        "attempt": _count,
        "seq": _count,
        "name": _text,
        "version": _count,
        "step": _null(_code),
        "at": _moment,
        "bytes": _count,
    },
    "checkpoint_pruned": {"attempt": _count, "seq": _count},
    "output": {"from": _text, "to": _text, "bytes": _count},
}

_NEEDS_MACHINE = frozenset(MACHINE_KINDS) | {"attempt_started"}


def checked(
    kind: str, machine: str | None, run: str | None, facts: Mapping[str, object]
) -> dict[str, Any]:
    """Return the facts of an event as JSON.

    Raises:
        ValueError: the kind is unknown, a fact is missing or not of its type, or the machine or
            run that the kind is about is not named. That is a mistake in the calling code.
    """
    wanted = MACHINE_KINDS.get(kind) or RUN_KINDS.get(kind)
    if wanted is None:
        raise ValueError(f"{kind!r} is no kind of event")
    if kind in _NEEDS_MACHINE and not machine:
        raise ValueError(f"{kind}: the machine is missing")
    if kind in RUN_KINDS and not run:
        raise ValueError(f"{kind}: the run is missing")
    missing = [
        name
        for name, check in wanted.items()
        if name not in facts and not isinstance(check, _OrNull)
    ]
    if missing:
        raise ValueError(f"{kind}: {', '.join(missing)} missing")
    return {name: _checked(kind, name, wanted.get(name, _json), facts[name]) for name in facts}


def _checked(kind: str, name: str, check: Check, value: object) -> Any:
    try:
        return check(value)
    except ValueError as error:
        raise ValueError(f"{kind}: {name} {error}") from None
