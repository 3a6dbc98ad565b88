"""`provision`: one machine for a person."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from gpuctl.cli import shapes
from gpuctl.cli.opening import opened
from gpuctl.cli.options import (
    DURATION,
    Filters,
    ask,
    example,
    filters,
    json_option,
    require_answer,
    yes_option,
)
from gpuctl.cli.output import Partial, emit
from gpuctl.cli.stopping import stoppable
from gpuctl.cli.terminal import Terminal, line
from gpuctl.errors import UsageError
from gpuctl.fleet.acquire import Need
from gpuctl.fleet.asking import NothingMatches, ask_rentable, nothing_found
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.lease import SHORTEST_LEASE_SECONDS
from gpuctl.fleet.provision import described
from gpuctl.fleet.provision import provision as provision_machine
from gpuctl.fleet.refusals import refused_last
from gpuctl.ledger import MachineRow
from gpuctl.names import slug
from gpuctl.policy import choose
from gpuctl.quantities import format_duration, format_money
from providers.base import Offer

_SHORTEST_IDLE = timedelta(minutes=1)


@click.command(
    epilog=example(
        "gpuctl provision --gpu A100-40GB --spot --lease 2h --yes",
        "gpuctl provision --provider local --yes --json",
        "gpuctl provision --gpu A10G --provider aws --emit-terraform infra/trainer",
    )
)
@filters
@click.option("--offer", "offer_id", metavar="ID", help="This offer of `gpuctl quote` only.")
@click.option("--name", help="The middle part of the machine's name.")
@click.option(
    "--lease",
    type=DURATION,
    default="2h",
    show_default=True,
    help="How long it lives without `gpuctl extend`.",
)
@click.option(
    "--idle",
    type=DURATION,
    help="End it when nobody was logged in and its GPU did nothing for so long.",
)
@click.option(
    "--max-hours",
    type=click.FloatRange(0, 8784, min_open=True),
    default=24.0,
    show_default=True,
    help="Its hard end: never renewed.",
)
@click.option("--image", help="Container or VM image, where the provider takes one.")
@click.option(
    "--emit-terraform",
    "terraform",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Rent nothing: write a Terraform folder for the best offer (AWS, Hetzner).",
)
@yes_option
@json_option
def provision(
    chosen: Filters,
    offer_id: str | None,
    name: str | None,
    lease: timedelta,
    idle: timedelta | None,
    max_hours: float,
    image: str | None,
    terraform: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Rent one machine, wait until it really answers, and say how to reach it.

    It ends with its lease unless it is extended, and at its hard end in any case. If anything
    fails on the way, it is released again.
    """
    if terraform is None:
        require_answer(yes, "provision")
    elif idle is not None or image is not None:
        raise UsageError("--emit-terraform: --idle and --image are not for Terraform's machines")
    need = _need(chosen, name, lease, idle, max_hours, image)
    with Terminal() as terminal, opened(terminal.say) as fleet:
        offers = _offers(fleet, terminal, chosen, offer_id, image)
        if terraform is not None:
            _emit_terraform(fleet, offers[0], need, terraform, as_json)
            return
        most = offers[0].price_hour * round(need.max_duration.total_seconds()) / 3600
        ask(
            yes,
            "provision",
            f"Rent {described(offers[0])} from {offers[0].provider} at "
            f"{format_money(offers[0].price_hour)} an hour, {format_money(most)} at most?",
        )
        with stoppable(fleet) as stop:
            done = provision_machine(fleet, offers, need, pause=stop.pause)
        now = fleet.clock.now()
        if as_json:
            emit({"machine": shapes.machine(done.row, now)})
        else:
            _show(done.row, need.max_duration)


def _emit_terraform(fleet: Fleet, offer: Offer, need: Need, folder: Path, as_json: bool) -> None:
    from gpuctl.remote.keys import key_file, public_key
    from gpuctl.terraform.module import Wish, write_call

    public_key(fleet.home.path)  # makes the pair, where there is none
    wish = Wish(
        name=slug(need.middle),
        owner=fleet.home.owner,
        max_hours=need.max_duration.total_seconds() / 3600,
        disk_gb=need.disk_gb,
        key_file=key_file(fleet.home.path),
        max_price=need.max_price_hour,
    )
    files = write_call(offer, wish, folder.absolute())
    if as_json:
        emit({"offer": shapes.offer(offer), "files": [str(file) for file in files]})
        return
    line(f"{folder} has {described(offer)} from {offer.provider} now; nothing was rented")
    line(f"  make it    terraform -chdir={folder} init, then apply: {folder}/README.md says how")
    line(f"  borrow it  gpuctl adopt --terraform {folder}")


def _need(
    chosen: Filters,
    name: str | None,
    lease: timedelta,
    idle: timedelta | None,
    max_hours: float,
    image: str | None,
) -> Need:
    if idle is not None and idle < _SHORTEST_IDLE:
        raise UsageError(f"--idle: at least {format_duration(_SHORTEST_IDLE)}")
    if lease.total_seconds() < SHORTEST_LEASE_SECONDS:
        raise UsageError(f"--lease: at least {SHORTEST_LEASE_SECONDS:g}s")
    if name is not None and not slug(name, fallback=""):
        raise UsageError(f"--name: {name!r} has no letter or digit")
    return Need(
        middle=name or "machine",
        lease_seconds=lease.total_seconds(),
        purpose="provision",
        max_duration=timedelta(hours=max_hours),
        disk_gb=chosen.disk_gb,
        image=image,
        max_price_hour=chosen.max_price,
        idle_seconds=None if idle is None else idle.total_seconds(),
    )


def _offers(
    fleet: Fleet, terminal: Terminal, chosen: Filters, offer_id: str | None, image: str | None
) -> list[Offer]:
    want = chosen.want(image)
    found = ask_rentable(fleet, want, chosen.providers)
    for error in found.errors:
        terminal.warn(f"{error.provider}: {error.message}")
    ranked = [
        candidate.offer
        for candidate in choose(found.offers, spot=want.spot, max_price_hour=chosen.max_price)
    ]
    if not ranked:
        why = nothing_found(fleet, want, chosen.providers, found, rentable=True)
        near = why.near if isinstance(why, NothingMatches) else ()
        raise Partial(why, {"nearest": shapes.nearest(near)} if near else {})
    if offer_id is None:
        return refused_last(fleet, ranked)
    named = [one for one in ranked if one.id == offer_id]
    if not named:
        raise UsageError(
            f"--offer: no offer {offer_id!r} matches now",
            next="`gpuctl quote` with the same filters lists the ids.",
        )
    return named


def _show(row: MachineRow, max_duration: timedelta) -> None:
    hours = max_duration.total_seconds() / 3600
    most = row.price_hour * round(max_duration.total_seconds()) / 3600
    what = f"{row.gpu_count}x {row.gpu}" if row.gpu else "a CPU machine"
    line(f"{row.name} is ready: {what} at {row.provider}, {format_money(row.price_hour)} an hour")
    line(f"  reach it   gpuctl ssh {row.name}")
    line(
        f"  it ends    {row.lease_until.astimezone():%Y-%m-%d %H:%M} unless you run "
        f"`gpuctl extend {row.name} {format_duration(timedelta(seconds=row.lease_seconds))}`"
    )
    line(f"  the cap    {hours:g} h from its start, {format_money(most)} at most")
    line(f"  end it     gpuctl terminate {row.name}")
