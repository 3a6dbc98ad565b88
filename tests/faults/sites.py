"""Where the crash matrix is played: one account a case, its books, and what can go wrong there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from tests.clouds.books import Books
from tests.clouds.ssh_hosts import Hosts
from tests.faults.at_aws import at_aws
from tests.faults.at_hetzner import at_hetzner
from tests.faults.at_runpod import at_runpod
from tests.faults.at_vastai import at_vastai
from tests.faults.over_ssh import over_ssh
from tests.faults.rehearsal import Rehearsal
from tests.faults.strikes import Strike, strikes_of

INSIDE = Path(__file__).with_name("inside")
ROOT = INSIDE.parents[2]  # this gpuctl, wherever another may be installed
PROVIDERS = ("local", "ssh", "vastai", "aws", "hetzner", "runpod")
MACHINE_KINDS = ("instance", "server", "pod", "machine")


@dataclass(frozen=True)
class Timers:
    """Which timers of its own a machine has.

    Attributes:
        boot: from its boot on, for its hard end.
        lease: its agent's, from its arming on.
        stops: all that its key can do is to stop it.
    """

    boot: bool
    lease: bool = True
    stops: bool = False


TIMERS: Mapping[str, Timers] = {
    "local": Timers(boot=False),
    "ssh": Timers(boot=False),
    "vastai": Timers(boot=True),
    "aws": Timers(boot=True),
    "hetzner": Timers(boot=False, lease=False),
    "runpod": Timers(boot=False, stops=True),
}
_WANTED = {
    "vastai": ("--gpu", "RTX-4090"),
    "runpod": ("--gpu", "RTX-4090"),
}


@dataclass(frozen=True)
class Site:
    """One account with one home.

    Attributes:
        billing: id -> USD an hour of what bills now, asked of the cloud's books (of the system's
            processes where there is no cloud).
        rented: how many machines were ever rented, and how many at once at most.
        strikes: what can go wrong here, by name.
        wanted: options of `provision`.
    """

    rehearsal: Rehearsal
    billing: Callable[[], Mapping[str, Decimal]]
    rented: Callable[[], tuple[int, int]]
    strikes: Mapping[str, Strike] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()

    @property
    def provider(self) -> str:
        return self.rehearsal.provider

    @property
    def timers(self) -> Timers:
        return TIMERS[self.provider]


@contextmanager
def site(provider: str, folder: Path) -> Iterator[Site]:
    """Open an account at a provider; everything of it ends with it."""
    with ExitStack() as stack:
        made = _MAKERS[provider](folder, stack)
        made.rehearsal.settings.update(PYTHONPATH=f"{INSIDE}:{ROOT}", REHEARSE_HURRY="1")
        stack.callback(made.rehearsal.kill_watchdog)
        yield made


def at_once(spans: list[tuple[float, float]]) -> int:
    """How many spans of time lie above each other at most."""
    moments = sorted([(b, 1) for b, e in spans if e > b] + [(e, -1) for b, e in spans if e > b])
    most = now = 0
    for _, change in moments:
        now += change
        most = max(most, now)
    return most


def _counted(books: Books) -> tuple[int, int]:
    machines = [thing for thing in list(books.things.values()) if thing.kind in MACHINE_KINDS]
    far = float("inf")
    spans = [
        (one.spans[0].begin.timestamp(), one.gone.timestamp() if one.gone else far)
        for one in machines
    ]
    return len(machines), at_once(spans)


def _prices(books: Books) -> dict[str, Decimal]:
    return {
        f"{one.kind} {one.id}": one.spans[-1].price_hour
        for one in list(books.things.values())
        if one.gone is None
    }


def _cloud_site(rehearsal: Any, books: Callable[[], Books]) -> Site:
    return Site(
        rehearsal,
        billing=lambda: _prices(books()),
        rented=lambda: _counted(books()),
        strikes=strikes_of(rehearsal.provider, rehearsal.cloud),
        wanted=_WANTED.get(rehearsal.provider, ()),
    )


def _vastai(folder: Path, stack: ExitStack) -> Site:
    made = stack.enter_context(at_vastai(folder))
    return _cloud_site(made, lambda: made.cloud.contracts.books)


def _aws(folder: Path, stack: ExitStack) -> Site:
    made = stack.enter_context(at_aws(folder))
    return _cloud_site(made, lambda: made.cloud.books)


def _hetzner(folder: Path, stack: ExitStack) -> Site:
    made = stack.enter_context(at_hetzner(folder))

    def books() -> Books:
        with made.cloud.lock:
            made.cloud.project.advance()
            return made.cloud.project.books

    return _cloud_site(made, books)


def _runpod(folder: Path, stack: ExitStack) -> Site:
    made = stack.enter_context(at_runpod(folder))
    return _cloud_site(made, lambda: made.cloud.books)


def _by_system(rehearsal: Rehearsal) -> Site:
    """Without a cloud: what runs counts, and every machine that the ledger ever saw created."""

    def rented() -> tuple[int, int]:
        made = {e.machine for e in rehearsal.events() if e.kind in ("created", "adopted")}
        return len(made), min(len(made), 1)

    def billing() -> Mapping[str, Decimal]:
        return {f"process {pid}": Decimal(1) for pid in rehearsal.machine_processes()}

    return Site(rehearsal, billing, rented)


def _local(folder: Path, stack: ExitStack) -> Site:
    del stack
    return _by_system(Rehearsal(folder, {}))


def _ssh(folder: Path, stack: ExitStack) -> Site:
    hosts = Hosts(folder)
    hosts.add("one")
    stack.callback(hosts.servers["one"].stop)
    return _by_system(over_ssh(hosts))


_MAKERS: Mapping[str, Callable[[Path, ExitStack], Site]] = {
    "local": _local,
    "ssh": _ssh,
    "vastai": _vastai,
    "aws": _aws,
    "hetzner": _hetzner,
    "runpod": _runpod,
}
