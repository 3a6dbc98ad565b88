"""Names of machines and runs: made by us, unique, and there before the thing itself is.

A machine is called ``gpuctl-<middle>-<owner 6>-<nonce 8>``. The name is what an ambiguous
create is looked up by, and half of the proof that a machine is ours.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

PREFIX = "gpuctl"
_HEX = "0123456789abcdef"
_NAME = re.compile(
    rf"^{PREFIX}-(?P<middle>[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)"
    r"-(?P<owner>[0-9a-f]{6})-(?P<nonce>[0-9a-f]{8})$"
)
_MIDDLE_MAX = 30  # Hetzner and DNS allow 63 in all; the rest of the name takes 23
_OWNER_MAX = 6


@dataclass(frozen=True, slots=True)
class MachineName:
    """A machine's name, taken apart."""

    middle: str
    owner: str  # the first 6 of the owner id
    nonce: str

    def __str__(self) -> str:
        return f"{PREFIX}-{self.middle}-{self.owner}-{self.nonce}"


def slug(text: str, *, fallback: str = "run") -> str:
    """Turn any text into lower-case letters, digits and single dashes, at most 30 long."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return cleaned[:_MIDDLE_MAX].rstrip("-") or fallback


def new_owner() -> str:
    """Return a new owner id: 12 hexadecimal digits."""
    return secrets.token_hex(6)


def new_machine_name(middle: str, owner: str) -> str:
    """Return a name that no machine had before."""
    return str(MachineName(slug(middle), owner[:_OWNER_MAX], secrets.token_hex(4)))


def new_run_id(name: str) -> str:
    """Return a run's id: its name and six random hexadecimal digits."""
    return f"{slug(name)}-{secrets.token_hex(3)}"


def parse_machine_name(text: str) -> MachineName | None:
    """Take a machine's name apart, or return None when it is not one of ours."""
    found = _NAME.match(text)
    return MachineName(found["middle"], found["owner"], found["nonce"]) if found else None
