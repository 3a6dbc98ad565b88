"""`run`, `resume` and `cancel`: the whole job."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import click

from gpuctl.cli import shapes
from gpuctl.cli.ending import show_receipts
from gpuctl.cli.machines import living
from gpuctl.cli.opening import opened
from gpuctl.cli.options import (
    DURATION,
    ParamType,
    ask,
    example,
    json_option,
    require_answer,
    yes_option,
)
from gpuctl.cli.output import Partial, emit
from gpuctl.cli.runs import show_run
from gpuctl.cli.stopping import stoppable
from gpuctl.cli.terminal import Terminal, line
from gpuctl.errors import GpuctlError, UsageError
from gpuctl.fleet.asking import ask_rentable, nothing_found
from gpuctl.fleet.borrowed import lent
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.lease import SHORTEST_LEASE_SECONDS
from gpuctl.fleet.provision import described
from gpuctl.ledger import MachineRow, RunRow
from gpuctl.policy import choose
from gpuctl.quantities import format_duration, format_money, parse_duration
from gpuctl.run.background import detach as carry_in_background
from gpuctl.run.cancel import cancel_run
from gpuctl.run.controller import Controller, RunEnd
from gpuctl.run.opening import start_run
from gpuctl.run.prepare import Options, want_of
from gpuctl.run.reporting import Unhurried
from gpuctl.spec import RunSpec, is_s3, load_spec
from providers.base import Rehearsal

_REHEARSAL = re.compile(r"(?P<after>[^,]+)(?:,\s*notice=(?P<notice>[^,]+))?")


class _RehearsalType(ParamType):
    name = "8s[,notice=5s]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        try:
            return parse_rehearsal(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parse_rehearsal(text: str) -> Rehearsal:
    """Read ``8s`` or ``8s,notice=5s``: when a machine is taken away, and with how much notice.

    Raises:
        ValueError: it is neither.
    """
    found = _REHEARSAL.fullmatch(text.strip())
    if not found:
        raise ValueError(f"expected a duration such as 8s, or 8s,notice=5s; got {text!r}")
    notice = parse_duration(found["notice"]) if found["notice"] else timedelta()
    return Rehearsal(
        after_seconds=parse_duration(found["after"]).total_seconds(),
        notice_seconds=notice.total_seconds(),
    )


@click.command(
    epilog=example(
        "gpuctl run train.yaml --yes",
        "gpuctl run train.yaml --provider local --rehearse-interruption 8s --yes",
        "gpuctl run train.yaml --set resources.gpu=RTX-4090 --detach --yes",
        "gpuctl run train.yaml --machine trainer --yes",
    )
)
@click.argument("spec_file", metavar="TRAIN.YAML", type=click.Path(path_type=Path))
@click.option(
    "--provider", "providers", multiple=True, metavar="P", help="Rent only here. Repeatable."
)
@click.option(
    "--machine",
    metavar="NAME",
    help="Rent nothing: use this one, adopted from Terraform or provisioned. It stays.",
)
@click.option("--detach", is_flag=True, help="Carry the run on in the background.")
@click.option(
    "--lease",
    type=DURATION,
    default="10m",
    show_default=True,
    help="How long the machine lives on when nobody renews it.",
)
@click.option(
    "--keep-failed",
    type=DURATION,
    default="0",
    metavar="DURATION",
    help="Keep the machine of a failed job that long for a look. It bills.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of train.yaml. Repeatable.",
)
@click.option(
    "--rehearse-interruption",
    "rehearsal",
    type=_RehearsalType(),
    help="Have the first machine taken away that long after the job starts. Only with "
    "--provider local.",
)
@yes_option
@json_option
def run(
    spec_file: Path,
    providers: tuple[str, ...],
    machine: str | None,
    detach: bool,
    lease: timedelta,
    keep_failed: timedelta,
    overrides: tuple[str, ...],
    rehearsal: Rehearsal | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Do the whole job of a train.yaml: rent, send, train, save, fetch the result, release.

    When a machine is taken away the next one carries on from the last checkpoint. Ctrl-C stops
    the job and releases the machine.
    """
    spec = load_spec(spec_file, overrides=overrides, environ=os.environ)
    if rehearsal is not None and set(providers) != {"local"}:
        raise UsageError(
            "--rehearse-interruption works only with --provider local: "
            "no cloud takes a machine away on request"
        )
    if lease.total_seconds() < SHORTEST_LEASE_SECONDS:
        raise UsageError(f"--lease: at least {SHORTEST_LEASE_SECONDS:g}s")
    if machine is not None and providers:
        raise UsageError("--machine names the machine, so --provider has nothing to choose")
    require_answer(yes, "run")
    options = Options(
        lease_seconds=lease.total_seconds(),
        keep_failed_seconds=keep_failed.total_seconds(),
        detach=detach,
        rehearsal=rehearsal,
    )
    with _telling() as terminal, opened(terminal.step) as fleet:
        if machine is not None:
            borrowed = lent(living(fleet, machine))
            options = replace(options, machine=borrowed.name)
            _warn_of_its_end(terminal, borrowed, fleet.clock.now())
        if not yes:
            question = (
                _question(fleet, spec, providers)
                if options.machine is None
                else f"Run {spec.name} on {options.machine}, {_caps(spec)}?"
            )
            ask(yes, "run", question)
        if _needs_this_computer(spec, providers):
            terminal.warn(
                "checkpoints go to a folder on this computer: while it is away or asleep they "
                "stay on the machine, and a machine that is lost then loses them "
                "(checkpoints.store: s3://… is reached from anywhere)"
            )
        row = start_run(fleet, spec, spec_file.absolute(), providers, options)
        terminal.step(f"run {row.id}")
        _carry(fleet, terminal, row, in_background=detach, as_json=as_json)


@click.command(epilog=example("gpuctl resume demo-1a2b3c", "gpuctl resume demo --detach --json"))
@click.argument("run")
@click.option("--detach", is_flag=True, help="Carry the run on in the background.")
@json_option
def resume(run: str, detach: bool, as_json: bool) -> None:
    """Carry a run on whose controller died, or that failed or was cancelled.

    Within the lease it re-attaches to the running job; later the next attempt starts from the
    last whole checkpoint.
    """
    with _telling() as terminal, opened(terminal.step) as fleet:
        row = fleet.ledger.find_run(run)
        _carry(fleet, terminal, row, in_background=detach, as_json=as_json)


@click.command(epilog=example("gpuctl cancel demo-1a2b3c --yes", "gpuctl cancel demo --yes --json"))
@click.argument("run")
@yes_option
@json_option
def cancel(run: str, yes: bool, as_json: bool) -> None:
    """End a run: its job saves a last checkpoint, its machines are released.

    A run that has ended already stays as it is.
    """
    with _telling() as terminal, opened(terminal.step) as fleet:
        row = fleet.ledger.find_run(run)
        ask(yes, "cancel", f"End {row.id} and release its machines?")
        try:
            end = cancel_run(fleet, row, terminal)
        except GpuctlError as error:
            raise Partial(error, _document(fleet, row.id)) from error
        _finish(fleet, end, as_json)


def _telling() -> Unhurried:
    terminal = Terminal()
    return Unhurried(terminal, at_end=terminal.close)


def _warn_of_its_end(terminal: Unhurried, row: MachineRow, now: datetime) -> None:
    end = row.hard_end if row.borrowed else row.lease_until
    how = "" if row.borrowed else f" (`gpuctl extend {row.name} 2h` moves that)"
    left = format_duration(timedelta(seconds=round((end - now).total_seconds())))
    terminal.warn(f"{row.name} ends in {left}{how}; what is not done by then is cut short")


def _needs_this_computer(spec: RunSpec, named: tuple[str, ...]) -> bool:
    """Whether checkpoints are safe only while this computer is there, and the machine is not it."""
    rented_elsewhere = set(named or spec.resources.providers) != {"local"}
    return (
        rented_elsewhere
        and spec.checkpoints is not None
        and not is_s3(spec.checkpoints.store or "")
    )


def _carry(
    fleet: Fleet, terminal: Unhurried, row: RunRow, *, in_background: bool, as_json: bool
) -> None:
    try:
        if in_background:
            _leave_to_background(fleet, row, as_json)
            return
        with stoppable(fleet, run=row.id, document=lambda: _document(fleet, row.id)) as stop:
            end = Controller(fleet, row.id, stop.request, terminal).carry()
    except GpuctlError as error:
        raise Partial(error, _document(fleet, row.id)) from error
    terminal.flush()
    _finish(fleet, end, as_json)


def _leave_to_background(fleet: Fleet, row: RunRow, as_json: bool) -> None:
    row = carry_in_background(fleet, row.id)
    if as_json:
        emit({"run": shapes.run(row, fleet.clock.now()), "receipts": []})
        return
    line(f"{row.id} goes on in the background")
    line(f"  follow it  gpuctl logs -f {row.id}")
    line(f"  look at it gpuctl status {row.id}")
    line(f"  end it     gpuctl cancel {row.id}")


def _finish(fleet: Fleet, end: RunEnd, as_json: bool) -> None:
    now = fleet.clock.now()
    document = {
        "run": shapes.run(end.run, now),
        "receipts": [shapes.receipt(one) for one in end.receipts],
    }
    if not as_json:
        show_run(end.run, now)
        if end.receipts:
            show_receipts(end.receipts)
    if end.error is not None:
        raise Partial(end.error, document)
    if as_json:
        emit(document)


def _document(fleet: Fleet, run_id: str) -> shapes.Shape:
    row = fleet.ledger.run(run_id)
    return {} if row is None else {"run": shapes.run(row, fleet.clock.now()), "receipts": []}


def _question(fleet: Fleet, spec: RunSpec, named: tuple[str, ...]) -> str:
    want, asked = want_of(spec), named or tuple(spec.resources.providers)
    found = ask_rentable(fleet, want, asked)
    ranked = choose(found.offers, spot=want.spot, max_price_hour=want.max_price_hour)
    if not ranked:
        raise nothing_found(fleet, want, asked, found, rentable=True)
    best = ranked[0].offer
    return (
        f"Run {spec.name} on {described(best)} from {best.provider} at "
        f"{format_money(best.price_hour)} an hour, {_caps(spec)}?"
    )


def _caps(spec: RunSpec) -> str:
    """Say what the run is held to."""
    caps = []
    if spec.budget.max_cost is not None:
        caps.append(f"at most {format_money(spec.budget.max_cost)}")
    if spec.budget.max_duration is not None:
        caps.append(f"at most {format_duration(spec.budget.max_duration)}")
    return " and ".join(caps) or "without a cap (budget.max_cost, budget.max_duration)"
