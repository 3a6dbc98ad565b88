"""The life of every emulated instance, by the cloud's own clock; and what it bills.

moto keeps what an instance is; what state it is in, since when and why is decided here, and
written into moto's objects so that Describe and its filters show it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from moto.ec2.models.instances import StateReason

from providers.base import Clock
from tests.clouds.aws_cloud.machines import AwsMachine
from tests.clouds.aws_cloud.market import ADDRESS_HOUR, GP3_MONTH, Market
from tests.clouds.books import Books

_CODES = {
    "pending": 0,
    "running": 16,
    "shutting-down": 32,
    "terminated": 48,
    "stopping": 64,
    "stopped": 80,
}
_HOURS_A_MONTH = 730
BY_USER = ("Client.UserInitiatedShutdown", "User initiated shutdown")
FROM_INSIDE = ("Client.InstanceInitiatedShutdown", "Instance initiated shutdown")
INTERRUPTED = ("Server.SpotInstanceTermination", "Spot instance termination")


@dataclass
class Times:
    """How long things take, in seconds. For tests in real time they are made small.

    Attributes:
        boot: from the launch to running.
        end: from the end to terminated.
        unseen: a new instance is not in any answer, nor known by its id.
        stale: an ended instance is still shown as running.
        forget: until a terminated instance is forgotten.
        quota_held: an ended instance still counts while its spot request is not cancelled.
    """

    boot: float = 20
    end: float = 10
    unseen: float = 0
    stale: float = 0
    forget: float = 3600
    quota_held: float = 60


@dataclass
class SpotRequest:
    """What stands behind every spot instance."""

    id: str
    instance_id: str
    created: datetime
    tags: dict[str, str]
    price: str
    cancelled: datetime | None = None
    closed: str | None = None  # its status code, when it ended


@dataclass
class Rental:
    """One instance."""

    id: str
    region: str
    zone: str
    zone_id: str
    type: str
    vcpus: int
    market: str
    name: str
    token: str
    instance: Any  # moto's
    launched: datetime
    price: Decimal
    user_data: bytes = b""
    request: SpotRequest | None = None
    machine: AwsMachine | None = None
    running: bool = False
    stopped: bool = False
    ended: datetime | None = None
    ended_at_once: bool = False
    why: tuple[str, str] = ("", "")
    terminated: bool = False
    taken_at: datetime | None = None  # when its interruption strikes
    volumes: list[str] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Whether nobody has ended it yet."""
        return self.ended is None


class Rentals:
    """All instances of an account."""

    def __init__(self, clock: Clock, market: Market) -> None:
        self.clock = clock
        self.market = market
        self.books = Books()
        self.times = Times()
        self.all: dict[str, Rental] = {}
        self.lock = threading.RLock()

    # ------------------------------------------------------------------ beginning

    def add(self, rental: Rental) -> None:
        """One is launched; it does not bill yet, its volumes do."""
        self.all[rental.id] = rental
        self.books.begin("instance", rental.id, rental.name, Decimal(0), rental.launched)
        for device, mapping in rental.instance.block_device_mapping.items():
            del device
            rental.volumes.append(mapping.volume_id)
            size = rental.instance.ec2_backend.get_volume(mapping.volume_id).size
            self.begin_volume(mapping.volume_id, rental.name, int(size))
        self._show(rental, "pending")

    def begin_volume(self, volume_id: str, name: str, gigabytes: int) -> None:
        """A volume bills from now on."""
        price = GP3_MONTH * gigabytes / _HOURS_A_MONTH
        self.books.begin("volume", volume_id, name, price, self.clock.now())

    def begin_address(self, address_id: str, name: str) -> None:
        """An address bills from now on."""
        self.books.begin("address", address_id, name, ADDRESS_HOUR, self.clock.now())

    # ------------------------------------------------------------------ time passes

    def advance(self) -> None:
        """Bring everything to the present."""
        now = self.clock.now()
        for rental in list(self.all.values()):
            if rental.terminated:
                self._forget(rental, now)
                continue
            if rental.alive:
                self._live(rental, now)
            if rental.ended is not None:
                self._die(rental, now)

    def _live(self, rental: Rental, now: datetime) -> None:
        if rental.stopped:
            return
        if not rental.running and _since(rental.launched, now) >= self.times.boot:
            rental.running = True
            self._show(rental, "running")
            self.books.reprice(rental.id, rental.price, now)
            if rental.machine is not None:
                rental.instance.nics[0].public_ip = rental.machine.address[0]
                rental.machine.start()
            else:
                rental.instance.nics[0].public_ip = _made_up(rental.id)
        if rental.taken_at is not None and now >= rental.taken_at:
            self.end(rental, INTERRUPTED, rental.taken_at, at_once=True)
        elif rental.machine is not None and rental.machine.off.is_set():
            if rental.instance.instance_initiated_shutdown_behavior == "terminate":
                self.end(rental, FROM_INSIDE, now)
            else:
                self.stop(rental, FROM_INSIDE)

    def _die(self, rental: Rental, now: datetime) -> None:
        assert rental.ended is not None
        past = _since(rental.ended, now)
        stale = 0 if rental.ended_at_once else self.times.stale
        if past < stale:
            return
        if past < stale + self.times.end and not rental.ended_at_once:
            self._show(rental, "shutting-down", rental.why)
            return
        kept = set(rental.instance.block_device_mapping)
        rental.instance.terminate()
        rental.terminated = True
        self._show(rental, "terminated", rental.why)
        rental.instance._reason = "" if rental.why[0].startswith("Server") else "User initiated"
        del kept
        for volume_id in rental.volumes:
            if volume_id not in rental.instance.ec2_backend.volumes:
                self.books.end(volume_id, now)
        if rental.request is not None and rental.request.closed is None:
            rental.request.closed = "instance-terminated-by-user"

    def _forget(self, rental: Rental, now: datetime) -> None:
        assert rental.ended is not None
        if _since(rental.ended, now) < self.times.forget:
            return
        reservations = rental.instance.ec2_backend.reservations
        for key in [k for k, r in reservations.items() if rental.instance in r.instances]:
            del reservations[key]

    # ------------------------------------------------------------------ the end

    def end(
        self, rental: Rental, why: tuple[str, str], when: datetime, *, at_once: bool = False
    ) -> None:
        """It ends: it bills no more, and nothing runs there any more."""
        if not rental.alive:
            return
        rental.ended, rental.why, rental.ended_at_once = when, why, at_once
        self.books.end(rental.id, when)
        if rental.machine is not None:
            rental.machine.kill()

    def stop(self, rental: Rental, why: tuple[str, str]) -> None:
        """It stops: its volumes bill on."""
        rental.stopped, rental.running = True, False
        self.books.reprice(rental.id, Decimal(0), self.clock.now())
        self._show(rental, "stopped", why)
        if rental.machine is not None:
            rental.machine.kill()

    def interrupt(
        self,
        instance_id: str,
        *,
        notice: float = 120,
        told: bool = True,
        code: str = "instance-terminated-no-capacity",
    ) -> None:
        """Take a spot instance away.

        Args:
            notice: seconds until it is killed.
            told: whether anybody hears of it before.
            code: what its spot request says; an experiment of FIS has one of its own.
        """
        with self.lock:
            rental = self.all[instance_id]
            assert rental.request is not None, "it is on demand"
            rental.taken_at = self.clock.now() + timedelta(seconds=notice)
            if told:
                rental.request.closed = code
                if rental.machine is not None:
                    rental.machine.metadata.announce(rental.taken_at)
            self.advance()
            if not rental.alive:
                rental.request.closed = code

    # ------------------------------------------------------------------ looking

    def hidden(self, rental: Rental) -> bool:
        """Whether answers do not show it yet."""
        return _since(rental.launched, self.clock.now()) < self.times.unseen

    def vcpus(self, region: str, counts: Any) -> int:
        """How many count against a quota. ``counts`` says of a rental whether it does."""
        now = self.clock.now()
        total = 0
        for rental in self.all.values():
            held = (
                rental.request is not None
                and rental.request.cancelled is None
                and rental.ended is not None
                and _since(rental.ended, now) < self.times.quota_held
            )
            if rental.region == region and counts(rental) and (rental.alive or held):
                total += rental.vcpus
        return total

    def rented(self) -> dict[str, str]:
        """The oracle: region/id -> name of what nobody has ended."""
        with self.lock:
            self.advance()
            return {f"{r.region}/{r.id}": r.name for r in self.all.values() if r.alive}

    @staticmethod
    def _show(rental: Rental, state: str, why: tuple[str, str] = ("", "")) -> None:
        rental.instance._state.name = state
        rental.instance._state.code = _CODES[state]
        text = f"{why[0]}: {why[1]}" if why[0] else ""
        rental.instance.state_reason = StateReason(text, why[0])


def _since(then: datetime, now: datetime) -> float:
    return (now - then).total_seconds()


def _made_up(instance_id: str) -> str:
    number = int(instance_id[-4:], 16)
    return f"127.77.{number >> 8}.{number & 255}"
