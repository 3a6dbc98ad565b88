"""Who looks after a machine: a process, known well enough that a reused pid cannot pass for it."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Role = Literal["controller", "watchdog", "provision", "terminate"]

NO_BOOT = "unknown"
"""What `boot_id` says where nothing tells one boot from another."""


@dataclass(frozen=True, slots=True)
class Keeper:
    """A process on a computer since a boot."""

    role: str
    host: str
    boot: str  # and, after a space, whose process numbers `pid` is one of
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
    boot = f"{boot_id()} {_process_numbers()}".strip()
    return Keeper(role, platform.node(), boot, pid, process_started(pid) or "")


def alive(keeper: Keeper) -> bool | None:
    """Say whether a keeper lives: None when it is on another computer and nobody here can know.

    A computer is known by its boot first: laptops change their name with the network. Containers
    of one computer share its boot, and not their processes: of another one nobody here can know.
    """
    here, numbers = boot_id(), _process_numbers()
    boot, _, its_numbers = keeper.boot.partition(" ")
    same_boot = boot == here != NO_BOOT
    by_name = keeper.host == platform.node()
    if same_boot and its_numbers == numbers:
        return process_started(keeper.pid) == keeper.started
    if not by_name or (same_boot and its_numbers):
        return None
    if same_boot or here == NO_BOOT:  # written by a gpuctl that did not tell containers apart
        return process_started(keeper.pid) == keeper.started
    return False


def _process_numbers() -> str:
    """Return what tells apart the containers of a computer that each count their own pids."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def boot_id() -> str:
    """Return what changes with every boot of this computer."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Not kern.boottime: that moves whenever the clock is set.
        return _answer("sysctl", "-n", "kern.bootsessionuuid") or NO_BOOT


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
    # Dates in UTC and English: daylight saving must not make a process look like another one.
    environ = {**os.environ, "TZ": "UTC", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=False, env=environ
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
