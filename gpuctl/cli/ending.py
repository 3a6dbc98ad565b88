"""`terminate`, `reap` and `audit`: ending machines, and showing that nothing still bills."""

from __future__ import annotations

from collections.abc import Sequence

import click

from gpuctl.cli import shapes
from gpuctl.cli.opening import opened
from gpuctl.cli.options import ask, example, json_option, require_answer, yes_option
from gpuctl.cli.output import Partial, emit, error_shape
from gpuctl.cli.terminal import Terminal, line, table
from gpuctl.errors import GpuctlError, MayStillBill, NoCredentials, UsageError
from gpuctl.fleet.access import stays
from gpuctl.fleet.audit import Audit, Billing
from gpuctl.fleet.audit import audit as audit_all
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.reap import Reaped
from gpuctl.fleet.reap import reap as reap_all
from gpuctl.fleet.receipt import Receipt
from gpuctl.fleet.release import receipt_of
from gpuctl.fleet.survey import Seen, Trouble
from gpuctl.ledger import MachineRow
from gpuctl.quantities import format_money
from providers.base import Leftover

_TOLD = 5  # of many errors in a line; the document has them all


@click.command(
    epilog=example("gpuctl terminate gpuctl-demo-1a2b3c-0123abcd --yes", "gpuctl terminate --all")
)
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--all", "every", is_flag=True, help="Every machine of this home.")
@yes_option
@json_option
def terminate(names: tuple[str, ...], every: bool, yes: bool, as_json: bool) -> None:
    """Destroy machines and prove it; print a receipt for each.

    Nothing is fetched from them first: `gpuctl download` or `gpuctl cancel` do that. The run that a
    machine works for is cancelled, else it would rent the next one. A machine that has ended
    already gives its receipt again. What Terraform made stays: the command that ends it is said.
    """
    from gpuctl.fleet.adopt import settled
    from gpuctl.run.terminating import terminate as end_machines

    if bool(names) == every:
        raise UsageError("Name machines, or say --all", next="`gpuctl list` shows them.")
    with Terminal() as terminal, opened(terminal.say) as fleet:
        rows = _named(fleet, names) if names else fleet.ledger.machines(open_only=True)
        require_answer(yes, "terminate")
        rows = settled(fleet, rows)
        if any(not row.closed for row in rows):
            ask(yes, "terminate", f"Destroy {', '.join(row.name for row in rows)}?")
        receipts, errors = end_machines(fleet, rows, terminal)
        receipts += _unproven(fleet, rows, receipts)
        if every:
            _tell_what_stays(fleet, terminal)
        document: shapes.Shape = {"receipts": [shapes.receipt(one) for one in receipts]}
        if not as_json:
            show_receipts(receipts)
        if errors:
            document["errors"] = [error_shape(one) for one in errors]
            raise Partial(together(errors), document)
        if as_json:
            emit(document)


def _tell_what_stays(fleet: Fleet, terminal: Terminal) -> None:
    for row in fleet.ledger.machines(open_only=True, borrowed=True):
        if row.borrowed:
            terminal.say(stays(row))


def _named(fleet: Fleet, names: Sequence[str]) -> list[MachineRow]:
    found = [fleet.ledger.find_machine(name) for name in names]
    return list({row.name: row for row in found}.values())


def _unproven(
    fleet: Fleet, rows: Sequence[MachineRow], receipts: Sequence[Receipt]
) -> list[Receipt]:
    """How far those came that have no receipt yet: unconfirmed, with the cost so far."""
    done = {one.name for one in receipts}
    now = fleet.clock.now()
    return [
        receipt_of(fleet.ledger.machine(row.name) or row, now)
        for row in rows
        if row.name not in done
    ]


def show_receipts(receipts: Sequence[Receipt]) -> None:
    """Print receipts for a person."""
    if not receipts:
        line("Nothing to end.")
    for one in receipts:
        if one.confirmed:
            line(
                f"{one.name}: gone, {format_money(one.cost_usd)} ({one.cost_source}); "
                f"{one.provider} said so {len(one.confirmed_by)} times, "
                f"first at {one.confirmed_by[0].at:%H:%M:%S} UTC: {one.confirmed_by[0].answer}"
            )
        else:
            line(f"{one.name}: not proven gone, {format_money(one.cost_usd)} so far")
        for left in one.leftovers:
            line(f"  left over: {left.kind} {left.id}")


def together(errors: Sequence[GpuctlError]) -> GpuctlError:
    """Make one error of several: what may bill decides."""
    first = max(errors, key=lambda error: error.may_bill)
    if len(errors) == 1:
        return first
    message = _some([first.message, *(one.message for one in errors if one is not first)])
    if first.may_bill:
        return MayStillBill(message, machine=first.machine, next=first.next or "`gpuctl audit`.")
    return GpuctlError(message, machine=first.machine, next=first.next)


def _some(messages: Sequence[str]) -> str:
    more = len(messages) - _TOLD
    return "; ".join(messages[:_TOLD]) + (f"; and {more} more" if more > 0 else "")


# -------------------------------------------------------------------- reap and audit


@click.command(
    epilog=example("gpuctl reap --dry-run", "gpuctl reap --json", "gpuctl reap --hard-end-only")
)
@click.option("--dry-run", is_flag=True, help="Only list what would be destroyed.")
@click.option(
    "--hard-end-only",
    is_flag=True,
    help="Leave alone what its hard end has not reached: for a computer that rents nothing.",
)
@json_option
def reap(dry_run: bool, hard_end_only: bool, as_json: bool) -> None:
    """Destroy what is ours and has no living keeper, on every account. Never asks.

    Made for cron and CI. On a computer without the ledger it knows only what the clouds keep: with
    --hard-end-only it ends what is past its hard end; without, and with GPUCTL_OWNER set, every
    machine of that owner, for no row of its own ledger claims them. Other owners' living machines,
    unmarked ones and Terraform's are only listed.
    """
    with Terminal() as terminal, opened(terminal.say, guard=False) as fleet:
        done = reap_all(fleet, dry_run=dry_run, hard_end_only=hard_end_only)
        document = shapes.reaped(done, fleet.clock.now())
        if not as_json:
            _show_reaped(done)
        if done.errors:
            raise Partial(_not_everybody("reap", done.errors), document)
        if hard_end_only and not any(_is_cloud(fleet, name) for name in done.asked):
            raise Partial(_nobody_asked(), document)
        if as_json:
            emit(document)


def _is_cloud(fleet: Fleet, name: str) -> bool:
    return not fleet.provider(name).capabilities.by_name_only


def _nobody_asked() -> NoCredentials:
    return NoCredentials(
        "No provider has credentials here, so nobody was asked",
        next="Set them as docs/reaper.md says; `gpuctl doctor` shows which are found.",
    )


def _show_reaped(done: Reaped) -> None:
    if done.receipts:
        show_receipts(done.receipts)
    for one in done.would_reap:
        line(f"would destroy {_about(one)}")
    for left in done.swept:
        line(f"removed {_left(left)}")
    for left in done.would_sweep:
        line(f"would remove {_left(left)}")
    if not (done.receipts or done.would_reap or done.swept or done.would_sweep):
        line("Nothing to reap.")
    for one in done.kept:
        line(f"kept {_about(one)}")
    _show_troubles(done.errors)


def _left(one: Leftover) -> str:
    return f"{one.kind} {one.id} at {one.provider}, left over from {one.name}"


def _about(one: Seen) -> str:
    return f"{one.machine.name or one.machine.provider_id} at {one.machine.provider}: " + (
        one.verdict.why
    )


@click.command(epilog=example("gpuctl audit", "gpuctl audit --json"))
@json_option
def audit(as_json: bool) -> None:
    """List everything that still bills on every account, and whose it is.

    Exit 0 only when all of it is accounted for and every provider answered; else 6.
    """
    with Terminal() as terminal, opened(terminal.say, guard=False) as fleet:
        done = audit_all(fleet)
        document = shapes.audit(done, fleet.clock.now())
        if not as_json:
            _show_audit(done)
        if not done.clean:
            raise Partial(_unclean(done), document)
        if as_json:
            emit(document)


def _show_audit(done: Audit) -> None:
    if done.billing:
        table(
            ["WHOSE", "WHAT", "PROVIDER", "STATE", "USD/H>", "UNACCOUNTED"],
            [_billing_row(one) for one in done.billing],
        )
    elif not done.errors:
        line("Nothing is billing.")
    _show_troubles(done.errors)


def _billing_row(one: Billing) -> list[object]:
    if one.machine is not None:
        price = one.row.price_hour if one.row is not None else one.machine.price_hour
        return [
            one.whose,
            one.machine.name or one.machine.provider_id,
            one.machine.provider,
            one.machine.state,
            "" if price is None else f"{price:.4f}",
            one.unaccounted,
        ]
    assert one.leftover is not None  # it is one or the other
    what = f"{one.leftover.kind} {one.leftover.id}"
    return [one.whose, what, one.leftover.provider, "", "", one.unaccounted]


def _unclean(done: Audit) -> GpuctlError:
    if not done.unaccounted:
        return _not_everybody("audit", done.errors)
    first = done.unaccounted[0]
    name = first.machine.name if first.machine else first.leftover.name if first.leftover else ""
    rest = f" and {len(done.unaccounted) - 1} more" if len(done.unaccounted) > 1 else ""
    return MayStillBill(
        f"Unaccounted for: {name}{rest} ({first.unaccounted})",
        machine=name,
        next=f"Remove it in {first.leftover.provider}'s own console, if you do not need it."
        if first.leftover is not None and first.leftover.mark is None
        else "`gpuctl reap` destroys what is ours and nobody looks after.",
    )


def _not_everybody(command: str, errors: Sequence[Trouble]) -> MayStillBill:
    told = _some([one.message for one in errors])
    named = next((one.machine for one in errors if one.machine), None)
    given = next((one.next for one in errors if one.next), None)
    return MayStillBill(
        told,
        machine=named,
        next=given or f"Put that right and run `gpuctl {command}` again; until then nobody knows.",
    )


def _show_troubles(errors: Sequence[Trouble]) -> None:
    for one in errors:
        line(f"{one.provider or one.machine}: {one.kind}: {one.message}")
