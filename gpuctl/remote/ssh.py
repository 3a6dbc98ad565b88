"""Reaching machines over SSH.

One link is shared by all commands, kept alive, and made anew when it broke. Nothing of a command
is ever sent twice: when its link breaks, nobody knows how far it came.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gpuctl.errors import RemoteError, UsageError
from gpuctl.printable import printable
from gpuctl.remote.connection import Completed, Progress, Transferred
from gpuctl.remote.foreground import call_in_foreground
from gpuctl.remote.known_hosts import KnownHost
from gpuctl.remote.ssh_channel import Broken, Refused
from gpuctl.remote.ssh_command import (
    END_SCRIPT,
    WRITE_SCRIPT,
    SshCommand,
    TooMuchOutput,
    command_line,
    converse,
)
from gpuctl.remote.ssh_links import SshLinks
from gpuctl.remote.ssh_login import Identities, Patience
from gpuctl.remote.ssh_options import ssh_argv
from gpuctl.remote.ssh_process import SshByteChannel, SshProcess
from gpuctl.remote.ssh_setup import setup_script, shell_line
from providers.base import SshAccess

if TYPE_CHECKING:
    from paramiko import SFTPClient

_OUTPUT_LIMIT = 64 << 20
_STDERR_KEPT = 8192
_LOOK_SECONDS = 0.5
_END_SECONDS = 15.0  # ending a command takes at most this long
_STREAM_WINDOW = 8 << 20  # bytes under way to us on one stream: 160 MB/s at 50 ms


class SshConnection:
    """Implements `gpuctl.remote.connection.Connection`. Safe to use from several threads.

    Args:
        access: as its provider says. Its folder, environment and PATH hold for its alternatives
            too, and so do the host keys of any of them.
        home: GPUCTL_HOME, where our key and the machine's host key are.
        machine: its name; host keys are kept under it.
        environ: where the user's own keys and agent are looked for.
        patience: how long what may take.
        output_limit: bytes of stdout and stderr together that `run` takes.

    Raises:
        UsageError: the environment or PATH has a name that no shell takes.
    """

    def __init__(
        self,
        access: SshAccess,
        *,
        home: Path,
        machine: str | None = None,
        environ: Mapping[str, str] = os.environ,
        patience: Patience | None = None,
        output_limit: int = _OUTPUT_LIMIT,
    ) -> None:
        self._machine = machine
        self._setup = setup_script(access)
        self._there = access.folder
        self._output_limit = output_limit
        ways = (access, *access.alternatives)
        keys = dict.fromkeys(key for way in ways for key in way.host_keys)
        self._known = KnownHost(home, machine or f"{access.host}_{access.port}", tuple(keys))
        self._links = SshLinks(
            ways,
            self._known,
            Identities(home, environ),
            machine=machine,
            patience=patience or Patience(),
        )

    # ------------------------------------------------------------------ Connection

    @property
    def home(self) -> str:
        """The absolute path of the folder on the machine that is ours to use.

        Raises:
            RemoteError: the machine cannot be reached, or has no such folder.
        """
        if self._there is None:
            done = self.run(["sh", "-c", "cd && pwd"], timeout=self._links.patience.command)
            path = done.stdout.rstrip(b"\n").decode("utf-8", "surrogateescape")
            if done.exit_code or not path.startswith("/"):
                raise self._error(f"The machine has no folder for us{_said(done.stderr)}")
            self._there = path
        return self._there

    def run(self, command: Sequence[str] | str, *, stdin: bytes = b"", timeout: float) -> Completed:
        """Run a command to its end. A str goes through the machine's bash, else sh.

        Output that something it left in the background still holds open is not waited for.

        Raises:
            RemoteError: the machine cannot be reached, the command did not end within
                ``timeout`` seconds, or it wrote more than the limit. It is killed then.
            UsageError: the command is too long.
        """
        return self._run(self._line(command), stdin, timeout)

    def open(self, command: Sequence[str]) -> SshProcess:
        """Start a command and talk to it.

        Raises:
            RemoteError: the machine cannot be reached.
            UsageError: the command is too long.
        """
        started = self._links.start(self._line(command), stderr_kept=_STDERR_KEPT)
        return SshProcess(
            started,
            name=command[-1],
            machine=self._machine,
            idle=self._links.patience.idle,
            end=self._end,
            let_go=self._links.end,
        )

    def put(
        self,
        source: Path,
        target: str,
        *,
        progress: Progress | None = None,
        checksum: bool = False,
        rate: float | None = None,
    ) -> Transferred:
        """Send a file or a tree; see `Connection.put`.

        Raises:
            UsageError: the source cannot be read.
            RemoteError: it cannot be written there, or the link broke again and again.
        """
        from gpuctl.remote.transfer.upload import upload

        return upload(
            self.channels(),
            source,
            self.inside(target),
            progress=progress,
            checksum=checksum,
            rate=rate,
            machine=self._machine,
            sftp=self.sftp,
        )

    def get(
        self,
        source: str,
        target: Path,
        *,
        progress: Progress | None = None,
        checksum: bool = False,
        rate: float | None = None,
    ) -> Transferred:
        """Fetch a file or a tree; nothing lands outside ``target``.

        Raises:
            UsageError: it cannot be written here.
            RemoteError: it cannot be read there, or the link broke again and again.
        """
        from gpuctl.remote.transfer.download import download

        return download(
            self.channels(),
            self.inside(source),
            target,
            progress=progress,
            checksum=checksum,
            rate=rate,
            machine=self._machine,
            sftp=self.sftp,
        )

    def write(self, path: str, content: bytes, *, mode: int = 0o600) -> None:
        """Write a small file on the machine, whole or not at all.

        Raises:
            RemoteError: it cannot be written.
        """
        argv = ["sh", "-c", WRITE_SCRIPT, "sh", self.inside(path), f"{mode:o}", str(len(content))]
        done = self.run(argv, stdin=content, timeout=self._links.patience.idle)
        if done.exit_code:
            raise self._error(f"{path} was not written{_said(done.stderr)}")

    def interactive(self, command: Sequence[str], *, forwards: Sequence[str] = ()) -> int:
        """Give the caller's terminal to a command there (a login shell when empty).

        Args:
            command: an argv.
            forwards: ports to carry along, from `gpuctl.remote.forwarding`.

        Raises:
            RemoteError: the machine cannot be reached, or there is no ssh on this computer.
        """
        terminal = sys.stdin.isatty() and sys.stdout.isatty()
        argv = self.ssh_argv(command, terminal=terminal, forwards=forwards)
        try:
            return call_in_foreground(argv)
        except FileNotFoundError as error:
            raise self._error("There is no ssh here: install OpenSSH's client") from error

    def close(self) -> None:
        """Let go. What was started and detached there lives on."""
        self._links.close()

    # ------------------------------------------------------------------ Channels

    def channels(self) -> SshChannels:
        """Return what transfers are built on."""
        return SshChannels(self)

    def open_channel(self, argv: Sequence[str], *, own_link: bool = False) -> SshByteChannel:
        """Start a command as a pipe of bytes; see `gpuctl.remote.channels.Channels.open`."""
        line = self._line(argv)
        started = self._links.start(line, stderr_kept=_STDERR_KEPT, own_link=own_link)
        try:
            started.channel.widen(_STREAM_WINDOW)
        except Broken as error:
            self._links.end(started)
            raise self._error(f"The link to the machine broke: {error}") from error
        return SshByteChannel(
            started,
            machine=self._machine,
            idle=self._links.patience.idle,
            let_go=self._links.end,
        )

    @property
    def round_trip(self) -> float:
        """Seconds to the machine and back, measured; connects if needed.

        Raises:
            RemoteError: the machine cannot be reached, or does not answer.
        """
        transport = self._links.login().transport
        deadline = time.monotonic() + self._links.patience.command
        while (measured := transport.round_trip) is None:
            if time.monotonic() > deadline or not transport.is_active():
                raise self._error(f"It does not answer: {transport.how_it_broke()}")
            transport.measured.wait(_LOOK_SECONDS)
        return measured

    def sftp(self) -> SFTPClient:
        """Return an SFTP session on the shared link, for machines without python3.

        The caller closes it, and sets a deadline on its channel.

        Raises:
            RemoteError: the machine cannot be reached, or has no SFTP.
        """
        return self._links.sftp()

    # ------------------------------------------------------------------ for others in remote/

    @property
    def connected(self) -> bool:
        """Whether the link stands, as far as is known; asks nobody."""
        return self._links.connected

    @property
    def steps(self) -> Mapping[str, float]:
        """Seconds that each step of the last login took: "tcp", "banner", "login"."""
        return self._links.steps

    @property
    def address(self) -> SshAccess:
        """The way in that worked last; the first one before any did."""
        return self._links.address

    @property
    def identity(self) -> str | None:
        """The key that the last login took: an absolute path, or what it is in the user's agent."""
        return self._links.identity

    def inside(self, path: str) -> str:
        """Return a path of the machine as an absolute one. Raises RemoteError."""
        return path if path.startswith("/") else f"{self.home}/{path}"

    def ssh_argv(
        self,
        command: Sequence[str] = (),
        *,
        terminal: bool = False,
        forwards: Sequence[str] = (),
    ) -> list[str]:
        """Return the argv of the system's ssh to this machine; connects first, to pin its key.

        Raises:
            RemoteError: the machine cannot be reached.
        """
        login = self._links.login()
        key = Path(login.identity) if login.identity.startswith("/") else None
        line = shell_line(command, self._setup)
        return ssh_argv(login.address, key, self._known, line, terminal=terminal, forwards=forwards)

    # ------------------------------------------------------------------ commands

    def _line(self, command: Sequence[str] | str) -> bytes:
        try:
            return command_line(command, self._setup)
        except ValueError as error:
            raise UsageError(
                f"A command cannot be sent to a machine: {error}",
                next="Put long content into a file, or send it by stdin.",
            ) from error

    def _run(self, line: bytes, stdin: bytes, timeout: float) -> Completed:
        deadline = time.monotonic() + timeout
        command = self._links.start(line, stderr_kept=self._output_limit + 1)
        try:
            stdout = converse(command, stdin, deadline, self._output_limit)
            code = command.channel.wait_exit(deadline)
        except TimeoutError as error:
            raise self._ended(command, f"A command did not end within {timeout:g} s") from error
        except TooMuchOutput as error:
            raise self._ended(
                command, f"A command wrote more than {self._output_limit} bytes"
            ) from error
        except (Broken, Refused) as error:
            raise self._error(
                f"The link to the machine broke while a command ran there: {error}",
                next="Nobody knows how far it came. `gpuctl list --refresh` shows the machine.",
            ) from error
        except BaseException:
            self._end(command)
            raise
        finally:
            self._links.end(command)
        return Completed(code, stdout, command.channel.stderr())

    def _ended(self, command: SshCommand, what: str) -> RemoteError:
        """End a command there, and say whether that was confirmed."""
        try:
            self._end(command)
        except RemoteError as error:
            return self._error(
                f"{what}, and may still be running there: {error.message}", next=error.next
            )
        return self._error(f"{what} and was killed")

    def _end(self, command: SshCommand) -> None:
        """End a command with all that it started and that did not detach itself.

        Raises:
            RemoteError: that was not confirmed.
        """
        pid = command.find_pid(self._links.patience.command)
        if pid is None:
            raise self._error("its process number there is not known")
        line = command_line(["sh", "-c", END_SCRIPT, "sh", str(pid)])
        done = self._run(line, b"", _END_SECONDS)
        if done.exit_code:
            raise self._error(f"process {pid} there does not die{_said(done.stderr)}")

    def _error(self, message: str, *, next: str | None = None) -> RemoteError:
        return RemoteError(message, machine=self._machine, next=next)


class SshChannels:
    """Implements `gpuctl.remote.channels.Channels` over one connection."""

    def __init__(self, connection: SshConnection) -> None:
        self._connection = connection

    def open(self, argv: Sequence[str], *, own_link: bool = False) -> SshByteChannel:
        """Start a command; see `gpuctl.remote.channels.Channels.open`."""
        return self._connection.open_channel(argv, own_link=own_link)

    @property
    def round_trip(self) -> float:
        """Seconds to the machine and back, measured."""
        return self._connection.round_trip


def _said(stderr: bytes) -> str:
    text = printable(stderr[-1000:].decode(errors="replace")).strip().replace("\n", " ")
    return f": {text}" if text else ""
