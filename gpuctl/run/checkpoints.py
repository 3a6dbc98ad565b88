"""What the ledger knows of a run's checkpoints: noted when they are safe, and when pruned."""

from __future__ import annotations

from collections.abc import Callable

from gpuctl.agent.client import CheckpointState
from gpuctl.errors import StoreError
from gpuctl.run.work import Work
from gpuctl.store import Manifest


def known_checkpoints(work: Work, number: int) -> set[int]:
    """Return what of an attempt's checkpoints is in the ledger, also what was pruned since."""
    return {
        int(event.facts["seq"])
        for event in work.fleet.ledger.events(run=work.run_id)
        if event.kind == "checkpoint" and event.facts["attempt"] == number
    }


def note_checkpoint(work: Work, number: int, shipped: CheckpointState | Manifest) -> None:
    """Write into the ledger that a checkpoint is safe."""
    work.fleet.ledger.record(
        "checkpoint",
        run=work.run_id,
        attempt=number,
        seq=shipped.seq,
        name=shipped.name,
        version=shipped.version,
        step=shipped.step,
        at=shipped.at,
        bytes=shipped.bytes,
    )


def note_unwatched(work: Work, number: int) -> None:
    """Write into the ledger what an attempt shipped while nobody watched.

    Raises:
        StoreError: the store cannot be read.
    """
    known = known_checkpoints(work, number)
    for manifest in reversed(work.store.manifests()):
        if manifest.kind != "checkpoint" or manifest.attempt != number or manifest.seq in known:
            continue
        note_checkpoint(work, number, manifest)
    prune_checkpoints(work, work.report.warn)


def prune_checkpoints(work: Work, warn: Callable[[str], None]) -> None:
    """Remove from the store, and from the run's list, what `checkpoints.keep` lets go."""
    try:
        pruned = work.store.prune(work.spec.checkpoints.keep)
    except StoreError as error:
        # Keeping too many loses nothing.
        warn(f"old checkpoints could not be removed: {error.message}")
        return
    for manifest in pruned.manifests:
        work.fleet.ledger.record(
            "checkpoint_pruned", run=work.run_id, attempt=manifest.attempt, seq=manifest.seq
        )
