"""After an attempt: the result back to this computer, the machine released."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gpuctl.agent.client import OutputState
from gpuctl.errors import GpuctlError, NoCredentials, RemoteError, StoreError
from gpuctl.fleet.access import stays
from gpuctl.fleet.borrowed import current
from gpuctl.fleet.guarding import ensure_watchdog
from gpuctl.fleet.lease import keep, renew
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.release import release_all
from gpuctl.fleet.uploads import give_up_uploads
from gpuctl.ledger import MachineRow
from gpuctl.run.buckets import output_from_machine, output_from_store
from gpuctl.run.launch import workdir_on
from gpuctl.run.work import Live, Work
from gpuctl.spec import Output, is_s3
from gpuctl.store import CorruptManifest, Manifest

_WHAT_IS = 'test -d "$1" && exit 10; test -e "$1" && exit 11; exit 12'
_FILE, _NOTHING = 11, 12
_LOOK_SECONDS = 60.0


class OnlyThere(GpuctlError):
    """A result that neither the store nor this computer has: only its machine."""

    kind = "OnlyOnMachine"


def deliver_outputs(
    work: Work,
    number: int,
    *,
    quietly: bool = False,
    live: Live | None = None,
    told: Sequence[OutputState] = (),
) -> list[str]:
    """Fetch an attempt's outputs to where the spec wants them: from the store, else the machine.

    Returns the targets.

    Args:
        quietly: do not warn about outputs that are not there (the job did not get so far).
        live: the machine, while it can be reached.
        told: what its agent says of them.

    Raises:
        StoreError: it could not be fetched; it is still in the store.
        OnlyThere: the store does not have it, and it could not be fetched from the machine.
    """
    if not work.spec.outputs:
        return []
    stored, trouble = _stored_outputs(work, number)
    trouble = trouble if live is None else None  # else the machine still has everything
    missing = {output.source for output in told if output.missing}
    delivered: list[str] = []
    for output in work.spec.outputs:
        found = stored.get(output.source)
        there = None if output.source in missing else live
        deliver = _to_bucket if is_s3(output.target) else _to_here
        dest = deliver(work, there, output, found, trouble)
        if dest is not None:
            delivered.append(str(dest))
        elif not quietly:
            work.report.warn(f"the output {output.source} was not there")
    return delivered


def _stored_outputs(work: Work, number: int) -> tuple[dict[str, Manifest], StoreError | None]:
    newest: dict[str, Manifest] = {}
    try:
        for manifest in work.store.manifests():  # newest first
            if manifest.kind == "output" and manifest.attempt == number:
                newest.setdefault(manifest.name, manifest)
    except StoreError as error:
        return {}, error
    return newest, None


def _to_here(
    work: Work,
    live: Live | None,
    output: Output,
    found: Manifest | None,
    trouble: StoreError | None,
) -> Path | None:
    """Fetch an output to this computer: from the store, else from its machine."""
    dest = None
    try:
        if found is not None:
            dest = _from_store(work, found, output)
        elif trouble is not None:
            raise trouble
    except StoreError as error:
        if live is None:
            raise
        work.report.warn(error.message)
    if dest is None and live is not None:
        dest = _from_machine(work, live, output, in_store=found is not None)
    return dest


def _from_store(work: Work, found: Manifest, output: Output) -> Path:
    dest = output_path(output.source, output.target, is_file=found.is_file)
    work.report.step(f"fetching {output.source} to {dest}")
    try:
        work.store.fetch(found, dest)
    except CorruptManifest as error:
        raise StoreError(
            f"The output {output.source} is corrupt in {work.store.location}: {error}",
            next=f"`gpuctl resume {work.run_id}` makes it again from the last checkpoint.",
        ) from error
    _note_output(work, output, dest, found.bytes)
    return dest


def _from_machine(work: Work, live: Live, output: Output, *, in_store: bool) -> Path | None:
    """Fetch an output from its machine; None when it is not there either."""
    path = f"{workdir_on(live.connection)}/{output.source}"
    try:
        looked = live.connection.run(["sh", "-c", _WHAT_IS, "sh", path], timeout=_LOOK_SECONDS)
        if looked.exit_code == _NOTHING:
            return None
        dest = output_path(output.source, output.target, is_file=looked.exit_code == _FILE)
        work.report.warn(
            f"the store does not give {output.source}; fetching it from {live.machine} to {dest}"
        )
        got = live.connection.get(path, dest)
    except RemoteError as error:
        if in_store:
            raise StoreError(
                f"{output.source} could not be fetched: {error.message}",
                next=f"It is in {work.store.location}: `gpuctl resume {work.run_id}` fetches it.",
            ) from error
        raise OnlyThere(
            f"{output.source} is only on {live.machine}: the store did not take it, and it could "
            f"not be fetched from there: {error.message}",
            machine=live.machine,
            next=f"`gpuctl resume {work.run_id}` tries again while the machine is there.",
        ) from error
    _note_output(work, output, dest, got.bytes)
    return dest


def _to_bucket(
    work: Work,
    live: Live | None,
    output: Output,
    found: Manifest | None,
    trouble: StoreError | None,
) -> str | None:
    """Send an output to its bucket: straight from its machine, else from the store."""
    try:
        if live is not None:
            path = f"{workdir_on(live.connection)}/{output.source}"
            size = output_from_machine(work, live, output, path)
            if size is not None:
                _note_output(work, output, output.target, size)
                return output.target
    except (RemoteError, StoreError, NoCredentials) as error:
        if found is None:
            raise OnlyThere(
                f"{output.source} is only on {live.machine if live else 'its machine'}: it could "
                f"not be sent to {output.target}: {error.message}",
                machine=live.machine if live else None,
                next=f"{error.next or ''} `gpuctl resume {work.run_id}` tries again while the "
                "machine is there.".strip(),
            ) from error
        work.report.warn(error.message)
    if found is None:
        if trouble is not None:
            raise trouble
        return None
    work.report.step(f"sending {output.source} from the store to {output.target}")
    try:
        size = output_from_store(work, found, output)
    except (StoreError, NoCredentials) as error:
        raise StoreError(
            f"{output.source} could not be sent to {output.target}: {error.message}",
            next=f"It is in {work.store.location}: `gpuctl resume {work.run_id}` sends it.",
        ) from error
    _note_output(work, output, output.target, size)
    return output.target


def _note_output(work: Work, output: Output, dest: Path | str, size: int) -> None:
    work.fleet.ledger.record(
        "output", run=work.run_id, **{"from": output.source, "to": str(dest)}, bytes=size
    )


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
    for trouble in give_up_uploads(work.fleet):
        work.report.warn(trouble.message)
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
    lent = current(work.fleet, work.options.machine or "")
    if lent is not None and not lent.closed:
        work.report.step(stays(lent))
    return receipts


def _together(errors: list[GpuctlError]) -> GpuctlError:
    first = max(errors, key=lambda error: error.may_bill)
    if len(errors) > 1:
        first.message += f" (and {len(errors) - 1} more)"
    return first
