"""How an event changes what is known of a machine. Pure: a row and an event in, a row out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from gpuctl.ledger.encoding import dump, dump_or_null, moment_text
from gpuctl.ledger.events import Event
from providers.base import State

Value = str | int | float | None
Row = dict[str, Value]
"""Column to what SQLite keeps."""


def machine_after(row: Row | None, event: Event) -> Row:
    """Return a machine's row after an event.

    Raises:
        ValueError: the event is about a machine that is not there, or begins one that is.
    """
    if event.kind == "intended":
        if row is not None:
            raise ValueError(f"intended: {event.machine} is in the ledger already")
        return _intended(event)
    if event.kind == "adopted":
        return _adopted(row, event)
    if event.kind == "borrowed":
        return _borrowed(row, event)
    if row is None:
        raise ValueError(f"{event.kind}: the ledger has no machine {event.machine}")
    return row | _MACHINE_CHANGES[event.kind](row, event)


def _intended(event: Event) -> Row:
    facts = event.facts
    return {
        "name": event.machine,
        "seq": event.seq,
        "provider": facts["provider"],
        "provider_id": None,
        "state": "intended",
        "gpu": facts.get("gpu"),
        "gpu_count": facts["gpu_count"],
        "spot": int(facts["spot"]),
        "price_hour": facts["price_hour"],
        "region": facts["region"],
        "disk_gb": facts["disk_gb"],
        "offer_id": facts["offer_id"],
        "access": None,
        "lease_until": facts["lease_until"],
        "lease_seconds": facts["lease_seconds"],
        "hard_end": facts["hard_end"],
        "run": event.run,
        "attempt": facts.get("attempt"),
        "owner": facts["owner"],
        "keeper": dump_or_null(facts.get("keeper")),
        "detached": int(facts["detached"]),
        "purpose": facts["purpose"],
        "intended_at": moment_text(event.at),
        "created_at": None,
        "ready_at": None,
        "ended_at": None,
        "interrupted": None,
        "destroy_asked_at": None,
        "cost_usd": None,
        "cost_source": None,
        "confirmed_by": None,
        "in_doubt": 0,
        "closed_by": None,
        "prices": None,
        "terraform": None,
        "ticks": dump_or_null(facts.get("ticks")),
        "bill_step_seconds": facts.get("bill_step_seconds"),
    }


def _created(row: Row, event: Event) -> Row:
    facts = event.facts
    alive: Row = {
        "provider_id": facts["provider_id"],
        "state": str(State.BOOTING),
        "region": facts["region"] or row["region"],
        "created_at": facts["created_at"],
        "in_doubt": 0,
    }
    if facts.get("access") is not None:
        alive["access"] = dump(facts["access"])
    if facts.get("price_hour") is not None:
        alive |= _first_price(event)
    return alive | (_REOPENED if row["closed_by"] else {})


def _adopted(row: Row | None, event: Event) -> Row:
    facts = event.facts
    if row is None:
        if facts.get("provider") is None:
            raise ValueError(
                f"adopted: the ledger has no machine {event.machine}; provider missing"
            )
        row = _found(event)
    change: Row = {name: facts[name] for name in _ADOPTED if facts.get(name) is not None}
    change |= {
        "state": str(State.BOOTING),
        "in_doubt": 0,
        "run": row["run"] or event.run,
        "created_at": _earlier(row["created_at"], facts.get("created_at")) or row["intended_at"],
    }
    if facts.get("spot") is not None:
        change["spot"] = int(facts["spot"])
    if facts.get("access") is not None:
        change["access"] = dump(facts["access"])
    if facts.get("price_hour") is not None:
        change |= _priced(row, event) if row["created_at"] else _first_price(event)
    return row | (_REOPENED if row["closed_by"] else {}) | change


def _borrowed(row: Row | None, event: Event) -> Row:
    """A machine that Terraform owns. What it costs is not ours: it has no beginning here."""
    if row is not None and row["terraform"] is None:
        raise ValueError(f"borrowed: {event.machine} is in the ledger as rented")
    facts = event.facts
    made = {
        "offer_id": "",
        "disk_gb": 0.0,
        "lease_until": facts["hard_end"],
        "lease_seconds": 0.0,
        "detached": False,
        "purpose": "borrowed",
        **facts,
    }
    fresh = _intended(Event(event.seq, event.at, event.kind, event.machine, None, made))
    if row is not None:
        fresh |= {"seq": row["seq"], "intended_at": row["intended_at"]}
    return fresh | {
        "provider_id": facts["provider_id"],
        "access": dump(facts["access"]),
        "state": str(State.BOOTING),
        "terraform": facts["terraform"],
    }


def _earlier(known: Value, told: str | None) -> Value:
    # A provider that does not say when it made the machine must not shorten what it cost.
    if known is None or told is None:
        return known if told is None else told
    return min(str(known), told)


def _first_price(event: Event) -> Row:
    return {"price_hour": event.facts["price_hour"], "prices": None}


def _found(event: Event) -> Row:
    """A machine of ours without a row: nobody holds its lease, so it is over."""
    at = moment_text(event.at)
    nothing_known = {
        "provider": event.facts["provider"],
        "gpu_count": 0,
        "spot": False,
        "price_hour": "0",
        "region": "",
        "disk_gb": 0.0,
        "offer_id": "",
        "owner": "",
        "hard_end": at,
        "lease_until": at,
        "lease_seconds": 0.0,
        "detached": False,
        "purpose": "run" if event.run else "provision",
    }
    row = _intended(Event(event.seq, event.at, event.kind, event.machine, event.run, nothing_known))
    if event.facts.get("price_hour") is None:
        row["cost_source"] = "price unknown"
    return row


_ADOPTED = (
    "provider_id",
    "gpu",
    "gpu_count",
    "region",
    "owner",
    "hard_end",
    "lease_until",
    "lease_seconds",
    "attempt",
    "purpose",
)
_REOPENED: Row = {
    "closed_by": None,
    "ended_at": None,
    "cost_usd": None,
    "cost_source": None,
    "confirmed_by": None,
    "destroy_asked_at": None,
}


def _never_rented(closed_by: str) -> Callable[[Row, Event], Row]:
    def change(row: Row, event: Event) -> Row:
        if row["closed_by"]:
            return {}
        confirmed = event.facts.get("confirmed_by")
        return {
            "state": str(State.GONE),
            "closed_by": closed_by,
            "ended_at": moment_text(event.at),
            "in_doubt": 0,
            "cost_usd": "0",
            "cost_source": "nothing was rented",
            "confirmed_by": dump_or_null(confirmed),
        }

    return change


def _in_doubt(row: Row, _event: Event) -> Row:
    # What has been created, or is closed, is in no doubt any more.
    return {} if row["created_at"] or row["closed_by"] else {"in_doubt": 1}


def _observed(row: Row, event: Event) -> Row:
    # A late look by another process does not bring back what is confirmed gone.
    return {} if row["closed_by"] else {"state": event.facts["state"]}


def _ready(row: Row, event: Event) -> Row:
    if row["closed_by"]:
        return {}
    change: Row = {"state": str(State.READY), "ready_at": moment_text(event.at)}
    if event.facts.get("access") is not None:
        change["access"] = dump(event.facts["access"])
    return change


def _renewed(_row: Row, event: Event) -> Row:
    return {
        "lease_until": event.facts["lease_until"],
        "ticks": dump_or_null(event.facts.get("ticks")),
    }


def kept(_row: Row, event: Event) -> Row:
    """Return what changes when another process looks after a machine or a run."""
    keeper = dump_or_null(event.facts.get("keeper"))
    return {"keeper": keeper, "detached": int(event.facts["detached"])}


def _interrupted(_row: Row, event: Event) -> Row:
    return {"interrupted": event.facts["reason"]}


def _destroy_asked(row: Row, event: Event) -> Row:
    return {"destroy_asked_at": row["destroy_asked_at"] or moment_text(event.at)}


def _destroy_accepted(_row: Row, _event: Event) -> Row:
    return {}


def _gone(row: Row, event: Event) -> Row:
    facts = event.facts
    # Two processes may confirm the same end: the first says when, the newest what it cost.
    again = row["closed_by"] == "gone"
    return {
        "state": str(State.GONE),
        "closed_by": "gone",
        "in_doubt": 0,
        "ended_at": row["ended_at"] if again else facts["ended_at"],
        "cost_usd": facts.get("cost_usd") or (row["cost_usd"] if again else None),
        "cost_source": facts.get("cost_source") or (row["cost_source"] if again else None),
        "confirmed_by": row["confirmed_by"] if again else dump(facts["confirmed_by"]),
    }


def _priced(row: Row, event: Event) -> Row:
    at, price = moment_text(event.at), event.facts["price_hour"]
    before: list[list[Any]] = [[None, row["price_hour"]]]
    if row["prices"]:
        before = json.loads(str(row["prices"]))
    # A clock that was set back must not leave a price that begins before the one before it.
    held = [one for one in before if one[0] is None or one[0] < at]
    return {"price_hour": price, "prices": dump([*held, [at, price]])}


def _forgotten(row: Row, event: Event) -> Row:
    if row["closed_by"]:
        return {}
    return {"closed_by": "forgotten", "ended_at": moment_text(event.at), "in_doubt": 0}


_MACHINE_CHANGES: Mapping[str, Callable[[Row, Event], Row]] = {
    "created": _created,
    "refused": _never_rented("refused"),
    "in_doubt": _in_doubt,
    "absent": _never_rented("absent"),
    "observed": _observed,
    "ready": _ready,
    "renewed": _renewed,
    "kept": kept,
    "interrupted": _interrupted,
    "destroy_asked": _destroy_asked,
    "destroy_accepted": _destroy_accepted,
    "gone": _gone,
    "priced": _priced,
    "forgotten": _forgotten,
}
