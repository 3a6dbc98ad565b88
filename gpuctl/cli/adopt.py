"""`adopt`: machines that Terraform made, for runs to borrow."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from gpuctl.cli import shapes
from gpuctl.cli.opening import opened
from gpuctl.cli.options import example, json_option
from gpuctl.cli.output import Partial, emit
from gpuctl.cli.terminal import Terminal, line
from gpuctl.errors import GpuctlError, UsageError
from gpuctl.fleet.access import stays
from gpuctl.fleet.context import Fleet
from gpuctl.ledger import MachineRow
from gpuctl.terraform.outputs import TerraformMachine, read_folder, read_outputs


@click.command(
    epilog=example(
        "gpuctl adopt --terraform infra/trainer",
        "terraform output -json | gpuctl adopt --terraform -",
    )
)
@click.option(
    "--terraform",
    "source",
    required=True,
    metavar="DIR",
    help="The Terraform folder whose outputs name the machine; - reads them from stdin.",
)
@json_option
def adopt(source: str, as_json: bool) -> None:
    """Take machines that Terraform made into the ledger, and wait until they answer.

    `gpuctl run train.yaml --machine NAME` then trains on one, as often as you like. They stay
    Terraform's: gpuctl never ends them. Safe to repeat, and needed after Terraform replaced one.
    """
    machines, folder = _machines(source)
    with Terminal() as terminal, opened(terminal.say) as fleet:
        taken: list[MachineRow] = []
        try:
            _adopt_all(fleet, machines, folder, taken)
        except GpuctlError as error:
            raise Partial(error, _document(fleet, taken)) from error
        if as_json:
            emit(_document(fleet, taken))
            return
        for row in taken:
            _show(row)


def _machines(source: str) -> tuple[list[TerraformMachine], str]:
    if source != "-":
        folder = Path(source).absolute()
        return read_folder(folder, os.environ), str(folder)
    if sys.stdin.isatty():
        raise UsageError(
            "--terraform -: nothing is piped in",
            next="`terraform output -json | gpuctl adopt --terraform -`",
        )
    return read_outputs(sys.stdin.read(), "what came on stdin"), ""


def _adopt_all(
    fleet: Fleet, machines: list[TerraformMachine], folder: str, taken: list[MachineRow]
) -> None:
    from gpuctl.fleet.adopt import adopt as adopt_one

    for machine in machines:
        taken.append(adopt_one(fleet, machine, folder))  # noqa: PERF401 - some count if one fails


def _document(fleet: Fleet, taken: list[MachineRow]) -> shapes.Shape:
    now = fleet.clock.now()
    return {"machines": [shapes.machine(row, now) for row in taken]}


def _show(row: MachineRow) -> None:
    what = f"{row.gpu_count}x {row.gpu}" if row.gpu else "no GPU that anybody told of"
    line(f"{row.name} is borrowed: {what}, {row.provider}")
    line(f"  train on it  gpuctl run train.yaml --machine {row.name}")
    line(f"  reach it     gpuctl ssh {row.name}")
    line(f"  {stays(row)}")
