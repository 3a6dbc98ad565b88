"""Ending a machine, and proving it.

Gone means: destroy accepted, then absent (or terminal) in the provider's own answer twice, at
least one settling period apart, on calls that succeeded. A row leaves the open books only by
that proof.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from gpuctl.errors import GpuctlError, LedgerError, MayStillBill
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.presence import Proof, prove_absent
from gpuctl.fleet.receipt import Confirmation, Receipt
from gpuctl.fleet.ssh_config import follow_ledger
from gpuctl.ledger import MachineRow
from gpuctl.remote.known_hosts import KnownHost
from providers.base import (
    Ambiguous,
    AuthFailed,
    Leftover,
    NotFound,
    Provider,
    ProviderError,
    RateLimited,
)

DEFAULT_DEADLINE_SECONDS = 180.0
_AT_ONCE = 8


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

    Raises:
        MayStillBill: it could not be proven gone before the deadline; the watchdog goes on.
        LedgerError: the machine is gone but the ledger could not be told.
    """
    if row.closed:
        return receipt_of(row, fleet.clock.now())
    provider = fleet.provider(row.provider)
    deadline = fleet.clock.monotonic() + deadline_seconds
    trouble = _note(fleet, "destroy_asked", row.name, why=why)
    provider_id = row.provider_id or _id_by_name(fleet, provider, row, deadline)
    if provider_id is not None:
        answer = _ask(provider, row, provider_id, deadline - fleet.clock.monotonic())
        trouble = _note(fleet, "destroy_accepted", row.name, answer=answer) or trouble
    proof = prove_absent(
        provider,
        row.name,
        provider_id,
        fleet.clock,
        deadline=deadline,
        again=lambda: _ask_again(provider, provider_id),
    )
    if not proof.absent:
        raise _unproven(provider, row, provider_id, proof)
    receipt = _receipt(provider, row, provider_id, proof)
    trouble = _note_gone(fleet, receipt) or trouble
    _forget_host_key(fleet, row.name)
    follow_ledger(fleet)
    if trouble:
        trouble.message = (
            f"{row.name} is gone, confirmed {len(receipt.confirmed_by)} times, and costs nothing "
            f"any more; but {trouble.message}"
        )
        trouble.machine = row.name
        raise trouble
    return receipt


def release_all(
    fleet: Fleet,
    rows: Sequence[MachineRow],
    *,
    why: str,
    deadline_seconds: float = DEFAULT_DEADLINE_SECONDS,
) -> tuple[list[Receipt], list[GpuctlError]]:
    """End several machines side by side; one that fails does not keep the others alive."""
    futures = [Future[Receipt]() for _ in rows]
    waiting = deque(zip(rows, futures, strict=True))

    def work() -> None:
        with suppress(IndexError):  # nothing waits any more
            while True:
                row, future = waiting.popleft()
                try:
                    future.set_result(
                        release(fleet, row, why=why, deadline_seconds=deadline_seconds)
                    )
                except BaseException as error:
                    future.set_exception(error)

    for _ in range(min(len(rows), _AT_ONCE)):
        # Daemons, which no pool has: somebody who presses Ctrl-C again does not want to wait.
        threading.Thread(target=work, name="release", daemon=True).start()
    receipts: list[Receipt] = []
    errors: list[GpuctlError] = []
    for future in futures:
        try:
            receipts.append(future.result())
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


def _ask(provider: Provider, row: MachineRow, provider_id: str, seconds: float) -> str:
    """Ask for the end until the provider has accepted it."""
    retrying = Retrying(
        # No answer, or too many requests: asking again is safe, destroy is idempotent.
        retry=retry_if_exception_type((Ambiguous, RateLimited)),
        wait=wait_random_exponential(multiplier=0.5, max=30),
        stop=stop_after_delay(max(seconds, 0)),
        reraise=True,
    )
    try:
        return str(retrying(provider.destroy, provider_id))
    except NotFound:
        return "already absent"
    except ProviderError as error:
        raise MayStillBill(
            f"{provider.name} did not accept the end of {row.name} ({provider_id}): {error}",
            machine=row.name,
            next=_advice(provider, row, provider_id, error),
        ) from error


def _ask_again(provider: Provider, provider_id: str | None) -> None:
    if provider_id is None:
        return
    try:
        provider.destroy(provider_id)
    except (Ambiguous, RateLimited, NotFound):
        # The next look decides; asking again is only a push.
        return


def _id_by_name(fleet: Fleet, provider: Provider, row: MachineRow, deadline: float) -> str | None:
    """Find the id of a machine whose create nobody heard back from; None when absent."""
    proof = prove_absent(provider, row.name, None, fleet.clock, deadline=deadline, until_seen=True)
    if proof.machine is not None:
        return proof.machine.provider_id
    if proof.absent:
        return None
    raise _unproven(provider, row, None, proof)


def _unproven(
    provider: Provider, row: MachineRow, provider_id: str | None, proof: Proof
) -> MayStillBill:
    seen = f"it is still {proof.machine.status}" if proof.machine else "no proof that it is gone"
    why = f"{provider.name} does not answer: {proof.error}" if proof.error else seen
    return MayStillBill(
        f"{row.name} ({provider_id or 'id unknown'}) may still be billing: {why}",
        machine=row.name,
        next=_advice(provider, row, provider_id, proof.error),
    )


def _advice(
    provider: Provider, row: MachineRow, provider_id: str | None, error: ProviderError | None
) -> str:
    console = f"end {provider_id or row.name} in {provider.name}'s own console"
    if provider.capabilities.kind in ("local", "host"):
        console = "look at that computer yourself"
    if isinstance(error, AuthFailed):
        return f"Put valid {provider.name} credentials in place and repeat, or {console}."
    return f"The watchdog keeps trying. Run `gpuctl terminate {row.name}` again, or {console}."


def _receipt(provider: Provider, row: MachineRow, provider_id: str | None, proof: Proof) -> Receipt:
    leftovers = _sweep(provider, row)
    cost, source = _cost(provider, row, provider_id, proof)
    return Receipt(
        name=row.name,
        provider=row.provider,
        provider_id=provider_id,
        confirmed=True,
        confirmed_by=proof.confirmed_by,
        cost_usd=cost,
        cost_source=source,
        leftovers=leftovers,
    )


def _sweep(provider: Provider, row: MachineRow) -> tuple[Leftover, ...]:
    """Remove what else of this machine can cost money; return what is still there."""
    try:
        ours = [one for one in provider.leftovers() if one.name == row.name]
        for one in ours:
            provider.remove(one)
        if not ours:
            return ()  # nothing to look at again: with many machines, quotas are small
        return tuple(one for one in provider.leftovers() if one.name == row.name)
    except ProviderError as error:
        raise MayStillBill(
            f"{row.name} is gone, but what it left on {provider.name} could not be swept: {error}",
            machine=row.name,
            next=f"Run `gpuctl terminate {row.name}` again.",
        ) from error


def _cost(
    provider: Provider, row: MachineRow, provider_id: str | None, proof: Proof
) -> tuple[Decimal, str]:
    if provider_id is not None:
        try:
            billed = provider.billed(provider_id)
        except ProviderError:
            billed = None  # The computed figure stands in, and is labelled so.
        if billed is not None:
            return billed.amount, billed.source
    if provider_id is None:
        return Decimal(0), "never created"
    return row.cost_so_far(proof.confirmed_by[0].at), "computed"


def _note(fleet: Fleet, kind: str, name: str, **facts: Any) -> LedgerError | None:
    try:
        fleet.ledger.record(kind, machine=name, **facts)
    except LedgerError as error:
        fleet.say(f"{name}: the ledger could not be written: {error.message}")
        return error
    return None


def _forget_host_key(fleet: Fleet, name: str) -> None:
    try:
        KnownHost(fleet.home.path, name).forget()
    except OSError as error:
        # The machine is gone all the same, and no other will have its name.
        fleet.say(f"{name}: its host key stays in {error.filename}: {error.strerror}")


def _note_gone(fleet: Fleet, receipt: Receipt) -> LedgerError | None:
    return _note(
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
