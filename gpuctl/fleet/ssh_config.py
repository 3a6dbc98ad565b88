"""The living machines for the system's ssh: a Host block each, and a file that stays up to date.

The file is ours alone, ``ssh_config`` in GPUCTL_HOME. It is there when somebody asked for it; from
then on it follows the ledger.
"""

from __future__ import annotations

import os
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuctl.errors import GpuctlError, UsageError
from gpuctl.fleet.access import ssh_access
from gpuctl.fleet.context import Fleet
from gpuctl.ledger import MachineRow
from gpuctl.names import parse_machine_name
from gpuctl.remote.keys import key_path
from gpuctl.remote.known_hosts import KnownHost
from gpuctl.remote.ssh_options import host_block

_HEADER = "# Written by gpuctl for the machines that live now; what is changed here is lost.\n"
_MOST_WRITES = 10


@dataclass(frozen=True, slots=True)
class SshHost:
    """A machine as the system's ssh knows it."""

    name: str
    alias: str | None  # the middle part of its name, when no other living machine has it
    block: str


def ssh_hosts(fleet: Fleet) -> tuple[list[SshHost], list[str]]:
    """Return the living machines that were reached over SSH, and a word about those left out."""
    rows = fleet.ledger.machines(open_only=True, borrowed=True)
    hosts: list[SshHost] = []
    left_out: list[str] = []
    for row in rows:
        if ssh_access(row.access) is None or not _known(fleet, row).file.exists():
            continue  # on this computer, or not reached yet
        try:
            hosts.append(_host(fleet, row, rows))
        except UsageError as error:
            left_out.append(f"{row.name} is left out: {error.message}")
    return hosts, left_out


def ssh_host(fleet: Fleet, row: MachineRow) -> SshHost:
    """Return one living machine.

    Raises:
        UsageError: it is on this computer, was never reached, or cannot be described to ssh.
    """
    if row.access is not None and ssh_access(row.access) is None:
        raise UsageError(
            f"{row.name} is not reached over SSH: it is on this computer",
            machine=row.name,
            next=f"`gpuctl ssh {row.name}` opens a shell on it.",
        )
    if row.access is None or not _known(fleet, row).file.exists():
        raise UsageError(
            f"{row.name} was not reached yet, so its host key is not known",
            machine=row.name,
            next=f"Try again when `gpuctl list` shows it ready, or run `gpuctl ssh {row.name}`.",
        )
    return _host(fleet, row, fleet.ledger.machines(open_only=True, borrowed=True))


def config_text(hosts: Sequence[SshHost]) -> str:
    """Return a whole ssh_config."""
    return _HEADER + "".join(f"\n{host.block}" for host in hosts)


def config_path(fleet: Fleet) -> Path:
    """Return where the file is, or will be."""
    return fleet.home.path / "ssh_config"


def include_line(fleet: Fleet) -> str:
    """Return what a person puts on top of ~/.ssh/config."""
    return f'Include "{config_path(fleet)}"'


def write_config(fleet: Fleet) -> None:
    """Write the file.

    Raises:
        UsageError: it cannot be written.
    """
    file = config_path(fleet)
    try:
        for _ in range(_MOST_WRITES):
            hosts, _ = ssh_hosts(fleet)
            _replace(file, config_text(hosts))
            # Another process may have written what it read later than we did, and earlier.
            if ssh_hosts(fleet)[0] == hosts:
                return
    except OSError as error:
        raise UsageError(
            f"{file} cannot be written: {error.strerror or error}",
            next="Set GPUCTL_HOME to a folder that you can write.",
        ) from error


def follow_ledger(fleet: Fleet) -> None:
    """Bring the file up to date if there is one. Says so when it cannot, and goes on."""
    try:
        if config_path(fleet).exists():
            write_config(fleet)
    except (GpuctlError, OSError) as error:
        fleet.say(f"the machines for ssh are not up to date: {error}")


def _host(fleet: Fleet, row: MachineRow, living: Sequence[MachineRow]) -> SshHost:
    access = ssh_access(row.access)
    assert access is not None
    assert row.access is not None
    name = parse_machine_name(row.name)
    middles = Counter(
        one.middle for one in map(parse_machine_name, (r.name for r in living)) if one
    )
    alias = name.middle if name and middles[name.middle] == 1 else None
    identity = row.access.get("identity") or str(key_path(fleet.home.path))
    key = Path(identity) if identity.startswith("/") else None
    names = [row.name, alias] if alias else [row.name]
    return SshHost(row.name, alias, host_block(names, access, key, _known(fleet, row)))


def _known(fleet: Fleet, row: MachineRow) -> KnownHost:
    return KnownHost(fleet.home.path, row.name)


def _replace(file: Path, text: str) -> None:
    draft = file.with_name(f".{secrets.token_hex(8)}.part")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as out:
        out.write(text)
    draft.replace(file)
