"""Machines that are lent to runs: Terraform's, and those that `gpuctl provision` rented.

A run claims such a machine and gives it back. That works as with hosts of one's own: the claim is
a file on the machine, so no two runs have it, whatever computer they come from; its end ends the
run's processes, removes its folder, and touches nothing else. So each claim is a machine of the
provider "borrowed" here, with a lease, a guard and a receipt like any other, and the machine below
it is ended by whoever made it. What is lent, and how it is reached, is in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import TypeVar

from gpuctl.errors import NothingRentable, RemoteError, UsageError
from gpuctl.fleet.access import ssh_access
from gpuctl.fleet.context import BORROWED, Fleet
from gpuctl.fleet.returning import close, prove_end
from gpuctl.ledger import MachineRow
from gpuctl.names import parse_machine_name
from gpuctl.remote.known_hosts import KnownHost
from gpuctl.remote.opening import connect
from providers.base import (
    Ambiguous,
    AuthFailed,
    Billed,
    Capabilities,
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
from providers.ssh import SshProvider
from providers.ssh_hosts import HostEntry
from providers.ssh_offers import read_offer_id

PYTHONS = (
    "/opt/gpuctl/venv/bin/python",  # scripts/setup-machine.sh
    "/opt/pytorch/bin/python",  # AWS's PyTorch images
    "/root/.gpuctl-python/bin/python",  # our own boot scripts, and infra/modules
    "/opt/conda/bin/python",
    "/venv/main/bin/python",
)
"""Pythons that a machine may have for jobs, best first; else it is what ``python3`` is there."""

_FIRST_OF = 'for one in "$@"; do test -x "$one" && echo "$one" && exit; done; echo python3'
_LOOK_SECONDS = 30.0

_T = TypeVar("_T")


class BorrowedMachines:
    """The provider "borrowed": claims on machines that are lent. Nothing is rented here."""

    name = BORROWED

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._wanted: set[str] = set()
        self._pythons: dict[str, str] = {}
        self._ended: dict[str, Machine] = {}  # lent machines that their own clouds have no more
        self._ssh = SshProvider(
            fleet.environ, fleet.home.path, fleet.clock, name=BORROWED, hosts=self._entries
        )

    @property
    def capabilities(self) -> Capabilities:
        """What it can do: what hosts of one's own can."""
        return self._ssh.capabilities

    def configured(self) -> bool:
        """Whether anything is lent, or was and may still be claimed."""
        return self._ssh.book.is_open() or any(
            why_not_lent(row) is None for row in self._open_rows()
        )

    def offers(self, want: Want) -> Sequence[Offer]:
        """What the machines named in ``want.regions`` have; taken ones are not available now."""
        self._wanted.update(want.regions)
        offers = self._ssh.offers(replace(want, spot=None))
        return [replace(offer, provider=self.name) for offer in offers]

    def create(self, order: Order) -> Machine:
        """Claim the machine of the offer, and make a folder and a Python there."""
        name, _, _ = read_offer_id(order.offer.id)
        self._wanted.add(name)
        row = self._fleet.ledger.machine(name)
        if row is None or row.closed:
            raise NoCapacity(f"{name} is not lent any more.")
        self._pythons[name] = self._best_python(row)
        return self._seen(self._ssh.create(order))

    def get(self, provider_id: str) -> Machine:
        """The claim now; when the machine below it was taken away, that is the reason."""
        try:
            return self._seen(self._asked(lambda: self._ssh.get(provider_id)))
        except NotFound:
            host, _, name = provider_id.partition("/")
            below = self._ended.get(host)
            if below is None or below.reason is None:
                raise
            return replace(
                below, name=name, provider=self.name, provider_id=provider_id, state=State.GONE
            )

    def list(self) -> Sequence[Machine]:
        """The claims of this home, and others' on the same machines."""
        return [self._seen(machine) for machine in self._asked(self._ssh.list)]

    def destroy(self, provider_id: str) -> str:
        """End a claim: its processes and its folder. The machine stays."""
        return self._asked(lambda: self._ssh.destroy(provider_id))

    def leftovers(self) -> Sequence[Leftover]:
        """Folders of claims that are over."""
        left = self._asked(self._ssh.leftovers)
        return [replace(one, provider=self.name) for one in left]

    def remove(self, leftover: Leftover) -> None:
        """Remove such a folder."""
        self._asked(lambda: self._ssh.remove(leftover))

    def billed(self, provider_id: str) -> Billed | None:
        """Nobody bills for a claim; what it costs is computed from the machine's price."""
        del provider_id
        return None

    def check(self) -> Sequence[Finding]:
        """Each machine that is lent: whether it answers."""
        lent = [row.name for row in self._open_rows() if why_not_lent(row) is None]
        self._wanted.update(lent)
        return self._ssh.check() if lent else []

    def has_ended(self, row: MachineRow) -> bool:
        """Whether a borrowed machine is proven gone; then its row is closed."""
        return row.borrowed and self._ended_by_now(row) is not None

    # ------------------------------------------------------------------ inside

    def _open_rows(self) -> Sequence[MachineRow]:
        return self._fleet.ledger.machines(open_only=True, borrowed=True)

    def _entries(self) -> Sequence[HostEntry]:
        """The machines that somebody asks about, as hosts: nobody waits for the others."""
        return [
            self._entry(row)
            for row in self._open_rows()
            if (row.name in self._wanted or self._ssh.book.holds(row.name))
            and row.name not in self._ended
            and ssh_access(row.access) is not None
        ]

    def _entry(self, row: MachineRow) -> HostEntry:
        access = ssh_access(row.access)
        assert access is not None
        named = [(row.access or {}).get("identity") or "", *access.identities]
        return HostEntry(
            name=row.name,
            host=access.host,
            user=access.user,
            port=access.port,
            key=next((key for key in named if key.startswith("/")), None),
            price_hour=row.price_hour,
            python=self._pythons.get(row.name, "python3"),
            known_hosts=str(KnownHost(self._fleet.home.path, row.name).file),
        )

    def _best_python(self, row: MachineRow) -> str:
        access = ssh_access(row.access)
        assert access is not None
        connection = connect(access, machine=row.name, home=self._fleet.home.path)
        try:
            done = connection.run(["sh", "-c", _FIRST_OF, "sh", *PYTHONS], timeout=_LOOK_SECONDS)
        except RemoteError as error:
            raise NoCapacity(f"{row.name} cannot be used: {error.message}") from error
        finally:
            connection.close()
        return done.stdout.decode(errors="replace").strip() or "python3"

    def _seen(self, machine: Machine) -> Machine:
        """Add what the ledger knows of the machine below a claim."""
        row = self._fleet.ledger.machine(machine.provider_id.partition("/")[0])
        if row is None:
            return machine
        if not row.borrowed:
            # It is on our books already, under its own name.
            machine = replace(machine, price_hour=Decimal(0))
        if row.spot and machine.state is State.READY:
            machine = replace(machine, notice_root=self._notice_root(row))
        return machine

    def _notice_root(self, row: MachineRow) -> str | None:
        """Where the machine hears that it will be taken away, if its cloud can be asked."""
        try:
            cloud = self._fleet.provider(row.provider)
            if not cloud.configured() or row.provider_id is None:
                return None
            return cloud.get(row.provider_id).notice_root
        except (ProviderError, UsageError):
            return None

    def _asked(self, ask: Callable[[], _T]) -> _T:
        """Ask; where a machine does not answer, ask its own cloud whether it is gone."""
        try:
            return ask()
        except (Ambiguous, AuthFailed):
            if not self._some_have_ended():
                raise
            return ask()

    def _some_have_ended(self) -> bool:
        """Drop the claims on machines that are gone themselves; say whether there were any."""
        found = False
        for name in self._ssh.book.hosts():
            row = self._fleet.ledger.machine(name)
            ended = None if row is None else self._ended_by_now(row)
            if ended is not None:
                self._ended[name] = ended
                self._ssh.book.drop(name)
                found = True
        return found

    def _ended_by_now(self, row: MachineRow) -> Machine | None:
        """Return what proves that a lent machine is gone: its row is closed, or its cloud says."""
        nothing = Machine(row.name, row.provider, row.provider_id or "", State.GONE, "gone")
        if row.closed:
            return replace(nothing, reason="interrupted") if row.interrupted else nothing
        try:
            cloud = self._fleet.provider(row.provider)
        except UsageError:
            return None
        if not cloud.configured():
            return None
        proof = prove_end(self._fleet, row)
        if not proof.absent:
            return None
        if row.borrowed:
            close(self._fleet, row, proof)
        return proof.last or nothing


# ------------------------------------------------------------------------------ lending


def why_not_lent(row: MachineRow) -> str | None:
    """Say why no run can have a machine; None when one can. Pure."""
    if row.closed:
        return f"it has ended ({row.closed_by})"
    if row.provider == BORROWED or row.purpose == "run":
        return f"it works for the run {row.run}"
    if row.destroy_asked_at is not None:
        return "its end was asked for"
    access = ssh_access(row.access)
    if row.access is not None and access is None:
        return "it is on this computer: --provider local makes one for the run"
    if access is None or row.ready_at is None:
        return "it has not answered yet"
    if row.provider == "ssh":
        return "it is a claim on a host of yours: end it, and use --provider ssh"
    if access.proxy:
        return "it is reached through a proxy command"
    return None


def lent(row: MachineRow) -> MachineRow:
    """Return a machine that a run may have.

    Raises:
        UsageError: it cannot be lent.
    """
    why = why_not_lent(row)
    if why is not None:
        raise UsageError(
            f"--machine: {row.name} cannot be lent: {why}",
            machine=row.name,
            next="`gpuctl list` shows what there is.",
        )
    return row


def offers_of(fleet: Fleet, name: str, want: Want) -> list[Offer]:
    """Return what one lent machine has of what is wanted; it has nothing else to offer.

    Raises:
        NothingRentable: it is gone, taken, silent, or not what is wanted.
    """
    row, offers = _asked_for_offers(fleet, name, want)
    free = [offer for offer in offers if offer.available]
    if not free:
        raise NothingRentable(
            f"{row.name} is taken: {offers[0].note}",
            machine=row.name,
            next="`gpuctl runs` shows by whom.",
        )
    return free


def _asked_for_offers(fleet: Fleet, name: str, want: Want) -> tuple[MachineRow, Sequence[Offer]]:
    provider = BorrowedMachines(fleet)
    while True:
        row = current(fleet, name)
        why = "the ledger does not know it" if row is None else why_not_lent(row)
        if row is None or why is not None:
            raise NothingRentable(f"{name} cannot be lent: {why}", machine=name, next=_ANOTHER)
        try:
            return row, provider.offers(replace(want, regions=(row.name,)))
        except ProviderError as no:
            # When it is proven gone its row is closed now, and another may be in its place.
            if not provider.has_ended(row):
                raise NothingRentable(
                    f"{row.name} cannot be had: {no}", machine=row.name, next=_ANOTHER
                ) from no


def current(fleet: Fleet, name: str) -> MachineRow | None:
    """Return a lent machine, or the one that Terraform has made in its place."""
    row = fleet.ledger.machine(name)
    if row is None or not row.closed or not row.borrowed:
        return row
    others = [
        other
        for other in fleet.ledger.machines(open_only=True, borrowed=True)
        if other.borrowed and _series(other) == _series(row)
    ]
    return others[0] if len(others) == 1 else row


def _series(row: MachineRow) -> tuple[str | None, str]:
    name = parse_machine_name(row.name)
    return row.terraform, name.middle if name else row.name


_ANOTHER = "`terraform apply` and `gpuctl adopt` bring another; `gpuctl list` shows what there is."
