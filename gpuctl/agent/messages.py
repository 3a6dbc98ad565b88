"""What is said to an agent, and what it answers. See docs/agent-protocol.md.

Answers come from a machine of a stranger: they are parsed, unknown keys are ignored, and names
and texts in them stay what they are, data. Moments are epoch seconds by the machine's clock
unless a field says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Phase = Literal["preflight", "setup", "running", "stopping", "syncing", "ended"]
Outcome = Literal["completed", "failed", "interrupted", "cancelled", "capped", "lease"]
Stream = Literal["out", "err", "agent"]
StopReason = Literal["cancelled", "capped", "interrupted", "lease"]

_Bytes = Annotated[int, Field(ge=0)]


def _in_utc(moment: datetime) -> datetime:
    if moment.tzinfo is None:
        raise ValueError("a moment without a time zone")
    return moment


_Moment = Annotated[datetime, AfterValidator(_in_utc)]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class Gpu(_Answer):
    """One card, as its driver describes it."""

    name: str
    vram_gb: float  # as makers count: 1024 MiB are one
    compute_capability: str | None = None
    driver: str | None = None


class Probe(_Answer):
    """Facts of a machine."""

    python: str
    os: str
    cpus: int
    ram_gb: float  # 10^9 bytes
    disk_free_gb: float  # 10^9 bytes
    gpus: tuple[Gpu, ...] = ()
    cuda: str | None = None  # the newest that the driver runs
    boot_id: str | None = None


class GuardState(_Answer):
    """The guard, which holds the machine's lease."""

    state: str  # armed, finishing (the lease is over, the job goes on), ending or ended
    alive: bool = False
    lease_until: float | None = None
    hard_end: float | None = None
    on_lease_end: str | None = None
    idle_seconds: float | None = None
    idle: bool = False  # it ended the machine because nobody used it
    end_tries: int = 0
    end_error: str | None = None


class CheckpointState(_Answer):
    """A checkpoint that the agent found whole."""

    name: str
    version: int
    step: int | None = None
    seq: int
    at: _Moment
    bytes: _Bytes
    shipped: bool = False  # whether it is in the store


class SkippedState(_Answer):
    """Something that was not taken."""

    name: str
    why: str


class OutputState(_Answer):
    """What became of an output."""

    source: str = Field(alias="from")
    seq: int | None = None
    bytes: _Bytes | None = None
    shipped: bool = False
    missing: bool = False


class NoticeState(_Answer):
    """The machine is going to be taken away."""

    source: str
    at: float
    deadline: float | None = None


class SyncState(_Answer):
    """Whether the store takes what it is sent."""

    ok: bool = True
    error: str | None = None


class GpuSample(_Answer):
    """How busy one card is."""

    util_percent: float | None = None
    vram_used_gb: float | None = None


class Sample(_Answer):
    """How busy the machine is."""

    at: float
    cpu_percent: float | None = None
    ram_gb: float | None = None
    disk_free_gb: float | None = None
    gpus: tuple[GpuSample, ...] = ()


class JobState(_Answer):
    """A job, as its supervisor describes it."""

    run: str
    attempt: int
    phase: Phase
    started_at: float | None = None
    job_started_at: float | None = None
    ended_at: float | None = None
    failed_phase: Literal["preflight", "setup", "run"] | None = None
    exit_code: int | None = None
    signal: int | None = None
    outcome: Outcome | None = None
    reason: str | None = None
    notice: NoticeState | None = None
    checkpoints: tuple[CheckpointState, ...] = ()
    skipped: tuple[SkippedState, ...] = ()
    outputs: tuple[OutputState, ...] = ()
    sync: SyncState = SyncState()
    sample: Sample | None = None
    log_end: int = 0
    supervisor_lost: bool = False


class AgentStatus(_Answer):
    """Guard and job at once; ``None`` where there is none."""

    guard: GuardState | None = None
    job: JobState | None = None


class Begun(_Answer):
    """The agent is there: the guard's state and the machine's facts."""

    python: str  # the path of the Python that runs it
    guard: GuardState
    probe: Probe


class StateUpdate(_Answer):
    """Something changed."""

    job: JobState | None = None
    guard: GuardState | None = None


class LogLine(_Answer):
    """A piece of output as it came, not necessarily a whole line. `printable` before printing."""

    stream: Stream
    at: float
    data: str
    next: Annotated[int, Field(ge=0)]  # where to go on after a break


class Beat(_Answer):
    """The machine is there."""

    at: float
    lease_until: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """What a machine is to do. Paths are the machine's.

    Args:
        secrets: reach the machine's memory only; never shown.
        outputs: what to ship at the end, relative to ``workdir``.
        store: a write grant of the store, or None to ship nothing.
        stop_after_seconds: counted from the submit.
        notice: where interruption notices come from: ``{"file": path}``, ``{"aws": root}``.
    """

    run: str
    attempt: int
    workdir: str
    command: str
    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    preflight: str | None = None
    setup: str | None = None
    checkpoint_dir: str | None = None
    settle_seconds: float = 2
    outputs: Sequence[str] = ()
    store: Mapping[str, Any] | None = field(default=None, repr=False)
    stop_after_seconds: float | None = None
    term_grace_seconds: float = 30
    notice: Sequence[Mapping[str, str]] = ()
    poll_seconds: float = 0.2
    log_keep_bytes: int = 1 << 30
    sync_seconds: float = 600

    def document(self) -> dict[str, Any]:
        """Return the JSON object that `submit` takes. It holds the secrets."""
        return {
            "run": self.run,
            "attempt": self.attempt,
            "workdir": self.workdir,
            "command": self.command,
            "env": dict(self.env),
            "secrets": dict(self.secrets),
            "preflight": self.preflight,
            "setup": self.setup,
            "checkpoint_dir": self.checkpoint_dir,
            "settle_seconds": self.settle_seconds,
            "outputs": [{"from": source} for source in self.outputs],
            "store": None if self.store is None else dict(self.store),
            "stop_after_seconds": self.stop_after_seconds,
            "term_grace_seconds": self.term_grace_seconds,
            "notice": [dict(source) for source in self.notice],
            "poll_seconds": self.poll_seconds,
            "log_keep_bytes": self.log_keep_bytes,
            "sync_seconds": self.sync_seconds,
        }
