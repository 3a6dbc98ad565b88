"""Commands over SSH that are talked to while they run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from gpuctl.errors import RemoteError
from gpuctl.printable import printable
from gpuctl.remote.ssh_channel import Broken, Refused
from gpuctl.remote.ssh_command import SshCommand

_CHUNK = 1 << 16
_LINE_LIMIT = 16 << 20
_LOOK_SECONDS = 60.0  # a quiet command is no fault: the link itself is asked for signs of life
_QUIET_SECONDS = 0.5  # how long what a dead command left behind may hold its output open

End = Callable[[SshCommand], None]


class SshProcess:
    """Implements `gpuctl.remote.connection.RemoteProcess`.

    One thread may read `lines` while others send, wait or kill.

    Args:
        command: started.
        name: what it is called in errors.
        machine: the machine's name, for errors.
        idle: how long it may refuse input, in seconds.
        end: ends the command there with all that it started; raises RemoteError.
        let_go: lets go of its channel.
    """

    def __init__(
        self,
        command: SshCommand,
        *,
        name: str,
        machine: str | None,
        idle: float,
        end: End,
        let_go: End,
    ) -> None:
        self._command = command
        self._name = name
        self._machine = machine
        self._idle = idle
        self._end = end
        self._let_go = let_go
        self._killed = False

    def lines(self) -> Iterator[bytes]:
        """Lines of its stdout as they come, until it ends.

        Raises:
            RemoteError: the link broke, or a line is longer than 16 MiB.
        """
        pending = bytearray()
        for chunk in self._chunks():
            pending += chunk
            if b"\n" in chunk:
                *whole, last = bytes(pending).split(b"\n")
                pending = bytearray(last)
                yield from whole
            if len(pending) > _LINE_LIMIT:
                self.kill()
                raise self._error(f"sent a line of more than {_LINE_LIMIT >> 20} MiB")
        if pending:
            yield bytes(pending)

    def send(self, data: bytes) -> None:
        """Write to its stdin.

        Raises:
            RemoteError: it does not read any more, or the link broke.
        """
        try:
            self._command.channel.write(memoryview(data), self._idle)
        except (Broken, Refused) as error:
            raise self._error(f"does not take input any more: {error}") from error
        except TimeoutError as error:
            raise self._error(f"took no input for {self._idle:g} s") from error

    def close_stdin(self) -> None:
        """Say that nothing more comes."""
        try:
            self._command.channel.close_write()
        except Broken:
            return  # it has ended, so nothing comes anyway

    def wait(self, timeout: float) -> int:
        """Return its exit code.

        Raises:
            RemoteError: it does not end in time, or the link broke.
        """
        try:
            return self._command.channel.wait_exit(time.monotonic() + timeout)
        except TimeoutError as error:
            raise self._error(f"did not end within {timeout:g} s") from error
        except (Broken, Refused) as error:
            raise self._error(f"was lost: {error}") from error

    def kill(self) -> None:
        """End it with all that it started and that did not detach itself.

        Raises:
            RemoteError: it does not die, or the machine cannot be reached.
        """
        self._killed = True
        try:
            if self._command.channel.exit_code is None:
                self._end(self._command)
        finally:
            self._let_go(self._command)

    def _chunks(self) -> Iterator[bytes]:
        channel = self._command.channel
        while not self._is_killed():
            ended = channel.ended_at
            wait = _LOOK_SECONDS if ended is None else _QUIET_SECONDS
            try:
                if ended is None:
                    channel.wait(wait)
                    if not self._command.readable:
                        continue
                chunk = self._command.read(_CHUNK, time.monotonic() + wait)
            except TimeoutError:
                if ended is not None:
                    return
                continue
            except (Broken, Refused) as error:
                if self._is_killed():
                    return
                raise self._error(f"was lost: {error}") from error
            if not chunk:
                return
            yield chunk

    def _is_killed(self) -> bool:
        return self._killed  # another thread may set it at any time

    def _error(self, what: str) -> RemoteError:
        said = _said(self._command)
        return RemoteError(
            f"The command ({self._name}) on the machine {what}{said}", machine=self._machine
        )


class SshByteChannel:
    """Implements `gpuctl.remote.channels.ByteChannel`.

    Args:
        command: started.
        machine: the machine's name, for errors.
        idle: how long nothing may move, in seconds.
        let_go: lets go of its channel, and of its link if it has one of its own.
    """

    def __init__(
        self, command: SshCommand, *, machine: str | None, idle: float, let_go: End
    ) -> None:
        self._command = command
        self._machine = machine
        self._idle = idle
        self._let_go = let_go

    def read(self, size: int) -> bytes:
        """Return 1 to ``size`` bytes; ``b""`` at the end.

        Raises:
            RemoteError: the link broke, or nothing came within the idle deadline.
        """
        try:
            return self._command.read(size, time.monotonic() + self._idle)
        except TimeoutError as error:
            raise self._error(f"nothing came for {self._idle:g} s") from error
        except (Broken, Refused) as error:
            raise self._error(str(error)) from error

    def write(self, data: bytes | memoryview) -> None:
        """Send all of it.

        Raises:
            RemoteError: the link broke, nothing is read any more, or nothing could be sent
                within the idle deadline.
        """
        try:
            self._command.channel.write(memoryview(data).cast("B"), self._idle)
        except TimeoutError as error:
            raise self._error(f"it took nothing for {self._idle:g} s") from error
        except (Broken, Refused) as error:
            raise self._error(str(error)) from error

    def close_write(self) -> None:
        """Say that nothing more comes. Raises RemoteError when the link broke."""
        try:
            self._command.channel.close_write()
        except Broken as error:
            raise self._error(str(error)) from error

    def exit_code(self, timeout: float) -> int:
        """Return the command's exit code.

        Raises:
            RemoteError: it did not end within ``timeout`` seconds, or the link broke before.
        """
        try:
            return self._command.channel.wait_exit(time.monotonic() + timeout)
        except TimeoutError as error:
            raise self._error(f"the command did not end within {timeout:g} s") from error
        except (Broken, Refused) as error:
            raise self._error(str(error)) from error

    def stderr_tail(self) -> bytes:
        """The last kilobytes of what it wrote to stderr so far."""
        return self._command.channel.stderr()

    def close(self) -> None:
        """Let go; a link of its own ends with it."""
        self._let_go(self._command)

    def _error(self, what: str) -> RemoteError:
        return RemoteError(
            f"The connection to the machine failed: {what}{_said(self._command)}",
            machine=self._machine,
            next="Try again: what has arrived is kept.",
        )


def _said(command: SshCommand) -> str:
    """The end of a command's stderr, for an error."""
    text = command.channel.stderr()[-1000:].decode(errors="replace").strip()
    return f"; it said: {printable(text)}" if text else ""
