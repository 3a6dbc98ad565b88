"""Starting the far side over a byte channel, and speaking frames with it.

The far side's modules travel on its stdin, are compiled there and never touch its disk.
"""

from __future__ import annotations

import importlib.resources
import zlib
from functools import cache
from typing import Any

from gpuctl.errors import RemoteError
from gpuctl.printable import printable
from gpuctl.remote.channels import ByteChannel, Channels
from gpuctl.remote.transfer.framing import (
    BEAT,
    PROTOCOL,
    Broken,
    Data,
    Frames,
    Truncated,
    parse_json,
)
from gpuctl.remote.transfer.native import find_zstd
from gpuctl.remote.transfer.planning import window_rate

_PACKAGE = "gpuctl.remote.transfer"
FAR_MODULES = (
    "native",
    "framing",
    "reading",
    "landing",
    "far_side",
)  # sent to machines; imports point to the left
_EXIT_SECONDS = 10.0
_TOO_OLD = 83  # our own exit code: python3 is there, but older than 3.8
_NO_PYTHON = (126, 127, _TOO_OLD)
_FIND_PYTHON = """
for python in /usr/bin/python3 /usr/local/bin/python3 python3; do
  command -v "$python" >/dev/null && GPUCTL_START="$1" exec "$python" -I -S -c "$1"
done
exit 127
"""
_START = """
import os, sys
try:
    assert sys.version_info >= (3, 8)
    import fcntl, hashlib, json, queue, zlib
except (AssertionError, ImportError):
    start = os.environ.pop("GPUCTL_START", None) or sys.exit({too_old})
    os.execvp("python3", ["python3", "-I", "-S", "-c", start])
program = b""
while len(program) < {size}:
    program += os.read(0, {size} - len(program)) or sys.exit(1)
exec(zlib.decompress(program), {{}})
"""
_LOADER = """
import sys, types
for name, source in SOURCES:
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, name, "exec"), module.__dict__)
module.main()
"""


class NoPython(RemoteError):
    """The machine has no python3 of 3.8 or newer; plain SFTP may still work."""

    kind = "NoPython"


class LinkBroken(RemoteError):
    """The link broke in the middle; what arrived is kept, and trying again carries on."""

    kind = "LinkBroken"


class FarSideFailed(RemoteError):
    """The machine says why it cannot do it; trying again would not help."""

    kind = "FarSide"


def unbelievable(what: str, machine: str | None) -> FarSideFailed:
    """What to tell of a machine that does not answer as it should."""
    return FarSideFailed(
        f"The machine's end of the transfer cannot be believed: {printable(what)[:500]}",
        machine=machine,
        next="If .bashrc or the like prints something there, make it silent for commands. "
        "Otherwise do not trust the machine: end it.",
    )


@cache
def _program() -> bytes:
    folder = importlib.resources.files(_PACKAGE)
    sources = [[f"{_PACKAGE}.{name}", (folder / f"{name}.py").read_text()] for name in FAR_MODULES]
    loader = f"SOURCES = {sources!r}\n{_LOADER}"
    return zlib.compress(loader.encode(), 9)


def command() -> list[str]:
    """What starts the far side: it reads its own program from stdin first.

    The system's own python3 is preferred to what PATH has, which may be a slow shell script
    (pyenv); when it is too old or incomplete, PATH's is taken all the same.
    """
    start = _START.format(size=len(_program()), too_old=_TOO_OLD)
    return ["sh", "-c", _FIND_PYTHON, "sh", start]


class Session:
    """One stream to a far side.

    Args:
        channels: what opens it.
        own_link: on a connection of its own.
        machine: its name, for what goes wrong.

    Raises:
        RemoteError: the machine cannot be reached.
    """

    def __init__(
        self, channels: Channels, *, own_link: bool = False, machine: str | None = None
    ) -> None:
        self._machine = machine
        self.expected_rate = window_rate(channels.round_trip)
        self._channel: ByteChannel = channels.open(command(), own_link=own_link)
        self._unsent = bytearray(_program())  # goes out together with the first frame
        self.frames = Frames(self._read, self._write)
        self.spoken = False  # whether it ever answered
        self.zstd = False  # whether both ends have it
        self.moved = 0  # bytes, both ways

    def hello(self, root: str, token: str, name: str | None = None) -> None:
        """Say what it is about; the answer (``h``) is read by the caller.

        Args:
            root: where, absolute or relative to the login's folder.
            token: of this attempt.
            name: of the one file that is sent; None for a tree.
        """
        rate = self.expected_rate
        both = rate is not None and find_zstd() is not None
        said = {"root": root, "token": token, "name": name, "rate": rate, "zstd": both}
        self.frames.send_json(b"H", said)

    def receive(self) -> tuple[bytes, Data]:
        """The next frame.

        Raises:
            FarSideFailed: the machine says why it cannot go on.
            NoPython: it never started.
            LinkBroken: nothing comes any more.
        """
        try:
            frame = self.frames.receive()
        except Truncated as error:
            raise self._ended(str(error)) from error
        except Broken as error:
            raise self.nonsense(str(error)) from error
        if frame is None:
            raise self._ended("it ended too early")
        self.spoken = True
        if frame[0] == b"e":
            raise self._refused(parse_json(frame[1]))
        return frame

    def expect(self, kind: bytes) -> Any:
        """The value of the next frame, which must be JSON of this kind. Raises as `receive`."""
        got, payload = self.receive()
        while got == BEAT and kind != BEAT:
            got, payload = self.receive()
        if got != kind:
            raise self.nonsense(f"{got!r} came where {kind!r} should")
        try:
            return parse_json(payload)
        except Broken as error:
            raise self.nonsense(str(error)) from error

    def greeting(self) -> str:
        """Read the far side's answer to `hello`: dir, file, missing or other."""
        return self.greeted(self.expect(b"h"))

    def greeted(self, said: Any) -> str:
        """What the answer to `hello` says is there: dir, file, missing or other."""
        if not isinstance(said, dict) or said.get("protocol") != PROTOCOL:
            raise self.nonsense("it greets in another protocol")
        self.zstd = bool(said.get("zstd"))
        return str(said.get("kind"))

    def close(self) -> None:
        """Let go."""
        self._channel.close()

    def finish(self) -> None:
        """Say that nothing more comes, and let go."""
        self._channel.close_write()
        self._channel.close()

    def nonsense(self, what: str) -> FarSideFailed:
        """The machine does not answer as it should."""
        return unbelievable(what, self._machine)

    def _refused(self, said: Any) -> FarSideFailed:
        if not isinstance(said, dict):
            return self.nonsense("an error that says nothing")
        message = printable(str(said.get("message", "")))[:500]
        if said.get("kind") == "OSError":
            path = printable(str(said.get("path", "")))[:500]
            return FarSideFailed(
                f"The machine says about {path}: {message}",
                machine=self._machine,
                next="Nothing half was left under that name. Correct it there, then try again: "
                "what arrived is not sent twice.",
            )
        return FarSideFailed(f"The transfer failed there: {message}", machine=self._machine)

    def _ended(self, why: str) -> RemoteError:
        if self.spoken:
            return LinkBroken(f"The transfer broke off: {why}", machine=self._machine)
        try:
            code = self._channel.exit_code(_EXIT_SECONDS)
        except RemoteError as error:  # the link itself is gone
            return LinkBroken(error.message, machine=self._machine, next=error.next)
        said = printable(self._channel.stderr_tail().decode(errors="replace")).strip()[-300:]
        if code in _NO_PYTHON:
            return NoPython(
                "There is no python3 (3.8 or newer) on the machine",
                machine=self._machine,
                next="Install python3 there; until then files go by plain SFTP, which is slower.",
            )
        if code == 0 or code >= 128:
            return LinkBroken(f"The transfer broke off at its start: {why}", machine=self._machine)
        return FarSideFailed(
            f"The transfer's far side did not start (exit {code}): {said or why}",
            machine=self._machine,
        )

    def _read(self, size: int) -> bytes:
        """Exactly so many bytes, fewer only at the end."""
        chunks: list[bytes] = []
        while size:
            try:
                chunk = self._channel.read(size)
            except RemoteError as error:
                raise LinkBroken(error.message, machine=self._machine, next=error.next) from error
            if not chunk:
                break
            chunks.append(chunk)
            self.moved += len(chunk)
            size -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _write(self, data: Data) -> None:
        if self._unsent:
            data, self._unsent = bytes(self._unsent) + bytes(data), bytearray()
        try:
            self._channel.write(data if isinstance(data, (bytes, memoryview)) else bytes(data))
        except RemoteError as error:
            raise self._ended(error.message) from error
        self.moved += len(data)
