"""Taking machines of Terraform's out of the ledger, once their clouds prove that they are gone."""

from __future__ import annotations

from decimal import Decimal

from gpuctl.fleet.closing import record_gone
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.presence import Proof, prove_absent
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.ssh_config import follow_ledger
from gpuctl.ledger import MachineRow

COST_SOURCE = "on Terraform's bill"
_SETTLINGS = 3  # for so many settling periods at most an end is looked for


def prove_end(fleet: Fleet, row: MachineRow) -> Proof:
    """Ask the cloud of a lent machine whether it is gone; returns at once when it is there."""
    provider = fleet.provider(row.provider)
    return prove_absent(
        provider,
        row.name,
        row.provider_id,
        fleet.clock,
        deadline=fleet.clock.monotonic() + _SETTLINGS * provider.capabilities.settle_seconds,
        until_seen=True,
    )


def close_if_gone(fleet: Fleet, row: MachineRow) -> Receipt | None:
    """Close a borrowed machine whose cloud proves that it is gone; None when it does not.

    Raises:
        ProviderError: its cloud does not answer.
    """
    proof = prove_end(fleet, row)
    if proof.error is not None:
        raise proof.error
    return close(fleet, row, proof) if proof.absent else None


def close(fleet: Fleet, row: MachineRow, proof: Proof) -> Receipt:
    """Close a borrowed machine that is proven gone. What it cost is not ours.

    Raises:
        LedgerError: it could not be written.
    """
    if proof.last is not None and proof.last.reason is not None:
        fleet.ledger.record("interrupted", machine=row.name, reason=proof.last.reason)
    receipt = Receipt(
        row.name,
        row.provider,
        row.provider_id,
        confirmed=True,
        confirmed_by=proof.confirmed_by,
        cost_usd=Decimal(0),
        cost_source=COST_SOURCE,
    )
    trouble = record_gone(fleet, receipt)
    if trouble is not None:
        raise trouble
    follow_ledger(fleet)
    return receipt
