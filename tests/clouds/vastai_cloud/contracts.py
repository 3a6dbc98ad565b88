"""Instances and their lives: provisioned, loaded, running, outbid, stopped, destroyed."""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from providers.base import Clock
from tests.clouds.books import Books
from tests.clouds.rented import Card, Rented
from tests.clouds.vastai_cloud.contract import Contract, Gone, TooLow
from tests.clouds.vastai_cloud.market import HOURS_A_MONTH, Ask, Host, asks_of
from tests.clouds.vastai_cloud.switches import Switches
from tests.remote.relay import Relay

_PYTHON = '#!/bin/sh\nexec python3 "$@"\n'  # images with PyTorch have it under that name too


class Contracts:
    """All instances of the account, the hosts that they are on, and the books.

    Args:
        folder: where machines get their disks; None: there is nothing behind the API.
    """

    def __init__(self, clock: Clock, switches: Switches, folder: Path | None) -> None:
        self.clock = clock
        self.switches = switches
        self.books = Books()
        self.hosts: list[Host] = []
        self.credit = Decimal(25)
        self.all: dict[int, Contract] = {}
        self.strangers: set[tuple[int, int]] = set()  # (host, GPU) that somebody else has
        self.uses: dict[str, int] = {}  # instance -> the volume that it was made with
        self.moved: defaultdict[tuple[int, str], Decimal] = defaultdict(Decimal)  # USD of traffic
        self._folder = folder
        self._ids = itertools.count(20_000_001)
        self._plan: list[tuple[datetime, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._at: datetime | None = None
        self._broke_since: datetime | None = None

    # ------------------------------------------------------------------ time

    def tick(self) -> None:
        """Let everything happen that is due."""
        while self._plan and self._plan[0][0] <= self.clock.now():
            self._at, _, step = heapq.heappop(self._plan)
            step()
            self._at = None
        self._check_credit()
        self._check_ends()

    def _now(self) -> datetime:
        """The moment that a step was due, however late it is taken."""
        return self._at or self.clock.now()

    def _after(self, seconds: float, contract: Contract, step: Callable[[Contract], None]) -> None:
        turn = contract.turn

        def happen() -> None:
            if contract.turn == turn and contract.id in self.all:
                step(contract)
                self._meter(contract)

        at = self._now() + timedelta(seconds=seconds)
        heapq.heappush(self._plan, (at, next(self._order), happen))

    # ------------------------------------------------------------------ the market

    def asks(self) -> list[Ask]:
        """Every offer, rented or not."""
        return asks_of(self.hosts)

    def floor(self, ask: Ask) -> Decimal:
        """The least bid for it: the host's, and more than those who have it."""
        count = len(ask.gpu_ids)
        bids = [
            one.bid / len(one.ask.gpu_ids) * count + Decimal("0.001")
            for one in self._on(ask)
            if one.bid is not None
        ]
        return max([ask.host.min_bid * count, *bids])

    def rented(self, ask: Ask) -> bool:
        """Whether somebody has it whom no bid can move."""
        mine = any(one.bid is None for one in self._on(ask))
        return mine or any((ask.host.id, gpu) in self.strangers for gpu in ask.gpu_ids)

    def _on(self, ask: Ask) -> list[Contract]:
        """Who has GPUs of it."""
        return [
            one
            for one in self.all.values()
            if one.cur == "running"
            and one.ask.host is ask.host
            and set(one.ask.gpu_ids) & set(ask.gpu_ids)
        ]

    # ------------------------------------------------------------------ renting

    def rent(
        self, ask: Ask, body: dict[str, Any], bid: Decimal | None, keys: Iterable[dict[str, Any]]
    ) -> Contract:
        """Make an instance.

        Raises:
            Gone: its GPUs are taken, and the caller said to cancel then.
            TooLow: see there.
        """
        taken = self.rented(ask) or self.switches.counted("taken_at_create")
        cancel = body.get("cancel_unavail")
        if cancel is None:
            cancel = bid is None and body.get("target_state", "running") == "running"
        if taken and cancel and not self.switches.cancel_ignored:
            raise Gone
        if bid is not None and self.switches.silent_on_demand:
            bid = None
        floor = self.floor(ask) * self.switches.floor_rises
        contract = self._made(ask, body, bid, keys)
        if bid is not None and bid < floor:
            contract.actual, contract.cur = "created", "stopped"
            contract.intended = contract.next = "stopped"
            self._meter(contract)
            raise TooLow(contract)
        if taken:
            contract.cur, contract.waits = "stopped", True
            self._meter(contract)
            return contract
        for other in self._on(ask):
            if other is not contract:
                self._outbid(other)
        if body.get("target_state") == "stopped":
            self.stop(contract)
        else:
            self._start(contract, self.switches.times.provision)
        return contract

    def _made(
        self, ask: Ask, body: dict[str, Any], bid: Decimal | None, keys: Iterable[dict[str, Any]]
    ) -> Contract:
        now = self.clock.now()
        listed = ask.host.price * len(ask.gpu_ids) * (self.switches.reply_price or 1)
        disk = Decimal(str(body.get("disk") or 8))
        contract = Contract(
            id=next(self._ids),
            ask=ask,
            body=body,
            bid=bid,
            base=listed if bid is None else bid,
            storage=ask.host.storage_cost * disk / HOURS_A_MONTH,
            created=now,
            end_date=now.timestamp() + ask.host.days_left * 86400,
            ssh_keys=list(keys),
            label=body.get("label"),
            stopped_storage=self.switches.stopped_storage,
        )
        self.all[contract.id] = contract
        if volume := (body.get("volume_info") or {}).get("volume_id"):
            self.uses[str(contract.id)] = int(volume)
        self.books.begin(
            "instance", str(contract.id), contract.label or "", contract.rate, contract.created
        )
        return contract

    # ------------------------------------------------------------------ a life

    def _start(self, contract: Contract, delay: float) -> None:
        contract.turn += 1
        contract.waits = False
        contract.intended = contract.cur = contract.next = "running"
        self._meter(contract)
        self._after(delay, contract, self._load)

    def _load(self, contract: Contract) -> None:
        switches = self.switches
        if switches.start_fails is not None:
            contract.actual, contract.status_msg = "created", switches.start_fails
            return
        contract.actual, contract.status_msg = switches.stuck_in or "loading", "pulling the image"
        if switches.pull_gb:
            self.traffic(contract, down=switches.pull_gb)
        if switches.stuck_in is None:
            self._after(switches.times.load, contract, self._run)

    def _run(self, contract: Contract) -> None:
        times = self.switches.times
        contract.actual = "running"
        contract.started = self._now()
        contract.status_msg = f"success, running {contract.body.get('image')}/ssh"
        if self._folder is not None:
            self._boot(contract)
        self._after(times.ports, contract, self._open_ports)
        if not self.switches.sshd_never:
            self._after(times.sshd, contract, self._answer)

    def _open_ports(self, contract: Contract) -> None:
        contract.ports = True

    def _answer(self, contract: Contract) -> None:
        if contract.machine is not None:
            contract.machine.start_sshd()

    def stop(self, contract: Contract) -> None:
        """Its container ends, its disk stays, and bills."""
        contract.turn += 1
        contract.actual = self.switches.stopped_as if contract.actual else contract.actual
        contract.intended = contract.cur = contract.next = "stopped"
        contract.ports = contract.waits = False
        self._kill(contract)
        self._meter(contract)
        self._wake_waiting()

    def start(self, contract: Contract) -> bool:
        """Start a stopped one; False when it has to wait for its GPUs."""
        others = [one for one in self._on(contract.ask) if one is not contract]
        if self.clock.now().timestamp() >= contract.end_date:
            return False
        if self.switches.restart_queued or self.rented(contract.ask) or others:
            contract.intended = contract.next = "running"
            contract.waits = True
            return False
        self._start(contract, 0)
        return True

    def reboot(self, contract: Contract, word: str) -> None:
        """Stop and start its container; its GPUs stay its own."""
        self._kill(contract)
        contract.turn += 1
        contract.actual, contract.ports = word, False
        self._meter(contract)
        self._after(self.switches.times.load, contract, self._run)

    def _outbid(self, contract: Contract) -> None:
        self.stop(contract)
        contract.intended = self.switches.outbid_intended
        contract.waits = self.switches.auto_resume

    def outbid(self, id: int) -> None:
        """Somebody else bids more."""
        self.tick()
        contract = self.all[id]
        assert contract.bid is not None, "on-demand instances are not outbid"
        host = contract.ask.host
        self.strangers |= {(host.id, gpu) for gpu in contract.ask.gpu_ids}
        self._outbid(contract)

    def strangers_leave(self) -> None:
        """Whoever else has GPUs gives them back."""
        self.strangers.clear()
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        waiting = [one for one in self.all.values() if one.waits and not one.host_down]
        for one in sorted(waiting, key=lambda one: one.bid or Decimal(0), reverse=True):
            if not self.rented(one.ask) and not self._on(one.ask):
                self._start(one, 0)

    def host_down(self, id: int, down: bool = True) -> None:
        """The host no longer answers, or does again."""
        self.tick()
        contract = self.all[id]
        contract.host_down = down
        contract.actual = self.switches.down_as if down else "running"
        if contract.machine is not None:
            (contract.machine.partition if down else contract.machine.heal)()
        self._meter(contract)

    def freeze(self, id: int) -> None:
        """It is paused in memory, and its GPUs are billed."""
        contract = self.all[id]
        contract.actual = contract.intended = contract.next = "frozen"
        self._meter(contract)

    def rewrite_keys(self, id: int) -> None:
        """The host's daemon writes authorized_keys anew: what was put there by hand is lost."""
        contract = self.all[id]
        assert contract.machine is not None
        keys = "".join(f"{key['public_key']}\n" for key in contract.ssh_keys)
        (contract.machine.folder / "root/.ssh/authorized_keys").write_text(keys)

    def traffic(self, contract: Contract, *, down: float = 0, up: float = 0) -> None:
        """So many GB came or went: billed by the byte, in any state."""
        host = contract.ask.host
        costs = {
            "bwd": Decimal(str(down)) * host.inet_down_cost,
            "bwu": Decimal(str(up)) * host.inet_up_cost,
        }
        for kind, cost in costs.items():
            self.moved[contract.id, kind] += cost
        self.books.charge(str(contract.id), sum(costs.values(), Decimal(0)), self._now())

    def destroy(self, contract: Contract) -> None:
        """Gone, with its disk."""
        contract.turn += 1
        del self.all[contract.id]
        self._kill(contract)
        if contract.machine is not None:
            contract.machine.remove()
        self.books.end(str(contract.id), self.clock.now())
        self._wake_waiting()

    # ------------------------------------------------------------------ money

    def change_bid(self, contract: Contract, price: Decimal) -> None:
        """Bid something else."""
        contract.bid = contract.base = price
        self._meter(contract)
        if contract.waits and price >= self.floor(contract.ask):
            self._wake_waiting()

    @property
    def credit_left(self) -> Decimal:
        """What is left of the account's credit; may be negative."""
        return self.credit - self.books.total(self.clock.now())

    def _check_credit(self) -> None:
        """Without credit everything stops and bills on, and is destroyed in the end."""
        now = self.clock.now()
        if self.credit_left > 0:
            self._broke_since = None
            return
        self._broke_since = self._broke_since or now
        for contract in list(self.all.values()):
            if contract.cur == "running":
                self.stop(contract)
            contract.waits = False
            if (now - self._broke_since).total_seconds() >= self.switches.times.reap_broke:
                self.destroy(contract)

    def _check_ends(self) -> None:
        """What is past the end of its host's offer stops, and is destroyed in the end."""
        for contract in list(self.all.values()):
            past = self.clock.now().timestamp() - contract.end_date
            if past >= 0 and contract.cur == "running":
                self.stop(contract)
            if past >= self.switches.times.reap_broke:
                self.destroy(contract)

    def _meter(self, contract: Contract) -> None:
        thing = self.books.things[str(contract.id)]
        if thing.gone is None and thing.spans[-1].price_hour != contract.rate:
            self.books.reprice(thing.id, contract.rate, self._now())

    # ------------------------------------------------------------------ the machine behind it

    def _boot(self, contract: Contract) -> None:
        assert self._folder is not None
        host, count = contract.ask.host, len(contract.ask.gpu_ids)
        env = {
            "CONTAINER_ID": str(contract.id),
            "CONTAINER_API_KEY": contract.key,
            "VAST_CONTAINERLABEL": f"C.{contract.id}",
            "PUBLIC_IPADDR": "127.0.0.1",
            "VAST_TCP_PORT_22": "0",
            "GPU_COUNT": str(count),
            "SSH_PUBLIC_KEY": "\n".join(str(key["public_key"]) for key in contract.ssh_keys),
            "DATA_DIRECTORY": "/root/",
            **contract.env,
        }
        folder = self._folder / str(contract.id)
        contract.machine = machine = Rented(
            folder,
            env=env,
            card=Card(host.product, host.gpu_ram, count, host.driver, host.compute_capability)
            if count
            else None,
            keys=[str(key["public_key"]) for key in contract.ssh_keys],
            programs={"python": _PYTHON},
            login_env=None if self.switches.session_env else {},
        )
        machine.boot()
        contract.proxy = Relay(machine.port)
        if onstart := contract.body.get("onstart"):
            (folder / "root/onstart.sh").write_text(str(onstart))
            machine.start("bash /root/onstart.sh")

    def _kill(self, contract: Contract) -> None:
        if contract.machine is not None:
            contract.machine.kill()
        if contract.proxy is not None:
            contract.proxy.close()
            contract.proxy = None
