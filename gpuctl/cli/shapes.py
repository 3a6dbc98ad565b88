"""From rows and values to the JSON of the design. No file is read, no clock, no cloud.

Times are RFC 3339 in UTC with ``Z``, money is a JSON number in USD, what is unknown is null.
Keys may be added, never renamed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gpuctl.fleet.access import access_facts
from gpuctl.fleet.keeper import Keeper, alive, keeper_from
from gpuctl.home import home_path
from gpuctl.ledger import AttemptRow, CheckpointRow, MachineRow, RunRow
from gpuctl.remote.keys import key_path
from providers.base import Leftover, Machine, Offer

if TYPE_CHECKING:
    from gpuctl.fleet.audit import Audit, Billing
    from gpuctl.fleet.reap import Reaped
    from gpuctl.fleet.receipt import Receipt
    from gpuctl.fleet.survey import Seen, Trouble
    from gpuctl.market_nearest import Near
    from gpuctl.store import Manifest

Shape = dict[str, Any]

RUN_ENDED = frozenset({"succeeded", "failed", "cancelled"})


def moment(when: datetime | None) -> str | None:
    """Return a moment as RFC 3339 in UTC."""
    return None if when is None else when.astimezone(UTC).isoformat().replace("+00:00", "Z")


def usd(amount: Decimal | None) -> float | None:
    """Return money as a JSON number."""
    return None if amount is None else float(amount)


# -------------------------------------------------------------------------- offers


def offer(one: Offer, *, run_cost: Decimal | None = None, runs: int | None = None) -> Shape:
    """Return one offer.

    Args:
        run_cost: what one run on it is expected to cost in all, where it was asked.
        runs: how many such runs the budget buys, where it was asked.
    """
    return {
        "provider": one.provider,
        "id": one.id,
        "gpu": one.gpu,
        "gpu_count": one.gpu_count,
        "vram_gb": one.vram_gb,
        "spot": one.spot,
        "price_hour": usd(one.price_hour),
        "region": one.region,
        "vcpus": one.vcpus,
        "ram_gb": one.ram_gb,
        "disk_gb": one.disk_gb,
        "reliability": one.reliability,
        "available": one.available,
        "source": one.source,
        "as_of": moment(one.as_of),
        "run_cost": usd(run_cost),
        "runs_in_budget": runs,
        "price_gpu_hour": usd(one.price_hour / one.gpu_count) if one.gpu_count else None,
        "gb_in_price": usd(one.gb_in_price),
        "gb_out_price": usd(one.gb_out_price),
        "fx_rate": usd(one.fx_rate),
        "fx_date": _day(one.fx_date),
        "note": one.note,
    }


def nearest(found: Sequence[Near]) -> list[Shape]:
    """Return the offers that come nearest where nothing matches, and how they differ."""
    return [{**offer(one.offer), "kind": one.kind, "difference": one.difference} for one in found]


def _day(when: date | None) -> str | None:
    return None if when is None else when.isoformat()


# ------------------------------------------------------------------------ machines


def machine(row: MachineRow, now: datetime) -> Shape:
    """Return one machine as the ledger knows it."""
    return {
        "name": row.name,
        "provider": row.provider,
        "provider_id": row.provider_id,
        "state": str(row.state),
        "gpu": row.gpu,
        "gpu_count": row.gpu_count,
        "spot": row.spot,
        "price_hour": usd(row.price_hour),
        "region": row.region,
        "ssh": _ssh(row.access),
        "lease_expires_at": moment(row.lease_until),
        "run": row.run,
        "created_at": moment(row.created_at),
        "cost_usd": usd(row.cost_so_far(now)),
        "cost_source": row.cost_source,
        "hard_end": moment(row.hard_end),
        "ended_at": moment(row.ended_at),
        "purpose": row.purpose,
        "attempt": row.attempt,
        "detached": row.detached,
        "in_doubt": row.in_doubt,
        "closed_by": row.closed_by,
        "borrowed": row.borrowed,
        "terraform": row.terraform or None,
    }


def found_machine(one: Machine, row: MachineRow | None, now: datetime) -> Shape:
    """Return one machine as its provider lists it, with what the ledger adds."""
    identity = ((row.access if row is not None else None) or {}).get("identity")
    return {
        "name": one.name,
        "provider": one.provider,
        "provider_id": one.provider_id,
        "state": str(one.state),
        "gpu": one.gpu,
        "gpu_count": one.gpu_count,
        "spot": one.spot,
        "price_hour": usd(one.price_hour if row is None else row.price_hour),
        "region": one.region,
        "ssh": _ssh(access_facts(one.access, identity=identity)),
        "lease_expires_at": None if row is None else moment(row.lease_until),
        "run": one.mark.run if one.mark is not None else None,
        "created_at": moment(one.created_at),
        "cost_usd": None if row is None else usd(row.cost_so_far(now)),
        "hard_end": moment(one.mark.end) if one.mark is not None else None,
        "owner": one.mark.owner if one.mark is not None else None,
        "status": one.status,
    }


def _ssh(access: Mapping[str, Any] | None) -> Shape | None:
    if access is None or access.get("kind") != "ssh":
        return None
    return {
        "host": access.get("host"),
        "port": access.get("port"),
        "user": access.get("user"),
        "key_file": _private_key(access.get("identity")),
    }


def _private_key(identity: str | None) -> str | None:
    """Return the file of the key that a machine takes; None when only the user's agent has it."""
    if identity is None:
        return str(key_path(home_path()))
    return identity if identity.startswith("/") else None


# ---------------------------------------------------------------------------- runs


def run(row: RunRow, now: datetime, lives: Callable[[Keeper], bool | None] = alive) -> Shape:
    """Return one run with its attempts.

    Args:
        lives: whether a keeper lives; None when nobody here can know.
    """
    rented = {one.name: one for one in row.machines}
    return {
        "id": row.id,
        "name": row.name,
        "state": row.state,
        "exit_code": row.exit_code,
        "reason": reason(row, lives),
        "attempts": [_attempt(one, rented.get(one.machine), now) for one in row.attempts],
        "cost_usd": usd(row.cost_so_far(now)),
        "checkpoints": [checkpoint(one) for one in row.checkpoints],
        "outputs": [
            {"from": one.source, "to": one.target, "bytes": one.bytes, "at": moment(one.at)}
            for one in row.outputs
        ],
        "store": row.store,
        "spec_file": row.spec_file,
        "detached": row.detached,
        "created_at": moment(row.created_at),
        "ended_at": moment(row.ended_at),
    }


def reason(row: RunRow, lives: Callable[[Keeper], bool | None] = alive) -> str | None:
    """Say why a run is where it is; one that nobody carries on says so."""
    if row.state in RUN_ENDED:
        return row.reason
    keeper = keeper_from(row.keeper)
    if keeper is not None and lives(keeper) is False:
        return f"its keeper died; `gpuctl resume {row.id}` carries on"
    return row.reason


def attempt_cost(row: AttemptRow, rented: MachineRow | None, now: datetime) -> Decimal | None:
    """Return what an attempt has cost up to now, None when nobody knows."""
    if row.cost_usd is not None or rented is None:
        return row.cost_usd
    return rented.cost_so_far(now)


def _attempt(row: AttemptRow, rented: MachineRow | None, now: datetime) -> Shape:
    return {
        "number": row.number,
        "machine": {"name": row.machine} if rented is None else machine(rented, now),
        "started_at": moment(row.started_at),
        "ended_at": moment(row.ended_at),
        "outcome": row.outcome,
        "exit_code": row.exit_code,
        "reason": row.reason,
        "cost_usd": usd(attempt_cost(row, rented, now)),
    }


def checkpoint(row: CheckpointRow) -> Shape:
    """Return one checkpoint. The ledger holds only those that are whole in their store."""
    return {
        "name": row.name,
        "step": row.step,
        "at": moment(row.at),
        "bytes": row.bytes,
        "whole": True,
        "attempt": row.attempt,
        "version": row.version,
    }


def stored_checkpoint(one: Manifest, is_whole: bool) -> Shape:
    """Return one checkpoint as its store has it."""
    return {
        "name": one.name,
        "step": one.step,
        "at": moment(one.at),
        "bytes": one.bytes,
        "whole": is_whole,
        "attempt": one.attempt,
        "version": one.version,
    }


# ---------------------------------------------------------------- ends and accounts


def receipt(one: Receipt) -> Shape:
    """Return one receipt."""
    return {
        "name": one.name,
        "provider": one.provider,
        "provider_id": one.provider_id,
        "confirmed": one.confirmed,
        "confirmed_by": [
            {"call": by.call, "at": moment(by.at), "answer": by.answer} for by in one.confirmed_by
        ],
        "cost_usd": usd(one.cost_usd),
        "cost_source": one.cost_source,
        "leftovers": [leftover(left) for left in one.leftovers],
    }


def leftover(one: Leftover) -> Shape:
    """Return something beside a machine that can cost money."""
    return {
        "provider": one.provider,
        "kind": one.kind,
        "id": one.id,
        "name": one.name,
        "price_month": usd(one.price_month),
    }


def trouble(one: Trouble) -> Shape:
    """Return a provider or machine that could not be asked or ended."""
    return {
        "provider": one.provider,
        "kind": one.kind,
        "message": one.message,
        "machine": one.machine,
        "next": one.next,
    }


def seen(one: Seen, now: datetime) -> Shape:
    """Return one machine of an account with the verdict on it."""
    return {**found_machine(one.machine, one.row, now), "why": one.verdict.why}


def reaped(done: Reaped, now: datetime) -> Shape:
    """Return what a reap did, or would do."""
    return {
        "reaped": [receipt(one) for one in done.receipts],
        "would_reap": [seen(one, now) for one in done.would_reap],
        "swept": [leftover(one) for one in done.swept],
        "would_sweep": [leftover(one) for one in done.would_sweep],
        "kept": [seen(one, now) for one in done.kept],
        "errors": [trouble(one) for one in done.errors],
        "asked": list(done.asked),
    }


def audit(done: Audit, now: datetime) -> Shape:
    """Return everything that bills, and what of it nobody accounts for."""
    return {
        "billing": [billing(one, now) for one in done.billing],
        "unaccounted": [billing(one, now) for one in done.unaccounted],
        "errors": [trouble(one) for one in done.errors],
    }


def billing(one: Billing, now: datetime) -> Shape:
    """Return one thing that costs money: a machine, or what one left behind."""
    about: Shape = {"whose": one.whose, "unaccounted": one.unaccounted}
    if one.machine is not None:
        return {"type": "machine", **found_machine(one.machine, one.row, now), **about}
    assert one.leftover is not None  # it is one or the other
    return {"type": "leftover", **leftover(one.leftover), **about}
