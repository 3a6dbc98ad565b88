"""`cost`: what was spent, on what, and who says so."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import click

from gpuctl.cli import shapes
from gpuctl.cli.opening import opened
from gpuctl.cli.options import example, json_option
from gpuctl.cli.output import Partial, emit
from gpuctl.cli.terminal import line, table
from gpuctl.errors import GpuctlError
from gpuctl.fleet.bills import settle_bills
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.spending import (
    Spending,
    altogether,
    by_provider,
    by_run,
    is_billed,
    month_start,
)
from gpuctl.ledger import MachineRow
from gpuctl.quantities import format_money


@click.command(
    epilog=example("gpuctl cost", "gpuctl cost --refresh", "gpuctl cost demo-1a2b3c --json")
)
@click.argument("run", required=False)
@click.option("--refresh", is_flag=True, help="Ask the providers first what they charged.")
@json_option
def cost(run: str | None, refresh: bool, as_json: bool) -> None:
    """Show what was spent: in all and this month, by provider and by run, or for one run.

    "billed" is the provider's own figure, "computed" is rented time times the price, by the rules
    of the provider. Most providers know a bill an hour or a day later: --refresh asks for it.
    """
    with opened(guard=False) as fleet:
        rows = fleet.ledger.machines() if run is None else fleet.ledger.find_run(run).machines
        errors = settle_bills(fleet, rows) if refresh else []
        document = _of_everything(fleet, as_json) if run is None else _of_run(fleet, run, as_json)
        if errors:
            document["errors"] = [shapes.trouble(one) for one in errors]
            told = "; ".join(f"{one.provider}: {one.message}" for one in errors)
            raise Partial(
                GpuctlError(told, next="The other figures stand. `gpuctl cost --refresh` again."),
                document,
            )
        if as_json:
            emit(document)


def _of_run(fleet: Fleet, run: str, as_json: bool) -> shapes.Shape:
    row, now = fleet.ledger.find_run(run), fleet.clock.now()
    total = altogether(row.machines, now)
    if not as_json:
        line(f"{row.id}: {_words(total)}")
        _show_machines(row.machines, now)
    machines = [_machine(one, now) for one in row.machines]
    return {"run": row.id, **_amounts(total), "machines": machines}


def _of_everything(fleet: Fleet, as_json: bool) -> shapes.Shape:
    rows, now = fleet.ledger.machines(), fleet.clock.now()
    total = altogether(rows, now)
    month = fleet.ledger.spend_since(month_start(now))
    providers, runs = by_provider(rows, now), by_run(rows, now)
    if not as_json:
        line(f"{format_money(month)} this month, in all {_words(total)}")
        if rows:
            _show_groups("PROVIDER", providers)
            _show_groups("RUN", runs)
    return {
        **_amounts(total),
        "this_month_usd": shapes.usd(month),
        "by_provider": [{"provider": one.name, **_amounts(one)} for one in providers],
        "by_run": [{"run": one.name or None, **_amounts(one)} for one in runs],
    }


def _amounts(one: Spending) -> shapes.Shape:
    return {
        "cost_usd": shapes.usd(one.total),
        "billed_usd": shapes.usd(one.billed),
        "computed_usd": shapes.usd(one.computed),
        "machine_count": one.machines,
    }


def _machine(row: MachineRow, now: datetime) -> shapes.Shape:
    return {
        "name": row.name,
        "provider": row.provider,
        "attempt": row.attempt,
        "cost_usd": shapes.usd(row.cost_so_far(now)),
        "source": row.cost_source or row.how_computed,
        "cost_source": row.cost_source or row.how_computed,
        "billed": is_billed(row),
        "final": row.closed,
    }


def _words(one: Spending) -> str:
    if not one.machines:
        return f"{format_money(one.total)} (nothing was rented yet)"
    if not one.billed:
        return f"{format_money(one.total)}, computed"
    return (
        f"{format_money(one.total)}: {format_money(one.billed)} billed, "
        f"{format_money(one.computed)} computed"
    )


def _show_groups(title: str, groups: Sequence[Spending]) -> None:
    line()
    table(
        [title, "COST>", "BILLED>", "COMPUTED>", "MACHINES>"],
        [
            (
                one.name or "(no run)",
                format_money(one.total),
                format_money(one.billed),
                format_money(one.computed),
                one.machines,
            )
            for one in groups
        ],
    )


def _show_machines(rows: Sequence[MachineRow], now: datetime) -> None:
    if rows:
        table(
            ["ATTEMPT>", "MACHINE", "PROVIDER", "COST>", "SAYS"],
            [
                (
                    row.attempt,
                    row.name,
                    row.provider,
                    format_money(row.cost_so_far(now)),
                    row.cost_source or f"{row.how_computed}, so far",
                )
                for row in rows
            ],
        )
