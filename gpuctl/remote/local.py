"""Reaching machines that are a folder and a process tree on this computer."""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from gpuctl.errors import RemoteError, UsageError
from gpuctl.remote.connection import Completed, Progress, Transferred
from gpuctl.remote.copying import Copy, described, write_file
from gpuctl.remote.local_process import LocalProcess, exit_code
from gpuctl.remote.selection import everything, select
from gpuctl.remote.transfer.pace import Pace
from providers.base import LocalAccess
from providers.processes import StillAlive, end_tree

_OUTPUT_LIMIT = 64 << 20
_CHUNK = 1 << 16
_LOOK_SECONDS = 0.05
_QUIET_SECONDS = 0.2  # how long what a command left in the background may hold its output open
_NOT_FOUND = 127
_NOT_EXECUTABLE = 126
_KILLED = 128 + signal.SIGKILL


class LocalConnection:
    """Implements `gpuctl.remote.connection.Connection`.

    Args:
        access: as the `local` provider says.
        machine: its name, for what goes wrong.
        output_limit: bytes of stdout and stderr together that `run` takes.
    """

    def __init__(
        self, access: LocalAccess, *, machine: str | None = None, output_limit: int = _OUTPUT_LIMIT
    ) -> None:
        self._access = access
        self._root = Path(access.root)
        self._machine = machine or access.env.get("GPUCTL_MACHINE")
        self._output_limit = output_limit

    @property
    def home(self) -> str:
        """The machine's own folder."""
        return self._access.root

    def run(self, command: Sequence[str] | str, *, stdin: bytes = b"", timeout: float) -> Completed:
        """Run a command to its end. A str goes through the machine's shell (bash, else sh).

        Output that something it left in the background still holds open is not waited for.

        Raises:
            RemoteError: the machine is gone, the command did not end within ``timeout`` seconds,
                or it wrote more than the limit. It is killed then.
        """
        argv = [self._shell(), "-c", command] if isinstance(command, str) else list(command)
        try:
            process = self._start(argv)
        except (FileNotFoundError, NotADirectoryError):
            return Completed(_NOT_FOUND, b"", f"{argv[0]}: command not found\n".encode())
        except PermissionError:
            return Completed(_NOT_EXECUTABLE, b"", f"{argv[0]}: permission denied\n".encode())
        try:
            stdout, stderr = self._talk(process, stdin, time.monotonic() + timeout, timeout)
        except BaseException:
            self._end(process)
            raise
        finally:
            for pipe in (process.stdin, process.stdout, process.stderr):
                _open(pipe).close()
        status = exit_code(process.returncode)
        self._still_there(status, stderr)
        return Completed(status, stdout, stderr)

    def open(self, command: Sequence[str]) -> LocalProcess:
        """Start a command and talk to it.

        Raises:
            RemoteError: the machine is gone, or has no such command.
        """
        try:
            process = self._start(command)
        except OSError as error:
            raise self._error(
                f"{command[0]!r} cannot be started there: {error.strerror}"
            ) from error
        return LocalProcess(process, machine=self._machine)

    def interactive(self, command: Sequence[str]) -> int:
        """Give the caller's terminal to a command there (a login shell when empty)."""
        argv = list(command) or [self._shell(), "-l"]
        env = {**self._access.env, "TERM": os.environ.get("TERM", "dumb")}
        self._must_be_there()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command
        try:
            return exit_code(
                subprocess.call(
                    [*self._access.enter, *argv],
                    env=env,
                    cwd=self._root,
                    preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                )
            )
        except FileNotFoundError as error:
            raise self._error(f"{argv[0]!r} is not there") from error
        finally:
            signal.signal(signal.SIGINT, before)

    def put(
        self,
        source: Path,
        target: str,
        *,
        progress: Progress | None = None,
        checksum: bool = False,
        rate: float | None = None,
    ) -> Transferred:
        """Send a file or a tree; see `Connection.put`.

        Raises:
            UsageError: the source cannot be read.
            RemoteError: it cannot be written there.
        """
        if not source.exists():
            raise UsageError(f"{source} does not exist", next="Correct the path.")
        if source.is_dir():
            selection = select(source)
            copy = Copy(selection.total_bytes, progress, checksum, Pace(rate))
            with self._failing(f"{source} was not sent"):
                copy.tree(source, selection, self._inside(target))
            return copy.done()
        if not source.is_file():
            raise UsageError(f"{source} is neither a file nor a folder", next="Correct the path.")
        with self._failing(f"{source} was not sent"):
            place = self._inside(target)
            if target.endswith("/") or place.is_dir():
                place = place / source.name
            place.parent.mkdir(parents=True, exist_ok=True)
            return _copied(source.resolve(), place, Copy(0, progress, checksum, Pace(rate)))

    def get(
        self,
        source: str,
        target: Path,
        *,
        progress: Progress | None = None,
        checksum: bool = False,
        rate: float | None = None,
    ) -> Transferred:
        """Fetch a file or a tree; nothing lands outside ``target``.

        Links arrive as links. Sockets, pipes and devices are left out.

        Raises:
            RemoteError: there is no such thing, or it cannot be read, or not be written here.
        """
        self._must_be_there()
        with self._failing(f"{source} was not fetched"):
            place = self._inside(source, follow=True)
            if place.is_dir():
                try:
                    selection = everything(place)
                except UsageError as error:
                    raise self._error(f"{source} was not fetched: {error.message}") from error
                copy = Copy(selection.total_bytes, progress, checksum, Pace(rate))
                copy.tree(place, selection, target)
                return copy.done()
            if not place.is_file():
                raise self._error(f"{source} is neither a file nor a folder there")
            if target.is_dir():
                target = target / place.name
            target.parent.mkdir(parents=True, exist_ok=True)
            return _copied(place, target, Copy(0, progress, checksum, Pace(rate)))

    def write(self, path: str, content: bytes, *, mode: int = 0o600) -> None:
        """Write a small file on the machine, whole or not at all.

        Raises:
            RemoteError: it cannot be written.
        """
        with self._failing(f"{path} was not written"):
            write_file(self._inside(path), content, mode)

    def close(self) -> None:
        """Let go. There is nothing to let go of: a local machine holds no connection."""

    # ------------------------------------------------------------------ for others

    def inside(self, path: str) -> str:
        """Return a path of the machine as an absolute one, its ``/`` at the end kept.

        Raises:
            RemoteError: that is outside of the machine's folder.
        """
        return str(self._inside(path)) + ("/" if path.endswith("/") else "")

    # ------------------------------------------------------------------ commands

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        self._must_be_there()
        return subprocess.Popen(
            [*self._access.enter, *command],
            env=dict(self._access.env),
            cwd=self._root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _talk(
        self, process: subprocess.Popen[bytes], stdin: bytes, deadline: float, timeout: float
    ) -> tuple[bytes, bytes]:
        """Feed and read a command until it has ended."""
        outputs = {process.stdout: bytearray(), process.stderr: bytearray()}
        unsent = memoryview(stdin)
        ended_at: float | None = None
        with _watched(process, feeding=bool(stdin)) as selector:
            while selector.get_map():
                if time.monotonic() > deadline:
                    if process.poll() is not None:
                        break  # it has ended; what it left in the background writes on
                    raise self._error(f"A command did not end within {timeout:g} s and was killed")
                ready = selector.select(_LOOK_SECONDS)
                for key, _ in ready:
                    if key.fileobj is process.stdin:
                        unsent = _fed(process, unsent, selector)
                    elif chunk := os.read(key.fd, _CHUNK):
                        outputs[key.fileobj].extend(chunk)  # type: ignore[index]
                    else:
                        selector.unregister(key.fileobj)
                if sum(map(len, outputs.values())) > self._output_limit:
                    raise self._error(
                        f"A command wrote more than {self._output_limit} bytes and was killed"
                    )
                if ready or process.poll() is None:
                    ended_at = None
                else:
                    ended_at = ended_at or time.monotonic()
                    if time.monotonic() - ended_at > _QUIET_SECONDS:
                        break
        self._wait(process, deadline, timeout)
        return bytes(outputs[process.stdout]), bytes(outputs[process.stderr])

    def _wait(self, process: subprocess.Popen[bytes], deadline: float, timeout: float) -> None:
        """A command that closed its output may still run."""
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise self._error(
                f"A command did not end within {timeout:g} s and was killed"
            ) from error

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            try:
                end_tree(process.pid)
            except StillAlive as error:
                raise self._error(f"A command cannot be ended: {error}") from error

    def _shell(self) -> str:
        path = self._access.env.get("PATH")
        return "bash" if shutil.which("bash", path=path) else "sh"

    # ------------------------------------------------------------------ the machine

    def _must_be_there(self) -> None:
        if not self._root.is_dir():
            raise self._error(
                "The machine is gone: its folder is not there any more",
                next="`gpuctl list --refresh` shows what is left.",
            )

    def _still_there(self, status: int, stderr: bytes) -> None:
        """Tell a machine that went away under a command from a command that failed."""
        if status == 0:
            return
        if status == _KILLED:
            self._must_be_there()
        if self._access.enter and stderr.startswith(b"nsenter: "):
            said = stderr.decode(errors="replace").strip()
            if "failed to execute" not in said:  # that is the command's fault
                raise self._error(f"The machine cannot be entered: {said}")

    def _inside(self, path: str, *, follow: bool = False) -> Path:
        """Where a path of the machine is.

        A link at its end is followed to read, or when it is a folder, and else stands for itself:
        it is what gets replaced.

        Raises:
            RemoteError: that is outside of the machine's folder.
        """
        self._must_be_there()
        root, whole = self._root.resolve(), self._root / path
        follow = follow or whole.is_dir()
        place = whole.resolve() if follow else whole.parent.resolve() / whole.name
        if whole.name == ".." or not place.is_relative_to(root):
            raise self._error(f"{path} is outside of the machine's folder {self._root}")
        return place

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise self._error(f"{what}: {where}{error.strerror or error}") from error

    def _error(self, message: str, *, next: str | None = None) -> RemoteError:
        return RemoteError(message, machine=self._machine, next=next)


def _copied(source: Path, target: Path, copy: Copy) -> Transferred:
    file = described(source)
    copy.total_bytes = file.size
    copy.file(source, file, target)
    return copy.done()


@contextmanager
def _watched(
    process: subprocess.Popen[bytes], *, feeding: bool
) -> Iterator[selectors.BaseSelector]:
    with selectors.DefaultSelector() as selector:
        selector.register(_open(process.stdout), selectors.EVENT_READ)
        selector.register(_open(process.stderr), selectors.EVENT_READ)
        if feeding:
            os.set_blocking(_open(process.stdin).fileno(), False)
            selector.register(_open(process.stdin), selectors.EVENT_WRITE)
        else:
            _open(process.stdin).close()
        yield selector


def _fed(
    process: subprocess.Popen[bytes], unsent: memoryview, selector: selectors.BaseSelector
) -> memoryview:
    stdin = _open(process.stdin)
    try:
        unsent = unsent[os.write(stdin.fileno(), unsent[:_CHUNK]) :]
    except BrokenPipeError:  # it does not want the rest
        unsent = memoryview(b"")
    if not unsent:
        selector.unregister(stdin)
        stdin.close()
    return unsent


def _open(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("started without pipes")
    return stream
