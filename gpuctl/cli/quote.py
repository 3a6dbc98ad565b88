"""`quote`: what the market has now."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import click

from gpuctl.cli import shapes
from gpuctl.cli.opening import opened
from gpuctl.cli.options import MONEY, SIZE, Filters, example, filters, json_option
from gpuctl.cli.output import Partial, emit
from gpuctl.cli.terminal import Terminal, line, safe, table
from gpuctl.errors import UsageError
from gpuctl.fleet.asking import NothingMatches, ask_market, nothing_found
from gpuctl.market import Quote
from gpuctl.policy import IMAGE_GB, USUAL_TRAFFIC, Traffic
from gpuctl.quantities import format_gb, format_money
from providers.base import Offer


@click.command(
    epilog=example(
        "gpuctl quote --gpu A100-40GB --gpu RTX-4090 --spot",
        "gpuctl quote --gpu 24GB+ --hours 4 --budget 10 --json",
        "gpuctl quote --gpu 24GB+ --hours 4 --upload 200GB --download 5GB",
        "gpuctl quote --gpu none --cpus 8 --offline",
    )
)
@filters
@click.option(
    "--hours",
    type=click.FloatRange(0, 10_000, min_open=True),
    help="Reckon what so many hours of work cost, with set-up, storage, traffic, interruptions.",
)
@click.option("--budget", type=MONEY, help="Reckon how many such runs it buys. Needs --hours.")
@click.option(
    "--upload",
    type=SIZE,
    help="Data sent to each machine of a run; its image is added. Default: 5. Needs --hours.",
)
@click.option(
    "--download", type=SIZE, help="Results that it sends back. Default: 2. Needs --hours."
)
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Offers shown."
)
@click.option("--offline", is_flag=True, help="Ask nobody: dated reference prices only.")
@click.option("--fresh", is_flag=True, help="Ask again, even if the last answer is seconds old.")
@json_option
def quote(
    chosen: Filters,
    hours: float | None,
    budget: Decimal | None,
    upload: float | None,
    download: float | None,
    limit: int,
    offline: bool,
    fresh: bool,
    as_json: bool,
) -> None:
    """Show offers from every provider at once, cheapest first.

    A provider without credentials gives its reference prices, which are labelled and dated.
    """
    if fresh and offline:
        raise UsageError("--fresh asks, --offline does not: take one")
    if budget is not None and hours is None:
        raise UsageError("--budget needs --hours: a budget buys runs of a length")
    if hours is None and (upload is not None or download is not None):
        raise UsageError("--upload and --download need --hours: traffic is part of a run's cost")
    with opened(guard=False) as fleet, Terminal() as terminal:
        want = chosen.want()
        found = ask_market(
            fleet,
            want,
            chosen.providers,
            offline=offline,
            hours=hours,
            budget=budget,
            traffic=_traffic(upload, download),
            fresh=fresh,
        )
        document: shapes.Shape = {
            "offers": [_shape(found, one) for one in found.offers[:limit]],
            "errors": [
                {"provider": one.provider, "kind": one.kind, "message": one.message}
                for one in found.errors
            ],
        }
        for note in found.notes:
            terminal.say(note)
        for error in found.errors:
            terminal.warn(f"{error.provider}: {error.message}")
        if not found.offers:
            why = nothing_found(fleet, want, chosen.providers, found, offline=offline)
            if isinstance(why, NothingMatches):
                document["nearest"] = shapes.nearest(why.near)
            raise Partial(why, document)
        if as_json:
            emit(document)
            return
        show_offers(found, found.offers[:limit], fleet.clock.now(), with_runs=hours is not None)
        if len(found.offers) > limit:
            line(f"… and {len(found.offers) - limit} more; --limit shows them.")


def _traffic(upload: float | None, download: float | None) -> Traffic:
    return Traffic(
        in_gb=USUAL_TRAFFIC.in_gb if upload is None else IMAGE_GB + upload,
        out_gb=USUAL_TRAFFIC.out_gb if download is None else download,
    )


def _shape(found: Quote, one: Offer) -> shapes.Shape:
    cost = found.run_cost(one)
    if cost is None:
        return shapes.offer(one)
    return shapes.offer(one, run_cost=cost.run_cost, runs=cost.runs_in_budget)


def show_offers(found: Quote, offers: tuple[Offer, ...], now: datetime, *, with_runs: bool) -> None:
    """Print offers for a person; every price that is not of this moment says how old it is."""
    headers = ["GPU", "VRAM>", "MARKET", "USD/H>", "PROVIDER", "REGION", "CPUS>", "RAM>", "SOURCE"]
    if several := any(one.gpu_count > 1 for one in offers):
        headers.insert(4, "A GPU>")
    if with_runs:
        headers += ["RUN>", "RUNS>"]
    rows = [_row(found, one, now, with_runs) for one in offers]
    if several:
        for row, one in zip(rows, offers, strict=True):
            row.insert(4, f"{one.price_hour / one.gpu_count:.4f}" if one.gpu_count else "")
    table([*headers, "ID"], rows)


def _row(found: Quote, one: Offer, now: datetime, with_runs: bool) -> list[object]:
    row: list[object] = [
        f"{one.gpu_count}x {one.gpu}" if one.gpu else "none",
        "" if one.vram_gb is None else format_gb(one.vram_gb),
        "spot" if one.spot else "on-demand",
        f"{one.price_hour:.4f}",
        one.provider,
        one.region,
        "" if one.vcpus is None else f"{one.vcpus:g}",
        "" if one.ram_gb is None else format_gb(one.ram_gb),
        _source(one, now),
    ]
    if with_runs:
        cost = found.run_cost(one)
        endless = cost is None or cost.run_cost is None
        row += [
            "never ends" if endless or cost is None else format_money(cost.run_cost or Decimal(0)),
            "" if cost is None or cost.runs_in_budget is None else cost.runs_in_budget,
        ]
    return [*row, safe(one.id)]


def _source(one: Offer, now: datetime) -> str:
    if one.source == "reference":
        return f"reference of {one.as_of:%Y-%m-%d}"
    age = round((now - one.as_of).total_seconds())
    return "live" if age <= 1 else f"live, {age} s ago"
