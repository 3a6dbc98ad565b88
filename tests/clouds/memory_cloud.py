"""A cloud in memory, with the faults of real ones as switches and its own books.

For what needs no machine behind the API: the life of a machine as the provider tells it. Tests
ask `books()`, never gpuctl, what was rented and what is left.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal

from providers.base import (
    ABSENT,
    Ambiguous,
    Billed,
    Capabilities,
    Clock,
    Finding,
    Leftover,
    Machine,
    NoCapacity,
    NotFound,
    Offer,
    Order,
    ProviderError,
    State,
    Want,
)


class HandClock:
    """A clock that moves only when somebody sleeps, or the test says so."""

    def __init__(self, start: datetime) -> None:
        self._now = start
        self._lock = threading.Lock()
        self.slept: list[float] = []

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._now.timestamp()

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.slept.append(seconds)
            self._now += timedelta(seconds=seconds)

    def pass_time(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)


@dataclass
class Faults:
    """What goes wrong. Numbers count down per call; a list holds the errors of the next calls."""

    create: list[ProviderError | None] = field(default_factory=list)  # before the commit
    create_reply_lost: int = 0  # after the commit
    create_price: Decimal | None = None  # the price on the reply
    destroy: list[ProviderError] = field(default_factory=list)
    destroy_ignored: int = 0  # accepted, and nothing happens
    get: list[ProviderError] = field(default_factory=list)
    list: list[ProviderError] = field(default_factory=list)
    get_says_absent: int = 0  # 404 while it lives
    list_lag_seconds: float = 0  # a new machine shows up that much later
    denied_seconds: float = 0  # what is made now is known to no call for so long, not even its end
    leftover: bool = False  # every machine leaves a volume behind


class MemoryCloud:
    """A provider whose account is a dict."""

    def __init__(self, clock: Clock, *, name: str = "memory", settle_seconds: float = 10) -> None:
        self.name = name
        self.clock = clock
        self.faults = Faults()
        self.machines: dict[str, Machine] = {}
        self.ended: dict[str, Machine] = {}
        self.volumes: dict[str, Leftover] = {}
        self.calls: list[str] = []
        self.rented = 0
        self.settle_seconds = settle_seconds
        self.shown_seconds = 0.0
        self.credentials = True
        self._billed: dict[str, Decimal] = {}
        self._denied_until: dict[str, float] = {}

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            spot=True,
            stop=True,
            ttl=False,
            labels=True,
            kind="vm",
            gpus=True,
            console="https://memory.example/machines/{id}",
            settle_seconds=self.settle_seconds,
            shown_seconds=self.shown_seconds,
            poll_seconds=1,
        )

    # -- the books

    def books(self) -> tuple[int, int, int]:
        """Machines ever rented, machines alive, leftovers that bill."""
        return self.rented, len(self.machines), len(self.volumes)

    # -- the verbs

    def configured(self) -> bool:
        return self.credentials

    def offers(self, want: Want) -> Sequence[Offer]:
        return [self.offer(spot=bool(want.spot))]

    def offer(self, *, spot: bool = False, price: str = "1.00", id: str = "o1") -> Offer:
        return Offer(
            provider=self.name,
            id=id,
            gpu="RTX-4090",
            gpu_count=1,
            vram_gb=24,
            spot=spot,
            price_hour=Decimal(price),
            region="here",
            as_of=self.clock.now(),
        )

    def create(self, order: Order) -> Machine:
        self.calls.append(f"create {order.name}")
        if self.faults.create and (error := self.faults.create.pop(0)):
            raise error
        self.rented += 1
        machine = Machine(
            name=order.name,
            provider=self.name,
            provider_id=f"m{self.rented}",
            state=State.READY,
            status="RUNNING",
            gpu=order.offer.gpu,
            gpu_count=order.offer.gpu_count,
            spot=order.offer.spot,
            price_hour=self.faults.create_price or order.offer.price_hour,
            region="here",
            mark=order.mark,
            created_at=self.clock.now(),
        )
        self.machines[machine.provider_id] = machine
        if self.faults.denied_seconds:
            until = self.clock.monotonic() + self.faults.denied_seconds
            self._denied_until[machine.provider_id] = until
        if self.faults.leftover:
            volume = Leftover(self.name, "volume", f"v{self.rented}", order.name, order.mark)
            self.volumes[volume.id] = volume
        if self.faults.create_reply_lost > 0:
            self.faults.create_reply_lost -= 1
            raise Ambiguous("the connection was reset while the reply was read")
        return machine

    def get(self, provider_id: str) -> Machine:
        self.calls.append(f"get {provider_id}")
        if self.faults.get:
            raise self.faults.get.pop(0)
        if self.faults.get_says_absent > 0:
            self.faults.get_says_absent -= 1
            raise NotFound(f"there is no {provider_id}")
        if self._knows(provider_id):
            return self.machines[provider_id]
        if provider_id in self.ended:
            return self.ended[provider_id]
        raise NotFound(f"there is no {provider_id}")

    def list(self) -> Sequence[Machine]:
        self.calls.append("list")
        if self.faults.list:
            raise self.faults.list.pop(0)
        late = timedelta(seconds=self.faults.list_lag_seconds)
        return [
            m
            for m in self.machines.values()
            if (m.created_at is None or self.clock.now() - m.created_at >= late)
            and self._knows(m.provider_id)
        ]

    def destroy(self, provider_id: str) -> str:
        self.calls.append(f"destroy {provider_id}")
        if self.faults.destroy:
            raise self.faults.destroy.pop(0)
        if not self._knows(provider_id):
            return ABSENT
        if self.faults.destroy_ignored > 0:
            self.faults.destroy_ignored -= 1
            return "202 accepted"
        del self.machines[provider_id]
        return "204"

    def _knows(self, provider_id: str) -> bool:
        denied_until = self._denied_until.get(provider_id, 0.0)
        return provider_id in self.machines and self.clock.monotonic() >= denied_until

    def leftovers(self) -> Sequence[Leftover]:
        return list(self.volumes.values())

    def remove(self, leftover: Leftover) -> None:
        self.volumes.pop(leftover.id, None)

    def billed(self, provider_id: str) -> Billed | None:
        amount = self._billed.get(provider_id)
        return None if amount is None else Billed(amount, self.clock.now(), "memory billing")

    def check(self) -> Sequence[Finding]:
        return [Finding("key", self.credentials, "")]

    # -- what happens without us

    def bills(self, provider_id: str, amount: str) -> None:
        self._billed[provider_id] = Decimal(amount)

    def take_away(self, provider_id: str) -> None:
        machine = self.machines.pop(provider_id)
        self.ended[provider_id] = replace(
            machine, state=State.GONE, status="TERMINATED", reason="interrupted"
        )

    def put(self, machine: Machine) -> None:
        self.machines[machine.provider_id] = machine


def no_capacity() -> NoCapacity:
    return NoCapacity("none left in this region")
