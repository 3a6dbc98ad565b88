"""The `local` provider: machines that are a folder and a process tree on this computer.

Every promise that holds for a rented machine can be tried here for nothing: a machine has its own
folder, its own Python, its own processes (in namespaces of their own where the system allows),
ends itself, is taken away in a rehearsal, and is billed at a price of your choice.

Settings: ``GPUCTL_LOCAL_PRICE_HOUR`` (USD, default 0), ``GPUCTL_LOCAL_NAMESPACES`` (0 = without).
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path

from providers import (
    local_hardware,
    local_namespaces,
    local_python,
    local_start,
    processes,
)
from providers.base import (
    ABSENT,
    Ambiguous,
    Billed,
    Capabilities,
    Clock,
    Finding,
    InvalidRequest,
    Leftover,
    LocalAccess,
    Machine,
    NoCapacity,
    NotFound,
    Offer,
    Order,
    PriceChanged,
    SelfEnd,
    State,
    Unsupported,
    Want,
)
from providers.local_account import ID, Account, Ended, Host, Record, cost, marker, remove_tree
from providers.local_offers import read_offer_id, rows
from providers.nvidia_smi import Gpu, NotReadable
from providers.processes import StillAlive

_REGION = "here"
_BOOTING_SECONDS = 15  # a machine without a host process is not expected to get one after that
_LEFTOVER_SECONDS = 60  # younger ones may be a create or destroy that is under way
_SOCKET_PATH_MAX = 60  # 108 less what multiprocessing adds below TMPDIR
_TAKEN_AWAY = ("interrupted", "self-ended", "removed by hand")
_TIGHT_DISK_GB = 5


class LocalProvider:
    """This computer as a provider. Its account is the folder ``local`` in GPUCTL_HOME."""

    name = "local"

    def __init__(self, environ: Mapping[str, str], home: Path, clock: Clock) -> None:
        self.environ = environ
        self.home = home
        self.clock = clock
        self._account = Account(home / "local")

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, home: Path, clock: Clock
    ) -> LocalProvider:
        """Build it from settings. ``home`` is GPUCTL_HOME; nothing is read or written yet."""
        return cls(environ, home.absolute(), clock)

    @property
    def capabilities(self) -> Capabilities:
        """What this provider can do. Spot means: with a rehearsed interruption."""
        return Capabilities(
            spot=True,
            stop=False,
            ttl=False,
            labels=True,
            kind="local",
            gpus=True,
            by_name_only=True,
            settle_seconds=0.2,
            poll_seconds=0.2,
        )

    def configured(self) -> bool:
        """Always: there are no credentials."""
        return True

    # ------------------------------------------------------------------ offers and creation

    def offers(self, want: Want) -> Sequence[Offer]:
        """This computer, if it has what is wanted. A spot row only when spot is asked for."""
        price = self._price()
        try:
            cards = local_hardware.local_gpus() if want.gpus else ()
        except NotReadable as error:
            raise Unsupported(f"This computer's GPUs cannot be used: {error}.") from error
        if want.gpus and not cards:
            raise Unsupported(
                "This computer has no NVIDIA GPU; the local provider offers its "
                f"{local_hardware.cores()} CPU cores (--gpu none)."
            )
        computer = Offer(
            provider=self.name,
            id="",
            gpu=None,
            gpu_count=0,
            vram_gb=None,
            spot=want.spot is True,
            price_hour=price,
            region=_REGION,
            vcpus=local_hardware.cores(),
            ram_gb=round(local_hardware.memory_gb(), 1),
            disk_gb=round(local_hardware.disk_free_gb(self.home), 1),
            as_of=self.clock.now(),
        )
        return rows(want, computer, cards)

    def create(self, order: Order) -> Machine:
        """Make a machine: its folder first, then the process that keeps it."""
        record = self._ordered(order)
        try:
            folder = self._account.add(record)
        except FileExistsError as error:
            raise InvalidRequest(
                f"There is or was a local machine called {record.name}; names are never used twice."
            ) from error
        except OSError as error:
            raise NoCapacity(f"No machine can be made in {self.home}: {error.strerror}.") from error
        try:
            if record.short_tmp:
                Path(record.short_tmp).symlink_to(folder / "root" / "tmp")
            with local_start.begin(folder, self.environ) as starter:
                local_python.build(folder / "venv")
                local_start.hear(starter)
        except (OSError, ValueError, subprocess.SubprocessError, local_start.NotStarted) as e:
            self._clear_away(record.name)
            raise NoCapacity(f"The machine {record.name} did not start: {e}.") from e
        return self.get(record.name)

    def _ordered(self, order: Order) -> Record:
        if not ID.match(order.name):
            raise InvalidRequest(f"{order.name!r} is no machine name: use a-z, 0-9 and dashes.")
        count, gpu = read_offer_id(order.offer.id)
        price = self._price()
        if order.max_price_hour is not None and price > order.max_price_hour:
            raise PriceChanged(
                f"This computer costs ${price}/h (GPUCTL_LOCAL_PRICE_HOUR), above the cap of "
                f"${order.max_price_hour}/h."
            )
        tmp = self._account.folder(order.name) / "root" / "tmp"
        long = len(os.fsencode(tmp)) > _SOCKET_PATH_MAX
        return Record(
            name=order.name,
            mark=order.mark,
            price_hour=price,
            spot=order.offer.spot or order.rehearsal is not None,
            created_at=self.clock.now(),
            gpu=gpu,
            gpu_count=count,
            gpu_uuids=_chosen(gpu, count),
            rehearsal=order.rehearsal,
            short_tmp=f"/tmp/gpuctl-{secrets.token_hex(4)}" if long else None,  # noqa: S108
        )

    def _clear_away(self, machine_id: str) -> None:
        try:
            self._account.end(machine_id, "did not start")
        except (StillAlive, OSError) as error:
            raise Ambiguous(
                f"The machine {machine_id} did not start and could not be cleared away: {error}."
            ) from error

    # ------------------------------------------------------------------ reading

    def get(self, provider_id: str) -> Machine:
        """The machine now; GONE with a reason when it ended by itself or was taken away."""
        self._readable()
        if machine := self._machine(provider_id):
            return machine
        ended = self._account.ended(provider_id)
        if ended is None or ended.reason not in _TAKEN_AWAY:
            raise NotFound(f"There is no local machine {provider_id!r}.")
        return _gone(ended)

    def list(self) -> Sequence[Machine]:
        """Every machine of this GPUCTL_HOME that the books have not closed."""
        self._readable()
        machines = (self._machine(machine_id) for machine_id in self._account.ids())
        return [machine for machine in machines if machine]

    def _readable(self) -> None:
        """An account that cannot be read is not an empty one."""
        try:
            self.home.stat()
            with suppress(FileNotFoundError):
                os.scandir(self._account.machines).close()
        except OSError as error:
            raise Ambiguous(
                f"The local account cannot be read: {error.filename}: {error.strerror}."
            ) from error

    def _machine(self, machine_id: str) -> Machine | None:
        """The machine, or None when there is no such folder or the books have closed it."""
        if not self._account.has(machine_id):
            return None
        record, host = self._account.record(machine_id), self._account.host(machine_id)
        age = (self.clock.now() - record.created_at).total_seconds() if record else None
        state, status = describe(host, alive=_alive(host), age_seconds=age)
        if state is not State.READY and self._account.ended(machine_id):
            return None
        if record is None:
            return Machine(machine_id, self.name, machine_id, state, status, region=_REGION)
        return Machine(
            name=record.name,
            provider=self.name,
            provider_id=machine_id,
            state=state,
            status=status,
            gpu=record.gpu,
            gpu_count=record.gpu_count,
            spot=record.spot,
            price_hour=record.price_hour,
            region=_REGION,
            access=self._access(record, host) if host and state is State.READY else None,
            mark=record.mark,
            created_at=record.created_at,
            self_end=SelfEnd(signal_pid=1 if host.init else host.process.pid) if host else None,
        )

    def _access(self, record: Record, host: Host) -> LocalAccess:
        folder = self._account.folder(record.name)
        root = folder / "root"
        env = local_python.environment(
            self.environ,
            root=root,
            venv=folder / "venv",
            tmp=record.short_tmp or str(root / "tmp"),
            marker=marker(folder),
        )
        if record.gpu_uuids and "CUDA_VISIBLE_DEVICES" not in env:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(record.gpu_uuids)
        enter: tuple[str, ...] = ()
        if host.init:
            try:
                enter = local_namespaces.entering(host.init.pid, own_users=host.own_users)
            except local_namespaces.NotPossible as error:
                raise InvalidRequest(
                    f"The machine {record.name} cannot be entered: {error}."
                ) from error
        return LocalAccess(str(root), enter, env)

    # ------------------------------------------------------------------ the end

    def destroy(self, provider_id: str) -> str:
        """End every process of the machine, write the books, remove its folder."""
        if not ID.match(provider_id) or not self._account.folder(provider_id).exists():
            self._readable()
            return ABSENT
        try:
            self._account.end(provider_id, "destroyed")
        except StillAlive as error:
            raise Ambiguous(
                f"The machine {provider_id} is not gone: {error}. It may hold this computer's "
                "GPUs until these processes end."
            ) from error
        except OSError as error:
            if not self._account.ended(provider_id):
                raise Ambiguous(f"The machine {provider_id} is not gone: {error}.") from error
            return f"ended; its folder could not be removed: {error}"
        return "ended and removed"

    def leftovers(self) -> Sequence[Leftover]:
        """Folders of machines that are no more, or never came to be; a minute old at least."""
        self._readable()
        found = []
        for folder in self._account.unfinished():
            with suppress(FileNotFoundError):
                age = self.clock.now() - datetime.fromtimestamp(folder.stat().st_mtime, UTC)
                if age.total_seconds() >= _LEFTOVER_SECONDS:
                    record = self._account.record(folder.name)
                    mark = record.mark if record else None
                    found.append(Leftover(self.name, "folder", folder.name, folder.name, mark))
        return found

    def remove(self, leftover: Leftover) -> None:
        """Remove such a folder, and whatever still runs in its name."""
        folder = self._account.folder(leftover.id)
        if folder not in self._account.unfinished():
            return
        try:
            processes.end_carriers(marker(folder))
            remove_tree(folder)
        except (StillAlive, OSError) as error:
            raise Ambiguous(f"The folder {folder} could not be removed: {error}.") from error

    # ------------------------------------------------------------------ money and health

    def billed(self, provider_id: str) -> Billed | None:
        """Hours × price; for a machine that ended, what the books say."""
        ended = self._account.ended(provider_id)
        if ended:
            return Billed(ended.cost, ended.at, "local books") if ended.cost is not None else None
        record = self._account.record(provider_id) if ID.match(provider_id) else None
        now = self.clock.now()
        return Billed(cost(record, now), now, "local books") if record else None

    def check(self) -> Sequence[Finding]:
        """Disk, namespaces, Python, GPUs and the price setting."""
        free = local_hardware.disk_free_gb(self.home)
        return [
            Finding("disk", free >= _TIGHT_DISK_GB, f"{free:.1f} GB free in {self.home}"),
            _namespaces_finding(local_start.why_no_namespaces(self.environ)),
            Finding("python", True, f"jobs get Python {sys.version.split()[0]} of their own"),
            _gpu_finding(),
            self._price_finding(),
        ]

    def _price_finding(self) -> Finding:
        try:
            return Finding("price", True, f"${self._price()}/h")
        except InvalidRequest as error:
            return Finding("price", False, str(error))

    def _price(self) -> Decimal:
        text = self.environ.get("GPUCTL_LOCAL_PRICE_HOUR") or "0"
        try:
            price = Decimal(text.strip())
        except InvalidOperation:
            price = Decimal(-1)
        if not price.is_finite() or price < 0:
            raise InvalidRequest(
                f"GPUCTL_LOCAL_PRICE_HOUR is {text!r}; it must be USD an hour, such as 0.50."
            )
        return price


def describe(host: Host | None, *, alive: bool, age_seconds: float | None) -> tuple[State, str]:
    """Return a machine's state and the word for it.

    Args:
        host: who signed for keeping it, None when nobody has yet.
        alive: whether that one, and pid 1 inside, still run.
        age_seconds: since its creation; None when that cannot be read.
    """
    if host is None:
        young = age_seconds is not None and age_seconds < _BOOTING_SECONDS
        return (State.BOOTING, "starting") if young else (State.LOST, "never started")
    return (State.READY, "running") if alive else (State.LOST, "its host process is dead")


def _alive(host: Host | None) -> bool:
    keeping = (host.process, host.init) if host else ()
    return all(processes.is_alive(process) for process in keeping if process)


def _gone(ended: Ended) -> Machine:
    record = ended.record
    machine = Machine(ended.id, "local", ended.id, State.GONE, ended.reason, reason=ended.reason)
    if record is None:
        return machine
    return Machine(
        name=record.name,
        provider="local",
        provider_id=ended.id,
        state=State.GONE,
        status=ended.reason,
        gpu=record.gpu,
        gpu_count=record.gpu_count,
        spot=record.spot,
        price_hour=record.price_hour,
        region=_REGION,
        mark=record.mark,
        created_at=record.created_at,
        reason=ended.reason,
    )


def _chosen(gpu: str | None, count: int) -> tuple[str, ...]:
    """The GPUs that a machine may see; () when that is all of them, or none was ordered."""
    if gpu is None:
        return ()
    try:
        cards = local_hardware.local_gpus()
    except NotReadable as error:
        raise NoCapacity(f"This computer's GPUs cannot be used now: {error}.") from error
    fitting = [card for card in cards if card.name == gpu]
    if len(fitting) < count:
        raise NoCapacity(f"This computer has {len(fitting)} × {gpu}, not {count}.")
    return () if len(cards) == count else tuple(card.uuid for card in fitting[:count])


def _namespaces_finding(without: str | None) -> Finding:
    detail = "every machine has processes and mounts of its own"
    if without:
        detail = (
            "machines share this computer's processes and are told apart by a marker in their "
            f"environment ({without})"
        )
    return Finding("namespaces", True, detail)


def _gpu_finding() -> Finding:
    try:
        cards: tuple[Gpu, ...] = local_hardware.local_gpus()
    except NotReadable as error:
        return Finding("gpus", False, str(error))
    return Finding("gpus", True, ", ".join(card.name for card in cards) or "no NVIDIA GPU here")
