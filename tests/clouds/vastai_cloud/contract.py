"""One instance, as the cloud knows it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from tests.clouds.rented import Rented
from tests.clouds.vastai_cloud.market import Ask
from tests.remote.relay import Relay

_GPU_METER = ("running", "frozen")


@dataclass
class Contract:
    """One instance. Money is in USD an hour, for the whole of it."""

    id: int
    ask: Ask
    body: dict[str, Any]  # of the create call
    bid: Decimal | None
    base: Decimal
    storage: Decimal  # while it runs
    created: datetime
    end_date: float
    ssh_keys: list[dict[str, Any]]
    key: str = field(default_factory=lambda: secrets.token_hex(32))
    label: str | None = None
    actual: str | None = None
    intended: str = "running"
    cur: str = "running"
    next: str = "running"
    status_msg: str | None = None
    ports: bool = False
    host_down: bool = False
    stopped_storage: Decimal = Decimal(1)  # what its disk costs when it is stopped, times the usual
    waits: bool = False  # for its GPUs, and starts by itself
    started: datetime | None = None
    turn: int = 0  # steps that were planned for an earlier turn do not happen
    machine: Rented | None = None
    proxy: Relay | None = None

    @property
    def disk(self) -> float:
        """GB."""
        return float(self.body.get("disk") or 8)

    @property
    def rate(self) -> Decimal:
        """What it costs now."""
        if self.host_down:
            return Decimal(0)
        if self.cur != "running":
            return self.storage * self.stopped_storage
        return self.storage + (self.base if self.actual in _GPU_METER else 0)

    @property
    def env(self) -> dict[str, str]:
        """What the caller put into its environment; ports are none of it."""
        given = self.body.get("env")
        pairs = given.items() if isinstance(given, dict) else ()
        return {str(k): str(v) for k, v in pairs if not str(k).startswith("-")}


class TooLow(Exception):
    """The bid is below the floor; the instance exists all the same, stopped."""

    def __init__(self, contract: Contract) -> None:
        super().__init__(contract.id)
        self.contract = contract


class Gone(Exception):
    """The offer is not available."""
