"""Opening a run in the ledger, and opening it again for whoever carries it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpuctl.errors import UsageError
from gpuctl.fleet.context import Fleet
from gpuctl.ledger import RunRow
from gpuctl.names import new_run_id
from gpuctl.run.journal import Journal
from gpuctl.run.prepare import Options, check_inputs, options_from, options_json, secrets_of
from gpuctl.run.reporting import Reporter
from gpuctl.run.stopping import StopRequest
from gpuctl.run.work import Work
from gpuctl.spec import RunSpec
from gpuctl.store import Store, open_store


def start_run(
    fleet: Fleet, spec: RunSpec, spec_file: Path, named: Sequence[str], options: Options
) -> RunRow:
    """Open a run in the ledger. Nothing is rented.

    Raises:
        SpecError: an input is not on this computer.
        UsageError: a secret is not in this environment.
        StoreError: the store cannot be used.
    """
    check_inputs(spec, fleet.environ)
    secrets_of(spec, fleet.environ)
    run_id = new_run_id(spec.name)
    location = store_location(spec, fleet)
    _check_store(open_store(location, run_id, environ=fleet.environ))
    fleet.ledger.record(
        "run_opened",
        run=run_id,
        name=spec.name,
        spec={
            "train": spec.to_json(),
            "options": options_json(options),
            "providers": list(named),
        },
        spec_file=str(spec_file),
        owner=fleet.home.owner,
        store=location,
        detached=options.detach,
    )
    return _row(fleet, run_id)


def _check_store(store: Store) -> None:
    """Ask the store: a wrong bucket or key must not be found out on a machine that bills."""
    store.manifests()


def store_location(spec: RunSpec, fleet: Fleet) -> str:
    """Return where a run's checkpoints and outputs are kept: without a word, in GPUCTL_HOME."""
    return spec.checkpoints.store or str(fleet.home.store)


def open_work(
    fleet: Fleet,
    run_id: str,
    stop: StopRequest,
    report: Reporter,
    *,
    with_secrets: bool = True,
) -> Work:
    """Return a run with everything that its phases need.

    Args:
        with_secrets: whether a job may be started; ending one needs no secrets.

    Raises:
        UsageError: there is no such run, or a secret is not in this environment.
        StoreError: its store cannot be used.
    """
    run = _row(fleet, run_id)
    spec = RunSpec.from_json(run.spec["train"])
    return Work(
        fleet=fleet,
        run_id=run_id,
        spec=spec,
        named=tuple(run.spec["providers"]),
        options=options_from(run.spec["options"]),
        secrets=secrets_of(spec, fleet.environ) if with_secrets else {},
        store=open_store(run.store, run_id, environ=fleet.environ),
        stop=stop,
        report=report,
        journal=Journal(fleet.home, run_id),
    )


def _row(fleet: Fleet, run_id: str) -> RunRow:
    row = fleet.ledger.run(run_id)
    if row is None:
        raise UsageError(f"There is no run {run_id}", next="`gpuctl runs` lists them.")
    return row
