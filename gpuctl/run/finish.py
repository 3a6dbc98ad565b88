"""After an attempt: the result back to this computer, the machine released."""

from __future__ import annotations

from pathlib import Path

from gpuctl.errors import GpuctlError, StoreError
from gpuctl.fleet.lease import keep, renew
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.release import release_all
from gpuctl.fleet.watchdog import ensure_watchdog
from gpuctl.ledger import MachineRow
from gpuctl.run.work import Live, Work
from gpuctl.store import CorruptManifest, Manifest


def deliver_outputs(work: Work, number: int, *, quietly: bool = False) -> list[str]:
    """Fetch what the attempt shipped as outputs from the store to where the spec wants it.

    Returns the targets.

    Args:
        quietly: do not warn about outputs that are not there (the job did not get so far).

    Raises:
        StoreError: it could not be fetched; it is still in the store.
    """
    newest: dict[str, Manifest] = {}
    for manifest in work.store.manifests():  # newest first
        if manifest.kind == "output" and manifest.attempt == number:
            newest.setdefault(manifest.name, manifest)
    delivered: list[str] = []
    for output in work.spec.outputs:
        found = newest.get(output.source)
        if found is None:
            if not quietly:
                work.report.warn(f"the output {output.source} was not there")
            continue
        dest = output_path(output.source, output.target, is_file=found.is_file)
        work.report.step(f"fetching {output.source} to {dest}")
        try:
            work.store.fetch(found, dest)
        except CorruptManifest as error:
            raise StoreError(
                f"The output {output.source} is corrupt in {work.store.location}: {error}",
                next=f"`gpuctl resume {work.run_id}` makes it again from the last checkpoint.",
            ) from error
        work.fleet.ledger.record(
            "output", run=work.run_id, **{"from": output.source, "to": str(dest)}, bytes=found.bytes
        )
        delivered.append(str(dest))
    return delivered


def output_path(source: str, target: str, *, is_file: bool) -> Path:
    """Return where an output lands.

    A folder's contents land in the target. A file lands in the target under its own name, unless
    the target looks like a file's name itself (it has a suffix and no slash at its end).
    """
    path = Path(target)
    if not is_file:
        return path
    names_a_file = not target.endswith("/") and path.suffix != "" and not path.is_dir()
    return path if names_a_file else path / Path(source).name


def hold(work: Work, live: Live, row: MachineRow, seconds: float) -> None:
    """Leave a machine to the watchdog for a look, within its hard end."""
    keeper = ensure_watchdog(work.fleet.home, work.fleet.environ)
    row = work.fleet.ledger.machine(row.name) or row
    until = renew(work.fleet, row, seconds, on_machine=live.agent.renew)
    keep(work.fleet, row, keeper, detached=False)
    work.report.warn(
        f"{row.name} is kept until {until:%Y-%m-%d %H:%M:%S} UTC and bills until then. "
        + how_to_look(row.name)
    )


def how_to_look(name: str) -> str:
    """Say how to look at a machine that is held, and how to end it."""
    return f"`gpuctl ssh {name}` shows it, `gpuctl terminate {name}` ends it."


def release_machines(work: Work, why: str, *, spare: str | None = None) -> list[Receipt]:
    """End every machine of the run that is still open, and say what it cost.

    Args:
        spare: a machine that is kept on purpose.

    Raises:
        GpuctlError: one may still be billing; the others were ended all the same.
    """
    rows = [
        row
        for row in work.fleet.ledger.machines(open_only=True, run=work.run_id)
        if row.name != spare
    ]
    if not rows:
        return []
    work.report.step(f"releasing {', '.join(row.name for row in rows)}")
    receipts, errors = release_all(work.fleet, rows, why=why)
    for receipt in receipts:
        work.report.step(
            f"{receipt.name} is gone, confirmed {len(receipt.confirmed_by)} times; "
            f"it cost {receipt.cost_usd} USD"
        )
    if errors:
        raise _together(errors)
    return receipts


def _together(errors: list[GpuctlError]) -> GpuctlError:
    first = max(errors, key=lambda error: error.may_bill)
    if len(errors) > 1:
        first.message += f" (and {len(errors) - 1} more)"
    return first
