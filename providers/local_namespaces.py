"""Linux namespaces for local machines: own processes, own mounts, a fresh /proc.

Speaks to libc through ctypes, so no tool is needed to make them; `nsenter` (util-linux) enters
them. namespaces(7), pid_namespaces(7), user_namespaces(7), mount(2).
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8
_PR_SET_PDEATHSIG = 1
_ESCAPED = re.compile(rb"\\([0-7]{3})")  # proc(5): mountinfo writes blanks as \040
_MOUNT_LINE = re.compile(rb"^.* on (/.*?) (?:\(|type )")  # mount(8) of macOS and others


class NotPossible(Exception):
    """This computer does not allow it. The text says what was refused."""


def nsenter_path() -> str | None:
    """Where nsenter is, or None."""
    return shutil.which("nsenter") if sys.platform == "linux" else None


def leave_for_own_processes() -> bool:
    """Have the next child be pid 1 of a new pid namespace. The caller can fork only that once.

    Returns:
        Whether a user namespace was needed, as it is for everybody but root.

    Raises:
        NotPossible: the kernel or the container does not allow either.
    """
    if sys.platform != "linux":
        raise NotPossible("namespaces are a thing of Linux")
    try:
        _unshare(_CLONE_NEWPID)
    except PermissionError:
        uid, gid = os.getuid(), os.getgid()
        try:
            _unshare(_CLONE_NEWUSER)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
            _unshare(_CLONE_NEWPID)
        except OSError as error:
            raise NotPossible(f"user namespaces are refused: {error.strerror}") from error
        return True
    except OSError as error:
        raise NotPossible(f"pid namespaces are refused: {error.strerror}") from error
    return False


def mount_own_proc() -> None:
    """Called by pid 1: mounts of its own that nobody outside sees, and a /proc of its own.

    Raises:
        NotPossible: the container's /proc is masked, or mounting is refused.
    """
    try:
        _unshare(_CLONE_NEWNS)
        _mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE)
        _mount(b"proc", b"/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    except OSError as error:
        raise NotPossible(f"a /proc of its own is refused: {error.strerror}") from error


def die_with_parent() -> None:
    """Have the kernel kill this process the moment its parent ends."""
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def entering(init_pid: int, *, own_users: bool) -> tuple[str, ...]:
    """Return the argv prefix that runs a command inside, in the working folder of pid 1.

    Raises:
        NotPossible: there is no nsenter.
    """
    nsenter = nsenter_path()
    if nsenter is None:
        raise NotPossible("there is no nsenter (package util-linux)")
    users = ("--user", "--preserve-credentials") if own_users else ()
    return (nsenter, "--target", str(init_pid), *users, "--pid", "--mount", "--wd", "--")


def unmount_below(folder: Path) -> None:
    """Take off everything that is mounted in the folder, so that removing it removes nothing else.

    Raises:
        OSError: something stays mounted there.
    """
    for point in sorted(_mount_points_below(folder), key=len, reverse=True):
        if sys.platform == "linux":
            _call("umount2", point, _MNT_DETACH | _UMOUNT_NOFOLLOW)
        else:
            subprocess.run(["umount", "-f", point], timeout=10, capture_output=True, check=False)
    if left := _mount_points_below(folder):
        raise OSError(f"{os.fsdecode(left[0])} is a mount that cannot be taken off")


def _mount_points_below(folder: Path) -> list[bytes]:
    inside = os.fsencode(os.path.realpath(folder))
    if sys.platform == "linux":
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
        points = [_ESCAPED.sub(lambda o: bytes([int(o[1], 8)]), x.split()[4]) for x in lines]
    else:
        listing = subprocess.run(["mount"], timeout=10, capture_output=True, check=True).stdout
        points = [found[1] for x in listing.splitlines() if (found := _MOUNT_LINE.match(x))]
    return [point for point in points if point == inside or point.startswith(inside + b"/")]


def _unshare(flags: int) -> None:
    _call("unshare", flags)


def _mount(source: bytes, target: bytes, kind: bytes | None, flags: int) -> None:
    _call("mount", source, target, kind, ctypes.c_ulong(flags), None)


def _call(name: str, *arguments: object) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
