"""The process behind a local machine: keeps it, and ends it when its time has come.

Started detached for every machine, it outlives the gpuctl that started it. Three processes take
part: a starter that ends as soon as the machine is up; the host, which stays outside; and, where
the system allows namespaces, pid 1 inside, which reaps orphans. When pid 1 ends, the kernel kills
everything in its namespace. Started as::

    python -I -S -c "<see BOOT>" <package folder> <machine folder> <namespaces|plain|probe>

and answers one JSON line: ``{"ready": true}`` or ``{"error": "..."}``. ``probe`` only tries whether
namespaces are possible, in a folder that holds nothing but an empty ``root``.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from providers import local_namespaces, processes
from providers.base import Rehearsal
from providers.local_account import Account, Host, host_to_json, write_whole
from providers.local_namespaces import NotPossible

# sys.path is set by hand: -I keeps the caller's folder and PYTHON* variables out.
BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from providers.local_machine import main; main()"
)
_START_TIMEOUT_SECONDS = 15
_LOOK_SECONDS = 1.0  # how often the host looks whether its folder is still there
_REHEARSAL_LOOK_SECONDS = 0.05
_SELF_ENDED = 0  # exit status of pid 1 after a SIGTERM from inside


def main() -> None:
    """Start the machine and answer on stdout."""
    folder, mode = Path(sys.argv[2]), sys.argv[3]
    try:
        if mode == "probe":
            _launch(folder, namespaces=True, why="", go=False)
        else:
            start(folder, namespaces=mode == "namespaces")
    except (OSError, NotPossible) as error:
        print(json.dumps({"error": str(error)}), flush=True)
    else:
        print(json.dumps({"ready": True}), flush=True)


def start(folder: Path, *, namespaces: bool) -> None:
    """Start a host for the machine, with namespaces of its own or, where refused, without.

    Raises:
        OSError, NotPossible: not even without.
    """
    why = "switched off by GPUCTL_LOCAL_NAMESPACES"
    if namespaces:
        try:
            _launch(folder, namespaces=True, why="")
        except NotPossible as error:
            why = str(error)
        else:
            return
    _launch(folder, namespaces=False, why=why)


def _launch(folder: Path, *, namespaces: bool, why: str, go: bool = True) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(_START_TIMEOUT_SECONDS)
    if os.fork() == 0:
        ours.close()
        _host(folder, theirs, namespaces=namespaces, why=why)
    theirs.close()
    with ours:
        answer = _receive(ours)
        if "error" in answer:
            raise NotPossible(answer["error"])
        if answer["init"]:
            _try_entering(answer["init"], own_users=answer["own_users"])
        if not go:
            return
        # Until it hears "go" the host ends by itself when this process does.
        ours.sendall(b'{"go": true}\n')
        answer = _receive(ours)
        if "error" in answer:
            raise OSError(answer["error"])


def _try_entering(init: int, *, own_users: bool) -> None:
    enter = local_namespaces.entering(init, own_users=own_users)
    tried = subprocess.run([*enter, "true"], capture_output=True, timeout=10, check=False)
    if tried.returncode != 0:
        said = tried.stderr.decode(errors="replace").strip()
        raise NotPossible(f"entering them is refused: {said}")


def _receive(channel: socket.socket) -> dict[str, Any]:
    line = b""
    try:
        while not line.endswith(b"\n"):
            received = channel.recv(65536)
            if not received:
                return {"error": "the process behind the machine ended while it started"}
            line += received
    except TimeoutError:
        return {"error": f"it did not start within {_START_TIMEOUT_SECONDS} s"}
    answer = json.loads(line)
    return answer if isinstance(answer, dict) else {"error": "not understood"}


# --------------------------------------------------------------------------- the host


def _host(folder: Path, starter: socket.socket, *, namespaces: bool, why: str) -> NoReturn:
    """Keep the machine. Runs in a process of its own and never returns."""
    status = 1
    try:
        _keep(folder, starter, namespaces=namespaces, why=why)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()  # stderr is the machine's host.log
    finally:
        os._exit(status)


def _keep(folder: Path, starter: socket.socket, *, namespaces: bool, why: str) -> None:
    os.setsid()
    os.chdir("/")
    _detach_stdio(folder / "host.log")
    for ignored in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    init, own_users = 0, False
    try:
        if namespaces:
            init, own_users = _start_init(folder / "root")
    except (NotPossible, OSError) as error:
        _send(starter, {"error": str(error)})
        return
    _send(starter, {"init": init, "own_users": own_users})
    if "go" not in _receive(starter):
        return  # pid 1 dies with this process
    itself, inside = processes.identify(os.getpid()), None
    if init:
        inside = processes.identify(init)
    if itself is None or (init and inside is None):
        _send(starter, {"error": "pid 1 of the machine ended while it started"})
        return
    signals = _Signals(leave_sigterm=bool(init))
    try:
        host = Host(itself, inside, own_users, why)
        write_whole(folder / "host.json", json.dumps(host_to_json(host)))
    except OSError as error:
        _send(starter, {"error": f"{folder}: {error.strerror}"})
        return
    _send(starter, {"ready": True})
    starter.close()
    account = Account(folder.parent.parent)
    record = account.record(folder.name)
    rehearsal = _Rehearsing(folder / "root", record.rehearsal if record else None)
    reason = _watch(folder, init, signals, rehearsal)
    if reason:
        account.end(folder.name, reason, spare=frozenset({os.getpid()}), record=record)


def _watch(folder: Path, init: int, signals: _Signals, rehearsal: _Rehearsing) -> str | None:
    """Wait for the machine's end. Returns why it ended, None when pid 1 was killed from outside.

    Then files and state stay: the machine is lost, not gone, until somebody destroys it.
    """
    while True:
        signals.wait(rehearsal.pause())
        if init:
            ended, status = os.waitpid(init, os.WNOHANG)
            if ended:
                by_itself = os.WIFEXITED(status) and os.WEXITSTATUS(status) == _SELF_ENDED
                return "self-ended" if by_itself else None
        elif signals.terminated:
            return "self-ended"
        if not (folder / "machine.json").exists():
            return "removed by hand"
        if rehearsal.due():
            return "interrupted"


class _Signals:
    """Wakes the host when a signal arrives; remembers a SIGTERM."""

    def __init__(self, *, leave_sigterm: bool) -> None:
        self.terminated = False
        self._reader, writer = os.pipe()
        for end in (self._reader, writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        if not leave_sigterm:
            signal.signal(signal.SIGTERM, self._note)

    def wait(self, seconds: float) -> None:
        """Sleep for that long or until a signal."""
        if select.select([self._reader], [], [], seconds)[0]:
            os.read(self._reader, 4096)

    def _note(self, *_: object) -> None:
        self.terminated = True


class _Rehearsing:
    """Counts down to the moment at which a rehearsed interruption takes the machine away."""

    def __init__(self, root: Path, rehearsal: Rehearsal | None) -> None:
        self._root = root
        self._rehearsal = rehearsal
        self._notice_at: float | None = None
        self._end_at: float | None = None
        if rehearsal and rehearsal.armed_by is None:
            self._notice_at = time.monotonic() + rehearsal.after_seconds

    def pause(self) -> float:
        """How long the host may sleep."""
        if self._rehearsal is None:
            return _LOOK_SECONDS
        due = self._end_at or self._notice_at
        left = _REHEARSAL_LOOK_SECONDS if due is None else max(0.0, due - time.monotonic())
        return min(_LOOK_SECONDS, left)

    def due(self) -> bool:
        """Go on as far as the time tells: arm, write the notice, and at last return True."""
        if self._rehearsal is None:
            return False
        if self._notice_at is None:
            if (self._root / str(self._rehearsal.armed_by)).exists():
                self._notice_at = time.monotonic() + self._rehearsal.after_seconds
            return False
        now = time.monotonic()
        if self._end_at is None and now >= self._notice_at:
            self._end_at = now + self._rehearsal.notice_seconds
            if self._rehearsal.notice_seconds > 0:
                at = time.time()
                notice = {"at": at, "deadline": at + self._rehearsal.notice_seconds}
                _write_notice(self._root / ".interruption", notice)
        return self._end_at is not None and now >= self._end_at


def _write_notice(file: Path, notice: dict[str, float]) -> None:
    try:
        write_whole(file, json.dumps(notice))
    except OSError as error:  # a cloud takes its machine away whether the notice arrived or not
        print(f"the notice was not written: {error}", file=sys.stderr)


def _detach_stdio(log: Path) -> None:
    for number, (path, flags) in enumerate(
        (
            ("/dev/null", os.O_RDONLY),
            ("/dev/null", os.O_WRONLY),
            (str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        )
    ):
        handle = os.open(path, flags, 0o600)
        os.dup2(handle, number)
        os.close(handle)


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    channel.sendall(json.dumps(message).encode() + b"\n")


# --------------------------------------------------------------------------- pid 1 inside


def _start_init(root: Path) -> tuple[int, bool]:
    """Start pid 1 of a new namespace. Returns its pid out here, and whether users are mapped."""
    own_users = local_namespaces.leave_for_own_processes()
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _init(root, writer)
    os.close(writer)
    with os.fdopen(reader) as channel:
        said = channel.read()
    if said != "up":
        os.waitpid(pid, 0)
        raise NotPossible(said or "pid 1 of the machine ended at once")
    return pid, own_users


def _init(root: Path, writer: int) -> NoReturn:
    status = 1
    try:
        _reap(root, writer)
        status = _SELF_ENDED
    finally:
        os._exit(status)


def _reap(root: Path, writer: int) -> None:
    """Be pid 1: reap orphans, return on a SIGTERM that a process of the machine sent."""
    local_namespaces.die_with_parent()
    wanted = {signal.SIGTERM, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    # Blocked, not ignored: the kernel reaps children of a process that ignores SIGCHLD, and
    # drops what pid 1 ignores.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        local_namespaces.mount_own_proc()
    except NotPossible as error:
        os.write(writer, str(error).encode())
        raise
    os.chdir(root)
    os.write(writer, b"up")
    os.close(writer)
    while True:
        arrived = signal.sigwaitinfo(wanted)
        # si_pid 0: sent from outside, as when the computer shuts down. The machine is then lost
        # with its files kept, which is not the same as having ended itself.
        if arrived.si_signo == signal.SIGTERM and arrived.si_pid != 0:
            return
        while _reaped_one():
            pass


def _reaped_one() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False
