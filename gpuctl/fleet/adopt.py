"""Taking machines that Terraform made into the ledger, and out of it when they are gone."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from gpuctl.agent.client import find_python
from gpuctl.errors import UsageError
from gpuctl.fleet.access import access_facts, as_machine, refuse_to_end
from gpuctl.fleet.context import BORROWED, Fleet
from gpuctl.fleet.ready import NotReady, make_ready
from gpuctl.fleet.returning import close_if_gone
from gpuctl.ledger import MachineRow
from gpuctl.remote.known_hosts import KnownHost
from gpuctl.terraform.outputs import OUTPUT, TerraformMachine
from providers.base import ProviderError, SshAccess

BOOT_SECONDS = 600.0
"""How long a machine may take from `terraform apply` to its first answer."""


def adopt(fleet: Fleet, machine: TerraformMachine, folder: str) -> MachineRow:
    """Take one machine into the ledger as borrowed, and wait until it answers. Idempotent.

    A machine that Terraform has replaced keeps its name and gets its new id and address.

    Args:
        folder: of Terraform, absolute; "" when nobody said.

    Raises:
        UsageError: it cannot be borrowed: unknown provider, past its end, or ours.
        NotReady: it does not answer (yet). It is in the ledger by then.
        RemoteError: it has no Python for the agent.
    """
    _check(fleet, machine)
    known = fleet.ledger.machine(machine.name)
    if known is not None and known.provider_id != machine.id:
        KnownHost(fleet.home.path, machine.name).forget()  # it is another computer
    access = SshAccess(
        machine.host,
        machine.port,
        machine.user,
        host_keys=machine.host_keys,
        identities=(machine.key_file,) if machine.key_file else (),
    )
    fleet.ledger.record(
        "borrowed",
        machine=machine.name,
        provider=machine.provider,
        provider_id=machine.id,
        gpu=machine.gpu,
        gpu_count=machine.gpu_count,
        spot=machine.spot,
        price_hour=machine.price_hour or Decimal(0),
        region=machine.region,
        hard_end=machine.expires_at,
        access=access_facts(access),
        owner=fleet.home.owner,
        terraform=folder,
    )
    row = _row(fleet, machine.name)
    fleet.say(f"{row.name}: waiting until it answers")
    try:
        ready = make_ready(fleet, row, as_machine(row), answer_seconds=BOOT_SECONDS)
    except NotReady as error:
        error.may_bill = True
        error.next = "It is in the ledger as borrowed. Run the same command again when it answers."
        raise
    try:
        find_python(ready.connection, machine=row.name)
    finally:
        ready.connection.close()
    return _row(fleet, row.name)


def settled(fleet: Fleet, rows: Sequence[MachineRow]) -> list[MachineRow]:
    """Return machines that somebody wants to end, as the ledger has them now.

    What Terraform has destroyed already is closed on the way.

    Raises:
        UsageError: one is Terraform's and, for all that is known, alive.
    """
    for row in rows:
        if row.borrowed and not row.closed:
            try:
                asked = fleet.provider(row.provider).configured() and close_if_gone(fleet, row)
            except (ProviderError, UsageError) as error:
                fleet.say(f"{row.name}: {row.provider} cannot be asked: {error}")
                asked = None
            if not asked:
                refuse_to_end([row])
    return [fleet.ledger.machine(row.name) or row for row in rows]


def _check(fleet: Fleet, machine: TerraformMachine) -> None:
    try:
        if machine.provider in (BORROWED, "local", "ssh"):
            raise UsageError(f"{machine.provider!r} is no cloud")
        fleet.provider(machine.provider)
    except UsageError as error:
        raise UsageError(f"{OUTPUT}.provider: {error.message}") from error
    if machine.expires_at <= fleet.clock.now():
        raise UsageError(
            f"{OUTPUT}.expires_at: {machine.name} was to end at "
            f"{machine.expires_at:%Y-%m-%d %H:%M:%S} UTC, which is past",
            machine=machine.name,
            next="Have Terraform replace it, or give it a later end.",
        )
    for row in fleet.ledger.machines():
        same = (row.provider, row.provider_id) == (machine.provider, machine.id)
        if row.name == machine.name or (same and not row.closed):
            raise UsageError(
                f"{OUTPUT}: {row.name} was rented by gpuctl itself, not made by Terraform",
                machine=row.name,
            )


def _row(fleet: Fleet, name: str) -> MachineRow:
    row = fleet.ledger.machine(name)
    assert row is not None  # it was recorded just now
    return row
