"""Before anything is rented: what the spec asks for, what it needs from this computer, offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from gpuctl.buckets import check_source, check_target
from gpuctl.errors import NoCredentials, SpecError, StoreError, UsageError
from gpuctl.ledger import RunRow
from gpuctl.run.caps import Caps
from gpuctl.run.preflight import Needs
from gpuctl.spec import RunSpec, is_s3, missing_secrets
from gpuctl.store.bucket import Address, parse_address
from providers.base import Rehearsal, Want


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line adds to a spec. Kept in the ledger, so that `resume` knows."""

    lease_seconds: float
    keep_failed_seconds: float = 0
    detach: bool = False
    rehearsal: Rehearsal | None = None
    machine: str | None = None  # the one that is lent to the run; else one is rented


def options_json(options: Options) -> dict[str, Any]:
    """Return options as the ledger keeps them."""
    return asdict(options)


def options_from(facts: Mapping[str, Any]) -> Options:
    """Read options back from the ledger."""
    rehearsal = facts.get("rehearsal")
    return Options(
        lease_seconds=float(facts["lease_seconds"]),
        keep_failed_seconds=float(facts["keep_failed_seconds"]),
        detach=bool(facts["detach"]),
        rehearsal=Rehearsal(**rehearsal) if rehearsal else None,
        machine=facts.get("machine"),
    )


def spot_of(spec: RunSpec) -> bool | None:
    """Return whether only spot, only on-demand, or either (None) will do."""
    spot = spec.resources.spot
    return None if spot == "auto" else bool(spot)


def want_of(spec: RunSpec) -> Want:
    """Return what the spec asks of the market."""
    resources = spec.resources
    return Want(
        gpus=tuple(resources.gpu),
        gpu_count=resources.count,
        cpus=resources.cpus,
        memory_gb=resources.memory,
        disk_gb=resources.disk,
        spot=spot_of(spec),
        regions=tuple(resources.regions),
        min_vram_gb=spec.preflight.min_vram,
        max_price_hour=resources.max_price,
        image=resources.image,
    )


def needs_of(spec: RunSpec) -> Needs:
    """Return what the spec demands of the hardware, checked on the machine before set-up."""
    resources = spec.resources
    wants_gpu = bool(resources.gpu)
    return Needs(
        gpu_count=resources.count if wants_gpu else 0,
        min_vram_gb=spec.preflight.min_vram,
        bf16=spec.preflight.bf16,
        cuda=wants_gpu,
        disk_free_gb=spec.preflight.disk_free,
        cpus=resources.cpus,
        memory_gb=resources.memory,
    )


def caps_of(spec: RunSpec, started: datetime) -> Caps:
    """Return the caps of a run that started at a moment."""
    deadline = spec.budget.deadline
    return Caps(
        max_cost=spec.budget.max_cost,
        max_duration=spec.budget.max_duration,
        deadline=started + deadline if isinstance(deadline, timedelta) else deadline,
    )


def secrets_of(spec: RunSpec, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the values of the spec's secrets from the caller's environment.

    Raises:
        UsageError: one is not there.
    """
    missing = missing_secrets(spec, environ)
    if missing:
        raise UsageError(
            f"The secret {missing[0]} is named in the spec and not in this environment"
            + (f" (nor are {', '.join(missing[1:])})" if len(missing) > 1 else ""),
            next=f"export {missing[0]}=… and run again; nothing was rented.",
        )
    return {name: environ[name] for name in spec.secrets}


def check_inputs(spec: RunSpec, environ: Mapping[str, str]) -> None:
    """Check what the run needs from this computer and from buckets, before a machine is rented.

    Args:
        spec: whose inputs, and whose outputs' buckets.
        environ: the AWS SDK's own settings.

    Raises:
        SpecError: a folder or file is not there, or a bucket is not as it must be.
        NoCredentials: a bucket does not let this computer in.
    """
    if not Path(spec.workdir).is_dir():
        raise SpecError(f"workdir: {spec.workdir} is not a folder")
    for index, item in enumerate(spec.data):
        key = f"data.{index}.from"
        if is_s3(item.source):
            _ask_bucket(key, check_source, item.source, environ)
        elif not Path(item.source).exists():
            raise SpecError(f"{key}: there is no {item.source}")
    for index, output in enumerate(spec.outputs):
        if is_s3(output.target):
            _ask_bucket(f"outputs.{index}.to", check_target, output.target, environ)


def _ask_bucket(
    key: str,
    check: Callable[[Address, Mapping[str, str]], None],
    text: str,
    environ: Mapping[str, str],
) -> None:
    try:
        check(parse_address(text), environ)
    except NoCredentials as error:
        raise NoCredentials(f"{key}: {error.message}", next=error.next) from error
    except (UsageError, StoreError) as error:
        raise SpecError(f"{key}: {error.message}", next=error.next) from error


def used_by(run: RunRow, now: datetime) -> timedelta:
    """Return how long machines were rented for a run, summed over its attempts."""
    total = timedelta()
    for attempt in run.attempts:
        total += (attempt.ended_at or now) - attempt.started_at
    return total


def asked(spec: RunSpec, named: Sequence[str]) -> list[str]:
    """Return who is asked: the command line's names, else the spec's; none = everybody in reach."""
    return list(named) or list(spec.resources.providers)
