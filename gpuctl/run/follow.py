"""Watching a job to its end: output, checkpoints, requests to stop, a machine that vanishes."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeAlias

from gpuctl.agent.client import Beat, CheckpointState, JobState, LogLine, StateUpdate, SyncState
from gpuctl.errors import GpuctlError, LedgerError, RemoteError, StoreError
from gpuctl.printable import printable
from gpuctl.run.caps import TERM_GRACE_SECONDS
from gpuctl.run.checkpoints import known_checkpoints, note_checkpoint, prune_checkpoints
from gpuctl.run.journal import Entry
from gpuctl.run.recover import AttemptEnd
from gpuctl.run.relay import Relay
from gpuctl.run.work import Live, Work
from providers.base import NotFound, ProviderError, State

Fate = Literal["alive", "interrupted", "gone", "unknown"]

_TICK_SECONDS = 0.5
_SILENCE_SECONDS = 30.0  # the agent beats every 2 s
_ASK_SECONDS = 10.0  # of silence, until the provider is asked whether it took the machine away
_LOST_AFTER_SECONDS = (
    120.0  # how long a machine may stay out of reach while its cloud calls it ready
)
_RECONNECT_FIRST_SECONDS = 0.2
_RECONNECT_MOST_SECONDS = 15.0
_STOP_AGAIN_SECONDS = 2.0
_GRANT_SECONDS = 900.0  # temporary credentials live for an hour, and so does what they signed
_GRANT_AGAIN_SECONDS = 30.0
_QUEUE_PIECES = 100  # of output, up to 64 KiB each; the machine keeps what has to wait


@dataclass(frozen=True, slots=True)
class _Broken:
    """The stream from the machine ended; ``error`` says why when it was not in order."""

    error: RemoteError | None


_Piece: TypeAlias = StateUpdate | LogLine | Beat | _Broken


class Follower:
    """Follows one attempt's job."""

    def __init__(self, work: Work, live: Live) -> None:
        self._work = work
        self._live = live
        self._pieces: queue.Queue[_Piece] = queue.Queue(maxsize=_QUEUE_PIECES)
        self._state: JobState | None = None
        self._stop_asked_at: float | None = None
        self._stop_again_at = 0.0
        self._stop_taken = False
        self._done_before_stop = False
        self._shipped = known_checkpoints(work, live.number)
        self._said: set[str] = set()
        self._sync_ok = True
        self._offset = work.journal.next_offset(live.number)
        self._out_of_reach_since: float | None = None
        self._reconnect_pause = _RECONNECT_FIRST_SECONDS
        self._relay = Relay(work, live, live.outbox) if live.outbox is not None else None
        self._grant_due = self._now() + _GRANT_SECONDS
        self._ask_at = 0.0

    def follow(self) -> AttemptEnd:
        """Return how the attempt ended. The machine is still there then, or is not."""
        try:
            return self._followed()
        finally:
            if self._relay is not None:
                self._relay.close()

    def _followed(self) -> AttemptEnd:
        self._listen()
        heard = self._now()
        while True:
            if not self._pass_on_stop():
                return AttemptEnd("cancelled", "stopped on request; the job could not be told")
            piece = self._next()
            self._note_checkpoints()
            self._renew_grant()
            if piece is None:
                if self._taken_away(self._now() - heard):
                    return AttemptEnd("interrupted", f"{self._live.machine} was taken away")
                if self._now() - heard > _SILENCE_SECONDS:
                    self._live.agent.close_watch()  # ends the stream; the reader reports it
                    heard = self._now()
                continue
            heard = self._now()
            if isinstance(piece, _Broken):
                end = self._stream_ended(piece)
                if end is not None:
                    return end
            else:
                self._take(piece)

    def _taken_away(self, silent: float) -> bool:
        """Whether the provider says so of a silent machine.

        Clouds that stop a machine without notice leave the link to find out by itself, which
        takes minutes of trying to reconnect.
        """
        if silent < _ASK_SECONDS or self._now() < self._ask_at:
            return False
        self._ask_at = self._now() + _ASK_SECONDS
        return told_interrupted(self._work, self._live.machine)

    def _now(self) -> float:
        return self._work.fleet.clock.monotonic()

    def _next(self) -> _Piece | None:
        try:
            return self._pieces.get(timeout=_TICK_SECONDS)
        except queue.Empty:
            return None

    def _listen(self) -> None:
        threading.Thread(target=self._read, name="watch", daemon=True).start()

    def _read(self) -> None:
        error: RemoteError | None = None
        try:
            for piece in self._live.agent.watch(self._offset):
                self._pieces.put(piece)
        except RemoteError as broken:
            error = broken
        self._pieces.put(_Broken(error))

    def _take(self, piece: StateUpdate | LogLine | Beat) -> None:
        self._out_of_reach_since = None
        self._reconnect_pause = _RECONNECT_FIRST_SECONDS
        if isinstance(piece, LogLine):
            self._log(piece)
        elif isinstance(piece, StateUpdate) and piece.job is not None:
            self._note(piece.job)

    def _log(self, line: LogLine) -> None:
        self._offset = line.next
        entry = Entry(self._live.number, line.next, line.at, line.stream, line.data)
        try:
            self._work.journal.append(entry)
        except OSError as error:
            self._warn_once(f"the local copy of the log cannot be written: {error.strerror}")
        if line.stream != "agent":  # its steps are told as steps
            self._work.report.output(line.stream, printable(line.data))

    def _note(self, job: JobState) -> None:
        before = self._state.phase if self._state else None
        self._state = job
        if job.phase == "running" and before != "running":
            self._record(
                lambda: self._work.fleet.ledger.record(
                    "run_state", run=self._work.run_id, state="running"
                )
            )
            self._work.report.step("the job runs")
        if job.notice is not None and "notice" not in self._said:
            self._said.add("notice")
            self._work.report.warn(
                f"{self._live.machine}: the machine will be taken away; the job is saving its work"
            )
        self._note_sync(job.sync)
        for skipped in job.skipped:
            self._warn_once(f"not taken as a checkpoint: {printable(skipped.name)}: {skipped.why}")
        self._note_checkpoints()

    def _note_checkpoints(self) -> None:
        """Write down what has become safe."""
        for checkpoint in self._state.checkpoints if self._state else ():
            if checkpoint.shipped and checkpoint.seq not in self._shipped:
                if self._relay is None or self._relay.has_arrived(checkpoint.seq):
                    self._record(partial(self._note_shipped, checkpoint))
                else:
                    self._relay.offer(checkpoint.seq)
        if self._relay is not None and (trouble := self._relay.trouble):
            self._warn_once(f"what the machine has cannot be brought to the store yet: {trouble}")

    def _note_shipped(self, checkpoint: CheckpointState) -> None:
        note_checkpoint(self._work, self._live.number, checkpoint)
        self._shipped.add(checkpoint.seq)
        self._work.report.step(f"checkpoint {printable(checkpoint.name)} is safe")
        prune_checkpoints(self._work, self._warn_once)

    def _renew_grant(self) -> None:
        """Give the machine a new way into an S3 store before the old one ends."""
        if self._relay is not None or self._work.store.folder is not None:
            return
        if self._state is None or self._state.phase == "ended" or self._now() < self._grant_due:
            return
        self._grant_due = self._now() + _GRANT_SECONDS
        try:
            grant = self._work.store.write_grant()
            if grant is not None:
                self._live.agent.grant(grant)
        except (RemoteError, StoreError) as error:
            self._grant_due = self._now() + _GRANT_AGAIN_SECONDS
            self._warn_once(f"the machine's way to the store was not renewed yet: {error.message}")

    def _record(self, write: Callable[[], object]) -> None:
        """Write what the machine and the store know too: without it the job need not end.

        What could not be written is tried again when the state changes. The lease is another
        matter: where it cannot be renewed, the machine ends with it.
        """
        try:
            write()
        except LedgerError as error:
            self._warn_once(error.message)

    def _note_sync(self, sync: SyncState) -> None:
        if sync.ok == self._sync_ok:
            return
        self._sync_ok = sync.ok
        if not sync.ok:
            self._grant_due = self._now()  # it may be what has ended
        if sync.ok:
            self._work.report.step("the store takes it again")
        else:
            self._work.report.warn(
                f"the store does not take what {self._live.machine} sends: {sync.error}; "
                "it goes on trying"
            )

    def _warn_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._work.report.warn(text)

    def _pass_on_stop(self) -> bool:
        """Tell the agent when somebody asked to stop; False when it cannot be told in time."""
        if not self._work.stop.requested or self._stop_taken or self._now() < self._stop_again_at:
            return True
        if self._stop_asked_at is None:
            self._stop_asked_at = self._now()
            self._work.report.step("stopping the job; it may save its work")
        try:
            job = self._live.agent.status().job
            self._done_before_stop = job is not None and job.phase in ("syncing", "ended")
            if not self._done_before_stop:
                self._live.agent.stop("cancelled", TERM_GRACE_SECONDS)
            self._stop_taken = True
        except RemoteError as error:
            self._warn_once(f"the machine could not be told to stop: {error.message}")
            self._stop_again_at = self._now() + _STOP_AGAIN_SECONDS
        return self._stop_taken or self._now() - self._stop_asked_at < TERM_GRACE_SECONDS

    def _stream_ended(self, broken: _Broken) -> AttemptEnd | None:
        """Decide what a stream that ended means; None: listen again."""
        if self._state is not None and self._state.phase == "ended":
            return self._ended(self._state)
        fate = fate_of(self._work, self._live.machine)
        if fate == "alive" or fate == "unknown":
            since = self._out_of_reach_since = self._out_of_reach_since or self._now()
            if self._now() - since < _LOST_AFTER_SECONDS and not (
                self._stop_asked_at is not None and self._now() - since > TERM_GRACE_SECONDS
            ):
                self._work.fleet.clock.sleep(self._reconnect_pause)
                self._reconnect_pause = min(self._reconnect_pause * 2, _RECONNECT_MOST_SECONDS)
                self._listen()
                return None
        if self._stop_asked_at is not None:
            return AttemptEnd("cancelled", "stopped on request")
        why = f" ({broken.error.message})" if broken.error else ""
        if fate == "interrupted" or (self._state is not None and self._state.notice is not None):
            return AttemptEnd("interrupted", f"{self._live.machine} was taken away")
        return AttemptEnd("lost", f"{self._live.machine} was lost{why}")

    def _ended(self, job: JobState) -> AttemptEnd:
        error = job.sync.error
        if self._relay is not None and not self._relayed():
            error = self._relay.trouble or "there was no time left"
        unsafe = [printable(one.name) for one in job.checkpoints if not self._is_safe(one)]
        if unsafe:
            self._work.report.warn(
                f"the store did not take the checkpoints {', '.join(unsafe)} "
                f"({error or 'no reason is known'}); they go with the machine"
            )
        return replace(self._judged(job), outputs=job.outputs)

    def _relayed(self) -> bool:
        """Bring what is left on the machine; the lease is renewed meanwhile, up to the hard end."""
        row = self._work.fleet.ledger.machine(self._live.machine)
        if self._relay is None or row is None:
            return True
        self._work.report.step(f"fetching what is left from {self._live.machine}")
        done = self._relay.finish(row.hard_end)
        self._note_checkpoints()
        return done

    def _is_safe(self, checkpoint: CheckpointState) -> bool:
        """Whether a checkpoint is in the store, or was and has been replaced by newer ones."""
        if self._relay is None:
            return checkpoint.shipped
        newer = any(seq > checkpoint.seq for seq in self._shipped)
        return checkpoint.shipped and (checkpoint.seq in self._shipped or newer)

    def _judged(self, job: JobState) -> AttemptEnd:
        if self._stop_asked_at is not None and not self._done_before_stop:
            # Many jobs answer a SIGTERM with their last checkpoint and exit code 0: not done.
            return AttemptEnd("cancelled", "stopped on request", job.exit_code)
        if job.supervisor_lost:
            return AttemptEnd("lost", "the agent's supervisor died", job.exit_code)
        if job.outcome == "completed":
            return AttemptEnd("completed", self._shortfall(job), job.exit_code)
        if job.outcome == "failed":
            return AttemptEnd("failed", job.reason or "the job failed", job.exit_code)
        if job.outcome == "capped":
            return AttemptEnd("capped", job.reason or "a cap was reached", job.exit_code)
        if job.outcome == "interrupted":
            return AttemptEnd("interrupted", job.reason or "the machine was taken away")
        if job.outcome == "cancelled":
            return AttemptEnd("cancelled", job.reason or "stopped on request", job.exit_code)
        return AttemptEnd("lost", job.reason or "the lease ran out")

    def _shortfall(self, job: JobState) -> str:
        missing = [output.source for output in job.outputs if output.missing]
        return f"outputs that were not there: {', '.join(missing)}" if missing else ""


def fate_of(work: Work, name: str) -> Fate:
    """Ask the provider what became of a machine."""
    row = work.fleet.ledger.machine(name)
    if row is None or row.provider_id is None:
        return "gone"
    try:
        machine = work.fleet.provider(row.provider).get(row.provider_id)
    except NotFound:
        return "interrupted" if row.spot else "gone"
    except (ProviderError, GpuctlError):
        return "unknown"
    if machine.reason == "interrupted":
        return "interrupted"
    if machine.state in (State.READY, State.BOOTING, State.UNKNOWN):
        return "alive"
    return "interrupted" if row.spot else "gone"


def told_interrupted(work: Work, name: str) -> bool:
    """Whether the provider itself says that it took a machine away."""
    row = work.fleet.ledger.machine(name)
    if row is None or row.provider_id is None:
        return False
    try:
        return work.fleet.provider(row.provider).get(row.provider_id).reason == "interrupted"
    except (ProviderError, GpuctlError):
        return False  # no answer, or no memory of it: then nobody knows more than "lost"
