"""What is left to do when machines are proven gone: sweep, say what they cost, close the row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gpuctl.errors import LedgerError
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.receipt import Confirmation, Receipt
from gpuctl.ledger import MachineRow
from gpuctl.remote.known_hosts import KnownHost
from providers.base import Leftover, Provider, ProviderError


@dataclass(frozen=True, slots=True)
class Gone:
    """A machine whose absence is proven."""

    row: MachineRow
    provider_id: str | None  # None: it never was
    confirmed_by: tuple[Confirmation, ...]


def sweep(
    provider: Provider, names: Collection[str]
) -> Mapping[str, tuple[Leftover, ...] | ProviderError]:
    """Remove what else of these machines can cost money.

    Returns:
        By the machine's name what is still there, or why something of it was not removed.

    Raises:
        ProviderError: what there is could not be listed.
    """
    ours = [one for one in provider.leftovers() if one.name in names]
    failed: dict[str, ProviderError] = {}
    for one in ours:
        try:
            provider.remove(one)
        except ProviderError as error:
            failed[one.name] = error
    # Where nothing was, nothing is looked at again: quotas are small.
    left = provider.leftovers() if ours else ()
    return {
        name: failed.get(name) or tuple(one for one in left if one.name == name) for name in names
    }


def close(
    fleet: Fleet, provider: Provider, gone: Gone, leftovers: tuple[Leftover, ...]
) -> tuple[Receipt, LedgerError | None]:
    """Close the row of a machine; return its receipt, and why the ledger could not be told."""
    cost, source = _cost(provider, gone)
    receipt = Receipt(
        name=gone.row.name,
        provider=gone.row.provider,
        provider_id=gone.provider_id,
        confirmed=True,
        confirmed_by=gone.confirmed_by,
        cost_usd=cost,
        cost_source=source,
        leftovers=leftovers,
    )
    return receipt, record_gone(fleet, receipt)


def note(fleet: Fleet, kind: str, name: str, **facts: Any) -> LedgerError | None:
    """Tell the ledger; return why it could not be told, for that must not stop a teardown."""
    try:
        fleet.ledger.record(kind, machine=name, **facts)
    except LedgerError as error:
        fleet.say(f"{name}: the ledger could not be written: {error.message}")
        return error
    return None


def record_gone(fleet: Fleet, receipt: Receipt) -> LedgerError | None:
    """Close the row of a machine and forget its host key; return why the ledger was not told."""
    trouble = note(
        fleet,
        "gone",
        receipt.name,
        confirmed_by=[
            {"call": c.call, "at": c.at, "answer": c.answer} for c in receipt.confirmed_by
        ],
        cost_usd=receipt.cost_usd,
        cost_source=receipt.cost_source,
        ended_at=receipt.confirmed_by[0].at,
        leftovers=[{"kind": one.kind, "id": one.id} for one in receipt.leftovers],
    )
    _forget_host_key(fleet, receipt.name)
    return trouble


def _cost(provider: Provider, gone: Gone) -> tuple[Decimal, str]:
    if gone.provider_id is None:
        return Decimal(0), "never created"
    try:
        billed = provider.billed(gone.provider_id)
    except ProviderError:
        billed = None  # The computed figure stands in, and is labelled so.
    if billed is not None:
        return billed.amount, billed.source
    return gone.row.cost_so_far(gone.confirmed_by[0].at), gone.row.how_computed


def _forget_host_key(fleet: Fleet, name: str) -> None:
    try:
        KnownHost(fleet.home.path, name).forget()
    except OSError as error:
        # The machine is gone all the same, and no other will have its name.
        fleet.say(f"{name}: its host key stays in {error.filename}: {error.strerror}")
