"""`forget`: a machine leaves the open books on a person's word."""

from __future__ import annotations

import getpass

import click

from gpuctl.cli import shapes
from gpuctl.cli.opening import opened
from gpuctl.cli.options import example, json_option
from gpuctl.cli.output import emit
from gpuctl.cli.terminal import Terminal, line
from gpuctl.errors import UsageError


@click.command(
    epilog=example(
        "gpuctl forget demo --i-checked-the-console",
        "gpuctl forget demo --i-checked-the-console --why 'account closed' --json",
    )
)
@click.argument("machine")
@click.option(
    "--i-checked-the-console",
    "checked",
    is_flag=True,
    help="You looked in the provider's own console, and it is not there.",
)
@click.option("--why", default="", help="Kept in the ledger.")
@json_option
def forget(machine: str, checked: bool, why: str, as_json: bool) -> None:
    """Give up on the proof that a machine is gone, on your own word.

    For a machine whose provider cannot be asked any more. Nothing is destroyed; that you said so
    stays in the ledger.
    """
    from gpuctl.fleet.forgetting import forget as close

    with Terminal() as terminal, opened(terminal.say) as fleet:
        row = fleet.ledger.find_machine(machine)
        if not checked:
            raise UsageError(
                f"Nobody has proven that {row.name} is gone; forgetting it stops nothing",
                machine=row.name,
                next=f"Look for {row.provider_id or row.name} in {row.provider}'s own console. If "
                f"it is not there: gpuctl forget {row.name} --i-checked-the-console",
            )
        row = close(fleet, row, by=_who(), why=why)
        if as_json:
            emit({"machine": shapes.machine(row, fleet.clock.now())})
            return
        line(f"{row.name} is off the books, on your word. `gpuctl audit` still finds what is ours.")


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
