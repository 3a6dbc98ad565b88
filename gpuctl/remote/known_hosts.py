"""Which host key a machine has, so that nobody else can pose as it.

One file a machine, ``known_hosts/<machine>`` in GPUCTL_HOME, in OpenSSH's format with the
machine's name as the host, so that the system's ssh can use it too (HostKeyAlias). The keys were
handed over at creation where the cloud allows that; else the first one seen is pinned.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from gpuctl.errors import RemoteError, UsageError

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class HostKeyChanged(RemoteError):
    """Something else answers where the machine was."""

    kind = "HostKeyChanged"


@dataclass(frozen=True, slots=True)
class HostKey:
    """A public host key."""

    type: str  # "ssh-ed25519", "ssh-rsa", ...
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """As ssh shows it."""
        digest = hashlib.sha256(self.blob).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    @property
    def line(self) -> str:
        """Type and content in base64."""
        return f"{self.type} {base64.b64encode(self.blob).decode()}"


class KnownHost:
    """The host keys of one machine.

    Args:
        home: GPUCTL_HOME.
        machine: its name.
        handed_over: keys that its provider told at creation, one line each, with or without a
            host name before and a comment behind.
    """

    def __init__(self, home: Path, machine: str, handed_over: Sequence[str] = ()) -> None:
        self.alias = _UNSAFE.sub("_", machine).lstrip(".") or "machine"
        self.file = home / "known_hosts" / self.alias
        self._machine = machine
        self._handed_over = tuple(_parsed(line, self._where()) for line in handed_over)

    def accepted(self) -> tuple[HostKey, ...]:
        """The keys that it may have; empty before anything is known.

        Raises:
            UsageError: the file cannot be read, or is damaged.
        """
        return self._handed_over or self._pinned()

    def check(self, key: HostKey) -> None:
        """Accept the key that a machine showed, or refuse it; pins the first one ever seen.

        Raises:
            HostKeyChanged: it is not the machine's.
            UsageError: the file cannot be read or written, or is damaged.
        """
        known = self.accepted()
        if not known:
            self._pin((key,))
            known = self.accepted()  # another process may have been first
        if key in known:
            if self._handed_over and self._handed_over != self._pinned():
                self._replace(self._handed_over)  # for the system's ssh
            return
        shown = ", ".join(f"{one.type} {one.fingerprint}" for one in known)
        origin = "its provider handed over at creation" if self._handed_over else "it had before"
        raise HostKeyChanged(
            f"What answers is not the machine that it was: it shows the host key {key.type} "
            f"{key.fingerprint}, and {origin}: {shown}. Somebody may be listening in between, or "
            "the machine was replaced. Nothing was sent to it",
            machine=self._machine,
            next=f"If you replaced it yourself, remove {self.file} and try again. Else end it: "
            "`gpuctl terminate`.",
        )

    def forget(self) -> None:
        """Remove what was pinned; for machines that are gone."""
        self.file.unlink(missing_ok=True)

    def _pinned(self) -> tuple[HostKey, ...]:
        try:
            text = self.file.read_text(encoding="ascii")
        except FileNotFoundError:
            return ()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"The host keys of {self._machine} in {self.file} cannot be read: {error}",
                next="Correct its permissions or its content.",
            ) from error
        lines = enumerate(text.splitlines(), start=1)
        return tuple(
            _parsed(line, f"{self.file}, line {number}")
            for number, line in lines
            if line.strip() and not line.startswith("#")
        )

    def _pin(self, keys: Sequence[HostKey]) -> None:
        """Write the keys unless there are some."""
        draft = self._draft(keys)
        try:
            os.link(draft, self.file)
        except FileExistsError:
            pass  # another process was first; what it pinned counts
        finally:
            draft.unlink()

    def _replace(self, keys: Sequence[HostKey]) -> None:
        self._draft(keys).replace(self.file)

    def _draft(self, keys: Sequence[HostKey]) -> Path:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = self.file.with_name(f".{secrets.token_hex(8)}.part")
            with draft.open("x", encoding="ascii") as out:
                out.writelines(f"{self.alias} {key.line}\n" for key in keys)
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise UsageError(
                f"The host key of {self._machine} cannot be kept in {self.file}: "
                f"{error.strerror or error}",
                next="Set GPUCTL_HOME to a folder that you can write.",
            ) from error
        return draft

    def _where(self) -> str:
        return f"the host keys that the provider of {self._machine} handed over"


def _parsed(line: str, where: str) -> HostKey:
    """Read a line of known_hosts or of a .pub file."""
    words = line.split()
    for name, content in pairwise(words):
        try:
            blob = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            continue
        if blob[4:].startswith(name.encode()) and int.from_bytes(blob[:4], "big") == len(name):
            return HostKey(name, blob)
    raise UsageError(
        f"There is no host key in {where}: {line[:80]!r}",
        next="Remove the line, or put the machine's key there.",
    )
