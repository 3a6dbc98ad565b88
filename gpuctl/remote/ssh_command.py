"""What is sent to a machine's login shell to start a command, and what comes back first.

The command line begins by telling the command's process number, so that it can be ended later (an
SSH server is not obliged to end anything), and so that what a chatty login script printed before
can be told from the command's own output.
"""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Sequence

from gpuctl.remote.ssh_channel import Broken, CommandChannel
from gpuctl.remote.ssh_login import Login

_MARK = b"gpuctl-command "
_MARK_LINE = re.compile(rb"gpuctl-command ([0-9]{1,10})\n")
_PROLOGUE_LIMIT = 64 << 10
_CHUNK = 256 << 10
_LOOK_SECONDS = 0.5
_QUIET_SECONDS = 0.2  # how long what a command left in the background may hold its output open
LONGEST = 120 << 10  # bytes; Linux takes 128 KiB in one argument
_ARGV = 'echo "gpuctl-command $$"; {setup}exec "$@"'
_SHELL = (
    'echo "gpuctl-command $$"; {setup}'
    'command -v bash >/dev/null 2>&1 && exec bash -c "$1"; exec sh -c "$1"'
)
# $1 is the first process of the command; the SSH server made it lead a session of its own.
END_SCRIPT = """
for round in 1 2 3 4 5 6 7 8 9 10; do
  kill -KILL -- "-$1" 2>/dev/null
  kill -KILL "$1" 2>/dev/null
  command -v pkill >/dev/null 2>&1 && pkill -KILL -s "$1" 2>/dev/null
  kill -0 -- "-$1" 2>/dev/null || kill -0 "$1" 2>/dev/null || exit 0
  sleep 0.1 2>/dev/null || sleep 1
done
exit 1
"""

# $1: the file, $2: its mode, $3: its size; the content is on stdin.
WRITE_SCRIPT = """
umask 077
[ ! -d "$1" ] || { echo "a folder is where a file should go" >&2; exit 1; }
folder=$(dirname -- "$1") && mkdir -p -- "$folder" || exit 1
draft=$(mktemp "$folder/.gpuctl-XXXXXXXX") || exit 1
trap 'rm -f -- "$draft"' EXIT
cat >"$draft" && [ "$(wc -c <"$draft")" -eq "$3" ] && chmod "$2" "$draft" && mv -f -- "$draft" "$1"
"""


def command_line(command: Sequence[str] | str, setup: str = "") -> bytes:
    """Return what a login shell must be given to start a command.

    Args:
        command: an argv, or a script for bash (else sh).
        setup: shell commands that come first, from `setup_script`.

    Raises:
        ValueError: it is longer than any shell takes, or has a NUL in it.
    """
    if isinstance(command, str):
        words = ["sh", "-c", _SHELL.format(setup=setup), "sh", command]
    else:
        words = ["sh", "-c", _ARGV.format(setup=setup), "sh", *command]
    line = ("exec " + shlex.join(words)).encode("utf-8", "surrogateescape")
    if b"\0" in line:
        raise ValueError("it has a NUL byte in it")
    if len(line) > LONGEST:
        raise ValueError(f"it is longer than {LONGEST >> 10} KiB")
    return line


class SshCommand:
    """A command that was started over a channel.

    Args:
        channel: open, and the command line sent.
        own_link: the login that nothing else uses, if it has one.
    """

    def __init__(self, channel: CommandChannel, *, own_link: Login | None = None) -> None:
        self.channel = channel
        self.own_link = own_link
        self.pid: int | None = None  # there; None until it told
        self.told = False  # where its own output begins is known
        self._held = b""  # read already
        self._hearing = threading.Lock()  # who reads and who kills may both want to know

    def read(self, size: int, deadline: float) -> bytes:
        """Return 1 to ``size`` bytes of its own stdout; b"" at the end.

        Raises:
            Refused, Broken, TimeoutError: as `CommandChannel.read`.
        """
        while not self.told:
            self.hear(deadline)
        if self._held:
            data, self._held = self._held[:size], self._held[size:]
            return data
        return self.channel.read(size, deadline)

    @property
    def readable(self) -> bool:
        """Whether `read` would probably return at once."""
        return bool(self.told and self._held) or self.channel.readable

    def find_pid(self, seconds: float) -> int | None:
        """Its process number, or None when it does not come within so many seconds."""
        deadline = time.monotonic() + seconds
        try:
            while not self.told:
                self.hear(deadline)
        except (Broken, TimeoutError):
            return None
        return self.pid

    def hear(self, deadline: float) -> None:
        """Read on, once, to find where the command's own output begins; until it is `told`.

        Raises:
            Refused, Broken, TimeoutError: as `CommandChannel.read`.
        """
        with self._hearing:
            if self.told:
                return
            chunk = self.channel.read(1 << 16, deadline)
            heard = self._held + chunk
            found = _MARK_LINE.search(heard)
            if found:
                self.pid = int(found[1])
                heard = heard[found.end() :]
            elif len(heard) > _PROLOGUE_LIMIT:
                raise Broken("the machine's login scripts print without an end")
            self._held = heard
            self.told = bool(found) or not chunk


class TooMuchOutput(Exception):
    """A command wrote more than the limit."""


def converse(command: SshCommand, stdin: bytes, deadline: float, limit: int) -> bytes:
    """Feed and read a command until it has ended; return its stdout.

    Args:
        command: just started.
        stdin: all that it is given.
        deadline: of time.monotonic().
        limit: bytes of stdout and stderr together.

    Raises:
        TooMuchOutput: it wrote more than ``limit``.
        TimeoutError: it did not end by ``deadline``.
        Refused, Broken: as `CommandChannel.read`.
    """
    channel, stdout, unsent = command.channel, bytearray(), memoryview(stdin)
    ended: float | None = None
    while True:
        unsent = _fed(channel, unsent)
        if command.readable and not command.told:
            command.hear(deadline)  # no more than that: it may want input before it says more
        elif command.readable:
            chunk = command.read(_CHUNK, deadline)
            if not chunk:
                _feed_rest(channel, unsent, deadline)
                return bytes(stdout)
            stdout += chunk
            ended = None
        elif channel.exit_code is not None:
            ended = ended or time.monotonic()
            if time.monotonic() - ended > _QUIET_SECONDS:
                return bytes(stdout)
        if len(stdout) + channel.stderr_total > limit:
            raise TooMuchOutput
        left = deadline - time.monotonic()
        if left <= 0:
            if channel.exit_code is not None:
                return bytes(stdout)  # it has ended; what it left behind writes on
            raise TimeoutError
        quiet = _QUIET_SECONDS if ended else _LOOK_SECONDS
        channel.wait(min(left, quiet), writable=bool(unsent), ended=ended is None)


def _fed(channel: CommandChannel, unsent: memoryview) -> memoryview:
    """Send what the command takes at once; return the rest."""
    try:
        while unsent and (room := channel.room):
            piece = unsent[: min(room, _CHUNK)]
            channel.write(piece, _LOOK_SECONDS)
            unsent = unsent[len(piece) :]
        if not unsent:
            channel.close_write()
    except Broken:  # it does not want the rest; if the link is gone, reading tells
        return memoryview(b"")
    return unsent


def _feed_rest(channel: CommandChannel, unsent: memoryview, deadline: float) -> None:
    """Send the rest to a command that has closed its output."""
    try:
        if unsent:
            channel.write(unsent, max(0.0, deadline - time.monotonic()))
            channel.close_write()
    except Broken:
        return  # it does not want the rest
