"""Who looks after a machine: a process, known well enough that a reused pid cannot pass for it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Role = Literal["controller", "watchdog", "provision"]


@dataclass(frozen=True, slots=True)
class Keeper:
    """A process on a computer since a boot."""

    role: str
    host: str
    boot: str
    pid: int
    started: str  # the kernel's own start time of the process, as text

    def facts(self) -> dict[str, str | int]:
        """Return it as the ledger keeps it."""
        return asdict(self)


def keeper_from(facts: Mapping[str, object] | None) -> Keeper | None:
    """Read a keeper back from the ledger's facts."""
    if not facts:
        return None
    return Keeper(
        role=str(facts["role"]),
        host=str(facts["host"]),
        boot=str(facts["boot"]),
        pid=int(str(facts["pid"])),
        started=str(facts["started"]),
    )


def this_process(role: Role) -> Keeper:
    """Describe the calling process."""
    pid = os.getpid()
    return Keeper(role, platform.node(), boot_id(), pid, process_started(pid) or "")


def alive(keeper: Keeper) -> bool | None:
    """Say whether a keeper lives: None when it is on another computer and nobody here can know."""
    if keeper.host != platform.node():
        return None
    if keeper.boot != boot_id():
        return False
    return process_started(keeper.pid) == keeper.started


def boot_id() -> str:
    """Return what changes with every boot of this computer."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return _answer("sysctl", "-n", "kern.boottime") or "unknown"


def process_started(pid: int) -> str | None:
    """Return when a process began, as the kernel tells it; None when there is none.

    A zombie counts as none: it looks after nothing.
    """
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_bytes()
        except OSError:
            return None
        # The command's name is in parentheses and may hold anything, also ") ".
        fields = stat[stat.rindex(b")") + 2 :].split()
        return None if fields[0] in (b"Z", b"X") else fields[19].decode()
    state_and_start = _answer("ps", "-o", "stat=,lstart=", "-p", str(pid))
    if not state_and_start or state_and_start.startswith("Z"):
        return None
    return state_and_start.split(None, 1)[1]


def _answer(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
