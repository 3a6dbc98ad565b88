"""What is read from the ledger: machines, runs, attempts, checkpoints and what they cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from gpuctl.errors import LedgerError
from gpuctl.ledger.costs import Price, billed_until, cost_between, rounded, share
from providers.base import State

_HOUR = 3600

Closed = Literal["gone", "refused", "absent", "forgotten"]


@dataclass(frozen=True, slots=True)
class MachineRow:
    """One machine, as the ledger knows it now."""

    name: str
    provider: str
    provider_id: str | None  # None until the provider has named it
    state: State | Literal["intended"]
    gpu: str | None
    gpu_count: int
    spot: bool
    price_hour: Decimal  # USD, whole machine, now; 0 when it was found and nobody knows
    region: str
    disk_gb: float
    offer_id: str
    access_json: str | None  # see `access`
    lease_until: datetime
    lease_seconds: float
    hard_end: datetime
    run: str | None
    attempt: int | None
    owner: str
    keeper_json: str | None  # see `keeper`
    detached: bool
    purpose: str  # "run", "provision" or "borrowed"
    intended_at: datetime
    created_at: datetime | None
    ready_at: datetime | None
    ended_at: datetime | None
    interrupted: str | None  # the provider's reason for taking it away
    destroy_asked_at: datetime | None
    cost_usd: Decimal | None  # final; None while it is not known
    cost_source: str | None  # who said so; None while it runs
    confirmed_json: str | None  # see `confirmed_by`
    in_doubt: bool  # nobody knows whether the create call made it
    closed_by: Closed | None
    prices: tuple[Price, ...]
    ticks_json: str | None = None  # see `ticks`
    bill_step_seconds: float | None = None  # a part of so many seconds costs what all of it does
    # The Terraform folder that it belongs to, "" when nobody said; None for what gpuctl rented.
    terraform: str | None = None

    # Parsed when somebody asks: of ten thousand rows that are listed hardly any is asked.

    @property
    def access(self) -> Mapping[str, Any] | None:
        """How to reach it, as it was recorded."""
        access: Mapping[str, Any] | None = self._parsed(self.access_json)
        return access

    @property
    def keeper(self) -> Mapping[str, Any] | None:
        """Which process looks after it: role, host, boot, pid, started."""
        keeper: Mapping[str, Any] | None = self._parsed(self.keeper_json)
        return keeper

    @property
    def ticks(self) -> Mapping[str, Any] | None:
        """Its lease and hard end by the seconds that the computer which wrote them counts."""
        ticks: Mapping[str, Any] | None = self._parsed(self.ticks_json)
        return ticks

    @property
    def confirmed_by(self) -> tuple[Mapping[str, Any], ...]:
        """Who says that it is gone: call, at, answer of each."""
        return tuple(self._parsed(self.confirmed_json) or ())

    def _parsed(self, text: str | None) -> Any:
        try:
            return None if text is None else json.loads(text)
        except ValueError as error:
            raise LedgerError(
                f"The ledger is damaged: what it says of {self.name} cannot be read ({error})",
                machine=self.name,
                may_bill=not self.closed,
                next="Run `gpuctl audit`: it asks the clouds themselves.",
            ) from error

    @property
    def closed(self) -> bool:
        """Whether nothing more is expected of it: gone, refused, absent or forgotten."""
        return self.closed_by is not None

    @property
    def borrowed(self) -> bool:
        """Whether Terraform made it, and ends it. Then what it costs is on no book of ours."""
        return self.terraform is not None

    @property
    def billing_from(self) -> datetime | None:
        """From when on it costs money, or may: None while its create call has no answer."""
        if self.created_at is not None:
            return self.created_at
        return self.intended_at if self.in_doubt else None

    def cost_so_far(self, now: datetime) -> Decimal:
        """Return what it has cost up to ``now``, in USD: the final figure where there is one."""
        if self.cost_usd is not None:
            return self.cost_usd
        start = self.billing_from
        if start is None:
            return Decimal(0)
        return rounded(cost_between(self.prices, start, self._billed_until(start, now)))

    @property
    def how_computed(self) -> str:
        """What `cost_source` says of a cost that no provider has told."""
        return "computed by started hours" if self.bill_step_seconds == _HOUR else "computed"

    def _billed_until(self, start: datetime, now: datetime) -> datetime:
        return billed_until(start, self.ended_at or now, self.bill_step_seconds)

    def cost_since(self, moment: datetime, now: datetime) -> Decimal:
        """Return the part of `cost_so_far` that falls after a moment, in USD."""
        start = self.billing_from
        if start is None:
            return Decimal(0)
        end = self._billed_until(start, now)
        if self.cost_usd is None:
            return rounded(cost_between(self.prices, max(start, moment), end))
        return rounded(share(self.cost_usd, start, end, moment))


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt of a run."""

    number: int
    machine: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None  # one of `events.OUTCOMES`; None while it lasts
    exit_code: int | None
    reason: str | None
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """One checkpoint that is whole in its store."""

    attempt: int
    seq: int
    name: str
    version: int
    step: int | None
    at: datetime
    bytes: int


@dataclass(frozen=True, slots=True)
class OutputRow:
    """One output that was brought back."""

    source: str  # the spec's `from`
    target: str
    bytes: int
    at: datetime


@dataclass(frozen=True, slots=True)
class RunRow:
    """One run, as the ledger knows it now."""

    id: str
    name: str
    state: str  # one of `events.RUN_STATES`
    reason: str | None
    exit_code: int | None
    spec: Mapping[str, Any]
    spec_file: str | None
    owner: str
    store: str  # a folder or an s3:// location
    created_at: datetime
    ended_at: datetime | None  # None while it goes on
    detached: bool
    keeper: Mapping[str, Any] | None
    attempts: tuple[AttemptRow, ...]  # by number
    checkpoints: tuple[CheckpointRow, ...]  # oldest first; pruned ones are left out
    outputs: tuple[OutputRow, ...]
    machines: tuple[MachineRow, ...]  # every one that was rented for it, oldest first

    def cost_so_far(self, now: datetime) -> Decimal:
        """Return what it has cost up to ``now``, in USD.

        That is every machine rented for it, also those that never came to an attempt, and
        attempts on machines that were not rented for it.
        """
        rented = {machine.name for machine in self.machines}
        total = sum((machine.cost_so_far(now) for machine in self.machines), Decimal(0))
        for attempt in self.attempts:
            if attempt.machine not in rented:
                total += attempt.cost_usd or Decimal(0)
        return total
