"""The agent: the one file that runs on a rented machine.

It supervises the job, guards the machine's lease and ships checkpoints. Standard library only,
Python >= 3.8, Linux and macOS. How it is spoken to is in docs/agent-protocol.md, what it writes
into a store in docs/store-format.md.

Two daemons share one folder, DIR, and no fate: the *guard* holds the lease and ends the machine,
the *supervisor* runs the job. What they are told while they live comes through named pipes, so
that neither a store grant nor a secret is ever written to the disk.
"""

from __future__ import annotations

import argparse
import calendar
import collections
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import json
import os
import random
import re
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import traceback
from typing import (
    Any,
    Callable,
    Deque,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    NoReturn,
    Optional,
    Sequence,
    Set,
    Tuple,
)

PROTOCOL = 1
MANIFEST_FORMAT = 1
BLOB_BYTES = 64 * 1024 * 1024
MANIFEST_BYTES = 32 * 1024 * 1024

LOG_FILE_BYTES = 8 * 1024 * 1024
LOG_READ_BYTES = 64 * 1024
LOG_BACKLOG_BYTES = 8 * 1024 * 1024  # kept in memory while the disk is full

SAMPLE_SECONDS = 10.0
BEAT_SECONDS = 2.0
WATCH_POLL_SECONDS = 0.1
GUARD_POLL_SECONDS = 1.0
IDLE_LOOK_SECONDS = 15.0
IDLE_GPU_PERCENT = 5.0  # less than that is a desktop, or a look at nvidia-smi
IDLE_CPU_SHARE = 0.1  # of one core
END_RETRY_SECONDS = 5.0
END_TIMEOUT_SECONDS = 60.0
LEFTOVER_GRACE_SECONDS = 5.0  # for processes that outlive the command they were started by
UNKILLABLE_SECONDS = 10.0  # how long processes are waited for that survive SIGKILL
SYNC_SECONDS = 600.0  # how long the final sync fights a store that does not answer
REQUEST_TIMEOUT_SECONDS = 30.0
AWS_POLL_SECONDS = 5.0  # AWS's own advice for the interruption notice
AWS_TIMEOUT_SECONDS = 2.0
LOCK_SECONDS = 20.0
ANSWER_SECONDS = 10.0  # for a daemon to start or to take an order
BALLAST_BYTES = 256 * 1024  # freed so that the last state fits on a full disk
SKIPPED_MAX = 200

LINUX = sys.platform.startswith("linux")

Json = Dict[str, Any]


class AgentError(Exception):
    """Something the caller must read."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def text_of(name: str) -> str:
    """Make a file name or command output safe to put into JSON: valid UTF-8, nothing lost."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


# ============================================================== clocks, files, locks


def boottime() -> Optional[float]:
    """Seconds since boot, time asleep included; None where there is no such clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.clock_gettime(clock) if clock is not None else None


def ticks() -> float:
    """Seconds that never run backwards and, on Linux, count time asleep."""
    booted = boottime()
    return time.monotonic() if booted is None else booted


def file_time() -> float:
    """The clock that stamps files: on Linux the coarse one, so that stamps can be compared."""
    return time.clock_gettime(5) if LINUX else time.time()  # 5 = CLOCK_REALTIME_COARSE


def boot_id() -> Optional[str]:
    """What changes with every boot; None where nothing tells."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return None


def write_all(fd: int, content: bytes) -> None:
    """Write every byte or raise OSError."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def write_atomically(path: str, content: bytes, durable: bool = False) -> None:
    """Replace a file whole or not at all; ``durable`` survives a crash of the machine."""
    folder, name = os.path.split(path)
    draft = os.path.join(folder, f".{name}.{os.getpid()}-{threading.get_ident():x}.draft")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(fd, content)
            if durable:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(draft, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise
    if durable:
        sync_folder(folder)


def sync_folder(path: str) -> None:
    """Make what a folder lists survive a crash, where the file system can do that."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def write_json(path: str, value: Json) -> None:
    write_atomically(path, json.dumps(value).encode())


def read_json(path: str) -> Optional[Json]:
    """Return what a file of ours holds, or None when it is not there.

    Raises:
        AgentError: it is damaged.
    """
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except FileNotFoundError:
        return None
    except ValueError:
        raise AgentError("Damaged", f"{path} is damaged") from None
    if not isinstance(value, dict):
        raise AgentError("Damaged", f"{path} is damaged")
    return value


def take_lock(path: str, seconds: float = LOCK_SECONDS) -> int:
    """Lock a file; the lock ends when the descriptor is closed or the process dies."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(fd)
                raise AgentError("Busy", f"{path} has been locked for {seconds:g} s") from None
            time.sleep(0.01)


@contextlib.contextmanager
def locked(path: str) -> Iterator[None]:
    fd = take_lock(path)
    try:
        yield
    finally:
        os.close(fd)


def is_locked(path: str) -> bool:
    """Whether a living process holds the lock. A pid could have been given to another one."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Folder(NamedTuple):
    """Where everything of one attempt lies."""

    path: str

    def at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def make(self) -> None:
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        os.chmod(self.path, 0o700)

    @property
    def state(self) -> str:
        return self.at("state.json")

    @property
    def lease(self) -> str:
        return self.at("lease.json")

    @property
    def guard(self) -> str:
        return self.at("guard.json")

    @property
    def log(self) -> str:
        return self.at("log")


# ============================================================== orders to a daemon


class Orders:
    """The reading end of a daemon's named pipe; one JSON object a line."""

    def __init__(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.mkfifo(path, 0o600)
        # Open for writing too, so that it never reads as ended when the last writer goes.
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._rest = b""

    def take(self) -> List[Json]:
        """Return what has come in since the last time."""
        with contextlib.suppress(BlockingIOError):
            while True:
                piece = os.read(self.fd, 65536)
                if not piece:
                    break
                self._rest += piece
        *lines, self._rest = self._rest.split(b"\n")
        orders = []
        for line in lines:
            # Half a line is what a sender leaves that was killed while it wrote.
            with contextlib.suppress(ValueError):
                value = json.loads(line) if line else None
                if isinstance(value, dict):
                    orders.append(value)
        return orders


def send_order(path: str, order: Json) -> bool:
    """Hand an order to the daemon that reads the pipe; False when none does."""
    with locked(path + ".lock"):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENXIO, errno.ENOENT):
                return False
            raise
        try:
            # The newline in front closes what a sender that died may have left.
            view = memoryview(b"\n" + json.dumps(order).encode() + b"\n")
            until = time.monotonic() + ANSWER_SECONDS
            while view:
                try:
                    view = view[os.write(fd, view) :]
                except BlockingIOError:
                    left = until - time.monotonic()
                    if left <= 0:
                        raise AgentError("Busy", "the daemon does not read its orders") from None
                    select.select([], [fd], [], left)
                except BrokenPipeError:
                    return False
            return True
        finally:
            os.close(fd)


def start_daemon(folder: Folder, name: str, body: Callable[[Callable[[], None]], None]) -> bool:
    """Run ``body`` in a process of its own that no terminal, session or caller can end.

    ``body`` gets a function to call when it is ready. Returns whether it got there.
    """
    sys.stdout.flush()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _be_daemon(folder, name, body, write_end)
        finally:
            os._exit(0)
    os.close(write_end)
    os.waitpid(child, 0)
    try:
        readable, _, _ = select.select([read_end], [], [], ANSWER_SECONDS)
        return bool(readable) and os.read(read_end, 1) == b"."
    finally:
        os.close(read_end)


def _be_daemon(
    folder: Folder, name: str, body: Callable[[Callable[[], None]], None], write_end: int
) -> NoReturn:
    def ready() -> None:
        # The caller may be gone by now, which changes nothing here.
        with contextlib.suppress(BrokenPipeError):
            os.write(write_end, b".")
        os.close(write_end)

    try:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        os.umask(0o077)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.closerange(3, write_end)
        os.closerange(write_end + 1, 4096)
        body(ready)
        os._exit(0)
    except BaseException as error:
        with contextlib.suppress(OSError):
            write_atomically(folder.at(f"{name}.crash"), crash_text(error).encode())
        os._exit(1)


def crash_text(error: BaseException) -> str:
    """Say where it broke, without the values: they may hold a secret."""
    places = [f"line {f.lineno} in {f.name}" for f in traceback.extract_tb(error.__traceback__)]
    said = f" ({error.strerror}: {error.filename})" if isinstance(error, OSError) else ""
    return f"{type(error).__name__}{said} at {', '.join(places[-4:])}"


class Worker(threading.Thread):
    """A thread whose bugs are not silent: the main thread looks at ``crash``."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self.crash: Optional[str] = None

    def run(self) -> None:
        try:
            self.work()
        except Exception as error:
            self.crash = f"{self.name}: {crash_text(error)}"

    def work(self) -> None:
        raise NotImplementedError


def catch_signals(names: Sequence[str], handler: Callable[[int, Any], None]) -> None:
    # A handler rather than SIG_IGN: children would inherit that.
    for name in names:
        signal.signal(getattr(signal, name), handler)


# ============================================================== guard


def seconds_left(
    epoch_end: float, boot_end: Optional[float], now_epoch: float, now_boot: Optional[float]
) -> float:
    """What is left by the seconds since boot, which nobody sets; by the wall clock without them.

    A wall clock that is set, or corrected by a time server, would cut a lease or make it longer.
    """
    if boot_end is not None and now_boot is not None:
        return boot_end - now_boot
    return epoch_end - now_epoch


def guard_decision(lease_left: float, hard_left: float, finish: bool, job_lives: bool) -> str:
    """Return "wait" or "end"."""
    if hard_left <= 0:
        return "end"
    if lease_left > 0 or (finish and job_lives):
        return "wait"
    return "end"


class Lease(NamedTuple):
    """Until when the machine may live: by the wall clock, and by the time since boot.

    The time since boot is None after a boot, and where there is no such clock.
    """

    until: float
    boot_until: Optional[float]
    hard_end: float
    hard_boot_end: Optional[float]
    ended: bool = False

    def left(self) -> Tuple[float, float]:
        """Seconds left of the lease and until the hard end."""
        now, boot = time.time(), boottime()
        return (
            seconds_left(self.until, self.boot_until, now, boot),
            seconds_left(self.hard_end, self.hard_boot_end, now, boot),
        )

    def renewed(self, seconds: float) -> Lease:
        """From now, never past the hard end."""
        now, boot = time.time(), boottime()
        _, hard_left = self.left()
        seconds = min(seconds, hard_left)
        return self._replace(
            until=now + seconds, boot_until=None if boot is None else boot + seconds
        )


def new_lease(
    seconds: float,
    hard_end: float,
    hard_seconds: Optional[float] = None,
    before: Optional[Lease] = None,
) -> Lease:
    """A lease from now on. The hard end is set once: it may come nearer, never move away.

    ``hard_seconds`` is how long it is until ``hard_end`` by the caller's clock: this machine's own
    may be wrong. ``before`` is the lease that there was.
    """
    now, boot = time.time(), boottime()
    left = hard_end - now if hard_seconds is None else hard_seconds
    hard_boot_end = None if boot is None else boot + left
    if before is not None:
        hard_end = min(hard_end, before.hard_end)
        if hard_boot_end is not None and before.hard_boot_end is not None:
            hard_boot_end = min(hard_boot_end, before.hard_boot_end)
    return Lease(now, boot, hard_end, hard_boot_end).renewed(seconds)


def read_lease(folder: Folder) -> Optional[Lease]:
    """Return the lease, or None where none was written.

    Raises:
        AgentError: the file is damaged.
    """
    found = read_json(folder.lease)
    if found is None:
        return None
    same_boot = found.get("boot_id") == boot_id()
    try:
        return Lease(
            until=float(found["lease_until"]),
            boot_until=found["boot_until"] if same_boot else None,
            hard_end=float(found["hard_end"]),
            hard_boot_end=found["hard_boot_end"] if same_boot else None,
            ended=bool(found["ended"]),
        )
    except (KeyError, TypeError, ValueError):
        raise AgentError("Damaged", f"{folder.lease} is damaged") from None


def write_lease(folder: Folder, lease: Lease) -> None:
    content = json.dumps(
        {
            "lease_until": lease.until,
            "boot_until": lease.boot_until,
            "hard_end": lease.hard_end,
            "hard_boot_end": lease.hard_boot_end,
            "ended": lease.ended,
            "boot_id": boot_id(),
        }
    ).encode()
    content = content.ljust(512)
    try:
        write_atomically(folder.lease, content)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # A full disk must not end a healthy machine: the file always has one length, so
        # that it can be written over in place.
        fd = os.open(folder.lease, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, content, 0)
        finally:
            os.close(fd)


class Guard:
    """Ends the machine when its lease or its hard end has passed."""

    def __init__(self, folder: Folder, orders: Json) -> None:
        self._folder = folder
        self._lease: Optional[Lease] = None
        self._idleness: Optional[Idleness] = None
        self._said: Json = {}
        self._facts: Json = {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "state": "armed",
            "armed_at": time.time(),
            "end_tries": 0,
            "end_error": None,
        }
        self._take(orders)

    def run(self, ready: Callable[[], None]) -> None:
        held = take_lock(self._folder.at("guard.lock"))
        catch_signals(("SIGHUP", "SIGTERM", "SIGINT"), lambda _number, _frame: None)
        _spare_from_memory_killer()
        self._inbox = Orders(self._folder.at("guard.orders"))
        self._say()
        ready()
        while not self._safely(self._over):
            self._safely(lambda: self._wait(GUARD_POLL_SECONDS))
        self._end_machine()
        os.close(held)

    def _safely(self, step: Callable[[], Any]) -> Any:
        """Take a step. No bug in it may keep the machine alive past its lease."""
        try:
            return step()
        except Exception as error:
            self._facts["error"] = crash_text(error)
            time.sleep(0.5)
            return self._lease is None or min(self._lease.left()) <= 0

    def _take(self, orders: Json) -> None:
        self._end: Json = orders["end"]
        self._finish = orders["on_lease_end"] == "finish"
        self._sync_grace = float(orders["sync_grace_seconds"])
        self._retry = float(orders.get("end_retry_seconds", END_RETRY_SECONDS))
        idle = orders.get("idle_seconds")
        if idle is None:
            self._idleness = None
        elif self._idleness is None or self._idleness.limit != idle:
            self._idleness = Idleness(idle)
        self._facts.update(
            on_lease_end=orders["on_lease_end"],
            sync_grace_seconds=self._sync_grace,
            idle_seconds=idle,
            order=orders["order"],
        )

    def _wait(self, seconds: float) -> None:
        if self._lease is not None:
            seconds = max(0.02, min([seconds, *(s for s in self._lease.left() if s > 0)]))
        select.select([self._inbox.fd], [], [], seconds)
        for orders in self._inbox.take():
            self._take(orders)
            self._say()

    def _over(self) -> bool:
        """Whether it is time; from then on nobody can renew."""
        try:
            with locked(self._folder.at("lease.lock")):
                with contextlib.suppress(AgentError):  # damaged: the one that is remembered counts
                    self._lease = read_lease(self._folder) or self._lease
                over = self._decide()
                if over and self._lease is not None:
                    write_lease(self._folder, self._lease._replace(ended=True))
                return over
        except (AgentError, OSError):  # the folder is gone or cannot be locked
            return self._decide()

    def _decide(self) -> bool:
        if self._lease is None or self._lease.ended:
            return True
        left, hard_left = self._lease.left()
        if self._idleness is not None and self._idleness.is_over():
            self._facts["idle"] = True
            return True
        lives = self._finish and self._job_lives()
        if guard_decision(left, hard_left, self._finish, lives) == "end":
            return True
        self._facts["state"] = "armed" if left > 0 else "finishing"
        self._say()
        return False

    def _job_lives(self) -> bool:
        """Whether there is a job that has not ended, within its own cap."""
        try:
            job = job_state(self._folder)
        except (AgentError, OSError):
            return False
        if job is None or job["phase"] == "ended":
            return False
        stop_at, now = job.get("stop_boot_at"), boottime()
        if stop_at is None or now is None:
            stop_at, now = job.get("stop_at"), time.time()
        slack = float(job.get("term_grace_seconds") or 0) + self._sync_grace
        return stop_at is None or now < stop_at + slack

    def _end_machine(self) -> None:
        self._facts.update(state="ending", ending_since=time.time())
        self._say()
        self._safely(self._let_job_finish)
        while self._end:
            error = self._try_end()
            self._facts["end_tries"] += 1
            self._facts["end_error"] = error
            self._say()
            if error == "gone":
                break
            self._wait_plainly(self._retry)
        self._facts["state"] = "ended"
        self._say()

    def _let_job_finish(self) -> None:
        until = ticks() + self._sync_grace
        order = {"do": "stop", "why": "lease", "grace": self._sync_grace / 2}
        with contextlib.suppress(AgentError, OSError):
            if not send_order(self._folder.at("supervisor.orders"), order):
                return
        while ticks() < until:
            with contextlib.suppress(AgentError, OSError):
                job = job_state(self._folder)
                if job is None or job["phase"] == "ended":
                    return
            self._wait_plainly(0.1)

    def _wait_plainly(self, seconds: float) -> None:
        select.select([], [], [], seconds)
        for orders in self._inbox.take():
            self._take(orders)

    def _try_end(self) -> Optional[str]:
        """Try once; return what went wrong, None when it was accepted, "gone" when it is over."""
        pid = self._end.get("signal_pid")
        if pid is not None:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                return "gone"
            except OSError as error:
                return f"pid {pid}: {error.strerror}"
            return None
        try:
            done = subprocess.run(
                self._end["argv"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=END_TIMEOUT_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"the command did not return within {END_TIMEOUT_SECONDS:g} s"
        except (OSError, ValueError) as error:
            return f"the command could not be started: {type(error).__name__}"
        return None if done.returncode == 0 else f"the command returned {done.returncode}"

    def _say(self) -> None:
        if self._facts != self._said:
            with contextlib.suppress(OSError):
                write_json(self._folder.guard, self._facts)
                self._said = dict(self._facts)


def _spare_from_memory_killer() -> None:
    # Needs root; without it the guard is as likely to be picked as any small process.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("-900")


def guard_state(folder: Folder) -> Optional[Json]:
    """What `status` says of the guard; None when none was ever armed."""
    try:
        state = read_json(folder.guard)
    except AgentError:
        state = {"protocol": PROTOCOL, "state": "unknown"}
    if state is None:
        return None
    state["alive"] = is_locked(folder.at("guard.lock"))
    with contextlib.suppress(AgentError):
        lease = read_lease(folder)
        if lease is not None:
            state.update(lease_until=lease.until, hard_end=lease.hard_end)
            state["lease_left"], state["hard_left"] = lease.left()
    return state


# ============================================================== log

_RECORD = re.compile(rb"([0-9]{10}\.[0-9]{6}) (out|err|agent) ([0-9]{1,9})\n")
_RECORD_HEAD_MAX = 40


class Record(NamedTuple):
    """One piece of output as it was read from the job's pipe."""

    at: float
    stream: str
    data: bytes
    next: int  # offset behind it


def encode_record(at: float, stream: str, data: bytes) -> bytes:
    return b"%017.6f %s %d\n%s\n" % (at, stream.encode(), len(data), data)


def parse_records(content: bytes, offset: int) -> List[Record]:
    """Return the whole records that ``content``, which starts at ``offset``, begins with.

    Raises:
        ValueError: no record starts there.
    """
    records: List[Record] = []
    place = 0
    while place < len(content):
        head = _RECORD.match(content, place)
        if head is None:
            if b"\n" in content[place : place + _RECORD_HEAD_MAX]:
                raise ValueError(offset + place)
            if len(content) - place >= _RECORD_HEAD_MAX:
                raise ValueError(offset + place)
            break
        end = head.end() + int(head.group(3))
        if end >= len(content):
            break
        if content[end : end + 1] != b"\n":
            raise ValueError(offset + place)
        at, stream = float(head.group(1)), head.group(2).decode()
        records.append(Record(at, stream, content[head.end() : end], offset + end + 1))
        place = end + 1
    return records


def unfinished_character(data: bytes) -> int:
    """How many bytes at the end are the start of a UTF-8 character whose rest is to come."""
    for back in range(1, min(3, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needs = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC2 else 1
        return back if back < needs <= 4 and byte < 0xF5 else 0
    return 0


def log_files(folder: str) -> List[int]:
    """Return the offsets at which the log's files start, oldest first."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(n[:15]) for n in names if re.match(r"^[0-9]{15}\.log$", n))


def log_end(folder: str) -> int:
    """Return the offset behind the last byte of the log."""
    starts = log_files(folder)
    if not starts:
        return 0
    return starts[-1] + os.path.getsize(os.path.join(folder, f"{starts[-1]:015d}.log"))


def read_log(folder: str, start: int, limit: int) -> List[Record]:
    """Return the records from an offset on: at most ``limit`` bytes of them, but at least one.

    Raises:
        AgentError: no record starts at that offset.
    """
    records: List[Record] = []
    offset = start
    while offset - start < limit:
        starts = log_files(folder)
        if not starts:
            break
        if offset < starts[0]:
            note = f"{starts[0] - offset} bytes of the log were dropped: it had grown too long\n"
            records.append(Record(time.time(), "agent", note.encode(), starts[0]))
            offset = starts[0]
        file_start = max(s for s in starts if s <= offset)
        try:
            with open(os.path.join(folder, f"{file_start:015d}.log"), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                file.seek(offset - file_start)
                # One whole record always fits into that.
                piece = file.read(max(min(limit, 1 << 20), LOG_READ_BYTES * 2))
        except FileNotFoundError:  # dropped just now
            continue
        if offset > file_start + size:
            raise AgentError("BadOffset", f"the log ends at {file_start + size}, before {offset}")
        try:
            found = parse_records(piece, offset)
        except ValueError:
            raise AgentError("BadOffset", f"no record of the log starts at {offset}") from None
        if not found:
            break
        for record in found:
            if records and record.next - start > limit:
                return records
            records.append(record)
        offset = found[-1].next
    return records


def log_line(record: Record) -> Json:
    return {
        "type": "log",
        "stream": record.stream,
        "at": record.at,
        "data": record.data.decode("utf-8", "backslashreplace"),
        "next": record.next,
    }


class Log:
    """The writing end. Never raises: a full disk costs the oldest of what does not fit."""

    def __init__(self, folder: str, keep_bytes: int) -> None:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        self._folder = folder
        self._keep = keep_bytes
        self._lock = threading.Lock()
        self._backlog: Deque[bytes] = collections.deque()
        self._backlog_bytes = 0
        self._lost = 0
        self._file = -1
        self._size = 0
        self.end = 0

    def write(self, stream: str, data: bytes) -> None:
        with self._lock:
            self._queue(encode_record(time.time(), stream, data))
            self._drain()

    def note(self, text: str) -> None:
        """Write a line of the agent's own."""
        self.write("agent", text.encode("utf-8", "backslashreplace")[:LOG_READ_BYTES] + b"\n")

    def retry(self) -> None:
        """Write what did not fit before."""
        if self._backlog:
            with self._lock:
                self._drain()

    def _queue(self, record: bytes) -> None:
        self._backlog.append(record)
        self._backlog_bytes += len(record)

    def _drain(self) -> None:
        try:
            while self._backlog:
                self._append(self._backlog[0])
                self._backlog_bytes -= len(self._backlog.popleft())
                if not self._backlog and self._lost:
                    text = f"{self._lost} bytes of output were lost: the disk was full\n"
                    self._lost = 0
                    self._queue(encode_record(time.time(), "agent", text.encode()))
        except OSError:
            while self._backlog_bytes > LOG_BACKLOG_BYTES:
                gone = len(self._backlog.popleft())
                self._backlog_bytes -= gone
                self._lost += gone

    def _append(self, record: bytes) -> None:
        if self._file < 0 or self._size >= LOG_FILE_BYTES:
            self._roll()
        try:
            write_all(self._file, record)
        except OSError:
            os.ftruncate(self._file, self._size)  # no reader must find half a record
            os.lseek(self._file, self._size, os.SEEK_SET)
            raise
        self._size += len(record)
        self.end += len(record)

    def _roll(self) -> None:
        path = os.path.join(self._folder, f"{self.end:015d}.log")
        fresh = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size = fresh, 0
        starts = log_files(self._folder)
        while len(starts) > 1 and self.end - starts[1] >= self._keep:
            os.unlink(os.path.join(self._folder, f"{starts.pop(0):015d}.log"))


class Pump(Worker):
    """Carries the job's output into the log as fast as it comes."""

    def __init__(self, log: Log) -> None:
        super().__init__("pump")
        self._log = log
        self._ends: Dict[int, str] = {}
        self._rest: Dict[int, bytes] = {}
        self.writers: Dict[str, int] = {}
        for stream in ("out", "err"):
            read_end, write_end = os.pipe()
            self._ends[read_end] = stream
            self._rest[read_end] = b""
            self.writers[stream] = write_end
            if LINUX:
                # F_SETPIPE_SZ: room for a burst. The system's limit may be lower.
                with contextlib.suppress(OSError):
                    fcntl.fcntl(write_end, 1031, 1 << 20)

    def work(self) -> None:
        while self._ends:
            readable, _, _ = select.select(list(self._ends), [], [])
            for fd in readable:
                self._carry(fd)

    def no_more_writers(self) -> None:
        """Let go of the writing ends; the thread ends when the job's are gone too."""
        for fd in self.writers.values():
            os.close(fd)
        self.writers = {}

    def _carry(self, fd: int) -> None:
        piece = os.read(fd, LOG_READ_BYTES - 4)
        data = self._rest[fd] + piece
        held = unfinished_character(data) if piece else 0
        self._rest[fd] = data[len(data) - held :]
        data = data[: len(data) - held]
        if data:
            self._log.write(self._ends[fd], data)
        if not piece:
            del self._ends[fd]
            os.close(fd)


# ============================================================== checkpoints


class Node(NamedTuple):
    """One thing below an entry."""

    path: str  # relative to the entry; "" is the entry itself
    kind: str  # file, dir, link or special
    mode: int
    size: int
    mtime_ns: int
    inode: int
    device: int
    target: str  # of a link


class Tree(NamedTuple):
    """An entry as it was at one moment."""

    nodes: Tuple[Node, ...]
    changed_at: float  # the latest ctime below it

    @property
    def signature(self) -> Tuple[Any, ...]:
        """What changes when the entry does. A folder's own times do not count."""
        return tuple(
            (n.path, n.kind, n.target) if n.kind in ("dir", "link") else n[:2] + n[3:6]
            for n in self.nodes
        )

    @property
    def bytes(self) -> int:
        return sum(n.size for n in self.nodes if n.kind == "file")


def read_tree(entry: str) -> Tree:
    """Describe a file or folder without following links.

    Raises:
        OSError: something below it cannot be read or vanished meanwhile.
    """
    nodes: List[Node] = []
    latest = 0.0
    todo = [""]
    while todo:
        path = todo.pop()
        full = os.path.join(entry, path) if path else entry
        info = os.lstat(full)
        latest = max(latest, info.st_ctime)
        kind, target = "special", ""
        if stat.S_ISREG(info.st_mode):
            kind = "file"
        elif stat.S_ISDIR(info.st_mode):
            kind = "dir"
            todo += [os.path.join(path, name) if path else name for name in os.listdir(full)]
        elif stat.S_ISLNK(info.st_mode):
            kind, target = "link", os.readlink(full)
        nodes.append(
            Node(
                path,
                kind,
                stat.S_IMODE(info.st_mode),
                info.st_size,
                info.st_mtime_ns,
                info.st_ino,
                info.st_dev,
                target,
            )
        )
    nodes.sort()
    return Tree(tuple(nodes), latest)


def is_entry_name(name: str) -> bool:
    """Whether something of this name in the checkpoint folder is a checkpoint."""
    return not name.startswith((".", "tmp"))


def step_of(name: str) -> Optional[int]:
    """Return the last number in a name."""
    numbers = re.findall(r"[0-9]+", name)
    return int(numbers[-1]) if numbers else None


class JobEnd(NamedTuple):
    """How the job's processes came to their end. Moments by `file_time`."""

    at: float
    exit_code: Optional[int]
    signal: Optional[int]
    term_at: Optional[float]  # when we sent SIGTERM
    kill_at: Optional[float]  # when we sent SIGKILL to something that was still alive

    @property
    def killed_by_others(self) -> bool:
        """Whether it died without a word of its own that we asked for."""
        if self.signal is not None:
            return not (self.signal == signal.SIGTERM and self.term_at is not None)
        return self.exit_code in (134, 135, 137, 139)


def torn(changed_at: float, moved: bool, settle: float, end: JobEnd) -> Optional[str]:
    """Return why what is left of an entry cannot be trusted, or None when it is whole."""
    if moved:
        return None
    if end.kill_at is not None and changed_at >= end.kill_at - settle:
        return "it was being written when the job was killed at the end of its grace"
    if end.killed_by_others and changed_at >= end.at - settle:
        return "it was being written when the job was killed"
    stopped = end.term_at is not None and end.exit_code != 0
    if stopped and in_term_window(changed_at, settle, end.term_at):
        return "it was being written when the job was told to stop"
    return None


def in_term_window(changed_at: float, settle: float, term_at: Optional[float]) -> bool:
    """Whether something changed just before SIGTERM, so that it may be half written."""
    return term_at is not None and term_at - settle <= changed_at < term_at


class Seen:
    """What is known of one entry of the checkpoint folder."""

    def __init__(self, tree: Tree, changed_at: float, moved: bool, taken: bool) -> None:
        self.tree = tree
        self.changed_at = changed_at
        self.quiet_since = ticks()
        self.moved = moved
        self.taken = taken


class Moves:
    """Tells what was renamed into a folder: inotify through ctypes; elsewhere it tells nothing."""

    MOVED_TO, CREATE, CLOSE_WRITE = 0x80, 0x100, 0x8
    OVERFLOW = 0x4000

    def __init__(self) -> None:
        self.fd = -1
        self._libc: Any = None
        self._watched: Optional[Tuple[int, int]] = None
        if LINUX:
            with contextlib.suppress(OSError, AttributeError):
                self._libc = ctypes.CDLL(None, use_errno=True)
                # Fails where the machine's limit of watchers is used up: then the quiet rule.
                self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)

    def take(self, folder: str) -> Set[str]:
        """Return the names that were renamed into place since the last time."""
        if self.fd < 0:
            return set()
        moved: Set[str] = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                moved = self._parse(os.read(self.fd, 65536), moved)
        self._watch(folder)
        return moved

    def _parse(self, events: bytes, moved: Set[str]) -> Set[str]:
        place = 0
        while place < len(events):
            _, mask, _, length = struct.unpack_from("iIII", events, place)
            name = events[place + 16 : place + 16 + length].rstrip(b"\0")
            place += 16 + length
            if mask & self.MOVED_TO:
                moved.add(os.fsdecode(name))
        return moved

    def _watch(self, folder: str) -> None:
        try:
            info = os.stat(folder)
        except OSError:
            self._watched = None
            return
        if (info.st_dev, info.st_ino) != self._watched:
            mask = self.MOVED_TO | self.CREATE | self.CLOSE_WRITE
            if self._libc.inotify_add_watch(self.fd, os.fsencode(folder), mask) >= 0:
                self._watched = (info.st_dev, info.st_ino)


class CheckpointWatch(Worker):
    """Finds what is whole in the checkpoint folder and hands it to the shipper."""

    def __init__(self, folder: str, settle: float, poll: float, shipper: Shipper, log: Log) -> None:
        super().__init__("checkpoints")
        self._folder = folder
        self._settle = settle
        self._poll = poll
        self._shipper = shipper
        self._log = log
        self._moves = Moves()
        self._seen: Dict[str, Seen] = {}
        self._scanned_at = file_time()
        self._wake = os.pipe()
        self._end: Optional[JobEnd] = None
        self._patience = settle
        self.term_at: Optional[float] = None
        os.makedirs(folder, exist_ok=True)
        self.scan()
        for seen in self._seen.values():  # what was restored is not new
            seen.taken = True

    def finish(self, end: JobEnd, patience: float) -> None:
        """The job is over: take what is whole, wait at most ``patience`` for it to be quiet."""
        self._patience = patience
        self._end = end
        os.write(self._wake[1], b".")

    def work(self) -> None:
        while self._end is None:
            try:
                self.scan()
                self._take_ready()
            except OSError as error:
                self._shipper.skip("", f"the checkpoint folder cannot be read: {error.strerror}")
            fds = [fd for fd in (self._moves.fd, self._wake[0]) if fd >= 0]
            select.select(fds, [], [], self._interval())
        try:
            self._take_rest(self._end)
        except OSError as error:
            self._shipper.skip("", f"the checkpoint folder cannot be read: {error.strerror}")
        finally:
            self._shipper.no_more()

    def _interval(self) -> float:
        waiting = any(not seen.taken for seen in self._seen.values())
        return self._poll if waiting or self._moves.fd < 0 else max(self._poll, 1.0)

    def scan(self) -> None:
        """Compare the folder with what is known of it."""
        moved = self._moves.take(self._folder)
        started = file_time()
        try:
            names = {n for n in os.listdir(self._folder) if is_entry_name(n)}
        except FileNotFoundError:
            names = set()
        for name in names:
            try:
                tree = read_tree(os.path.join(self._folder, name))
            except FileNotFoundError:  # something in it vanished just now; look again
                continue
            except OSError as error:
                self._shipper.skip(name, f"it cannot be read: {error.strerror}")
                continue
            if tree.nodes[0].kind not in ("file", "dir"):
                continue
            known = self._seen.get(name)
            if known is None or known.tree.signature != tree.signature:
                # The file system's clock may be another machine's: trust it only as far as
                # the change was seen to happen since the last look.
                changed = min(max(tree.changed_at, self._scanned_at), file_time())
                self._seen[name] = Seen(tree, changed, name in moved, False)
            elif name in moved:
                known.moved = True
        for name in set(self._seen) - names:
            del self._seen[name]
        self._scanned_at = started

    def _take_ready(self) -> None:
        busy: Optional[Set[Tuple[int, int]]] = None
        for name, seen in sorted(self._seen.items(), key=lambda item: item[1].changed_at):
            if seen.taken or not self._is_quiet(seen):
                continue
            if not seen.moved and in_term_window(seen.changed_at, self._settle, self.term_at):
                continue  # how the job exits decides about it
            if busy is None:
                busy = files_open_for_writing()
            if not any((n.device, n.inode) in busy for n in seen.tree.nodes if n.kind == "file"):
                self._take(name, seen)

    def _is_quiet(self, seen: Seen) -> bool:
        return seen.moved or ticks() - seen.quiet_since >= self._settle

    def _take(self, name: str, seen: Seen) -> None:
        seen.taken = True
        self._shipper.offer(name, os.path.join(self._folder, name), seen.tree)

    def _take_rest(self, end: JobEnd) -> None:
        until = ticks() + self._patience
        self.scan()
        while ticks() < until and not all(
            s.taken or self._is_quiet(s) for s in self._seen.values()
        ):
            select.select([], [], [], min(0.05, self._poll))
            self.scan()
        for name, seen in sorted(self._seen.items(), key=lambda item: item[1].changed_at):
            if seen.taken:
                continue
            why = torn(seen.changed_at, seen.moved, self._settle, end)
            if why is None:
                self._take(name, seen)
            else:
                self._shipper.skip(name, why)


def files_open_for_writing() -> Set[Tuple[int, int]]:
    """Return (device, inode) of what the job's processes hold open for writing."""
    found: Set[Tuple[int, int]] = set()
    for pid in processes_below(os.getpid()):
        folder = f"/proc/{pid}/fd"
        try:
            for fd in os.listdir(folder):
                with contextlib.suppress(OSError, ValueError):
                    info = os.stat(f"{folder}/{fd}")
                    if not stat.S_ISREG(info.st_mode):
                        continue
                    with open(f"/proc/{pid}/fdinfo/{fd}") as file:
                        flags = re.search(r"^flags:\s*([0-7]+)", file.read(), re.MULTILINE)
                    if flags and int(flags.group(1), 8) & os.O_ACCMODE != os.O_RDONLY:
                        found.add((info.st_dev, info.st_ino))
        except OSError:  # it has ended, or made itself private
            continue
    return found


# ============================================================== shipping


def jitter() -> float:
    """A factor that keeps many machines from asking a store at the same moment."""
    return random.uniform(0.5, 1.0)  # noqa: S311 - no secret


class StoreTrouble(Exception):
    """The store did not take something; it may later."""


class Changed(Exception):
    """What was being read changed meanwhile."""


class Unshippable(Exception):
    """An entry that no store can hold; the text says why."""


def canonical(document: Json) -> bytes:
    """JSON as docs/store-format.md hashes it."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def http_opener(proxied: bool = True) -> Any:
    """Return an opener that follows no redirect: that would turn a POST into a GET."""
    import urllib.request

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_args: Any) -> None:
            return None

    # From the environment only: asking macOS for its proxies after a fork crashes.
    proxies = urllib.request.getproxies_environment() if proxied else {}
    return urllib.request.build_opener(NoRedirect, urllib.request.ProxyHandler(proxies))


class FolderStore:
    """A store that is a folder in reach; also the outbox."""

    def __init__(self, grant: Json) -> None:
        self._root = grant["path"]
        self.keep: Optional[int] = grant.get("keep")
        self._made = False

    def put(self, key: str, pieces: Sequence[bytes]) -> None:
        path = os.path.join(self._root, key)
        try:
            # Made once: where it vanishes later, a file system was unmounted under it.
            if not self._made:
                os.makedirs(self._root, exist_ok=True)
                self._made = True
            elif not os.path.isdir(self._root):
                raise OSError(errno.ENOENT, "the folder is gone")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            write_atomically(path, b"".join(pieces) if len(pieces) > 1 else pieces[0], durable=True)
        except OSError as error:
            raise StoreTrouble(f"{self._root}: {error.strerror or error}") from error

    def remove(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._root, key))


class S3PostStore:
    """A store behind a presigned POST, limited to one run's prefix."""

    keep: Optional[int] = None

    def __init__(self, grant: Json) -> None:
        self._grant = grant
        self._opener = http_opener()

    def put(self, key: str, pieces: Sequence[bytes]) -> None:
        import http.client
        import urllib.error
        import urllib.request

        expires = self._grant.get("expires")
        if expires is not None and time.time() >= expires:
            raise StoreTrouble("the store grant has expired; waiting for a new one")
        head, tail, content_type = self._form(self._grant["prefix"] + key)
        body = [head, *pieces, tail]
        request = urllib.request.Request(  # noqa: S310 - open_store takes http(s) only
            self._grant["url"], data=body, method="POST"
        )
        request.add_header("Content-Type", content_type)
        request.add_header("Content-Length", str(sum(len(piece) for piece in body)))
        try:
            with self._opener.open(request, timeout=REQUEST_TIMEOUT_SECONDS) as answer:
                status = answer.status
                answer.read(65536)
        except urllib.error.HTTPError as error:
            with error:
                code = re.search(rb"<Code>(\w{1,60})</Code>", error.read(4096))
            said = f" ({code.group(1).decode()})" if code else ""
            raise StoreTrouble(f"the store answered {error.code}{said}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise StoreTrouble(f"the store did not answer: {type(error).__name__}") from None
        if status not in (200, 201, 204):
            raise StoreTrouble(f"the store answered {status}")

    def _form(self, key: str) -> Tuple[bytes, bytes, str]:
        boundary = f"gpuctl-{os.urandom(16).hex()}"
        fields = dict(self._grant["fields"])
        fields["key"] = key
        head = b"".join(
            (
                f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            ).encode()
            for name, value in fields.items()
        )
        head += (
            f"--{boundary}\r\n"
            'Content-Disposition: form-data; name="file"; filename="blob"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()
        return head, tail, f"multipart/form-data; boundary={boundary}"

    def remove(self, key: str) -> None:
        raise StoreTrouble(f"a presigned POST cannot remove {key}")


def is_web_address(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("http://", "https://"))


def open_store(grant: Optional[Json]) -> Any:
    """Return what a grant opens; None for no grant."""
    if grant is None:
        return None
    if grant.get("kind") == "folder" and isinstance(grant.get("path"), str):
        return FolderStore(grant)
    if (
        grant.get("kind") == "s3post"
        and is_web_address(grant.get("url"))
        and isinstance(grant.get("fields"), dict)
        and isinstance(grant.get("prefix"), str)
    ):
        return S3PostStore(grant)
    raise AgentError("BadGrant", f"a store grant of kind {grant.get('kind')!r} is not understood")


class Candidate:
    """An entry that is to be shipped."""

    def __init__(self, kind: str, name: str, path: str, tree: Tree, seq: int, version: int) -> None:
        self.kind = kind
        self.name = name
        self.path = path
        self.tree = tree
        self.seq = seq
        self.version = version
        self.sent: Set[str] = set()  # blobs that an earlier try has put


class Shipper(Worker):
    """Sends candidates to the store, the newest first, and keeps trying."""

    def __init__(self, job: Json, state: State, log: Log) -> None:
        super().__init__("shipper")
        self._job = job
        self._state = state
        self._log = log
        self._news = threading.Condition()
        self._store = open_store(job["store"])
        self._pending: List[Candidate] = []
        self._closed = False
        self._seq = 0
        self._versions: Dict[str, int] = {}
        self._newest: Tuple[int, Set[str]] = (0, set())  # seq and blobs of a checkpoint
        self._output_blobs: Set[str] = set()
        self._kept: List[Tuple[int, Set[str]]] = []  # what is in an outbox
        self._failures = 0
        self.give_up_at = float("inf")  # by `ticks`; set when the job is over
        self.verdict: Optional[Tuple[str, str]] = None  # outcome and reason; set then, too

    # ---- called by others

    def offer(self, name: str, path: str, tree: Tree) -> None:
        """Take a checkpoint that is whole; one of the same name that still waits is obsolete."""
        with self._news:
            for older in [c for c in self._pending if c.name == name]:
                self._forget(older)
            self._seq += 1
            version = self._versions.get(name, 0) + 1
            candidate = Candidate("checkpoint", name, path, tree, self._seq, version)
            record = {
                "name": text_of(name),
                "version": version,
                "step": step_of(name),
                "seq": self._seq,
                "at": time.time(),
                "bytes": tree.bytes,
                "shipped": False,
            }
            with self._state.changing() as state:
                state["checkpoints"].append(record)
            if self._store is not None:
                self._pending.append(candidate)
            self._news.notify_all()

    def skip(self, name: str, why: str) -> None:
        """Note something that is not shipped, once."""
        item = {"name": text_of(name), "why": why}
        with self._state.changing() as state:
            if item in state["skipped"] or len(state["skipped"]) >= SKIPPED_MAX:
                return
            state["skipped"].append(item)
        self._log.note(f"not taken as a checkpoint: {item['name']}: {why}")

    def use(self, grant: Optional[Json]) -> None:
        """Go on with another grant."""
        store = open_store(grant)
        with self._news:
            self._store = store
            self._failures = 0
            self._news.notify_all()

    def no_more(self) -> None:
        """Nothing is offered any more: send what waits, then the outputs, then end."""
        with self._news:
            self._closed = True
            self._news.notify_all()

    # ---- the thread

    def work(self) -> None:
        while True:
            with self._news:
                while not self._pending and not self._closed:
                    self._news.wait(60)
                if not self._pending:
                    break
                candidate = max(self._pending, key=lambda c: c.seq)
            if not self._try(candidate):
                return
        for output in self._job["outputs"]:
            if not self._ship_output(output["from"]):
                return
        if self._store is not None and self._ship_ending():
            self._state.update(sync={"ok": True, "error": None})

    def _try(self, candidate: Candidate) -> bool:
        """Send one candidate; False when it is time to give up."""
        try:
            manifest = self._send(candidate)
        except StoreTrouble as trouble:
            return self._wait_out(str(trouble))
        except (Changed, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError):
                self.skip(candidate.name, "it was removed before it was shipped")
            elif self._closed:
                self.skip(candidate.name, "it changed while it was read")
            self._drop(candidate)
            return True
        except Unshippable as error:
            self.skip(candidate.name, str(error))
            self._drop(candidate)
            return True
        except OSError as error:
            self.skip(candidate.name, f"it cannot be read: {error.strerror}")
            self._drop(candidate)
            return True
        self._shipped(candidate, manifest)
        return True

    def _wait_out(self, trouble: str) -> bool:
        if self._failures == 0:
            self._log.note(f"shipping failed and is tried again: {trouble}")
        self._failures += 1
        self._state.update(sync={"ok": False, "error": trouble})
        if ticks() >= self.give_up_at:
            self._log.note(f"shipping is given up: {trouble}")
            return False
        most = min(5.0 if self._closed else 30.0, 0.5 * 2 ** min(self._failures - 1, 8))
        pause = min(jitter() * most, max(0.05, self.give_up_at - ticks()))
        with self._news:
            self._news.wait(pause)  # a newer checkpoint or a new grant ends it
        return True

    def _forget(self, candidate: Candidate) -> None:
        if candidate in self._pending:
            self._pending.remove(candidate)
        if candidate.kind == "checkpoint":
            with self._state.changing() as state:
                state["checkpoints"] = [
                    c for c in state["checkpoints"] if c["seq"] != candidate.seq
                ]

    def _drop(self, candidate: Candidate) -> None:
        with self._news:
            self._forget(candidate)

    def _shipped(self, candidate: Candidate, manifest: Json) -> None:
        blobs = {blob["sha256"] for file in manifest["files"] for blob in file["blobs"]}
        with self._news:
            self._failures = 0
            if candidate in self._pending:
                self._pending.remove(candidate)
            if candidate.kind == "output":
                self._output_blobs |= blobs
            else:
                self._versions[candidate.name] = candidate.version
                if candidate.seq > self._newest[0]:
                    self._newest = (candidate.seq, blobs)
        changes: Json = {"sync": {"ok": True, "error": None}}
        with self._state.changing() as state:
            for record in state["checkpoints"]:
                if record["seq"] == candidate.seq:
                    record.update(shipped=True, bytes=manifest["bytes"])
            state.update(changes)
        if candidate.kind == "checkpoint":
            self._log.note(f"checkpoint {text_of(candidate.name)} is in the store")
            self._trim_outbox(candidate.seq, blobs)

    def _trim_outbox(self, seq: int, blobs: Set[str]) -> None:
        """Remove all but the newest from a store that is our own outbox."""
        self._kept = sorted([*self._kept, (seq, blobs)], key=lambda kept: kept[0])
        store = self._store
        keep = getattr(store, "keep", None)
        while keep and len(self._kept) > keep:
            old, old_blobs = self._kept[0]
            needed = self._output_blobs.union(*(b for _, b in self._kept[1:]))
            try:
                store.remove(manifest_key(self._job["attempt"], old))
                for sha in old_blobs - needed:
                    store.remove(blob_key(sha))
            except OSError as error:
                self._log.note(f"the outbox cannot be trimmed: {error.strerror}")
                return
            del self._kept[0]

    def _ship_output(self, source: str) -> bool:
        path = os.path.realpath(os.path.join(self._job["workdir"], source))
        while True:
            try:
                tree = read_tree(path)
            except FileNotFoundError:
                self._note_output({"from": source, "missing": True})
                return True
            except OSError as error:
                self.skip(source, f"it cannot be read: {error.strerror}")
                self._note_output({"from": source, "seq": None, "bytes": 0, "shipped": False})
                return True
            self._seq += 1
            candidate = Candidate("output", source, path, tree, self._seq, 1)
            record: Json = {"from": source, "seq": self._seq, "bytes": tree.bytes}
            if self._store is None:
                self._note_output(dict(record, shipped=False))
                return True
            try:
                while True:
                    try:
                        manifest = self._send(candidate)
                        break
                    except StoreTrouble as trouble:
                        if not self._wait_out(str(trouble)):
                            self._note_output(dict(record, shipped=False))
                            return False
            except (Changed, FileNotFoundError):
                if ticks() >= self.give_up_at:
                    self._note_output(dict(record, shipped=False))
                    return False
                time.sleep(0.1)
                continue
            except (Unshippable, OSError) as error:
                why = str(error) if isinstance(error, Unshippable) else "it cannot be read"
                self.skip(source, why)
                self._note_output(dict(record, shipped=False))
                return True
            self._shipped(candidate, manifest)
            self._note_output(dict(record, shipped=True))
            return True

    def _ship_ending(self) -> bool:
        """Leave word of how it ended: for a gpuctl that comes when this machine is gone."""
        if self.verdict is None:
            return True
        with self._state.changing() as state:
            ending: Json = {
                "format": MANIFEST_FORMAT,
                "run": self._job["run"],
                "attempt": self._job["attempt"],
                "at": rfc3339(time.time()),
                "outcome": self.verdict[0],
                "exit_code": state["exit_code"],
                "reason": self.verdict[1].encode(errors="replace").decode()[:2000],
                "outputs": [dict(record) for record in state["outputs"]],
            }
        ending["sha256"] = hashlib.sha256(canonical(ending)).hexdigest()
        while True:
            try:
                self._store.put(ending_key(self._job["attempt"]), [canonical(ending)])
                return True
            except StoreTrouble as trouble:
                if not self._wait_out(str(trouble)):
                    return False

    def _note_output(self, record: Json) -> None:
        with self._state.changing() as state:
            state["outputs"].append(record)

    # ---- one candidate

    def _send(self, candidate: Candidate) -> Json:
        """Put the blobs, then the manifest.

        Raises:
            StoreTrouble, Changed, Unshippable, OSError: see there; OSError is about reading.
        """
        store = self._store
        files, dirs, links = [], [], []
        for node in candidate.tree.nodes:
            try:
                node.path.encode()
                node.target.encode()
                candidate.name.encode()
            except UnicodeEncodeError:
                raise Unshippable("the name of something in it is not UTF-8") from None
            if node.kind == "file":
                files.append(self._send_file(store, candidate, node))
            elif node.kind == "dir":
                dirs.append({"path": node.path, "mode": node.mode})
            elif node.kind == "link":
                links.append({"path": node.path, "target": node.target})
            else:
                self.skip(f"{candidate.name}/{node.path}", "it is not a file, a folder or a link")
        if not files and not dirs:
            raise Unshippable("it is neither a file nor a folder")
        if read_tree(candidate.path).signature != candidate.tree.signature:
            raise Changed
        manifest: Json = {
            "format": MANIFEST_FORMAT,
            "run": self._job["run"],
            "attempt": self._job["attempt"],
            "seq": candidate.seq,
            "kind": candidate.kind,
            "name": candidate.name,
            "version": candidate.version,
            "step": step_of(candidate.name),
            "at": rfc3339(time.time()),
            "bytes": sum(file["size"] for file in files),
            "files": files,
            "dirs": dirs,
            "links": links,
        }
        manifest["sha256"] = hashlib.sha256(canonical(manifest)).hexdigest()
        content = canonical(manifest)
        if len(content) > MANIFEST_BYTES:
            raise Unshippable("it has too many files: its manifest would be larger than 32 MiB")
        store.put(manifest_key(manifest["attempt"], candidate.seq), [content])
        return manifest

    def _send_file(self, store: Any, candidate: Candidate, node: Node) -> Json:
        path = os.path.join(candidate.path, node.path) if node.path else candidate.path
        blobs: List[Json] = []
        whole = hashlib.sha256()
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb", buffering=0) as file:
            self._check_same(file.fileno(), node)
            left = node.size
            while left:
                piece = read_exactly(file.fileno(), min(BLOB_BYTES, left))
                if len(piece) < min(BLOB_BYTES, left):
                    raise Changed
                left -= len(piece)
                whole.update(piece)
                sha = whole.hexdigest() if len(piece) == node.size else sha256_of(piece)
                if sha not in candidate.sent and not self._is_there(sha):
                    store.put(blob_key(sha), [piece])
                    candidate.sent.add(sha)
                blobs.append({"sha256": sha, "size": len(piece)})
            self._check_same(file.fileno(), node)
        return {
            "path": node.path,
            "mode": node.mode,
            "mtime": node.mtime_ns / 1e9,
            "size": node.size,
            "sha256": whole.hexdigest(),
            "blobs": blobs,
        }

    def _check_same(self, fd: int, node: Node) -> None:
        info = os.fstat(fd)
        if (info.st_size, info.st_mtime_ns, info.st_ino) != (node.size, node.mtime_ns, node.inode):
            raise Changed

    def _is_there(self, sha: str) -> bool:
        """Whether a manifest names it that no prune can remove: the newest, or an output's."""
        return sha in self._newest[1] or sha in self._output_blobs


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_exactly(fd: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(fd, min(size, 8 << 20))
        if not piece:
            break
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def manifest_key(attempt: int, seq: int) -> str:
    return f"manifests/a{attempt:04d}-{seq:06d}.json"


def ending_key(attempt: int) -> str:
    return f"ends/a{attempt:04d}.json"


def blob_key(sha: str) -> str:
    return f"blobs/{sha[:2]}/{sha}"


def rfc3339(epoch: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(epoch))
    return f"{whole}.{int(epoch % 1 * 1e6):06d}Z"


# ============================================================== processes


def has_own_proc() -> bool:
    """Whether /proc is there and shows the namespace that we live in."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def process_table() -> Dict[int, Tuple[int, int]]:
    """Return {pid: (parent, group)} of everything that is there, zombies included."""
    table: Dict[int, Tuple[int, int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if len(fields) > 2:
            table[int(name)] = (int(fields[1]), int(fields[2]))
    return table


def processes_below(root: int) -> Dict[int, int]:
    """Return {pid: group} of every descendant; empty where there is no /proc.

    Zombies count: they are gone when they are reaped, and the last thread of a process whose
    first one has ended is not.
    """
    if not has_own_proc():
        return {}
    table = process_table()
    children: Dict[int, List[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    found: Dict[int, int] = {}
    todo = list(children.get(root, ()))
    while todo:
        pid = todo.pop()
        found[pid] = table[pid][1]
        todo += children.get(pid, ())
    return found


def send_signal(pid: int, number: int) -> None:
    """Signal a process, or a group when ``pid`` is negative; gone is fine."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def adopt_orphans() -> None:
    """Become the parent of what daemonises below us (Linux), so that it can be ended."""
    if LINUX:
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


# ============================================================== supervisor


class State:
    """What `state.json` shows, shared by the supervisor's threads."""

    def __init__(self, path: str, content: Json, wake: Callable[[], None]) -> None:
        self._path = path
        self._content = content
        self._lock = threading.RLock()
        self._dirty = True
        self._retry_at = 0.0
        self._wake = wake

    @contextlib.contextmanager
    def changing(self) -> Iterator[Json]:
        with self._lock:
            yield self._content
            self._dirty = True
        self._wake()

    def update(self, **changes: Any) -> None:
        with self.changing() as state:
            state.update(changes)

    def write(self, **changes: Any) -> bool:
        """Write it when it changed; a full disk is tried again a second later."""
        with self._lock:
            self._content.update(changes)
            if not self._dirty or ticks() < self._retry_at:
                return not self._dirty
            content = json.dumps(self._content).encode()
            self._dirty = False
        try:
            write_atomically(self._path, content)
        except OSError:
            self._dirty = True
            self._retry_at = ticks() + 1.0
            return False
        return True


class Notice(NamedTuple):
    """The machine is going to be taken away."""

    source: str
    at: float
    deadline: Optional[float]  # epoch; None when nobody said when


def read_notice(path: str) -> Optional[Notice]:
    """A notice that is a file: JSON with a deadline, or anything."""
    try:
        with open(path, "rb") as file:
            content = file.read(65536)
            at = os.fstat(file.fileno()).st_mtime
    except OSError:
        return None
    deadline = None
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(content)
        if isinstance(value, dict) and type(value.get("deadline")) in (int, float):
            deadline = float(value["deadline"])
    return Notice("file", at, deadline)


def parse_aws_notice(content: bytes) -> Notice:
    """The body of spot/instance-action; what cannot be read is a notice all the same."""
    deadline = None
    with contextlib.suppress(ValueError, TypeError, KeyError):
        said = json.loads(content)["time"]
        deadline = float(calendar.timegm(time.strptime(said, "%Y-%m-%dT%H:%M:%SZ")))
    return Notice("aws", time.time(), deadline)


def metadata_root(given: str) -> str:
    """Where this machine's metadata service is: as AWS's own tools are told here, else as given."""
    own = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")
    return own if is_web_address(own) else given


class AwsNotice(Worker):
    """Asks the metadata service of EC2 (IMDSv2) every 5 s."""

    def __init__(self, root: str, heard: Callable[[Notice], None]) -> None:
        super().__init__("aws-notice")
        self._root = root.rstrip("/")
        self._heard = heard
        self._token: Optional[str] = None
        self._opener = http_opener(proxied=False)

    def work(self) -> None:
        import http.client

        while True:
            # No answer is no notice; on another cloud's machine nobody is there.
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                if self._ask():
                    return
            time.sleep(AWS_POLL_SECONDS)

    def _ask(self) -> bool:
        import urllib.error

        try:
            if self._token is None:
                header = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
                self._token = self._request("PUT", "/latest/api/token", header).decode()
            header = {"X-aws-ec2-metadata-token": self._token}
            path = "/latest/meta-data/spot/instance-action"
            self._heard(parse_aws_notice(self._request("GET", path, header)))
            return True
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 401:
                    self._token = None
            return False

    def _request(self, method: str, path: str, headers: Dict[str, str]) -> bytes:
        import urllib.request

        request = urllib.request.Request(  # noqa: S310 - checked_job takes http(s) only
            self._root + path, headers=headers, method=method
        )
        with self._opener.open(request, timeout=AWS_TIMEOUT_SECONDS) as answer:
            return bytes(answer.read(65536))


def outcome_of(phase: str, exit_code: Optional[int], cause: Optional[str]) -> str:
    """Return what ended the job. ``cause``: why it had been told to stop before it ended.

    Many jobs answer a SIGTERM with a last checkpoint and exit code 0: that is not done.
    """
    if cause is not None:
        return cause
    return "completed" if phase == "run" and exit_code == 0 else "failed"


def grace_of_notice(deadline: Optional[float], now: float, term_grace: float) -> float:
    """How long the job may go on after a notice; the rest is for shipping what it wrote."""
    if deadline is None:
        return term_grace
    left = max(deadline - now, 0.0)
    return left - min(15.0, left / 4)


def end_in_words(exit_code: Optional[int], number: Optional[int]) -> str:
    """Say how a command ended."""
    if number is None and exit_code is not None and exit_code > 128:
        with contextlib.suppress(ValueError):
            name = signal.Signals(exit_code - 128).name
            return f"exit code {exit_code} ({name})"
    if number is None:
        return f"exit code {exit_code}"
    name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
    return f"killed by signal {number} ({name})"


class WorkerFailed(Exception):
    """A thread that the job cannot do without has ended by a bug."""


class Supervisor:
    """Runs the job's commands, ends them, and sees that everything is shipped."""

    PHASES = (("preflight", "preflight"), ("setup", "setup"), ("run", "command"))

    def __init__(self, folder: Folder, job: Json) -> None:
        self._folder = folder
        self._job = job
        self._wake_fds = os.pipe()
        for fd in self._wake_fds:
            os.set_blocking(fd, False)
        self._started = ticks()
        self._log = Log(folder.log, job["log_keep_bytes"])
        self._state = State(folder.state, self._first_state(), self._wake)
        self._pump = Pump(self._log)
        self._shipper = Shipper(job, self._state, self._log)
        self._watch: Optional[CheckpointWatch] = None
        if job["checkpoint_dir"] is not None:
            self._watch = CheckpointWatch(
                job["checkpoint_dir"],
                job["settle_seconds"],
                job["poll_seconds"],
                self._shipper,
                self._log,
            )
        self._plan = [(phase, job[key]) for phase, key in self.PHASES if job[key] is not None]
        self._phase = "preflight"
        self._main: Optional["subprocess.Popen[bytes]"] = None
        self._main_status: Optional[int] = None
        self._exit: Tuple[Optional[int], Optional[int]] = (None, None)
        self._exited_at = 0.0
        self._cause: Optional[str] = None
        self._why = ""
        self._notice: Optional[Notice] = None
        self._notices: Deque[Notice] = collections.deque()
        self._told_to_end = False  # by SIGTERM
        self._termed: Set[int] = set()
        self._term_at: Optional[float] = None
        self._kill_due: Optional[float] = None
        self._killing_since: Optional[float] = None
        self._kill_at: Optional[float] = None
        self._ending = False
        self._over = False
        self._sampling = threading.Event()

    def _first_state(self) -> Json:
        stop_after, boot = self._job["stop_after_seconds"], boottime()
        return {
            "protocol": PROTOCOL,
            "run": self._job["run"],
            "attempt": self._job["attempt"],
            "pid": os.getpid(),
            "phase": "preflight",
            "started_at": time.time(),
            "job_started_at": None,
            "ended_at": None,
            "failed_phase": None,
            "exit_code": None,
            "signal": None,
            "outcome": None,
            "reason": None,
            "notice": None,
            "checkpoints": [],
            "skipped": [],
            "outputs": [],
            "sync": {"ok": True, "error": None},
            "sample": None,
            "log_end": 0,
            "stop_at": None if stop_after is None else time.time() + stop_after,
            "stop_boot_at": None if stop_after is None or boot is None else boot + stop_after,
            "term_grace_seconds": self._job["term_grace_seconds"],
        }

    # ---- life

    def run(self, ready: Callable[[], None]) -> None:
        held = take_lock(self._folder.at("supervisor.lock"))
        signal.set_wakeup_fd(self._wake_fds[1], warn_on_full_buffer=False)
        catch_signals(("SIGHUP", "SIGINT", "SIGCHLD"), lambda _number, _frame: None)
        catch_signals(("SIGTERM",), self._on_sigterm)
        adopt_orphans()
        write_atomically(self._folder.at("ballast"), bytes(BALLAST_BYTES))
        self._orders = Orders(self._folder.at("supervisor.orders"))
        self._state.write()
        ready()
        self._start_threads()
        self._log.note(f"run {self._job['run']}, attempt {self._job['attempt']}")
        try:
            self._start_next()
            while not (self._over and not self._shipper.is_alive()):
                self._wait()
                self._hear()
                self._reap()
                self._step()
                self._check_workers()
                self._log.retry()
                self._state.write(log_end=self._log.end)
            outcome, reason = self._verdict()
        except Exception as error:
            why = str(error) if isinstance(error, WorkerFailed) else crash_text(error)
            outcome, reason = "failed", f"the supervisor failed: {why}"
            self._state.update(supervisor_lost=True)  # it is not the job's fault
            self._log.note(reason)
            self._kill_all()
        self._write_end(outcome, reason)
        os.close(held)

    def _start_threads(self) -> None:
        self._pump.start()
        self._shipper.start()
        if self._watch is not None:
            self._watch.start()
        threading.Thread(target=self._sample, name="sampler", daemon=True).start()
        for source in self._job["notice"]:
            if "aws" in source:
                AwsNotice(metadata_root(source["aws"]), self._hear_notice).start()

    def _check_workers(self) -> None:
        workers: List[Optional[Worker]] = [self._pump, self._watch, self._shipper]
        for worker in workers:
            if worker is not None and worker.crash is not None:
                raise WorkerFailed(worker.crash)

    def _write_end(self, outcome: str, reason: str) -> None:
        self._state.update(phase="ended", outcome=outcome, reason=reason, ended_at=time.time())
        until = ticks() + 60
        while not self._state.write(log_end=self._log.end) and ticks() < until:
            with contextlib.suppress(OSError):
                os.unlink(self._folder.at("ballast"))
            time.sleep(0.5)
        for name in ("ballast", "supervisor.orders"):
            with contextlib.suppress(OSError):
                os.unlink(self._folder.at(name))

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_fds[1], b".")

    def _wait(self) -> None:
        seconds = self._job["poll_seconds"]
        if self._ending and not self._over:
            seconds = min(seconds, 0.05)
        if self._kill_due is not None and not self._over:
            seconds = min(seconds, max(self._kill_due - ticks(), 0.01))
        select.select([self._wake_fds[0], self._orders.fd], [], [], seconds)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_fds[0], 4096):
                pass

    # ---- what it is told

    def _on_sigterm(self, _number: int, _frame: Any) -> None:
        self._told_to_end = True

    def _hear_notice(self, notice: Notice) -> None:
        self._notices.append(notice)
        self._wake()

    def _hear(self) -> None:
        for order in self._orders.take():
            if order.get("do") == "stop":
                why = str(order["why"])
                words = {
                    "cancelled": "stopped on request",
                    "capped": "stopped by a cap",
                    "interrupted": "the machine is being taken away",
                    "lease": "the machine's lease has run out",
                }
                self._stop(why, float(order["grace"]), words.get(why, why))
            elif order.get("do") == "grant":
                self._shipper.use(order["grant"])
                self._log.note("a new store grant has come")
        cap = self._job["stop_after_seconds"]
        if cap is not None and ticks() - self._started >= cap:
            self._stop(
                "capped", self._job["term_grace_seconds"], f"the cap of {cap:g} s was reached"
            )
        self._hear_notices()

    def _hear_notices(self) -> None:
        for source in self._job["notice"]:
            if "file" in source:
                found = read_notice(source["file"])
                if found is not None:
                    self._notices.append(found)
        if self._told_to_end:
            self._told_to_end = False
            self._notices.append(Notice("sigterm", time.time(), None))
        while self._notices:
            self._take_notice(self._notices.popleft())

    def _take_notice(self, notice: Notice) -> None:
        if self._notice is not None:
            if self._notice.deadline is not None or notice.deadline is None:
                return
            notice = self._notice._replace(deadline=notice.deadline)
        self._notice = notice
        self._state.update(notice=notice._asdict())
        left = "" if notice.deadline is None else f", in {notice.deadline - time.time():.0f} s"
        self._log.note(f"notice ({notice.source}): the machine will be taken away{left}")
        grace = grace_of_notice(notice.deadline, time.time(), self._job["term_grace_seconds"])
        self._stop("interrupted", grace, "the machine is being taken away")
        if self._over:
            self._shipper.give_up_at = min(self._shipper.give_up_at, self._give_up_at())

    # ---- processes

    def _start_next(self) -> None:
        self._phase, command = self._plan.pop(0)
        shown = {"run": "running"}.get(self._phase, self._phase)
        self._state.update(phase=shown)
        shell = shutil.which("bash") or "/bin/sh"
        env = dict(os.environ)
        env.update(self._job["env"])
        env.update(self._job["secrets"])
        self._main, self._main_status = None, None
        try:
            self._main = subprocess.Popen(
                [shell, "-c", command],
                cwd=self._job["workdir"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=self._pump.writers["out"],
                stderr=self._pump.writers["err"],
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            # The path is in the message of an OSError, the environment is not.
            why = error.strerror if isinstance(error, OSError) else type(error).__name__
            self._why = f"{self._phase} could not be started in {self._job['workdir']}: {why}"
            self._log.note(self._why)
            self._exit, self._exited_at = (127, None), file_time()
            self._state.update(exit_code=127)
            self._begin_end()
            return
        if self._phase == "run":
            self._state.update(job_started_at=time.time())
            with contextlib.suppress(OSError):
                write_atomically(self._folder.at("job-started"), b"")
        self._state.write()

    def _reap(self) -> None:
        # -1 also takes the children of the sampler's `subprocess.run`, which copes with that.
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._main is not None and pid == self._main.pid:
                self._main_status = status
                self._main.returncode = 0  # keeps subprocess from waiting for it again

    def _step(self) -> None:
        """Take the processes one step further towards their end."""
        if self._over:
            return
        if self._main is not None and self._main_status is not None and not self._ending:
            self._main_ended(self._main_status)
        if self._kill_due is not None and ticks() >= self._kill_due:
            self._kill_all()
        if self._ending:
            alive = self._survivors()
            stuck = (
                self._killing_since is not None
                and ticks() - self._killing_since > UNKILLABLE_SECONDS
            )
            if not alive or stuck:
                self._job_over(stuck)
                return
            for pid in alive - self._termed:
                self._termed.add(pid)
                send_signal(pid, signal.SIGTERM)

    def _main_ended(self, status: int) -> None:
        self._exited_at = file_time()
        if os.WIFSIGNALED(status):
            self._exit = (None, os.WTERMSIG(status))
        else:
            self._exit = (os.WEXITSTATUS(status), None)
        code, number = self._exit
        self._hear_notices()  # the job may have seen it first
        if code == 0 and self._cause is None and self._plan:
            self._start_next()
            return
        self._log.note(f"{self._phase}: {end_in_words(code, number)}")
        self._state.update(exit_code=code, signal=number)
        self._begin_end()

    def _begin_end(self) -> None:
        self._ending = True
        self._sampling.set()
        if self._kill_due is None:
            grace = min(LEFTOVER_GRACE_SECONDS, self._job["term_grace_seconds"])
            self._kill_due = ticks() + grace

    def _stop(self, cause: str, grace: float, words: str) -> None:
        """SIGTERM now, SIGKILL after ``grace`` seconds. The first cause is the one that counts."""
        if self._over:
            return
        due = ticks() + grace
        if self._cause is not None:
            self._kill_due = due if self._kill_due is None else min(self._kill_due, due)
            return
        if self._ending:
            return
        self._cause, self._why = cause, words
        self._term_at = file_time()
        if self._watch is not None:
            self._watch.term_at = self._term_at
        self._kill_due = due
        if self._main is not None:
            group = self._main.pid
            send_signal(-group, signal.SIGTERM)
            self._termed |= {p for p, g in processes_below(os.getpid()).items() if g == group}
            self._termed.add(-group)
        self._state.update(phase="stopping", reason=words)
        self._log.note(f"{words}: SIGTERM sent, SIGKILL in {grace:.0f} s")

    def _survivors(self) -> Set[int]:
        """What is left of the job: pids on Linux, elsewhere its group as a negative number."""
        if has_own_proc():
            return set(processes_below(os.getpid()))
        if self._main is None:
            return set()
        try:
            os.killpg(self._main.pid, 0)
        except (ProcessLookupError, PermissionError):
            return set()
        return {-self._main.pid}

    def _kill_all(self) -> None:
        alive = self._survivors()
        if self._killing_since is None:
            self._killing_since = ticks()
            if alive:
                self._kill_at = file_time()
                self._log.note("SIGKILL sent to what was left of the job")
        if self._main is not None and self._main_status is None:
            send_signal(-self._main.pid, signal.SIGKILL)
        for pid in alive:
            send_signal(pid, signal.SIGKILL)

    def _job_over(self, stuck: bool) -> None:
        """Every process is gone: ship what is whole."""
        self._over = True
        if stuck:
            self._log.note("some processes of the job survive SIGKILL; they are left behind")
        code, number = self._exit
        end = JobEnd(self._exited_at or file_time(), code, number, self._term_at, self._kill_at)
        self._pump.no_more_writers()
        self._pump.join(LEFTOVER_GRACE_SECONDS)
        self._state.update(phase="syncing")
        self._shipper.verdict = self._verdict()
        give_up_at = self._give_up_at()
        self._shipper.give_up_at = give_up_at
        if self._watch is None:
            self._shipper.no_more()
            return
        # A notice leaves no time to wait for what cannot change any more.
        patience = self._job["settle_seconds"]
        if self._notice is not None and not stuck:
            patience = min(patience, max(give_up_at - ticks(), 0.0) / 4)
        self._watch.finish(end, patience)

    def _give_up_at(self) -> float:
        until = ticks() + float(self._job["sync_seconds"])
        if self._cause == "capped":  # what is left of a cap is for the download and the teardown
            until = min(until, ticks() + float(self._job["term_grace_seconds"]))
        if self._notice is not None and self._notice.deadline is not None:
            until = min(until, ticks() + self._notice.deadline - time.time())
        return until

    def _verdict(self) -> Tuple[str, str]:
        code, number = self._exit
        outcome = outcome_of(self._phase, code, self._cause)
        if outcome == "completed":
            return outcome, "exit code 0"
        if outcome == "failed":
            self._state.update(failed_phase=self._phase)
        words = end_in_words(code, number)
        if self._cause is None and self._why:
            return outcome, self._why
        named = {"preflight": "preflight: ", "setup": "setup: "}.get(self._phase, "")
        return outcome, f"{named}{self._why}; {words}" if self._why else f"{named}{words}"

    # ---- samples

    def _sample(self) -> None:
        sampler = Sampler(self._job["workdir"])
        while not self._sampling.wait(SAMPLE_SECONDS if sampler.warm else 0.5):
            self._state.update(sample=sampler.take())


# ============================================================== facts of the machine


def run_tool(argv: Sequence[str], seconds: float) -> str:
    """Return what a command prints, or "" when it is not there, fails or hangs."""
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""


def query_gpus(fields: Sequence[str], seconds: float) -> List[List[str]]:
    """Ask nvidia-smi; one list of values a GPU."""
    if shutil.which("nvidia-smi") is None:
        return []
    argv = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    rows = [[v.strip() for v in line.split(",")] for line in run_tool(argv, seconds).splitlines()]
    return [row for row in rows if len(row) == len(fields)]


def number(text: str) -> Optional[float]:
    """Read what nvidia-smi prints; it says "[N/A]" for what a card does not tell."""
    try:
        return float(text)
    except ValueError:
        return None


def gib(mebibytes: str) -> Optional[float]:
    """As makers of cards count: a card "of 24 GB" has 24 times 1024 MiB, less a little."""
    found = number(mebibytes)
    return None if found is None else round(found / 1024, 1)


def gpu_facts() -> List[Json]:
    fields = ["name", "memory.total", "driver_version", "compute_cap"]
    rows = query_gpus(fields, 20.0)
    if not rows:  # drivers before 2021 do not know compute_cap
        rows = [[*row, ""] for row in query_gpus(fields[:3], 20.0)]
    return [
        {
            "name": name,
            "vram_gb": gib(memory) or 0.0,
            "compute_capability": capability if number(capability) is not None else None,
            "driver": driver,
        }
        for name, memory, driver, capability in rows
    ]


def cuda_version() -> Optional[str]:
    """The newest CUDA that the driver can run."""
    if shutil.which("nvidia-smi") is None:
        return None
    found = re.search(
        r"CUDA (?:UMD )?Version\s*:\s*([0-9]+\.[0-9]+)", run_tool(["nvidia-smi"], 20.0)
    )
    return found.group(1) if found else None


def read_first(path: str) -> str:
    try:
        with open(path) as file:
            return file.readline().strip()
    except OSError:
        return ""


def cpu_count() -> int:
    """CPUs that we may use: by affinity and by the container's quota."""
    usable = len(os.sched_getaffinity(0)) if LINUX else (os.cpu_count() or 1)
    quota, _, period = read_first("/sys/fs/cgroup/cpu.max").partition(" ")
    if quota.isdigit() and period.isdigit() and int(period):
        usable = min(usable, -(-int(quota) // int(period)))
    return max(usable, 1)


def ram_bytes() -> int:
    """Memory that we may use: the machine's, or the container's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        limit = read_first(path)
        if limit.isdigit():
            total = min(total, int(limit))
    return total


def disk_free_gb(path: str) -> float:
    """Free space in 10^9 bytes where ``path`` is or is going to be."""
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    return round(shutil.disk_usage(path).free / 1e9, 3)


class Sampler:
    """How busy the machine is."""

    def __init__(self, workdir: str) -> None:
        self._workdir = workdir
        self._cpu = self._cpu_times()
        self.warm = False

    def take(self) -> Json:
        self.warm = True
        fields = ["utilization.gpu", "memory.used"]
        return {
            "at": time.time(),
            "cpu_percent": self._cpu_percent(),
            "ram_gb": self._ram_used_gb(),
            "disk_free_gb": disk_free_gb(self._workdir),
            "gpus": [
                {"util_percent": number(util), "vram_used_gb": gib(used)}
                for util, used in query_gpus(fields, 5.0)
            ],
        }

    def _cpu_times(self) -> Optional[Tuple[int, int]]:
        fields = [int(v) for v in read_first("/proc/stat").split()[1:9]]
        return (sum(fields), fields[3] + fields[4]) if len(fields) >= 5 else None

    def _cpu_percent(self) -> Optional[float]:
        before, self._cpu = self._cpu, self._cpu_times()
        if before is None or self._cpu is None:
            return round(100 * os.getloadavg()[0] / cpu_count(), 1)
        total, idle = self._cpu[0] - before[0], self._cpu[1] - before[1]
        return round(100 * (total - idle) / total, 1) if total > 0 else None

    def _ram_used_gb(self) -> Optional[float]:
        try:
            with open("/proc/meminfo") as file:
                found = dict(re.findall(r"^(\w+):\s+(\d+) kB", file.read(), re.MULTILINE))
            return round((int(found["MemTotal"]) - int(found["MemAvailable"])) * 1024 / 1e9, 3)
        except (OSError, KeyError):
            return None


def probe(path: str) -> Json:
    """Everything a preflight wants to know."""
    return {
        "protocol": PROTOCOL,
        "python": ".".join(str(part) for part in sys.version_info[:3]),
        "os": os.uname().sysname,
        "cpus": cpu_count(),
        "ram_gb": round(ram_bytes() / 1e9, 3),
        "disk_free_gb": disk_free_gb(os.path.abspath(path)),
        "gpus": gpu_facts(),
        "cuda": cuda_version(),
        "boot_id": boot_id(),
    }


# ============================================================== idleness


class Idleness:
    """Whether nobody has used the machine for a while.

    Used means: somebody is logged in, a GPU works, or, where there is no GPU, a processor does.
    """

    def __init__(self, limit: float, in_use: Optional[Callable[[], bool]] = None) -> None:
        self.limit = limit
        self._in_use = in_use or InUse()
        self._used_at = self._looked_at = ticks()

    def is_over(self) -> bool:
        now = ticks()
        if now - self._looked_at >= min(IDLE_LOOK_SECONDS, self.limit / 4):
            self._looked_at = now
            try:
                used = self._in_use()
            except Exception:  # what cannot be seen counts as used; the lease still ends it
                used = True
            if used:
                self._used_at = now
        return now - self._used_at >= self.limit


class InUse:
    """Looks at logins, GPUs and, where there is none, at processors."""

    def __init__(self) -> None:
        self._at = ticks()
        self._spent = processor_seconds()

    def __call__(self) -> bool:
        before, self._at = self._at, ticks()
        spent, self._spent = self._spent, processor_seconds()
        if somebody_is_logged_in():
            return True
        gpus = query_gpus(["utilization.gpu"], 5.0)
        if gpus:
            return any((number(util) or 0) >= IDLE_GPU_PERCENT for (util,) in gpus)
        if spent is None or self._spent is None:
            return os.getloadavg()[0] >= 2 * IDLE_CPU_SHARE
        worked = sum(seconds - spent.get(pid, 0.0) for pid, seconds in self._spent.items())
        return worked >= IDLE_CPU_SHARE * max(self._at - before, 0.1)


def process_stats() -> Iterator[Tuple[int, str, List[str]]]:
    """Yield (pid, name, fields from the state on) of every process in /proc."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError):
                with open(f"/proc/{entry}/stat", errors="replace") as file:
                    head, _, rest = file.read().rpartition(")")
                yield int(entry), head.partition("(")[2], rest.split()


def processor_seconds() -> Optional[Dict[int, float]]:
    """Seconds of processor by pid, ours left out; None where nothing tells."""
    if not os.path.exists("/proc/self/stat"):
        return None
    tick = os.sysconf("SC_CLK_TCK")
    return {
        pid: (int(fields[11]) + int(fields[12])) / tick
        for pid, _, fields in process_stats()
        if pid != os.getpid()
    }


def somebody_is_logged_in() -> bool:
    """Whether a terminal or an SSH session is open."""
    if not os.path.exists("/proc/self/stat"):
        return bool(run_tool(["who"], 5.0).strip())
    names, parents = {}, {}
    for pid, name, fields in process_stats():
        if fields[4] != "0":  # its terminal
            return True
        names[pid], parents[pid] = name, int(fields[1])
    return any(
        name.startswith("sshd") and names.get(parents[pid], "").startswith("sshd")
        for pid, name in names.items()
    )


# ============================================================== restore


class Corrupt(AgentError):
    """A checkpoint that is not what its manifest says."""

    def __init__(self, message: str) -> None:
        super().__init__("Corrupt", message)


def is_whole_number(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def plain_path(path: Any) -> str:
    """Return a path of a manifest when it stays inside the entry.

    Raises:
        Corrupt: it is absolute, climbs, or is not in plain form.
    """
    if path == "":
        return ""
    if not isinstance(path, str) or "\0" in path or len(path) > 4096:
        raise Corrupt("a path in the manifest is not a path")
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise Corrupt(f"the path {path[:80]!r} in the manifest leaves the checkpoint")
    return path


def check_manifest(manifest: Any) -> Json:
    """Believe nothing.

    Raises:
        Corrupt: its own hash is wrong, or it could write somewhere else than below the entry.
    """
    if not isinstance(manifest, dict) or manifest.get("format") != MANIFEST_FORMAT:
        raise Corrupt(f"this is not a manifest of format {MANIFEST_FORMAT}")
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    try:
        own = sha256_of(canonical(body))
        if own != manifest.get("sha256"):
            raise Corrupt("the manifest's own hash does not match")
        dirs = {plain_path(item["path"]) for item in manifest["dirs"]}
        if not all(is_whole_number(item["mode"], 0o7777) for item in manifest["dirs"]):
            raise Corrupt("a folder in the manifest has no mode")
        others = [plain_path(item["path"]) for item in manifest["files"] + manifest["links"]]
        for item in manifest["files"]:
            _check_file(item)
        for item in manifest["links"]:
            if not isinstance(item["target"], str) or not item["target"]:
                raise Corrupt("a link in the manifest leads nowhere")
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError):
        raise Corrupt("the manifest lacks something or has it in the wrong form") from None
    if len(dirs) + len(set(others)) != len(manifest["dirs"]) + len(others) or dirs & set(others):
        raise Corrupt("the manifest has a path twice")
    if not dirs and (others != [""] or manifest["links"]):
        raise Corrupt("the manifest is neither of one file nor of a folder")
    # Parents must be folders of the manifest itself: none can be a link that leads away.
    for path in [*others, *dirs]:
        if path and os.path.dirname(path) not in dirs:
            raise Corrupt(f"the folder of {path[:80]!r} is not in the manifest")
    return manifest


def _check_file(item: Json) -> None:
    if not is_whole_number(item["mode"], 0o7777) or not abs(item["mtime"]) < 1 << 40:
        raise Corrupt(f"mode or time of {item['path'][:80]!r} is malformed")
    size = 0
    for blob in item["blobs"]:
        good = is_whole_number(blob["size"], BLOB_BYTES) and blob["size"] > 0
        if not good or not re.fullmatch(r"[0-9a-f]{64}", blob["sha256"]):
            raise Corrupt("a blob in the manifest is malformed")
        size += blob["size"]
    if size != item["size"]:
        raise Corrupt(f"the blobs of {item['path'][:80]!r} do not add up to its size")


class FolderSource:
    """Reads blobs from a store that is a folder in reach."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def read(self, sha: str, size: int) -> bytes:
        path = os.path.join(self._folder, blob_key(sha))
        try:
            with open(path, "rb") as file:
                return file.read(size + 1)
        except FileNotFoundError:
            raise Corrupt(f"the blob {sha} is missing") from None
        except OSError as error:
            raise AgentError("Store", f"{path} cannot be read: {error.strerror}") from error


class UrlSource:
    """Reads blobs through presigned URLs."""

    TRIES = 5

    def __init__(self, urls: Dict[str, str]) -> None:
        self._urls = urls
        self._opener = http_opener()

    def read(self, sha: str, size: int) -> bytes:
        if sha not in self._urls:
            raise Corrupt(f"there is no address for the blob {sha}")
        said = ""
        for attempt in range(self.TRIES):
            if attempt:
                time.sleep(jitter() * min(8.0, 0.5 * 2**attempt))
            content, said = self._get(sha, size)
            if content is not None:
                return content
        raise AgentError("Store", f"the blob {sha} could not be fetched: {said}")

    def _get(self, sha: str, size: int) -> Tuple[Optional[bytes], str]:
        import http.client
        import urllib.error

        try:
            with self._opener.open(self._urls[sha], timeout=REQUEST_TIMEOUT_SECONDS) as answer:
                content = bytes(answer.read(size + 1))
            # A connection that was cut is a reason to try again, not a corrupt blob.
            cut = len(content) < size and answer.headers.get("Content-Length") == str(size)
            return (None, "the connection was cut") if cut else (content, "")
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404:
                    raise Corrupt(f"the blob {sha} is missing") from None
                if error.code < 500 and error.code != 429:
                    raise AgentError("Store", f"the store answered {error.code}") from None
                return None, f"the store answered {error.code}"
        except (OSError, http.client.HTTPException, ValueError) as error:
            # Without its text: that would have the presigned address in it.
            return None, type(error).__name__


def restore(manifest: Json, dest: str, source: Any) -> Json:
    """Put an entry in place: verified, beside the target, then renamed.

    Raises:
        Corrupt: something is missing or is not what the manifest says.
        AgentError: the store or the disk failed.
    """
    manifest = check_manifest(manifest)
    parent, name = os.path.split(dest.rstrip("/"))
    if not os.path.isabs(dest) or not name or name in (".", ".."):
        raise AgentError("Usage", f"{dest!r} is not an absolute path of an entry")
    draft = os.path.join(parent, f".{name[:200]}.{os.getpid()}.restore")
    try:
        os.makedirs(parent, exist_ok=True)
        try:
            _lay_out(manifest, draft, source)
            _put_in_place(draft, dest.rstrip("/"))
        finally:
            _remove(draft)
    except OSError as error:
        raise AgentError("Disk", f"{dest} cannot be written: {error.strerror}") from error
    return {"protocol": PROTOCOL, "restored": dest, "bytes": manifest.get("bytes")}


def _lay_out(manifest: Json, draft: str, source: Any) -> None:
    def at(path: str) -> str:
        return os.path.join(draft, path) if path else draft

    folders = sorted(manifest["dirs"], key=lambda item: str(item["path"]))
    for item in folders:
        os.mkdir(at(item["path"]), 0o700)
    for item in manifest["files"]:
        _write_file(at(item["path"]), item, source)
    for item in manifest["links"]:
        os.symlink(item["target"], at(item["path"]))
    for item in reversed(folders):
        os.chmod(at(item["path"]), item["mode"] & 0o777)


def _write_file(path: str, item: Json, source: Any) -> None:
    whole = hashlib.sha256()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    try:
        for blob in item["blobs"]:
            content = source.read(blob["sha256"], blob["size"])
            if len(content) != blob["size"] or sha256_of(content) != blob["sha256"]:
                raise Corrupt(f"the blob {blob['sha256']} is not what its name says")
            whole.update(content)
            write_all(fd, content)
        if whole.hexdigest() != item["sha256"]:
            raise Corrupt(f"the file {item['path'][:80]!r} is not what the manifest says")
        os.fchmod(fd, item["mode"] & 0o777)
    finally:
        os.close(fd)
    os.utime(path, (item["mtime"], item["mtime"]))


def _put_in_place(draft: str, dest: str) -> None:
    aside = f"{draft}.old"
    if os.path.lexists(dest):
        os.rename(dest, aside)
    try:
        os.rename(draft, dest)
    except OSError:
        if os.path.lexists(aside):
            os.rename(aside, dest)
        raise
    _remove(aside)


def _remove(path: str) -> None:
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.isdir(path):
        for folder, _, _ in os.walk(path):  # what was restored may be read-only
            os.chmod(folder, 0o700)
        shutil.rmtree(path)


# ============================================================== verbs


def job_state(folder: Folder) -> Optional[Json]:
    """The job's state, also when its supervisor died; None before submit."""
    living = is_locked(folder.at("supervisor.lock"))
    state = read_json(folder.state)
    if state is None:
        return None
    if state["phase"] != "ended" and not living:
        state = read_json(folder.state) or state  # it may have ended between the two looks
    if state["phase"] != "ended" and not living:
        state.update(
            phase="ended",
            outcome="failed",
            reason="supervisor died",
            supervisor_lost=True,
        )
    state["log_end"] = log_end(folder.log)
    return state


def read_input(limit: int = 64 << 20) -> Json:
    """Return the one JSON document on stdin."""
    try:
        value = json.loads(sys.stdin.buffer.read(limit))
    except ValueError:
        raise AgentError("Usage", "stdin is not one JSON document") from None
    if not isinstance(value, dict):
        raise AgentError("Usage", "stdin is not a JSON object")
    return value


def emit(value: Json) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def seconds_of(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e10:
        raise AgentError("Usage", f"{what} is not a number of seconds: {str(value)[:40]}")
    return float(value)


def checked_idle(given: Json) -> Optional[float]:
    """Return after how many idle seconds the machine ends; None for never."""
    idle = given.get("idle_seconds")
    return None if idle is None else seconds_of(idle, "idle_seconds")


def checked_orders(given: Json) -> Json:
    """Return what the guard needs, checked.

    Raises:
        AgentError: something is missing or malformed.
    """
    end = given.get("end") or {}
    if not isinstance(end, dict):
        raise AgentError("Usage", "end is not an object")
    argv, pid = end.get("argv"), end.get("signal_pid")
    if argv is not None and not (
        isinstance(argv, list) and argv and all(isinstance(a, str) for a in argv)
    ):
        raise AgentError("Usage", "end.argv is not a list of texts")
    if pid is not None and (not isinstance(pid, int) or isinstance(pid, bool) or pid <= 0):
        raise AgentError("Usage", "end.signal_pid is not a process")
    if argv is not None and pid is not None:
        raise AgentError("Usage", "end has both argv and signal_pid")
    mode = given.get("on_lease_end", "end")
    if mode not in ("end", "finish"):
        raise AgentError("Usage", f"on_lease_end is neither end nor finish: {str(mode)[:40]}")
    retry = given.get("end_retry_seconds", END_RETRY_SECONDS)
    return {
        "end": {"argv": argv} if argv else {"signal_pid": pid} if pid else {},
        "on_lease_end": mode,
        "sync_grace_seconds": seconds_of(given.get("sync_grace_seconds", 60), "sync_grace_seconds"),
        "end_retry_seconds": seconds_of(retry, "end_retry_seconds"),
        "idle_seconds": checked_idle(given),
        "order": os.urandom(8).hex(),
    }


def verb_arm(folder: Folder) -> Json:
    given = read_input()
    orders = checked_orders(given)
    lease_seconds = seconds_of(given.get("lease_seconds"), "lease_seconds")
    hard_end = seconds_of(given.get("hard_end"), "hard_end")
    hard_seconds = given.get("hard_seconds")
    if hard_seconds is not None:
        hard_seconds = seconds_of(hard_seconds, "hard_seconds")
    folder.make()
    with locked(folder.at("arm.lock")):
        with locked(folder.at("lease.lock")):
            old = read_lease(folder)
            if old is not None:
                _check_open(folder, old)
            write_lease(folder, new_lease(lease_seconds, hard_end, hard_seconds, old))
        living = is_locked(folder.at("guard.lock"))
        if not (living and send_order(folder.at("guard.orders"), orders)):
            _start_guard(folder, orders)
        return _guard_took(folder, orders["order"])


def verb_rearm(folder: Folder) -> Json:
    """What a machine does at every boot: guard on, by the lease that is on its disk.

    Nothing becomes longer by it, and a lease that had ended stays ended.
    """
    given = read_input()
    with locked(folder.at("arm.lock")):
        if not os.path.exists(folder.lease):
            raise AgentError("NotArmed", f"no guard was armed in {folder.path}")
        if not is_locked(folder.at("guard.lock")):
            orders = rearming_orders(folder, given)
            _start_guard(folder, orders)
            return _guard_took(folder, orders["order"])
    return guard_state(folder) or {}


def rearming_orders(folder: Folder, given: Json) -> Json:
    """Return what the guard was told before; how to end the machine is told anew, at every boot."""
    said: Json = {}
    with contextlib.suppress(AgentError):
        said = read_json(folder.guard) or {}
    kept = {key: said[key] for key in _KEPT_ORDERS if key in said}
    try:
        return checked_orders({**kept, "end": given.get("end")})
    except AgentError:
        return checked_orders({"end": given.get("end")})


_KEPT_ORDERS = ("on_lease_end", "sync_grace_seconds", "idle_seconds")


def _start_guard(folder: Folder, orders: Json) -> None:
    def body(ready: Callable[[], None]) -> None:
        Guard(folder, orders).run(ready)

    if not start_daemon(folder, "guard", body):
        raise AgentError("Guard", f"the guard did not start{_crash_of(folder, 'guard')}")


def _guard_took(folder: Folder, order: str) -> Json:
    until = time.monotonic() + ANSWER_SECONDS
    while time.monotonic() < until:
        state = guard_state(folder)
        if state is not None and state.get("order") == order:
            return state
        time.sleep(0.02)
    raise AgentError("Guard", f"the guard does not answer{_crash_of(folder, 'guard')}")


def _crash_of(folder: Folder, name: str) -> str:
    said = read_first(folder.at(f"{name}.crash"))
    return f": {said}" if said else ""


def _check_open(folder: Folder, lease: Lease) -> None:
    if lease.ended and is_locked(folder.at("guard.lock")):
        raise AgentError("LeaseEnded", "the lease has ended; the machine is being ended")


def verb_renew(folder: Folder, seconds: float) -> Json:
    seconds = seconds_of(seconds, "SECONDS")
    with locked(folder.at("lease.lock")):
        lease = read_lease(folder)
        if lease is None:
            raise AgentError("NotArmed", f"no guard was armed in {folder.path}")
        if lease.ended:
            raise AgentError("LeaseEnded", "the lease has ended; the machine is being ended")
        if not is_locked(folder.at("guard.lock")):
            raise AgentError("GuardDied", "the guard is dead; arm it again")
        lease = lease.renewed(seconds)
        write_lease(folder, lease)
    return {"protocol": PROTOCOL, "lease_until": lease.until}


JOB_DEFAULTS: Json = {
    "env": {},
    "secrets": {},
    "preflight": None,
    "setup": None,
    "checkpoint_dir": None,
    "settle_seconds": 2.0,
    "outputs": [],
    "store": None,
    "stop_after_seconds": None,
    "term_grace_seconds": 30.0,
    "notice": [],
    "poll_seconds": 0.2,
    "log_keep_bytes": 1 << 30,
    "sync_seconds": SYNC_SECONDS,
}


def checked_job(given: Json) -> Json:
    """Return a job with its defaults filled in.

    Raises:
        AgentError: something is missing or malformed; the message names the key, never a value.
    """
    job = {**JOB_DEFAULTS, **given}

    def demand(key: str, good: Callable[[Any], bool], what: str) -> None:
        if key not in job or not good(job[key]):
            raise AgentError("BadJob", f"the job's {key} is not {what}")

    def is_text(value: Any) -> bool:
        return isinstance(value, str) and "\0" not in value

    def is_map(value: Any) -> bool:
        return isinstance(value, dict) and all(
            is_text(k) and k and "=" not in k and is_text(v) for k, v in value.items()
        )

    def is_number(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0

    def is_source(value: Any) -> bool:
        return isinstance(value, dict) and (
            is_text(value.get("file")) or is_web_address(value.get("aws"))
        )

    demand("run", lambda v: is_text(v) and v, "a name")
    demand("attempt", lambda v: is_number(v) and isinstance(v, int) and 1 <= v <= 9999, "1 to 9999")
    demand("workdir", lambda v: is_text(v) and os.path.isabs(v), "an absolute path")
    demand("command", is_text, "text")
    for key in ("preflight", "setup"):
        demand(key, lambda v: v is None or is_text(v), "text")
    demand("checkpoint_dir", lambda v: v is None or (is_text(v) and os.path.isabs(v)), "absolute")
    for key in ("env", "secrets"):
        demand(key, is_map, "an object of texts")
    for key in ("settle_seconds", "term_grace_seconds", "sync_seconds", "log_keep_bytes"):
        demand(key, is_number, "a number from 0")
    demand("poll_seconds", lambda v: is_number(v) and v > 0, "a number above 0")
    demand("stop_after_seconds", lambda v: v is None or is_number(v), "a number from 0")
    demand("store", lambda v: v is None or isinstance(v, dict), "a grant")
    demand("notice", lambda v: isinstance(v, list) and all(map(is_source, v)), "a list of sources")
    demand(
        "outputs",
        lambda v: (
            isinstance(v, list) and all(isinstance(o, dict) and is_text(o.get("from")) for o in v)
        ),
        'a list of {"from": path}',
    )
    open_store(job["store"])
    return job


def verb_submit(folder: Folder) -> Json:
    job = checked_job(read_input())
    folder.make()
    with locked(folder.at("submit.lock")):
        state = job_state(folder)
        if state is not None:
            return state

        def body(ready: Callable[[], None]) -> None:
            Supervisor(folder, job).run(ready)

        if not start_daemon(folder, "supervisor", body):
            raise AgentError(
                "Supervisor", f"the supervisor did not start{_crash_of(folder, 'supervisor')}"
            )
        state = job_state(folder)
    if state is None:
        raise AgentError("Supervisor", "the supervisor wrote no state")
    return state


def status(folder: Folder) -> Json:
    return {"protocol": PROTOCOL, "guard": guard_state(folder), "job": job_state(folder)}


def order_supervisor(folder: Folder, order: Json) -> Json:
    """Hand an order over; answers the job's state. One that has ended needs no stop."""
    state = job_state(folder)
    if state is None:
        raise AgentError("NoJob", f"no job was submitted in {folder.path}")
    if state["phase"] != "ended" and not send_order(folder.at("supervisor.orders"), order):
        state = job_state(folder) or state
        if state["phase"] != "ended":
            raise AgentError("Supervisor", "the supervisor does not take orders")
    if state["phase"] == "ended" and order["do"] != "stop":
        raise AgentError("Ended", "the job has ended")
    return state


def verb_grant(folder: Folder) -> Json:
    grant = read_input()
    open_store(grant)
    return order_supervisor(folder, {"do": "grant", "grant": grant})


def verb_restore() -> Json:
    given = read_input()
    source = given.get("source")
    folder, urls = (
        (source.get("folder"), source.get("urls")) if isinstance(source, dict) else ("", "")
    )
    if isinstance(folder, str) and folder:
        reader: Any = FolderSource(folder)
    elif isinstance(urls, dict) and all(map(is_web_address, urls.values())):
        reader = UrlSource(urls)
    else:
        raise AgentError("Usage", "source has neither folder nor urls")
    return restore(given.get("manifest") or {}, str(given.get("dest") or ""), reader)


def verb_watch(folder: Folder, offset: int) -> None:
    """Write JSON lines until the job has ended and all was sent, or stdin is closed."""
    shown: Optional[Json] = None
    beat_at = 0.0
    while True:
        now = status(folder)
        ended = now["job"] is not None and now["job"]["phase"] == "ended"
        if not ended:
            shown = _show_state(now, shown)
        offset, more = _show_log(folder, offset)
        if ended and not more:
            _show_state(now, shown)
            return
        if time.monotonic() >= beat_at:
            guard = now["guard"] or {}
            until = guard.get("lease_until")
            emit({"type": "beat", "at": time.time(), "lease_until": until})
            beat_at = time.monotonic() + BEAT_SECONDS
        if not more and _stdin_closed(WATCH_POLL_SECONDS):
            return


def _show_state(now: Json, shown: Optional[Json]) -> Json:
    guard = {k: v for k, v in (now["guard"] or {}).items() if not k.endswith("_left")}
    job = {k: v for k, v in (now["job"] or {}).items() if k != "log_end"}
    compared = {"guard": guard, "job": job}
    if compared != shown:
        emit({"type": "state", "job": now["job"], "guard": now["guard"]})
    return compared


def _show_log(folder: Folder, offset: int) -> Tuple[int, bool]:
    records = read_log(folder.log, offset, 1 << 20)
    for record in records:
        emit(log_line(record))
    return (records[-1].next, True) if records else (offset, False)


def _stdin_closed(seconds: float) -> bool:
    readable, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(readable) and not os.read(sys.stdin.fileno(), 65536)


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="machine_agent.py")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("probe").add_argument("path")
    begin = verbs.add_parser("begin")
    begin.add_argument("dir")
    begin.add_argument("path")
    for name in ("arm", "rearm", "submit", "status", "grant", "restore"):
        verbs.add_parser(name).add_argument("dir")
    renew = verbs.add_parser("renew")
    renew.add_argument("dir")
    renew.add_argument("seconds", type=float)
    watch = verbs.add_parser("watch")
    watch.add_argument("dir")
    watch.add_argument("--log-from", type=int, default=0)
    log = verbs.add_parser("log")
    log.add_argument("dir")
    log.add_argument("--from", dest="log_from", type=int, default=0)
    log.add_argument("--max", type=int, default=1 << 20)
    stop = verbs.add_parser("stop")
    stop.add_argument("dir")
    stop.add_argument(
        "--why", choices=("cancelled", "capped", "interrupted", "lease"), required=True
    )
    stop.add_argument("--grace", type=float, required=True)
    return parser.parse_args(argv)


def answer(given: argparse.Namespace) -> Optional[Json]:
    """Do what a verb says; None when it has written its answer itself."""
    if given.verb == "probe":
        return probe(given.path)
    folder = Folder(os.path.abspath(given.dir))
    if given.verb == "begin":
        guard = verb_arm(folder)  # before anything that may take its time
        facts = probe(given.path)
        return {"protocol": PROTOCOL, "python": sys.executable, "guard": guard, "probe": facts}
    if given.verb == "watch":
        verb_watch(folder, given.log_from)
        return None
    if given.verb == "log":
        for record in read_log(folder.log, given.log_from, given.max):
            emit(log_line(record))
        return None
    if given.verb == "renew":
        return verb_renew(folder, given.seconds)
    if given.verb == "stop":
        grace = seconds_of(given.grace, "--grace")
        return order_supervisor(folder, {"do": "stop", "why": given.why, "grace": grace})
    if given.verb == "restore":
        return verb_restore()
    verbs: Dict[str, Callable[[Folder], Json]] = {
        "arm": verb_arm,
        "rearm": verb_rearm,
        "submit": verb_submit,
        "status": status,
        "grant": verb_grant,
    }
    return verbs[given.verb](folder)


def main(argv: Iterable[str]) -> int:
    os.umask(0o077)
    try:
        said = answer(parse_arguments(list(argv)))
        if said is not None:
            emit(said)
    except BrokenPipeError:  # the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except AgentError as error:
        emit({"protocol": PROTOCOL, "error": {"kind": error.kind, "message": str(error)}})
        return 2 if error.kind == "Usage" else 1
    except OSError as error:
        message = f"{error.strerror or type(error).__name__}: {error.filename or 'the machine'}"
        emit({"protocol": PROTOCOL, "error": {"kind": "Disk", "message": message}})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
