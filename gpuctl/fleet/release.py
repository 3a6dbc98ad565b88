"""Ending machines, and proving it.

Gone means: destroy accepted, then absent (or terminal) in the provider's own answer twice, at
least one settling period apart, on calls that succeeded. A row leaves the open books only by
that proof.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from datetime import datetime

from gpuctl.errors import GpuctlError, UsageError
from gpuctl.fleet.access import refuse_to_end
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.receipt import Confirmation, Receipt
from gpuctl.fleet.teardown import Teardown
from gpuctl.ledger import MachineRow

DEFAULT_DEADLINE_SECONDS = 180.0
_NOTICE_SECONDS = 0.05


def release(
    fleet: Fleet,
    row: MachineRow,
    *,
    why: str,
    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
) -> Receipt:
    """End one machine and return its receipt. Idempotent.

    A ledger that cannot be written does not stop the teardown: the machine is ended first, the
    ledger's error is raised afterwards.

    Args:
        deadline_seconds: for its end to be accepted, and from then on for the proof.

    Raises:
        MayStillBill: it could not be proven gone before the deadline; the watchdog goes on.
        LedgerError: the machine is gone but the ledger could not be told.
        UsageError: it is Terraform's, or its provider cannot be asked from here.
    """
    if row.closed:
        return receipt_of(row, fleet.clock.now())
    refuse_to_end([row])
    teardown = _teardown(fleet, [row], why, deadline_seconds)
    teardown.run()
    return teardown.outcomes[0].result()


def release_all(
    fleet: Fleet,
    rows: Sequence[MachineRow],
    *,
    why: str,
    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
) -> tuple[list[Receipt], list[GpuctlError]]:
    """End several machines side by side; one that fails does not keep the others alive.

    Those of one account are proven gone by the same listings. Raises nothing that concerns one
    machine only: that is among the errors.
    """
    rows = list({row.name: row for row in rows}.values())
    outcomes: dict[str, Future[Receipt]] = {row.name: Future() for row in rows}
    mine: dict[str, list[MachineRow]] = {}
    for row in rows:
        try:
            refuse_to_end([row])
        except UsageError as error:
            outcomes[row.name].set_exception(error)
            continue
        if row.closed:
            outcomes[row.name].set_result(receipt_of(row, fleet.clock.now()))
        else:
            mine.setdefault(row.provider, []).append(row)
    for account in mine.values():
        try:
            teardown = _teardown(fleet, account, why, deadline_seconds)
        except UsageError as error:
            for row in account:
                told = UsageError(error.message, machine=row.name, next=error.next)
                outcomes[row.name].set_exception(told)
            continue
        outcomes |= {row.name: one for row, one in zip(account, teardown.outcomes, strict=True)}
        # A daemon, which no pool has: somebody who presses Ctrl-C again does not want to wait.
        threading.Thread(target=teardown.run, name="release", daemon=True).start()
    receipts: list[Receipt] = []
    errors: list[GpuctlError] = []
    for row in rows:
        outcome = outcomes[row.name]
        while not outcome.done():
            # A signal that comes just before a wait without an end is not noticed until the next.
            wait([outcome], timeout=_NOTICE_SECONDS)
        try:
            receipts.append(outcome.result())
        except GpuctlError as error:
            errors.append(error)
    return receipts, errors


def receipt_of(row: MachineRow, now: datetime) -> Receipt:
    """Return the receipt of a machine whose end is in the ledger already."""
    return Receipt(
        name=row.name,
        provider=row.provider,
        provider_id=row.provider_id,
        confirmed=row.closed and bool(row.confirmed_by),
        confirmed_by=tuple(
            Confirmation(
                call=str(c["call"]),
                at=datetime.fromisoformat(str(c["at"])),
                answer=str(c["answer"]),
            )
            for c in row.confirmed_by
        ),
        cost_usd=row.cost_so_far(now),
        cost_source=row.cost_source or "computed",
    )


def _teardown(
    fleet: Fleet, rows: Sequence[MachineRow], why: str, deadline_seconds: float
) -> Teardown:
    """Raises UsageError: there is no such provider here, or its settings are malformed."""
    provider = fleet.provider(rows[0].provider)
    return Teardown(fleet, provider, rows, why=why, deadline_seconds=deadline_seconds)
