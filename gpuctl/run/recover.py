"""What comes after an attempt. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gpuctl.agent.client import OutputState

Outcome = Literal["completed", "failed", "interrupted", "cancelled", "lost", "capped"]
Fault = Literal["job", "machine", "nobody"]


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How an attempt ended."""

    outcome: Outcome
    reason: str
    exit_code: int | None = None
    # A machine that was not what had been paid for: the next offer is tried, and that is not
    # counted as a recovery.
    unfit: bool = False
    outputs: tuple[OutputState, ...] = ()  # what its agent says of them, where it was asked


@dataclass(frozen=True, slots=True)
class Next:
    """What the run does now."""

    again: bool
    state: Literal["recovering", "succeeded", "failed", "cancelled"]
    reason: str | None = None


def after(end: AttemptEnd, *, recoveries: int, max_recoveries: int) -> Next:
    """Decide what follows an attempt.

    A job that fails by its own fault is not tried again; a machine that fails under it is.

    Args:
        recoveries: how many machines were lost or interrupted before this one.
    """
    if end.outcome == "completed":
        return Next(False, "succeeded", end.reason or None)
    if end.outcome == "cancelled":
        return Next(False, "cancelled", end.reason)
    if end.outcome in ("failed", "capped") and not end.unfit:
        return Next(False, "failed", end.reason)
    if end.unfit:
        return Next(True, "recovering", end.reason)
    if recoveries >= max_recoveries:
        return Next(
            False,
            "failed",
            f"{end.reason}; max_recoveries ({max_recoveries}) is used up",
        )
    return Next(True, "recovering", end.reason)
