"""What every provider offers, and nothing more: the verbs, the values and the errors.

The comments here are the contract. ``tests/conformance/provider_suite.py`` checks every
implementation against it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from typing import ClassVar, Literal, Protocol, runtime_checkable

# --------------------------------------------------------------------------- time


class Clock(Protocol):
    """Where time comes from. Passed in everywhere so that tests own it."""

    def now(self) -> datetime:
        """Return the present moment, timezone-aware, in UTC."""

    def monotonic(self) -> float:
        """Return seconds that nobody can set, and that go on while the computer sleeps.

        All processes of one computer count the same ones, until it is booted again.
        """

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass."""


# Python's own monotonic clock stands still while a laptop is suspended: on Linux the kernel's
# CLOCK_MONOTONIC does, on macOS only Python's choice of another one.
_SINCE_BOOT: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class SystemClock:
    """The computer's own clock."""

    def now(self) -> datetime:
        """Return the present moment in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """Return seconds since the boot, sleep included."""
        return time.clock_gettime(_SINCE_BOOT)

    def sleep(self, seconds: float) -> None:
        """Block for ``seconds``."""
        time.sleep(seconds)


# ------------------------------------------------------------------------- errors


class ProviderError(Exception):
    """One of a closed set of things a provider can answer other than success.

    ``str(error)`` is a sentence for a person. It never carries a secret.
    """

    kind: ClassVar[str] = "ProviderError"


class NoCapacity(ProviderError):
    """The provider has none of it now; another offer or a later moment may work."""

    kind = "NoCapacity"


class AuthFailed(ProviderError):
    """The credentials are missing, wrong, revoked or lack a right."""

    kind = "AuthFailed"


class QuotaExceeded(ProviderError):
    """The account may not have more of this."""

    kind = "QuotaExceeded"


class InsufficientFunds(ProviderError):
    """The account has no money left for it."""

    kind = "InsufficientFunds"


class PriceChanged(ProviderError):
    """The offer costs more than the order allows."""

    kind = "PriceChanged"


class RateLimited(ProviderError):
    """Too many requests. ``retry_after`` is in seconds."""

    kind = "RateLimited"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class InvalidRequest(ProviderError):
    """The provider understood the request and will never accept it as it is."""

    kind = "InvalidRequest"


class Unsupported(ProviderError):
    """This provider does not do that at all. The message says what it does do."""

    kind = "Unsupported"


class NotFound(ProviderError):
    """A successful answer said that the thing is absent. Never raised for a failed call."""

    kind = "NotFound"


class Ambiguous(ProviderError):
    """It may or may not have happened: a timeout, a dropped reply, a 5xx.

    After a create, look the machine up by its name. Never repeat the create blindly.
    """

    kind = "Ambiguous"


# ------------------------------------------------------------------------- values


class State(StrEnum):
    """The states of a machine. Every provider's own status strings map onto these, totally."""

    BOOTING = "booting"
    READY = "ready"
    STOPPED = "stopped"  # not gone: it still bills
    LOST = "lost"  # the provider no longer reaches it; may still bill
    GONE = "gone"  # terminal in the provider's own answer
    UNKNOWN = "unknown"  # a status string nobody has seen before


@dataclass(frozen=True, slots=True)
class Want:
    """What somebody asks for. Empty or ``None`` means "no requirement"."""

    gpus: tuple[str, ...] = ()  # selectors as `providers.gpus` parses them; () = no GPU needed
    gpu_count: int = 1  # GPUs a machine; 0 = any number; ignored when `gpus` is empty
    cpus: int | None = None
    memory_gb: float | None = None
    disk_gb: float = 40
    spot: bool | None = None  # True: only spot; False: only on-demand; None: both
    regions: tuple[str, ...] = ()
    min_vram_gb: float | None = None
    min_reliability: float | None = None  # 0 to 1
    max_price_hour: Decimal | None = None  # USD, whole machine
    image: str | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """Something rentable now, or a dated reference price that says so."""

    provider: str
    id: str
    gpu: str | None  # canonical full name, see `providers.gpus`; None = no GPU
    gpu_count: int  # 0 without a GPU
    vram_gb: float | None  # nominal GB per GPU
    spot: bool
    price_hour: Decimal  # USD net, whole machine, storage for the wanted disk included
    region: str
    vcpus: float | None = None
    ram_gb: float | None = None
    disk_gb: float | None = None
    reliability: float | None = None  # 0 to 1
    available: bool = True
    gb_in_price: Decimal = Decimal(0)  # USD for a GB that the machine receives: not in price_hour
    gb_out_price: Decimal = Decimal(0)  # and for a GB that it sends
    bill_step_seconds: float = 0  # what is begun of so much is charged; 0: a second, or less
    source: Literal["live", "reference"] = "live"
    as_of: datetime = field(default_factory=lambda: datetime.now(UTC))
    fx_rate: Decimal | None = None  # USD per unit of the provider's currency
    fx_date: date | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """Whose a machine is, kept on the cloud's side so that anybody's `reap` can judge it."""

    owner: str
    end: datetime  # hard end
    run: str | None = None
    managed_by: str = "gpuctl"  # "terraform" for machines that Terraform owns


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Have the machine taken away once, the way a cloud does. Only `local` can."""

    after_seconds: float
    notice_seconds: float = 0
    armed_by: str | None = None  # count from when this file (relative to the root) exists


@dataclass(frozen=True, slots=True)
class Order:
    """One create call. ``name`` is unique and exists in the ledger before the call leaves."""

    name: str
    offer: Offer
    mark: Mark
    disk_gb: float = 40
    image: str | None = None
    ssh_public_key: str | None = None
    max_price_hour: Decimal | None = None
    rehearsal: Rehearsal | None = None


@dataclass(frozen=True, slots=True)
class SshAccess:
    """How to reach a machine over SSH."""

    host: str
    port: int
    user: str
    host_keys: tuple[str, ...] = ()  # handed over at creation where the cloud allows it
    identities: tuple[str, ...] = ()  # private key files here to try besides our own
    proxy: tuple[str, ...] = ()  # argv of a command whose stdin and stdout are the connection
    folder: str | None = None  # the folder there that is ours, absolute; None = the login's own
    env: Mapping[str, str] = field(default_factory=dict)  # for every process on the machine
    path: tuple[str, ...] = ()  # folders there that come first in PATH
    alternatives: tuple[SshAccess, ...] = ()  # other ways in, tried when this one does not answer


@dataclass(frozen=True, slots=True)
class LocalAccess:
    """How to reach a machine that is a folder and process tree on this computer."""

    root: str  # the machine's own folder; also HOME and working folder of what runs there
    enter: tuple[str, ...]  # argv prefix that runs a command inside; () = no namespaces
    env: Mapping[str, str]  # the whole environment of a process on the machine


@dataclass(frozen=True, slots=True)
class SelfEnd:
    """How the machine can end itself from inside, with the narrowest means there is."""

    argv: tuple[str, ...] = ()  # a command to run on the machine, or
    signal_pid: int | None = None  # a process there that ends the machine on SIGTERM


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine as its provider describes it now."""

    name: str
    provider: str
    provider_id: str
    state: State
    status: str  # the provider's own word
    gpu: str | None = None
    gpu_count: int = 0
    spot: bool = False
    price_hour: Decimal | None = None  # where the reply has one
    region: str = ""
    access: SshAccess | LocalAccess | None = None
    mark: Mark | None = None  # None = unmarked: not ours
    created_at: datetime | None = None
    reason: str | None = None  # "interrupted" where the provider says it took the machine away
    self_end: SelfEnd | None = None
    notice_root: str | None = None  # a metadata service like EC2's that announces interruptions
    notes: tuple[str, ...] = ()  # what `create` could not do for it, in sentences without its name


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something beside a machine that we made and that can cost money."""

    provider: str
    kind: str  # volume, address, spot-request, schedule, key, folder, ...
    id: str
    name: str
    mark: Mark | None
    price_month: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Billed:
    """What the provider itself says it charged."""

    amount: Decimal  # USD
    through: datetime
    source: str  # the call that said so


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a health check."""

    name: str  # "key", "rights", "balance", "quota", ...
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider can do, as far as callers must know beforehand."""

    spot: bool
    stop: bool  # machines can be stopped, and then still bill
    ttl: bool  # the cloud itself ends a machine at a given time
    labels: bool  # marks are kept on the cloud's side
    kind: Literal["container", "vm", "local", "host"]
    gpus: bool  # sells machines with GPUs
    by_name_only: bool = False  # takes part only when named (local, ssh)
    console: str = ""  # the page of a machine; {id} and {region} are filled in
    console_note: str = ""  # what a person must mind there
    bill_step_seconds: float | None = None  # what it begins of so much it charges; None: a second
    settle_seconds: float = 30  # after this long a listing shows what happened before
    shown_seconds: float = 0  # for this long a cloud may deny what it has made
    poll_seconds: float = 5  # how often asking about one machine is polite


# ----------------------------------------------------------------------- interface


ABSENT = "absent already"  # what `Provider.destroy` answers for a machine that is not known


@runtime_checkable
class Regional(Protocol):
    """A provider that looks only where it is told to: it is also told where machines were."""

    def look_in(self, regions: Iterable[str]) -> None:
        """List these regions, too."""


class Provider(Protocol):
    """A cloud is a handful of verbs.

    Every call has a timeout of its own. Every call may raise `AuthFailed`, `RateLimited` and
    `Ambiguous` (the last also for reads: "no answer"), besides what its comment names.
    Nothing here retries a create.
    """

    name: str

    @property
    def capabilities(self) -> Capabilities:
        """What this provider can do."""

    def configured(self) -> bool:
        """Whether there are credentials to try; asks nobody."""

    def offers(self, want: Want) -> Sequence[Offer]:
        """What matches now, cheapest first. Raises `Unsupported` when it sells no such thing."""

    def create(self, order: Order) -> Machine:
        """Rent one machine.

        Raises `NoCapacity`, `QuotaExceeded`, `InsufficientFunds`, `PriceChanged`,
        `InvalidRequest`, `Unsupported`: nothing was rented. `Ambiguous`: look it up by name.
        """

    def get(self, provider_id: str) -> Machine:
        """The machine now. Raises `NotFound` when a successful answer said it is absent."""

    def list(self) -> Sequence[Machine]:
        """Every machine of the account that can cost money, marked or not. Never partial."""

    def destroy(self, provider_id: str) -> str:
        """Ask for the end. Idempotent: what is absent already counts as accepted.

        Returns the provider's answer in a few words: `ABSENT` where it knows no such machine,
        which proves nothing. Looks nothing up first.
        """

    def leftovers(self) -> Sequence[Leftover]:
        """What else of ours can cost money. Never a volume that holds a user's data."""

    def remove(self, leftover: Leftover) -> None:
        """Remove one leftover. Idempotent."""

    def billed(self, provider_id: str) -> Billed | None:
        """What it charged, or None where the API does not tell."""

    def check(self) -> Sequence[Finding]:
        """Key, rights, balance, quota; rents nothing."""
