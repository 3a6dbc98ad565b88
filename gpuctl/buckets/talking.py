"""Starting our program on a machine, and what it says.

Its modules travel on stdin, are compiled there and never touch its disk; then both ends speak
lines of JSON. Presigned addresses go the same way and no other.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import threading
import time
import zlib
from collections.abc import Iterator
from functools import cache
from typing import Any

from gpuctl.errors import GpuctlError, NoCredentials, RemoteError, StoreError
from gpuctl.printable import printable
from gpuctl.quantities import format_bytes
from gpuctl.remote.connection import Connection
from gpuctl.remote.transfer.session import FAR_MODULES, LinkBroken, NoPython, unbelievable

LANES = 8
_TRANSFER = ("gpuctl.remote.transfer", FAR_MODULES)
_OURS = ("gpuctl.buckets", ("far_wire", "far_fetch", "far_send", "far_main"))
_SILENT_SECONDS = 120.0  # it says something twice a second
_BEAT_SECONDS = 60.0
_EXIT_SECONDS = 10.0
_TOO_OLD = 83
_LOADER = """
import json, sys, types
for name, source in json.loads(SOURCES):
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, name, "exec"), module.__dict__)
module.main(stdin)
"""


class NoRoute(GpuctlError):
    """The machine cannot reach the bucket; this computer can pass it on."""


@cache
def _program() -> bytes:
    sources = [
        [f"{package}.{name}", (importlib.resources.files(package) / f"{name}.py").read_text()]
        for package, names in (_TRANSFER, _OURS)
        for name in names
    ]
    return zlib.compress(f"SOURCES = {json.dumps(sources)!r}\n{_LOADER}".encode(), 9)


def _command() -> list[str]:
    start = (
        f"import sys;sys.version_info<(3,8) and sys.exit({_TOO_OLD});import zlib;"
        f"stdin=sys.stdin.buffer;exec(zlib.decompress(stdin.read({len(_program())})),"
        "{'stdin':stdin})"
    )
    return ["python3", "-I", "-S", "-c", start]


class Talk:
    """One conversation with our program on a machine; a context manager that ends it.

    Args:
        connection: to the machine.
        machine: its name, for errors.
        where: what is asked of the bucket, for errors: an s3:// address.
    """

    def __init__(self, connection: Connection, *, machine: str | None, where: str) -> None:
        self._machine, self._where = machine, where
        self._spoken = False
        self._heard_at = self._said_at = time.monotonic()
        self._over = threading.Event()
        self._messages = self._hear()
        try:
            self._process = connection.open(_command())
        except RemoteError as error:
            if isinstance(error.__cause__, FileNotFoundError | PermissionError):
                raise self._no_python() from error
            raise

    def __enter__(self) -> Talk:
        try:
            self._process.send(_program())
        except RemoteError as error:
            raise self._ended(error) from error
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._process.close_stdin()
        # Nothing it does matters any more; and what led here is what must be told.
        with contextlib.suppress(RemoteError):
            self._process.kill()

    def say(self, what: str, **said: Any) -> None:
        """Tell it something.

        Raises:
            LinkBroken: it does not hear any more.
        """
        self._said_at = time.monotonic()
        try:
            self._process.send(json.dumps({**said, "t": what}).encode() + b"\n")
        except RemoteError as error:
            raise self._ended(error) from error

    def heard(self) -> dict[str, Any]:
        """Return the next thing that it says.

        Raises:
            NoPython: it never started.
            NoRoute: the machine cannot reach the bucket.
            LinkBroken: nothing comes any more.
            RemoteError: the machine cannot do it.
            StoreError, NoCredentials: the bucket does not let it.
        """
        return next(self._messages)

    def _hear(self) -> Iterator[dict[str, Any]]:
        try:
            for line in self._process.lines():
                self._heard_at = time.monotonic()
                said = self._parsed(line)
                self._spoken = True
                if said["t"] == "fail":
                    raise self._failed(said)
                if self._heard_at - self._said_at > _BEAT_SECONDS:
                    self.say("beat")
                yield said
        except LinkBroken:
            raise
        except RemoteError as error:
            if isinstance(error, NoPython) or (self._spoken and error.kind != "Remote"):
                raise
            raise self._ended(error) from error
        raise self._ended(None)

    def nonsense(self, what: str) -> RemoteError:
        """The machine does not answer as it should."""
        return unbelievable(what, self._machine)

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            said = json.loads(line)
        except ValueError as error:
            raise self.nonsense(line[:200].decode(errors="replace")) from error
        if not isinstance(said, dict) or not isinstance(said.get("t"), str):
            raise self.nonsense("a line that says nothing")
        return said

    def _watch(self) -> None:
        while not self._over.wait(1.0):
            if time.monotonic() - self._heard_at > _SILENT_SECONDS:
                # The reader is told by the end of the lines, whether this works or not.
                with contextlib.suppress(RemoteError):
                    self._process.kill()
                return

    def _ended(self, error: RemoteError | None) -> RemoteError:
        """Why nothing comes any more."""
        if not self._spoken:
            try:
                code = self._process.wait(_EXIT_SECONDS)
            except RemoteError as trouble:
                return LinkBroken(trouble.message, machine=self._machine, next=trouble.next)
            if 0 < code < 128:
                return self._no_python(code)
        silent = time.monotonic() - self._heard_at > _SILENT_SECONDS
        why = f"it said nothing for {_SILENT_SECONDS:g} s" if silent else "it ended too early"
        return LinkBroken(
            error.message if error else f"The transfer with {self._where} broke off: {why}",
            machine=self._machine,
            next=error.next if error else "Try again: what arrived is kept.",
        )

    def _no_python(self, code: int | None = None) -> NoPython:
        ended = "" if code in (None, 126, 127, _TOO_OLD) else f" that works (exit {code})"
        return NoPython(
            f"there is no python3 (3.8 or newer){ended} on the machine",
            machine=self._machine,
            next="Install python3 there.",
        )

    def _failed(self, said: dict[str, Any]) -> GpuctlError:
        why = printable(str(said.get("message", "")))[:500]
        path = printable(str(said.get("path", "")))[:500]
        kind = said.get("kind")
        if kind == "unreachable":
            return NoRoute(f"the machine cannot reach it ({why})")
        if kind == "denied":
            return NoCredentials(
                f"{self._where} refuses what was signed with this computer's key: {why}",
                next="The key needs the right to get (or put) these objects; and look at the clock "
                "of this computer.",
            )
        if kind == "refused":
            return StoreError(
                f"{self._where} cannot be used by the machine: {why}",
                next="Set AWS_REGION to the bucket's, or look at the store's own status.",
            )
        if kind == "corrupt":
            return StoreError(
                f"{why}, read from {self._where}, has another content than its checksum tells, "
                "twice",
                next="Try again; if it stays so, the object is damaged.",
            )
        return self._machines_fault(kind, why, path, said.get("errno"))

    def _machines_fault(self, kind: Any, why: str, path: str, errno: Any) -> RemoteError:
        kept = "What arrived is kept: try again."
        if kind == "full" or errno in (28, 122):
            message = f"The machine's disk is full ({path or why})"
            numbers = why.split(" ")
            if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
                need, free = (format_bytes(int(number)) for number in numbers)
                message = f"The machine's disk is too small: {need} are needed, {free} are free"
            next_step = "Make room there, or rent one with more: resources.disk, --disk."
        elif kind == "network":
            message = f"The machine lost its way to {self._where}: {why}"
            next_step = kept
        elif kind == "moving":
            message = f"{why or 'The file'} became shorter, or vanished, while it was sent"
            next_step = "Try again when nothing writes there."
        elif kind == "disk":
            message, next_step = f"The machine says about {path or 'its disk'}: {why}", kept
        else:
            message, next_step = f"The transfer with {self._where} failed there: {why}", kept
        error = RemoteError(message, machine=self._machine, next=next_step)
        error.kind = "FarSide"
        return error
