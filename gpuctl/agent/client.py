"""Speaking to the agent on a machine, through whatever connection reaches it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from gpuctl.agent.messages import (
    AgentStatus,
    Beat,
    Begun,
    CheckpointState,
    GuardState,
    Job,
    JobState,
    LogLine,
    OutputState,
    Probe,
    StateUpdate,
    StopReason,
    SyncState,
)
from gpuctl.agent.sending import find_python, send
from gpuctl.errors import RemoteError
from gpuctl.printable import printable
from gpuctl.remote.connection import Completed, Connection, RemoteProcess
from gpuctl.store.manifest import Manifest
from gpuctl.store.restore import CorruptEntry

__all__ = [
    "AgentClient",
    "AgentRefused",
    "AgentStatus",
    "Beat",
    "CheckpointState",
    "GuardState",
    "Job",
    "JobState",
    "LogLine",
    "OutputState",
    "Probe",
    "StateUpdate",
    "SyncState",
    "find_python",
    "guard_orders",
]

# Imported, not run: then Python keeps what it made of the file, and the next call starts sooner.
_ENTRY = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); import machine_agent; "
    "sys.exit(machine_agent.main(sys.argv[1:]))"
)
_TIMEOUT_SECONDS = 60.0
_RESTORE_TIMEOUT_SECONDS = 6 * 3600.0

_A = TypeVar("_A", bound=BaseModel)


class AgentRefused(RemoteError):
    """The agent understood and said no; ``reason`` is its own word for why."""

    def __init__(self, message: str, reason: str, *, machine: str | None = None) -> None:
        super().__init__(message, machine=machine)
        self.reason = reason


def guard_orders(
    *,
    lease_seconds: float,
    hard_end: datetime,
    hard_seconds: float | None = None,
    end_argv: Sequence[str] = (),
    end_signal_pid: int | None = None,
    on_lease_end: Literal["end", "finish"] = "end",
    sync_grace_seconds: float = 60,
    idle_seconds: float | None = None,
) -> dict[str, Any]:
    """Return what a guard is told. The hard end can come nearer later, not move away.

    Args:
        hard_seconds: how long it is until the hard end, for a machine whose own clock is wrong.
        end_argv, end_signal_pid: how the machine ends itself; neither: it cannot.
        on_lease_end: "finish" lets a job that runs come to its end first.
        sync_grace_seconds: how long the job's last sync may take then.
        idle_seconds: the machine ends when nobody has used it for so long; None: it does not.
    """
    end: dict[str, object] = {}
    if end_signal_pid is not None:
        end["signal_pid"] = end_signal_pid
    elif end_argv:
        end["argv"] = list(end_argv)
    return {
        "lease_seconds": lease_seconds,
        "hard_end": hard_end.timestamp(),
        "hard_seconds": None if hard_seconds is None else max(hard_seconds, 0.0),
        "end": end,
        "on_lease_end": on_lease_end,
        "sync_grace_seconds": sync_grace_seconds,
        "idle_seconds": idle_seconds,
    }


class AgentClient:
    """The agent of one attempt on one machine.

    Args:
        connection: reaches the machine.
        python: a Python there, from `find_python`.
        directory: the absolute path of the attempt's folder there.
        machine: its name, for what goes wrong.

    Every call raises `RemoteError` when the machine does not answer or answers nonsense, and
    `AgentRefused` when the agent says no.
    """

    def __init__(
        self,
        connection: Connection,
        python: str,
        directory: str,
        *,
        machine: str | None = None,
    ) -> None:
        self._connection = connection
        self._python = python
        self._directory = directory
        self._machine = machine
        self._watching: RemoteProcess | None = None
        self._closed_watch: RemoteProcess | None = None
        self._lock = threading.Lock()

    @property
    def python(self) -> str:
        """The path of the Python on the machine."""
        return self._python

    @property
    def directory(self) -> str:
        """The absolute path of the attempt's folder there."""
        return self._directory

    @classmethod
    def begin(
        cls,
        connection: Connection,
        directory: str,
        path: str,
        orders: Mapping[str, Any],
        *,
        machine: str | None = None,
    ) -> tuple[AgentClient, Probe]:
        """Send the agent, have it guard the lease, and take the facts of the machine.

        Args:
            path: whose free disk counts.
            orders: from `guard_orders`.
        """
        client = cls(connection, "", directory, machine=machine)
        said = client._said("begin", send(connection, directory, path, orders, machine=machine))
        begun = client._parsed(Begun, said)
        return cls(connection, begun.python, directory, machine=machine), begun.probe

    def probe(self, path: str) -> Probe:
        """Return the facts of the machine; free disk is that where ``path`` is."""
        return self._ask(Probe, "probe", path)

    def arm(self, orders: Mapping[str, Any]) -> GuardState:
        """Start the guard, or give it new values: orders from `guard_orders`."""
        return self._ask(GuardState, "arm", self._directory, stdin=orders)

    def renew(self, seconds: float) -> float:
        """Let the lease end ``seconds`` from now; return when that is (epoch seconds).

        It is never later than the hard end.
        """
        said = self._call("renew", self._directory, repr(float(seconds)))
        until = said.get("lease_until")
        if isinstance(until, bool) or not isinstance(until, int | float):
            self._fail("The agent did not say until when the lease is")
        return float(until)

    def submit(self, job: Job) -> JobState:
        """Start the job; a job that was submitted before is left alone, and its state returned."""
        return self._ask(JobState, "submit", self._directory, stdin=job.document())

    def status(self) -> AgentStatus:
        """Return what guard and job are doing. Changes nothing."""
        return self._ask(AgentStatus, "status", self._directory)

    def stop(self, why: StopReason, grace: float) -> JobState:
        """Ask the job to end: SIGTERM now, SIGKILL after ``grace`` seconds, then the last sync."""
        arguments = ("--why", why, "--grace", repr(float(grace)))
        return self._ask(JobState, "stop", self._directory, *arguments)

    def grant(self, grant: Mapping[str, Any]) -> JobState:
        """Hand over a new store grant for one that expires."""
        return self._ask(JobState, "grant", self._directory, stdin=grant)

    def restore(
        self,
        manifest: Manifest,
        dest: str,
        source: Mapping[str, Any],
        *,
        timeout: float = _RESTORE_TIMEOUT_SECONDS,
    ) -> None:
        """Put a checkpoint in place on the machine, verified there.

        Args:
            dest: the absolute path of the entry.
            source: ``{"folder": path of the run in the store}`` or ``{"urls": {sha256: URL}}``.

        Raises:
            CorruptEntry: something is missing or is not what the manifest says.
        """
        orders = {"manifest": json.loads(manifest.to_json()), "dest": dest, "source": dict(source)}
        try:
            self._call("restore", self._directory, stdin=orders, timeout=timeout)
        except AgentRefused as refused:
            if refused.reason == "Corrupt":
                raise CorruptEntry(refused.message, machine=self._machine) from refused
            raise

    def watch(self, log_from: int) -> Iterator[StateUpdate | LogLine | Beat]:
        """Yield what happens, from an offset of the log on, until the job has ended.

        The last thing is the state in which it ended. `close_watch` ends it from another thread.

        Raises:
            RemoteError: the stream ended, or turned into nonsense, before the job did.
        """
        argv = self._argv("watch", self._directory, "--log-from", str(log_from))
        process = self._connection.open(argv)
        with self._lock:
            self._watching = process
        ended = False
        try:
            for line in process.lines():
                piece = self._piece(line)
                if piece is None:
                    continue
                yield piece
                ended = isinstance(piece, StateUpdate) and _has_ended(piece)
        finally:
            with self._lock:
                self._watching = None
                closed = self._closed_watch is process
            process.kill()
        if not (ended or closed):
            self._fail("The stream from the machine broke off before the job had ended")

    def close_watch(self) -> None:
        """End a `watch` that another thread is reading; it just stops."""
        with self._lock:
            process, self._closed_watch = self._watching, self._watching
        if process is not None:
            process.kill()

    # ------------------------------------------------------------------ the wire

    def _argv(self, *arguments: str) -> list[str]:
        # -I: what the image sets up for its own Python must not reach the agent.
        return [self._python, "-I", "-c", _ENTRY, self._directory, *arguments]

    def _ask(self, answer: type[_A], *arguments: str, stdin: Mapping[str, Any] | None = None) -> _A:
        return self._parsed(answer, self._call(*arguments, stdin=stdin))

    def _call(
        self,
        *arguments: str,
        stdin: Mapping[str, Any] | None = None,
        timeout: float = _TIMEOUT_SECONDS,
    ) -> dict[str, Any]:
        content = b"" if stdin is None else json.dumps(stdin).encode()
        done = self._connection.run(self._argv(*arguments), stdin=content, timeout=timeout)
        return self._said(arguments[0], done)

    def _said(self, verb: str, done: Completed) -> dict[str, Any]:
        # A shell's start-up files may have said something before.
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        said = _json_object(lines[-1]) if lines else None
        if said is None:
            code = f"exit code {done.exit_code}"
            self._fail(f"The agent did not answer to {verb}: {_last_line(done.stderr, code)}")
        self._raise_refusal(said)
        if done.exit_code != 0:
            self._fail(f"The agent failed at {verb} with exit code {done.exit_code}")
        return said

    def _piece(self, line: bytes) -> StateUpdate | LogLine | Beat | None:
        """Return what a line of the stream says; None for a kind that a newer agent sends."""
        said = _json_object(line)
        if said is None:
            self._fail("The stream from the agent is garbled")
        self._raise_refusal(said)
        kind = said.get("type")
        if kind == "log":
            return self._parsed(LogLine, said)
        if kind == "state":
            return self._parsed(StateUpdate, said)
        if kind == "beat":
            return self._parsed(Beat, said)
        return None

    def _parsed(self, answer: type[_A], said: Mapping[str, Any]) -> _A:
        try:
            return answer.model_validate(said)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise RemoteError(
                f"The agent's answer is not understood: {printable(where)}: {first['msg']}",
                machine=self._machine,
                next="Another gpuctl may have sent it; `gpuctl terminate` ends the machine.",
            ) from None

    def _raise_refusal(self, said: Mapping[str, Any]) -> None:
        error = said.get("error")
        if isinstance(error, dict):
            message = printable(str(error.get("message", "no reason given")))[:2000]
            raise AgentRefused(message, str(error.get("kind", "")), machine=self._machine)

    def _fail(self, message: str) -> NoReturn:
        raise RemoteError(message, machine=self._machine)


def _has_ended(update: StateUpdate) -> bool:
    return update.job is not None and update.job.phase == "ended"


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _last_line(said: bytes, otherwise: str = "it gave no reason") -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return printable(lines[-1])[:500] if lines else otherwise
