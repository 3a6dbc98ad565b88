"""The life of every emulated instance, by the cloud's own clock; and what it bills.

moto keeps what an instance is; what state it is in, since when and why is decided here, and
written into moto's objects so that Describe and its filters show it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
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
INTERRUPTED_STOP = ("Server.SpotInstanceShutdown", "Spot instance shutdown")
NO_ROOM_AFTER_ALL = ("Server.InsufficientInstanceCapacity", "Insufficient capacity to launch")
FAILED_INSIDE = ("Server.InternalError", "Internal error on launch")
NO_KEY_FOR_DISK = ("Client.InternalError", "Client error on launch")  # of KMS, for instance


@dataclass
class Times:
    """How long things take, in seconds. For tests in real time they are made small.

    Attributes:
        boot: from the launch to running.
        end: from the end to terminated.
        unseen: a new instance is not in any answer, nor known by its id.
        stale: an ended instance is still shown as running.
        forget: until a terminated instance is forgotten.
        disks: from terminated until its volumes and interfaces are gone, too.
        resurrect: until a persistent request launches again what was terminated.
        quota_held: an ended instance still counts while its spot request is not cancelled.
    """

    boot: float = 20
    end: float = 10
    unseen: float = 0
    stale: float = 0
    forget: float = 3600
    disks: float = 0
    resurrect: float = 30
    quota_held: float = 60


@dataclass
class SpotRequest:
    """What stands behind every spot instance.

    Attributes:
        instance_id: of the instance that it has now; "" while it waits for one.
        behaviour: what an interruption does.
        closed: its status code, when it ended or an interruption is announced.
        ended: when its instance did.
        price: the most that is paid an hour, as AWS writes it; the on-demand price without a bid.
    """

    id: str
    region: str
    instance_id: str
    created: datetime
    tags: dict[str, str]
    persistent: bool = False
    behaviour: str = "terminate"
    price: str = ""
    cancelled: datetime | None = None
    closed: str | None = None
    ended: datetime | None = None


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
    forgotten: bool = False  # its entry is gone
    swept: bool = False  # its volumes and interfaces are gone, too
    fails: tuple[str, str] | None = None  # why its launch, which was accepted, comes to nothing
    params: dict[str, str] = field(default_factory=dict)  # of its launch

    @property
    def alive(self) -> bool:
        """Whether nobody has ended it yet."""
        return self.ended is None


class Rentals:
    """All instances of an account.

    Attributes:
        launch_fails: why the next launches are accepted, and then end by themselves.
        ends_due: (region, instance id) of what a timer of the cloud's own ends now.
        relaunch: launches again what a persistent request has lost.
    """

    def __init__(self, clock: Clock, market: Market) -> None:
        self.clock = clock
        self.market = market
        self.books = Books()
        self.times = Times()
        self.all: dict[str, Rental] = {}
        self.requests: dict[str, SpotRequest] = {}
        self.launch_fails: list[tuple[str, str]] = []
        self.ends_due: Callable[[datetime], list[tuple[str, str]]] = lambda _: []
        self.relaunch: Callable[[Rental], None] = lambda _: None
        self.lock = threading.RLock()

    # ------------------------------------------------------------------ beginning

    def add(self, rental: Rental) -> None:
        """One is launched; it does not bill yet, its volumes do."""
        self.all[rental.id] = rental
        rental.fails = self.launch_fails.pop(0) if self.launch_fails else None
        self.books.begin("instance", rental.id, rental.name, Decimal(0), rental.launched)
        if rental.request is not None:
            self.requests[rental.request.id] = rental.request
        for mapping in rental.instance.block_device_mapping.values():
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
        for region, instance_id in self.ends_due(now):
            due = self.all.get(instance_id)
            if due is not None and due.region == region:
                self.end(due, BY_USER, now)
        for rental in list(self.all.values()):
            if rental.alive:
                self._live(rental, now)
            if rental.ended is not None and not rental.terminated:
                self._die(rental, now)
            if rental.terminated:
                self._fade(rental, now)

    def _live(self, rental: Rental, now: datetime) -> None:
        if rental.stopped:
            return
        if not rental.running and _since(rental.launched, now) >= self.times.boot:
            if rental.fails is not None:
                self.end(rental, rental.fails, now, at_once=True)
                return
            self._run(rental, now)
        if rental.taken_at is not None and now >= rental.taken_at:
            self._take(rental, rental.taken_at)
        elif rental.machine is not None and rental.machine.off.is_set():
            if rental.instance.instance_initiated_shutdown_behavior == "terminate":
                self.end(rental, FROM_INSIDE, now)
            else:
                self.stop(rental, FROM_INSIDE)

    def _run(self, rental: Rental, now: datetime) -> None:
        """It runs: from now on it bills, and has a public address, which bills, too."""
        rental.running = True
        self._show(rental, "running")
        self.books.reprice(rental.id, rental.price, now)
        nic = rental.instance.nics[0]
        nic.public_ip = rental.machine.address[0] if rental.machine else _made_up(rental.id)
        self.books.begin("address", _address(rental, now), rental.name, ADDRESS_HOUR, now)
        if rental.machine is not None:
            rental.machine.start()

    def _take(self, rental: Rental, when: datetime) -> None:
        """The interruption strikes."""
        rental.taken_at = None
        if rental.request is not None and rental.request.behaviour == "stop":
            self.stop(rental, INTERRUPTED_STOP)
        else:
            self.end(rental, INTERRUPTED, when, at_once=True)

    def _die(self, rental: Rental, now: datetime) -> None:
        assert rental.ended is not None
        past = _since(rental.ended, now)
        stale = 0 if rental.ended_at_once else self.times.stale
        if past < stale:
            return
        if past < stale + self.times.end and not rental.ended_at_once:
            self._show(rental, "shutting-down", rental.why)
            return
        rental.terminated = True
        self._show(rental, "terminated", rental.why)
        request = rental.request
        if request is None:
            return
        request.ended = request.ended or rental.ended
        if request.persistent and request.cancelled is None:
            request.instance_id, request.closed, request.ended = "", None, None
        elif request.closed is None:
            request.closed = "instance-terminated-by-user"

    def _fade(self, rental: Rental, now: datetime) -> None:
        """What stays of a terminated instance goes: its disks, then its entry."""
        assert rental.ended is not None
        past = _since(rental.ended, now)
        if not rental.swept and past >= self.times.disks:
            rental.swept = True
            rental.instance.terminate()
            self._show(rental, "terminated", rental.why)
            rental.instance._reason = "" if rental.why[0].startswith("Server") else "User initiated"
            for nic in rental.instance.nics.values():
                if not nic.delete_on_termination:
                    nic.instance, nic.attachment_id, nic.status = None, None, "available"
            for volume_id in rental.volumes:
                if volume_id not in rental.instance.ec2_backend.volumes:
                    self.books.end(volume_id, now)
        request = rental.request
        waits = request is not None and not request.instance_id and request.cancelled is None
        if waits and past >= self.times.resurrect:
            self.relaunch(rental)
        if past < self.times.forget or rental.forgotten:
            return
        rental.forgotten = True
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
        self._give_address_back(rental, when)
        if rental.machine is not None:
            rental.machine.kill()

    def stop(self, rental: Rental, why: tuple[str, str]) -> None:
        """It stops: its volumes bill on."""
        rental.stopped, rental.running = True, False
        self.books.reprice(rental.id, Decimal(0), self.clock.now())
        self._give_address_back(rental, self.clock.now())
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
            does = rental.request.behaviour
            code = code.replace("terminated", "stopped") if does == "stop" else code
            rental.taken_at = self.clock.now() + timedelta(seconds=notice)
            if told and rental.machine is not None:
                rental.machine.metadata.announce(rental.taken_at, does)
            if told:
                rental.request.closed = code
            self.advance()
            if not rental.alive and not rental.request.persistent:
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

    def _give_address_back(self, rental: Rental, when: datetime) -> None:
        for key, _ in list(self.books.open("address").items()):
            if key.startswith(f"{rental.id}@"):
                self.books.end(key, when)

    @staticmethod
    def _show(rental: Rental, state: str, why: tuple[str, str] = ("", "")) -> None:
        rental.instance._state.name = state
        rental.instance._state.code = _CODES[state]
        text = f"{why[0]}: {why[1]}" if why[0] else ""
        rental.instance.state_reason = StateReason(text, why[0])


def _since(then: datetime, now: datetime) -> float:
    return (now - then).total_seconds()


def _address(rental: Rental, now: datetime) -> str:
    return f"{rental.id}@{now.isoformat()}"


def _made_up(instance_id: str) -> str:
    number = int(instance_id[-4:], 16)
    return f"127.77.{number >> 8}.{number & 255}"
