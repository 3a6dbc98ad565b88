"""What runs on a host of the `ssh` provider: who has it, what it has, and the end of a machine.

Sent over SSH and run by the host's own Python: standard library only, Python 3.8. One call is one
operation; the answer is one JSON object on stdout.

    <claim>                  who has the host: one file, written whole, removed at the end
    <claim>.lock             held by whoever changes the claim
    <base>/<name>/           a machine
                  root/      its own folder, where its commands start
                  venv/      its Python, on top of the host's
                  tmp/       its temporary files
                  end.py     ends it from inside

The claim is host-wide and is not in a home folder, which several hosts may share.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Dict, NoReturn  # noqa: UP035 - see Json

if __package__:
    from providers import processes
else:  # on the host: see `ssh_shell.program`
    import processes  # type: ignore[import-not-found, no-redef, unused-ignore]

Json = Dict[str, Any]  # noqa: UP006 - evaluated, on a Python 3.8

MARKER = "GPUCTL_MACHINE"  # in the environment of every process of a machine
RECORD = "machine.json"
TMP = "tmp"
_CLAIM_MAX_BYTES = 65536
_LOCK_SECONDS = 20.0
_SMI_SECONDS = 15.0
_SOCKET_PATH_MAX = 60  # 108 less what multiprocessing adds below TMPDIR
_PIP = """#!/bin/sh
# pip of this machine: installs into its own Python and nowhere else.
exec {python} -m pip "$@"
"""


class Refused(Exception):
    """What was asked for is not done; the host is as it was."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def answer(order: Json) -> Json:
    """Do one operation and return what is said about it."""
    operations = {"look": look, "claim": claim, "end": end, "sweep": sweep}
    try:
        return operations[order["do"]](order)
    except Refused as refused:
        return {"error": {"kind": refused.kind, "message": str(refused)}}
    except processes.StillAlive as error:
        return {"error": {"kind": "StillAlive", "message": str(error)}}
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return {"error": {"kind": "OSError", "message": f"{where}{error.strerror or error}"}}


# --------------------------------------------------------------------------- looking


def look(order: Json) -> Json:
    """Who has the host, and with ``hardware`` what it has."""
    base = _base(order)
    said: Json = {
        "boot": _boot(),
        "user": os.getuid(),
        "claim": read_claim(order["claim"]),
        "unclaimed": _unclaimed(order, base),
    }
    if order.get("hardware"):
        said.update(_hardware(base, order["nvidia_smi"]))
    return said


def _hardware(base: str, nvidia_smi: list[str]) -> Json:
    place = base
    while not os.path.exists(place):
        place = os.path.dirname(place)
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "disk_free": shutil.disk_usage(place).free,
        "writable": os.access(place, os.W_OK),
        "load": os.getloadavg()[0],
        "nvidia_smi": _cards(nvidia_smi),
    }


def _cards(argv: list[str]) -> Json:
    if shutil.which(argv[0]) is None:
        return {"said": ""}
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_SMI_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"error": f"nvidia-smi does not answer ({type(error).__name__})"}
    said = done.stdout.decode(errors="replace")
    return {"said": said} if done.returncode == 0 else {"error": f"nvidia-smi: {said.strip()}"}


def _boot() -> str:
    """Tells one start of this host from the next."""
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    done = subprocess.run(
        ["sysctl", "-n", "kern.bootsessionuuid"], stdout=subprocess.PIPE, timeout=10, check=False
    )
    return done.stdout.decode(errors="replace").strip()


def read_claim(path: str) -> Json | None:
    """Who has the host; None for nobody.

    Raises:
        Refused: there is a claim that cannot be read, so nobody can know.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(handle, "rb") as file:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode):
            raise Refused("BadClaim", f"{path} is not a file")
        try:
            record = json.loads(file.read(_CLAIM_MAX_BYTES))
        except ValueError:
            record = None
    if not isinstance(record, dict) or not isinstance(record.get("name"), str):
        raise Refused("BadClaim", f"{path} is not a claim of gpuctl's; remove it if it is nobody's")
    record["uid"] = state.st_uid  # what the file says about that is not believed
    return record


def _base(order: Json) -> str:
    """Where machines are on this host, absolute."""
    return os.path.realpath(os.path.expanduser(str(order["base"])))


def _unclaimed(order: Json, base: str) -> list[Json]:
    """Folders of machines that do not have the host: what a crash left."""
    found = []
    with suppress(FileNotFoundError):
        for entry in os.scandir(base):
            if not entry.name.startswith("gpuctl-") or not entry.is_dir(follow_symlinks=False):
                continue
            with suppress(OSError, ValueError):
                with open(os.path.join(entry.path, RECORD), encoding="utf-8") as file:
                    record = json.load(file)
                if record["name"] == entry.name and record["claim"] == order["claim"]:
                    found.append({"name": entry.name, "mark": record["mark"]})
    claimed = read_claim(order["claim"])
    return [one for one in found if claimed is None or one["name"] != claimed["name"]]


# --------------------------------------------------------------------------- claiming


def claim(order: Json) -> Json:
    """Take the host for one machine, and make it."""
    record: Json = order["record"]
    base = _base(order)
    folder = os.path.join(base, record["name"])
    with _locked(order["claim"]):
        there = read_claim(order["claim"])
        if there is not None and there["name"] == record["name"]:
            raise Refused("Exists", f"{record['name']} has this host already")
        if there is not None:
            return {"taken": there}
        if os.path.lexists(folder):
            raise Refused("Exists", f"{folder} is there already; names are never used twice")
        record = dict(record, claim=order["claim"], folder=folder, boot=_boot(), made=False)
        record["short_tmp"] = _short_tmp(os.path.join(folder, TMP))
        _write_claim(order["claim"], record)
        try:
            _make(folder, record, order)
            record["made"] = True
            _write_claim(order["claim"], record)
        except BaseException:
            _end(order["claim"], folder, record)
            raise
    user = os.getuid()
    return {"claim": dict(record, uid=user), "boot": record["boot"], "user": user}


def _make(folder: str, record: Json, order: Json) -> None:
    os.makedirs(folder, mode=0o700)
    with open(os.path.join(folder, RECORD), "w", encoding="utf-8") as file:
        json.dump(record, file)
    for name in ("root", TMP):
        os.mkdir(os.path.join(folder, name), 0o700)
    if record["short_tmp"]:
        os.symlink(os.path.join(folder, TMP), record["short_tmp"])
    with open(os.path.join(folder, "end.py"), "w", encoding="utf-8") as file:
        file.write(order["end_program"])
    _make_python(os.path.join(folder, "venv"))


def _make_python(venv: str) -> None:
    """Make a Python on top of this one, so that what a job installs goes with the machine."""
    try:
        from venv import EnvBuilder  # slow to import, and a bare system may lack it

        EnvBuilder(symlinks=True, system_site_packages=True).create(venv)
    except (ImportError, subprocess.SubprocessError, ValueError) as error:
        raise Refused(
            "NoPython", f"no Python environment can be made in {venv}: {error}"
        ) from error
    python = os.path.join(venv, "bin", "python")
    for name in ("pip", "pip3"):
        script = os.path.join(venv, "bin", name)
        with open(script, "w", encoding="utf-8") as file:
            file.write(_PIP.format(python=shlex.quote(python)))
        os.chmod(script, 0o755)
    if sys.prefix != sys.base_prefix:
        _see_packages_of_this_one(venv)


def _see_packages_of_this_one(venv: str) -> None:
    # system_site_packages means those of the Python below, and this one is an environment itself.
    import site

    for packages in _site_packages(venv):
        with open(os.path.join(packages, "gpuctl-host.pth"), "w", encoding="utf-8") as file:
            file.writelines(f"{folder}\n" for folder in site.getsitepackages())


def _site_packages(venv: str) -> Iterator[str]:
    library = os.path.join(venv, "lib")
    for version in os.listdir(library):
        folder = os.path.join(library, version, "site-packages")
        if os.path.isdir(folder):
            yield folder


def _short_tmp(tmp: str) -> str | None:
    """A second name for a folder whose own is too long for the sockets in it."""
    if len(os.fsencode(tmp)) <= _SOCKET_PATH_MAX:
        return None
    return f"/tmp/gpuctl-{os.urandom(4).hex()}"  # noqa: S108


def _write_claim(path: str, record: Json) -> None:
    draft = f"{path}.{os.getpid()}.{os.urandom(4).hex()}"
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(handle, 0o644)  # other logins must see that the host is taken
            json.dump(record, file)
            file.flush()
            os.fsync(handle)
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise


@contextmanager
def _locked(path: str) -> Iterator[None]:
    """Hold the host's lock. Raises `Refused` when somebody else holds it too long."""
    lock = f"{path}.lock"
    try:
        handle = os.open(lock, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        os.fchmod(handle, 0o644)
    except FileExistsError:
        # Without O_CREAT: in a sticky folder Linux refuses that for a file of another user.
        handle = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Refused("Locked", f"{lock} is held by another gpuctl") from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


# --------------------------------------------------------------------------- ending


def end(order: Json) -> Json:
    """End every process of a machine, remove its folder, and give the host back."""
    with _locked(order["claim"]):
        record = read_claim(order["claim"])
        if record is None or record["name"] != order["name"]:
            return {"ended": False, "by": record["name"] if record else None}
        if record["uid"] not in (os.getuid(), -1):
            raise Refused("NotOurs", f"the claim is of user {record['uid']}, not of this login")
        _end(order["claim"], os.path.join(_base(order), record["name"]), record)
    return {"ended": True}


def sweep(order: Json) -> Json:
    """Remove the folder of a machine that does not have the host, and what runs in its name."""
    with _locked(order["claim"]):
        base = _base(order)
        if order["name"] in [one["name"] for one in _unclaimed(order, base)]:
            folder = os.path.join(base, order["name"])
            with open(os.path.join(folder, RECORD), encoding="utf-8") as file:
                short_tmp = json.load(file).get("short_tmp")
            _clear(folder, order["name"], short_tmp)
    return {"ended": True}


def _end(path: str, folder: str, record: Json) -> None:
    _clear(folder, record["name"], record.get("short_tmp"))
    with suppress(FileNotFoundError):
        os.unlink(path)  # last: as long as something is left, the host is not free


def _clear(folder: str, machine: str, short_tmp: str | None) -> None:
    processes.end_carriers({MARKER: machine}, spare=frozenset({os.getpid()}))
    tmp = os.path.join(folder, TMP)
    if short_tmp and os.path.islink(short_tmp) and os.readlink(short_tmp) == tmp:
        os.unlink(short_tmp)
    if os.path.islink(folder) or not os.path.isdir(folder):
        return
    _make_removable(folder)
    # The record goes last, so that what a crash leaves is still found.
    for name in sorted(os.listdir(folder), key=lambda name: name == RECORD):
        inside = os.path.join(folder, name)
        if os.path.isdir(inside) and not os.path.islink(inside):
            shutil.rmtree(inside)
        else:
            os.unlink(inside)
    os.rmdir(folder)


def _make_removable(folder: str) -> None:
    device = os.lstat(folder).st_dev
    for place, folders, _ in os.walk(folder):
        for name in folders:
            inside = os.path.join(place, name)
            state = os.lstat(inside)
            if state.st_dev != device:
                raise Refused("Mounted", f"{inside} is mounted there; unmount it")
            if stat.S_ISDIR(state.st_mode) and state.st_mode & 0o700 != 0o700:
                os.chmod(inside, 0o700)  # before the walk goes into it


def main(order: Json) -> NoReturn:
    """Do one operation, say what came of it, and end."""
    os.umask(0o077)
    said = answer(order)
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()
    sys.exit(1 if "error" in said else 0)
