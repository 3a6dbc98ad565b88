"""The processes of this computer: who lives, who descends from whom, who carries a marker.

Linux tells through /proc; elsewhere `ps` is asked. Zombies count as dead throughout: nothing of
them runs any more. Standard library only, Python 3.8: it is also sent to hosts (ssh_host.py).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_PS_TIMEOUT_SECONDS = 10
_PAUSE_SECONDS = 0.01
_START_TICKS_FIELD = 19  # proc(5): field 22 of stat, counted from the state (field 3)


@dataclass(frozen=True)  # no slots: Python 3.8
class ProcessId:
    """One process for good: a pid alone is used again after a while, and after a reboot."""

    pid: int
    started: str  # boot id and start tick on Linux, the date of the start elsewhere


class StillAlive(Exception):
    """Processes that did not end in time. ``pids`` names them."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.pids = tuple(sorted(pids))
        super().__init__(f"still running: {', '.join(map(str, self.pids))}")


def identify(pid: int) -> ProcessId | None:
    """Return who runs under that pid now, or None when nobody (or a zombie) does."""
    if _has_proc():
        stat = _stat(pid)
        if stat is None:
            return None
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return ProcessId(pid, f"{boot}:{stat[_START_TICKS_FIELD]}")
    line = _ps("-p", str(pid), "-o", "stat=,lstart=").strip()
    if not line or line.startswith("Z"):
        return None
    return ProcessId(pid, line.split(maxsplit=1)[1])


def is_alive(process: ProcessId) -> bool:
    """Whether that very process still runs."""
    return identify(process.pid) == process


def parents() -> dict[int, int]:
    """Return pid -> parent's pid of every living process."""
    if not _has_proc():
        rows = (line.split() for line in _ps("-A", "-o", "pid=,ppid=,stat=").splitlines())
        return {int(row[0]): int(row[1]) for row in rows if not row[2].startswith("Z")}
    found = {}
    for pid in _pids():
        if stat := _stat(pid):
            found[pid] = int(stat[1])
    return found


def descendants(parents: Mapping[int, int], roots: Iterable[int]) -> set[int]:
    """Return the roots and everything below them."""
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(children.get(pid, ()))
    return found


def carriers(marker: Mapping[str, str]) -> set[int]:
    """Return the processes whose environment, as it was at their start, holds all of ``marker``."""
    if not _has_proc():
        wanted = [re.compile(rf"\s{re.escape(f'{k}={v}')}(\s|$)") for k, v in marker.items()]
        lines = _ps("-A", "-E", "-ww", "-o", "pid=,command=").splitlines()
        return {int(line.split()[0]) for line in lines if all(p.search(line) for p in wanted)}
    entries = {os.fsencode(f"{key}={value}") for key, value in marker.items()}
    found = set()
    for pid in _pids():
        # Not ours to read, or gone meanwhile: then it is none of the processes looked for.
        with suppress(OSError):
            if entries <= set((_PROC / str(pid) / "environ").read_bytes().split(b"\0")):
                found.add(pid)
    return found


def end_process(process: ProcessId, *, seconds: float = 5) -> None:
    """Kill one process and wait until it is dead.

    Raises:
        StillAlive: it is there after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while is_alive(process):
        _kill(process.pid)
        if time.monotonic() > deadline:
            raise StillAlive([process.pid])
        time.sleep(_PAUSE_SECONDS)


def end_tree(pid: int, *, seconds: float = 5) -> None:
    """Kill a child of ours with its process group and all that descends from it.

    What has detached itself (its parent ended before) is not part of the tree any more.

    Raises:
        StillAlive: some of them are there after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    members = descendants(parents(), [pid])
    while True:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        for member in members:
            _kill(member)
        living = parents()
        # Children that were born while we looked descend from members that are zombies by now
        # or have been handed to init; the group still holds most of them, this finds the rest.
        members = descendants(living, members) & living.keys()
        if not members:
            return
        if time.monotonic() > deadline:
            raise StillAlive(members)
        time.sleep(_PAUSE_SECONDS)


def end_carriers(
    marker: Mapping[str, str], *, spare: frozenset[int] = frozenset(), seconds: float = 10
) -> None:
    """Kill every process that carries the marker, and what descends from one, until none is left.

    Two looks in a row must find nobody: one look is not a moment, and somebody may fork during it.

    Raises:
        StillAlive: some are there after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    empty_looks = 0
    while empty_looks < 2:
        living = parents()
        found = (descendants(living, carriers(marker) - spare) & living.keys()) - spare
        empty_looks = 0 if found else empty_looks + 1
        for pid in found:
            _kill(pid)
        if found and time.monotonic() > deadline:
            raise StillAlive(found)
        time.sleep(_PAUSE_SECONDS)


def _kill(pid: int) -> None:
    # Gone already is what we want; not ours to kill shows as StillAlive in the end.
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _has_proc() -> bool:
    return (_PROC / "self/stat").exists()


def _pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir(_PROC) if entry.name.isdigit()]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; None when dead or a zombie."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return None if fields[0] in "ZX" else fields


def _ps(*arguments: str) -> str:
    # Dates in UTC and English: daylight saving must not make a process look like another one.
    return subprocess.run(
        ["ps", *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "TZ": "UTC", "LC_ALL": "C"},
        timeout=_PS_TIMEOUT_SECONDS,
        check=False,  # exits 1 when it found nobody
    ).stdout
