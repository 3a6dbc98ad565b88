"""The SSH links to one machine: one that all share, and links of their own for parallel streams.

The shared one is kept open, keeps a channel open in advance (so that a command costs one round
trip, not two), and is made anew with back-off when it broke.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_delay,
    wait_random_exponential,
)

from gpuctl.errors import RemoteError
from gpuctl.remote.known_hosts import KnownHost
from gpuctl.remote.ssh_channel import Broken, CommandChannel, Refused
from gpuctl.remote.ssh_command import SshCommand
from gpuctl.remote.ssh_login import Identities, Login, Patience, Unreachable, log_in
from providers.base import SshAccess

if TYPE_CHECKING:
    from paramiko import SFTPClient

_FIRST_PAUSE = 0.2
_LONGEST_PAUSE = 5.0


class SshLinks:
    """Opens commands on one machine.

    Args:
        addresses: ways in, the best first; a later one is tried when an earlier one fails.
        known: its host keys.
        identities: what to log in with.
        machine: its name, for what goes wrong.
        patience: how long what may take.
    """

    def __init__(
        self,
        addresses: Sequence[SshAccess],
        known: KnownHost,
        identities: Identities,
        *,
        machine: str | None,
        patience: Patience,
    ) -> None:
        self.patience = patience
        self._addresses = list(addresses)
        self._known = known
        self._identities = identities
        self._machine = machine
        self._lock = threading.Lock()
        self._shared: Login | None = None
        self._steps: Mapping[str, float] = {}
        self._identity: str | None = None
        self._spare: CommandChannel | None = None
        self._been_there = False
        self._closed = False

    def start(self, line: bytes, *, stderr_kept: int, own_link: bool = False) -> SshCommand:
        """Start a command.

        Args:
            line: for the login shell there.
            stderr_kept: bytes of the end of its stderr that are kept.
            own_link: on a connection of its own, which `end` closes with the command.

        Raises:
            RemoteError: the machine cannot be reached, or starts no commands.
        """
        if own_link:
            return self._start_alone(line, stderr_kept)
        for _ in range(2):  # the second time when the shared link turns out to be broken
            login = self.login()
            try:
                channel = self._channel(login)
                channel.execute(line, stderr_kept=stderr_kept)
                self._ask_spare(login)
                if not login.transport.well_measured:
                    login.transport.ping()
                return SshCommand(channel)
            except Refused:
                # It may limit the commands on a link (MaxSessions), not the links.
                return self._start_alone(line, stderr_kept)
            except Broken as error:
                self._drop(login)
                broken: Exception = error
            except TimeoutError as error:
                login.transport.break_off("it stopped answering")
                self._drop(login)
                broken = error
        raise RemoteError(
            f"The link to the machine broke before a command could be started: {broken}",
            machine=self._machine,
            next="Try again.",
        ) from broken

    def end(self, command: SshCommand) -> None:
        """Let go of a command; a link of its own ends with it."""
        command.channel.close()
        if command.own_link is not None:
            command.own_link.transport.close()

    def sftp(self) -> SFTPClient:
        """Open an SFTP session on the shared link; the caller closes it.

        Raises:
            RemoteError: the machine cannot be reached, or has no SFTP.
        """
        from paramiko import SFTPClient
        from paramiko.ssh_exception import SSHException

        transport = self.login().transport
        transport.channel_timeout = self.patience.command
        try:
            session = SFTPClient.from_transport(transport)
        except (SSHException, EOFError) as error:
            raise RemoteError(
                f"The machine gives no SFTP session: {error}", machine=self._machine
            ) from error
        if session is None:
            raise RemoteError("The machine gives no SFTP session", machine=self._machine)
        session.get_channel().settimeout(self.patience.idle)
        return session

    def login(self) -> Login:
        """Return the shared link, made anew if it broke.

        Raises:
            RemoteError: the machine cannot be reached.
        """
        with self._lock:
            if self._closed:
                raise RemoteError("The connection was closed", machine=self._machine)
            if self._shared is None or not self._shared.transport.is_active():
                self._shared, self._spare = None, None
                self._shared = self._again() if self._been_there else self._log_in()
                self._been_there = True
                self._steps, self._identity = self._shared.steps, self._shared.identity
                try:
                    self._spare = self._shared.transport.ask_channel()
                except Broken:
                    self._spare = None  # told by the command that wants one
            return self._shared

    @property
    def connected(self) -> bool:
        """Whether the shared link stands, as far as is known."""
        with self._lock:
            return self._shared is not None and self._shared.transport.is_active()

    @property
    def steps(self) -> Mapping[str, float]:
        """Seconds that each step of the last login took; empty before the first."""
        return self._steps

    @property
    def address(self) -> SshAccess:
        """The address that is tried first: the one that worked last."""
        return self._addresses[0]

    @property
    def identity(self) -> str | None:
        """The key that the machine took at the last login; None before the first."""
        return self._identity

    def close(self) -> None:
        """Close the shared link; those who hold one of their own close it."""
        self._closed = True  # before the lock: a reconnect that holds it looks at this
        with self._lock:
            shared, self._shared, self._spare = self._shared, None, None
        if shared:
            shared.transport.close()

    # ------------------------------------------------------------------ inside

    def _start_alone(self, line: bytes, stderr_kept: int) -> SshCommand:
        login = self._again() if self._been_there else self._log_in()
        try:
            channel = login.transport.ask_channel()
            channel.wait_open(time.monotonic() + self.patience.command)
            channel.execute(line, stderr_kept=stderr_kept)
        except (Refused, Broken, TimeoutError) as error:
            login.transport.close()
            raise RemoteError(
                f"The machine lets us in and starts no command: {error or 'no answer'}",
                machine=self._machine,
            ) from error
        except BaseException:
            login.transport.close()
            raise
        return SshCommand(channel, own_link=login)

    def _channel(self, login: Login) -> CommandChannel:
        """An open channel on the shared link: the spare one, or a new one."""
        with self._lock:
            mine = self._shared is login
            channel = self._spare if mine else None
            if mine:
                self._spare = None
        deadline = time.monotonic() + self.patience.command
        if channel is not None:
            try:
                channel.wait_open(deadline)
                return channel
            except Refused:
                pass  # asked when there was no room; there may be now
        channel = login.transport.ask_channel()
        channel.wait_open(deadline)
        return channel

    def _ask_spare(self, login: Login) -> None:
        with self._lock:
            if self._shared is login and self._spare is None:
                try:
                    self._spare = login.transport.ask_channel()
                except Broken:
                    self._spare = None  # the command that was just started tells

    def _drop(self, login: Login) -> None:
        login.transport.close()
        with self._lock:
            if self._shared is login:
                self._shared, self._spare = None, None

    def _again(self) -> Login:
        """Log in where it worked before; a machine that is there may need a moment."""
        for attempt in Retrying(
            retry=retry_if_exception_type(Unreachable),
            stop=stop_after_delay(self.patience.reconnect),
            wait=wait_random_exponential(multiplier=_FIRST_PAUSE, max=_LONGEST_PAUSE),
            before_sleep=self._still_wanted,
            reraise=True,
        ):
            with attempt:
                return self._log_in()
        raise AssertionError("tenacity ended without an outcome")

    def _still_wanted(self, _: RetryCallState) -> None:
        if self._closed:
            raise RemoteError("The connection was closed", machine=self._machine)

    def _log_in(self) -> Login:
        """Try every address once; the one that works comes first from now on."""
        failed: list[Unreachable] = []
        for address in list(self._addresses):
            try:
                login = log_in(
                    address,
                    self._known,
                    self._identities,
                    machine=self._machine,
                    patience=self.patience,
                )
            except Unreachable as error:
                failed.append(error)
                continue
            self._addresses = [address, *(one for one in self._addresses if one is not address)]
            return login
        if len(failed) == 1:
            raise failed[0]
        raise Unreachable(
            "; ".join(error.message for error in failed),
            machine=self._machine,
            next=failed[-1].next,
        ) from failed[-1]
