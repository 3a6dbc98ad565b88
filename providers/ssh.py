"""The `ssh` provider: machines of your own that you reach over SSH.

A workstation, a colocated server, a Mac, something that you rented by hand. A host is taken by one
machine at a time: the claim is a file on the host itself, so two gpuctl on two laptops cannot both
have it. The end of a machine ends every process of it, removes its folder, gives the host back,
and touches nothing else.

Settings: ``GPUCTL_SSH_HOSTS`` (see `ssh_hosts`), ``GPUCTL_SSH_CONFIG`` (default ~/.ssh/config).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from providers import ssh_claims as claims
from providers import ssh_offers
from providers.base import (
    ABSENT,
    Ambiguous,
    AuthFailed,
    Billed,
    Capabilities,
    Clock,
    Finding,
    InvalidRequest,
    Leftover,
    Machine,
    NoCapacity,
    NotFound,
    Offer,
    Order,
    PriceChanged,
    ProviderError,
    SelfEnd,
    SshAccess,
    State,
    Unsupported,
    Want,
)
from providers.nvidia_smi import QUERY
from providers.ssh_host import MARKER
from providers.ssh_hosts import SETTING, HostEntry, read_hosts
from providers.ssh_shell import HostRefused, NoAnswer, Shell, program

_LOOK_SECONDS = 30.0
_CLAIM_SECONDS = 60.0
_END_SECONDS = 60.0
_AT_ONCE = 16

_Said: TypeAlias = list[tuple[HostEntry, dict[str, Any]]]
_Failed: TypeAlias = list[tuple[HostEntry, ProviderError]]


class SshProvider:
    """Hosts of your own. Nothing is asked before it is needed."""

    name = "ssh"

    def __init__(
        self,
        environ: Mapping[str, str],
        home: Path,
        clock: Clock,
        *,
        name: str = "ssh",
        hosts: Callable[[], Sequence[HostEntry]] | None = None,
    ) -> None:
        """Make it.

        Args:
            environ: the caller's environment.
            home: GPUCTL_HOME, absolute.
            clock: the time.
            name: whose claims these are: what is made goes under it.
            hosts: tells the hosts; the settings do by default.
        """
        self.name = name
        self.home = home
        self.clock = clock
        self.book = claims.Book(home / name / "claims")
        self._environ = environ
        self._hosts = hosts or (lambda: read_hosts(environ, home))
        self._shells: dict[HostEntry, Shell] = {}

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str], *, home: Path, clock: Clock
    ) -> SshProvider:
        """Build it from settings. ``home`` is GPUCTL_HOME; nothing is read or written yet."""
        return cls(environ, home.absolute(), clock)

    @property
    def capabilities(self) -> Capabilities:
        """What this provider can do. A claim is seen by everybody at once, so settling is short."""
        return Capabilities(
            spot=False,
            stop=False,
            ttl=False,
            labels=True,
            kind="host",
            gpus=True,
            by_name_only=True,
            settle_seconds=0.2,
            poll_seconds=1,
        )

    def configured(self) -> bool:
        """Whether hosts are named, or claims of this home are open."""
        try:
            return bool(self._hosts()) or self.book.is_open()
        except InvalidRequest:
            return True  # they are, and whoever asks will be told what is wrong with that

    # ------------------------------------------------------------------ offers and creation

    def offers(self, want: Want) -> Sequence[Offer]:
        """Return the hosts that have what is wanted; taken ones are not available now."""
        hosts = self._hosts()
        if not hosts:
            raise InvalidRequest(
                f"No host is named. Write them into {self.home / 'hosts.yaml'}, or set {SETTING}."
            )
        if want.spot:
            raise Unsupported(
                "Nobody takes your own hosts away, so there is no spot; without --spot: "
                f"{', '.join(host.name for host in hosts)}."
            )
        here = [host for host in hosts if (host.region or host.name) in want.regions]
        found, failed = self._ask_all(here or hosts, _look(hardware=True))
        if not found:
            raise _together(failed)
        now = self.clock.now()
        offers = [offer for host, said in found for offer in ssh_offers.rows(want, host, said, now)]
        if not offers and failed:
            raise _together(failed)
        if not offers:
            have = "; ".join(ssh_offers.summary(host, said) for host, said in found)
            raise NoCapacity(f"None of your hosts has all of it: {have}.")
        return sorted(offers, key=lambda offer: (offer.price_hour, not offer.available, offer.id))

    def create(self, order: Order) -> Machine:
        """Claim the host of the offer, and make a folder and a Python there."""
        host_name, gpu, count = ssh_offers.read_offer_id(order.offer.id)
        host = self._host(host_name)
        if order.max_price_hour is not None and host.price_hour > order.max_price_hour:
            raise PriceChanged(
                f"{host.name} costs ${host.price_hour}/h, above the cap of "
                f"${order.max_price_hour}/h."
            )
        uuids = self._idle_cards(host, gpu, count)
        record = claims.new_record(order, host, gpu, uuids, self.clock.now())
        end = {"do": "end", "name": order.name, "claim": host.claim, "base": host.folder}
        taking = {"do": "claim", "record": record, "end_program": program(end)}
        self.book.open(host.name, order.name)
        try:
            said = self._ask(host, taking, _CLAIM_SECONDS)
        except ProviderError as error:
            if _may_be_claimed(error):
                raise
            self.book.close(host.name, order.name)
            if isinstance(error, AuthFailed):
                raise
            raise NoCapacity(f"{host.name} cannot be used: {error}") from error
        if "taken" in said:
            self.book.close(host.name, order.name)
            raise NoCapacity(f"{host.name} is taken: {claims.whose(said['taken'])}.")
        return self._machine(host, said)

    def _idle_cards(self, host: HostEntry, gpu: str | None, count: int) -> Sequence[str]:
        """Return the uuids of the cards that the machine may see."""
        if gpu is None:
            return ()
        try:
            cards = ssh_offers.cards_of(self._ask(host, _look(hardware=True), _LOOK_SECONDS))
        except Ambiguous as error:  # nothing was asked for yet
            raise NoCapacity(f"{host.name} cannot be used: {error}") from error
        idle = [card.uuid for card in cards if card.name == gpu and not card.busy][:count]
        if len(idle) < count:
            raise NoCapacity(f"{host.name} has {len(idle)} x {gpu} idle, not {count}.")
        return idle

    # ------------------------------------------------------------------ reading

    def get(self, provider_id: str) -> Machine:
        """The machine, as its host says. Raises NotFound when the host says that it has ended."""
        host, name = self._split(provider_id)
        said = self._ask(host, _look(), _LOOK_SECONDS)
        claim = said["claim"]
        if claim is None or claim["name"] != name:
            raise NotFound(f"{host.name} has no machine {name}.")
        return self._machine(host, said)

    def list(self) -> Sequence[Machine]:
        """The machines of all hosts that answer.

        A host that does not answer is passed over as long as this home has nothing there: your
        own computers may be switched off.
        """
        return [
            self._machine(host, said)
            for host, said in self._all_that_count()
            if said["claim"] is not None
        ]

    def _all_that_count(self) -> _Said:
        found, failed = self._ask_all(self._hosts_for_sure(), _look())
        held = [(host, error) for host, error in failed if self.book.holds(host.name)]
        if held:
            raise _together(held)
        for name in self.book.hosts():
            self._host(name)  # one that is not in the settings any more cannot be asked
        return found

    def _machine(self, host: HostEntry, said: Mapping[str, Any]) -> Machine:
        found = said["claim"]
        claim = claims.read(found, said["user"])
        age = (self.clock.now() - claim.created_at).total_seconds() if claim else None
        state, status = claims.describe(found, said["boot"], age)
        machine = Machine(
            name=str(found["name"]),
            provider=self.name,
            provider_id=f"{host.name}/{found['name']}",
            state=state,
            status=status,
            price_hour=host.price_hour,
            region=host.region or host.name,
        )
        if claim is None:
            return machine  # not ours
        folder = claim.folder
        return replace(
            machine,
            gpu=claim.gpu,
            gpu_count=len(claim.gpu_uuids),
            mark=claim.mark,
            created_at=claim.created_at,
            access=_access(self._shell(host), claim) if state is State.READY else None,
            self_end=SelfEnd(argv=(f"{folder}/venv/bin/python", "-I", f"{folder}/end.py")),
        )

    # ------------------------------------------------------------------ the end

    def destroy(self, provider_id: str) -> str:
        """End every process of the machine, remove its folder, give the host back."""
        try:
            host, name = self._split(provider_id)
        except NotFound:
            return ABSENT
        said = self._ask(host, {"do": "end", "name": name}, _END_SECONDS)
        self.book.close(host.name, name)
        return "ended and removed" if said["ended"] else ABSENT

    def leftovers(self) -> Sequence[Leftover]:
        """Folders of machines that do not have their host."""
        return [
            Leftover(
                self.name,
                "folder",
                f"{host.name}/{one['name']}",
                str(one["name"]),
                claims.mark(one),
            )
            for host, said in self._all_that_count()
            for one in said["unclaimed"]
        ]

    def remove(self, leftover: Leftover) -> None:
        """Remove such a folder, and whatever still runs in its name."""
        host, name = self._split(leftover.id)
        self._ask(host, {"do": "sweep", "name": name}, _END_SECONDS)

    # ------------------------------------------------------------------ money and health

    def billed(self, provider_id: str) -> Billed | None:
        """Nobody bills for them; the cost is computed from the price in the hosts file."""
        del provider_id
        return None

    def check(self) -> Sequence[Finding]:
        """Each host: whether it answers, and what is wrong with it."""
        try:
            hosts = self._hosts()
        except InvalidRequest as error:
            return [Finding("hosts", False, str(error))]
        if not hosts:
            return [Finding("hosts", False, f"none named: set {SETTING} or write hosts.yaml")]
        found, failed = self._ask_all(hosts, _look(hardware=True))
        findings = {host.name: Finding(host.name, False, str(error)) for host, error in failed}
        findings |= {host.name: ssh_offers.finding(host, said) for host, said in found}
        return [findings[host.name] for host in hosts]

    # ------------------------------------------------------------------ asking

    def _hosts_for_sure(self) -> Sequence[HostEntry]:
        """The hosts; what cannot be read is not an empty list. Raises Ambiguous."""
        try:
            return self._hosts()
        except InvalidRequest as error:
            raise Ambiguous(str(error)) from error

    def _host(self, name: str) -> HostEntry:
        for host in self._hosts_for_sure():
            if host.name == name:
                return host
        if self.book.holds(name):
            raise Ambiguous(
                f"The host {name} may still run a machine and is not named any more. Put it back "
                f"into the hosts file or {SETTING}."
            )
        raise NotFound(f"No host is called {name!r}.")

    def _split(self, provider_id: str) -> tuple[HostEntry, str]:
        host, _, name = provider_id.partition("/")
        return self._host(host), name

    def _shell(self, host: HostEntry) -> Shell:
        return self._shells.setdefault(host, Shell(host, self.home, self._environ))

    def _ask(self, host: HostEntry, order: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        order = {**order, "claim": host.claim, "base": host.folder}
        return self._shell(host).ask(order, timeout=timeout)

    def _ask_all(
        self, hosts: Sequence[HostEntry], order: Mapping[str, Any]
    ) -> tuple[_Said, _Failed]:
        """Ask several hosts at once; each answers or fails on its own."""

        def ask(host: HostEntry) -> dict[str, Any] | ProviderError:
            try:
                return self._ask(host, order, _LOOK_SECONDS)
            except ProviderError as error:
                return error

        with ThreadPoolExecutor(max(1, min(len(hosts), _AT_ONCE))) as pool:
            answers = list(zip(hosts, pool.map(ask, hosts), strict=True))
        return (
            [(host, said) for host, said in answers if not isinstance(said, ProviderError)],
            [(host, error) for host, error in answers if isinstance(error, ProviderError)],
        )


def _look(*, hardware: bool = False) -> dict[str, Any]:
    return {"do": "look", "hardware": hardware, "nvidia_smi": list(QUERY)}


def _access(shell: Shell, claim: claims.Claim) -> SshAccess:
    folder = claim.folder
    env = {
        MARKER: claim.name,
        "TMPDIR": claim.tmp,
        "VIRTUAL_ENV": f"{folder}/venv",
        "PIP_USER": "0",
    }
    if claim.gpu_uuids:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(claim.gpu_uuids)
    return replace(shell.access(), folder=f"{folder}/root", env=env, path=(f"{folder}/venv/bin",))


def _together(failed: _Failed) -> ProviderError:
    first = failed[0][1]
    if len(failed) == 1 or not all(isinstance(error, AuthFailed) for _, error in failed):
        return first if len(failed) == 1 else Ambiguous(" ".join(str(e) for _, e in failed))
    return AuthFailed(" ".join(str(error) for _, error in failed))


def _may_be_claimed(error: ProviderError) -> bool:
    """Whether a claim that failed this way may have come about all the same."""
    match error:
        case NoAnswer():
            return error.begun
        case HostRefused():
            return error.reason == "StillAlive"  # it could not be cleared away again
    return False
