"""`list`, `exec` and `extend`: machines, what runs on them, and for how long they live."""

from __future__ import annotations

from datetime import datetime, timedelta

import click

from gpuctl.cli import shapes
from gpuctl.cli.opening import opened
from gpuctl.cli.options import DURATION, example, json_option
from gpuctl.cli.output import Partial, emit
from gpuctl.cli.terminal import Terminal, line, table
from gpuctl.errors import MayStillBill, UsageError
from gpuctl.fleet.context import Fleet
from gpuctl.ledger import MachineRow
from gpuctl.quantities import format_money

_LONGEST_COMMAND_SECONDS = 24 * 3600.0  # the hard end comes first


@click.command("list", epilog=example("gpuctl list", "gpuctl list --all --json"))
@click.option("--all", "every", is_flag=True, help="Also those that have ended.")
@click.option("--refresh", is_flag=True, help="Ask the clouds first.")
@json_option
def list_machines(every: bool, refresh: bool, as_json: bool) -> None:
    """List the machines of this home. Reads the ledger only, unless told to --refresh."""
    with Terminal() as terminal, opened(terminal.say) as fleet:
        errors = []
        if refresh:
            from gpuctl.fleet.observe import observe

            errors = observe(fleet)
            for error in errors:
                terminal.warn(f"{error.provider}: {error.message}")
        now = fleet.clock.now()
        rows = fleet.ledger.machines(open_only=not every, borrowed=True)
        document: shapes.Shape = {"machines": [shapes.machine(row, now) for row in rows]}
        if not as_json:
            _show(rows, now, every)
        if errors:
            document["errors"] = [shapes.trouble(one) for one in errors]
            raise Partial(
                MayStillBill(
                    "; ".join(f"{one.provider}: {one.message}" for one in errors),
                    next="What is shown is what the ledger knows; `gpuctl list --refresh` again.",
                ),
                document,
            )
        if as_json:
            emit(document)


def _show(rows: list[MachineRow], now: datetime, every: bool) -> None:
    if not rows:
        line("No machines." if every else "Nothing is rented. --all shows what has ended.")
        return
    table(
        ["NAME", "PROVIDER", "STATE", "GPU", "USD/H>", "COST>", "LEASE ENDS", "RUN"],
        [
            (
                row.name,
                row.provider,
                _state(row),
                f"{row.gpu_count}x {row.gpu}" if row.gpu else "none",
                f"{row.price_hour:.4f}",
                format_money(row.cost_so_far(now)),
                "" if row.closed else f"{row.lease_until.astimezone():%Y-%m-%d %H:%M:%S}",
                row.run,
            )
            for row in rows
        ],
    )


def _state(row: MachineRow) -> str:
    note = "in doubt" if row.in_doubt else "borrowed" if row.borrowed else ""
    return f"{row.state} ({note})" if note else str(row.state)


def living(fleet: Fleet, name: str) -> MachineRow:
    """Find a machine that has not ended.

    Raises:
        UsageError: there is none of that name, or it has ended.
    """
    row = fleet.ledger.find_machine(name)
    if row.closed:
        raise UsageError(
            f"{row.name} has ended ({row.closed_by})",
            machine=row.name,
            next="`gpuctl list` shows what is there.",
        )
    return row


@click.command(
    "exec",
    epilog=example("gpuctl exec demo -- nvidia-smi", "gpuctl exec demo --json -- python -V"),
)
@click.argument("machine")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@json_option
def exec_(machine: str, command: tuple[str, ...], as_json: bool) -> None:
    """Run a command on a machine and exit with its exit code. Write it after `--`.

    With --json: {"stdout", "stderr", "exit_code"}.
    """
    from gpuctl.fleet.ready import reopen

    with opened() as fleet:
        row = living(fleet, machine)
        connection = reopen(fleet, row).connection
        try:
            if as_json:
                done = connection.run(command, timeout=_LONGEST_COMMAND_SECONDS)
                emit(
                    {
                        "stdout": done.stdout.decode(errors="replace"),
                        "stderr": done.stderr.decode(errors="replace"),
                        "exit_code": done.exit_code,
                    }
                )
                code = done.exit_code
            else:
                # The caller's own stdin, stdout and stderr: nothing is buffered or changed.
                code = connection.interactive(command)
        finally:
            connection.close()
    raise click.exceptions.Exit(code)


@click.command(epilog=example("gpuctl extend demo 2h", "gpuctl extend demo 30m --json"))
@click.argument("machine")
@click.argument("duration", type=DURATION)
@json_option
def extend(machine: str, duration: timedelta, as_json: bool) -> None:
    """Renew a machine's lease: it ends DURATION from now, never past its hard end."""
    from gpuctl.fleet.lease import SHORTEST_LEASE_SECONDS
    from gpuctl.fleet.provision import AGENT_FOLDER
    from gpuctl.fleet.provision import extend as extend_lease
    from gpuctl.run.launch import agent_folder

    if duration.total_seconds() < SHORTEST_LEASE_SECONDS:
        raise UsageError(f"A lease lasts at least {SHORTEST_LEASE_SECONDS:g}s")
    with Terminal() as terminal, opened(terminal.say) as fleet:
        row = living(fleet, machine)
        folder = AGENT_FOLDER
        if row.run is not None and row.attempt is not None:
            folder = agent_folder(row.run, row.attempt)
        until = extend_lease(fleet, row, duration.total_seconds(), agent_folder=folder)
        row = fleet.ledger.machine(row.name) or row
        if as_json:
            emit({"machine": shapes.machine(row, fleet.clock.now())})
            return
        line(f"{row.name} now ends at {until.astimezone():%Y-%m-%d %H:%M:%S}")
        if until >= row.hard_end:
            line("  That is its hard end, which is never moved.")
