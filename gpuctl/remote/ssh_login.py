"""From an address to a logged-in transport: TCP, greeting, host key, login; each in its time."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpuctl.remote.ssh_library import paramiko  # before anything else imports it

# isort: split
from paramiko.ssh_exception import (
    AuthenticationException,
    BadAuthenticationType,
    SSHException,
)

from gpuctl.errors import RemoteError
from gpuctl.printable import printable
from gpuctl.remote.keys import key_file, own_key_files
from gpuctl.remote.known_hosts import HostKey, KnownHost
from gpuctl.remote.ssh_proxy import ProxyFailed, ProxyLink
from gpuctl.remote.ssh_transport import SshTransport, check_paramiko
from providers.base import SshAccess

_AGENT_SECONDS = 5.0
_ABOUT_SECONDS = 0.2  # paramiko keeps deadlines about that well
_MOST_KEYS = 5  # OpenSSH hangs up after six failures
_RSA = ("rsa-sha2-512", "rsa-sha2-256")


class Unreachable(RemoteError):
    """No SSH server answers there (yet); trying again may help."""

    kind = "Unreachable"


class LoginRefused(RemoteError):
    """The machine answers and does not let us in."""

    kind = "LoginRefused"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long what may take, in seconds."""

    connect: float = 10  # until TCP stands, an address
    login: float = 20  # from there until logged in
    command: float = 15  # until a machine agrees to start a command
    reconnect: float = 60  # all attempts together, after a link broke
    keep_alive: float = 10  # quiet time after which a sign of life is asked for
    silent: float = 45  # silence after which the link counts as broken; outlasts a freeze of 30 s
    idle: float = 120  # how long a transfer may stand still although the link lives


@dataclass(frozen=True, slots=True)
class Identities:
    """The keys to log in with: the home's, those named for the machine, the user's agent and own.

    Args:
        home: GPUCTL_HOME.
        environ: where the user's agent and own keys are looked for.
    """

    home: Path
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def each(
        self, named: Sequence[str], unusable: list[str]
    ) -> Iterator[tuple[str, paramiko.PKey]]:
        """Yield (what it is, key). Each is only looked for when the one before was refused.

        Args:
            named: private key files to try after the home's own.
            unusable: takes a word about each of those that cannot be read without help.

        Raises:
            UsageError: the home's key cannot be made or read.
        """
        file = key_file(self.home)
        try:
            yield str(file), paramiko.Ed25519Key.from_private_key_file(str(file))
        except SSHException as error:
            raise LoginRefused(
                f"{file} is not a usable SSH key: {error}", next="Remove it; gpuctl makes another."
            ) from error
        for name in named:
            place = Path(name).expanduser().absolute()
            if place == file.absolute():
                continue
            try:
                yield str(place), paramiko.PKey.from_path(place)
            except (paramiko.PasswordRequiredException, TypeError):
                unusable.append(f"{name} has a passphrase, and only an ssh-agent can use it")
            except (SSHException, OSError, ValueError) as error:
                unusable.append(f"{name} cannot be used: {_words(error)}")
        for key in self._in_agent():
            yield f"{key.get_name()} in ssh-agent", key
        for file in own_key_files(self.environ):
            try:
                yield str(file), paramiko.PKey.from_path(file)
            except (SSHException, OSError, ValueError, TypeError):
                continue  # it has a passphrase or is of an unknown kind: only an agent can use it

    def _in_agent(self) -> list[paramiko.PKey]:
        place = self.environ.get("SSH_AUTH_SOCK")
        if not place or place != os.environ.get("SSH_AUTH_SOCK"):  # paramiko reads that
            return []
        found: list[paramiko.PKey] = []

        def ask() -> None:
            try:
                found.extend(paramiko.Agent().get_keys())
            except (SSHException, OSError):
                return  # no agent, or a broken one: there are other keys

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_AGENT_SECONDS)
        return list(found)


@dataclass(frozen=True, slots=True)
class Login:
    """A way in."""

    transport: SshTransport
    address: SshAccess
    identity: str  # the key that was accepted: a file, or what it is in the agent
    steps: Mapping[str, float]  # seconds for "tcp", "banner" and "login"


def log_in(
    address: SshAccess,
    known: KnownHost,
    identities: Identities,
    *,
    machine: str | None,
    patience: Patience,
) -> Login:
    """Log in at one address.

    Raises:
        Unreachable: nothing answers there, or not as an SSH server does.
        HostKeyChanged: it is not the machine.
        LoginRefused: it does not take our keys.
        UsageError: something in GPUCTL_HOME cannot be used.
    """
    check_paramiko()
    begun = time.monotonic()
    dial = _proxied if address.proxy else _dialled
    link = dial(address, machine, patience)
    connected = time.monotonic()
    deadline = connected + patience.login
    try:
        types = _host_key_types(known)
        transport = SshTransport(link, host_key_types=types)
    except BaseException:
        link.close()
        raise
    try:
        _shake_hands(transport, address, machine, deadline)
        shown = transport.get_remote_server_key()
        known.check(HostKey(shown.get_name(), shown.asbytes()))
        identity = _authenticate(transport, address, identities, machine, deadline)
    except BaseException:
        transport.close()
        link.close()
        raise
    transport.keep_alive(patience.keep_alive, patience.silent)
    transport.ping()
    done = time.monotonic()
    greeted = transport.packetizer.banner_at or connected
    steps = {"tcp": connected - begun, "banner": greeted - connected, "login": done - greeted}
    return Login(transport, address, identity, steps)


def _dialled(address: SshAccess, machine: str | None, patience: Patience) -> socket.socket:
    try:
        link = socket.create_connection((address.host, address.port), patience.connect)
    except (OSError, UnicodeError) as error:
        why = "no answer" if isinstance(error, TimeoutError) else _words(error)
        raise Unreachable(
            f"{_at(address)} does not take connections: {why}",
            machine=machine,
            next="It may still be starting. `gpuctl list --refresh` shows what its provider says.",
        ) from error
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return link


def _proxied(address: SshAccess, machine: str | None, patience: Patience) -> socket.socket:
    link: ProxyLink | None = None
    try:
        link = ProxyLink(address.proxy)
        # It may have to log in somewhere itself before anything comes.
        link.wait_for_peer(patience.connect + patience.login)
    except BaseException as error:
        said = ""
        if link is not None:
            link.close()
            said = link.last_words()
        if not isinstance(error, ProxyFailed):
            raise
        raise Unreachable(
            f"{_at(address)} is reached through a proxy command ({address.proxy[0]}), which gave "
            f"no connection: {error}" + (f"; it said: {said}" if said else ""),
            machine=machine,
            next="Try the command by hand; the machine may also still be starting.",
        ) from error
    return link


def _host_key_types(known: KnownHost) -> tuple[str, ...]:
    """Ask for a key of the type that is known, for a machine may have several."""
    types: list[str] = []
    for key in known.accepted():
        types += _RSA if key.type == "ssh-rsa" else (key.type,)
    return tuple(dict.fromkeys(types))


def _shake_hands(
    transport: SshTransport, address: SshAccess, machine: str | None, deadline: float
) -> None:
    """Agree on keys; the host key is not checked yet."""
    left = max(0.1, deadline - time.monotonic())
    transport.banner_timeout = transport.handshake_timeout = left
    agreed = threading.Event()
    try:
        transport.start_client(event=agreed)
        in_time = agreed.wait(left)
        if transport.is_active() and transport.initial_kex_done:
            return
        error = transport.get_exception()
    except (SSHException, RuntimeError) as problem:
        in_time, error = True, problem
    if not in_time:
        why = f"it did not finish its greeting within {left:.0f} s"
    else:
        why = str(error) if error and str(error) else "it hung up"
    raise Unreachable(
        f"{_at(address)} answers, but not as an SSH server should: {printable(why)[:200]}",
        machine=machine,
        next="It may still be starting; or something else listens on that port.",
    ) from error


def _authenticate(
    transport: SshTransport,
    address: SshAccess,
    identities: Identities,
    machine: str | None,
    deadline: float,
) -> str:
    """Return which key was accepted."""
    offered: list[str] = []
    unusable: list[str] = []
    for name, key in identities.each(address.identities, unusable):
        if len(offered) == _MOST_KEYS:
            break
        transport.auth_timeout = max(0.1, deadline - time.monotonic())
        offered.append(name)
        try:
            more = transport.auth_publickey(address.user, key)
        except BadAuthenticationType as error:
            accepted = ", ".join(printable(one)[:200] for one in error.allowed_types) or "nothing"
            raise _refused(
                address, machine, f"it takes no keys; it takes only: {accepted}"
            ) from error
        except AuthenticationException as error:
            if not transport.is_active():
                raise _refused(
                    address, machine, f"it hung up over {name} ({printable(str(error))[:200]})"
                ) from error
            if time.monotonic() > deadline - _ABOUT_SECONDS:
                raise Unreachable(
                    f"{_at(address)} did not answer the login in time",
                    machine=machine,
                    next="It may still be starting, or be very busy. Try again.",
                ) from error
            continue
        except (SSHException, EOFError) as error:
            why = printable(str(error))[:200] or "no word"
            raise Unreachable(
                f"{_at(address)} hung up during the login: {why}",
                machine=machine,
                next="Try again; its log says why.",
            ) from error
        if more:
            raise _refused(address, machine, "it wants something besides a key")
        return name
    reasons = [f"it refused {', '.join(offered)}", *unusable]
    raise _refused(address, machine, printable("; ".join(reasons)))


def _refused(address: SshAccess, machine: str | None, why: str) -> LoginRefused:
    return LoginRefused(
        f"{_at(address)} does not let us in: {why}",
        machine=machine,
        next="The public key of this GPUCTL_HOME (ssh/id_ed25519.pub there) must be in "
        "~/.ssh/authorized_keys of that user on the machine.",
    )


def _at(address: SshAccess) -> str:
    return f"{address.user}@{address.host}, port {address.port},"


def _words(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)
