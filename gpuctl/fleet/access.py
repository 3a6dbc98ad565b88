"""How to reach a machine, and who ends it, as the ledger keeps it: without its provider."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from gpuctl.errors import UsageError
from gpuctl.ledger import MachineRow
from gpuctl.quantities import format_money
from providers.base import LocalAccess, Machine, SshAccess, State


def access_facts(
    access: SshAccess | LocalAccess | None, *, identity: str | None = None
) -> Mapping[str, object] | None:
    """Describe how to reach a machine. Its environment stays out: it may hold settings of the user.

    Args:
        access: as its provider says.
        identity: the key that it took, when that is not the home's own: an absolute path, or what
            the key is in the user's agent.
    """
    match access:
        case SshAccess():
            others = [_way(one) for one in access.alternatives]
            facts = _way(access) | {"folder": access.folder, "alternatives": others}
            return facts | ({"identity": identity} if identity else {})
        case LocalAccess():
            return {"kind": "local", "root": access.root}
        case None:
            return None


def ssh_access(facts: Mapping[str, Any] | None) -> SshAccess | None:
    """Return what `access_facts` described, without the environment; None when it is not SSH."""
    if facts is None or facts.get("kind") != "ssh":
        return None
    others = tuple(_address(one) for one in facts.get("alternatives", ()))
    way = _address(facts)
    return SshAccess(
        way.host,
        way.port,
        way.user,
        way.host_keys,
        way.identities,
        way.proxy,
        folder=facts.get("folder"),
        alternatives=others,
    )


def as_machine(row: MachineRow) -> Machine:
    """Return a borrowed machine as the ledger knows it: its cloud is not asked."""
    return Machine(
        name=row.name,
        provider=row.provider,
        provider_id=row.provider_id or "",
        state=State.READY,
        status="borrowed",
        gpu=row.gpu,
        gpu_count=row.gpu_count,
        spot=row.spot,
        price_hour=row.price_hour,
        region=row.region,
        access=ssh_access(row.access),
    )


def stays(row: MachineRow) -> str:
    """Say that a lent machine goes on, what that costs, and what ends it."""
    until = f"until {row.hard_end if row.borrowed else row.lease_until:%Y-%m-%d %H:%M} UTC"
    price = f"{format_money(row.price_hour)} an hour" if row.price_hour else "an unknown price"
    if row.borrowed:
        return (
            f"{row.name} stays, at {price} {until}: Terraform owns it. `{end_command(row)}` ends it"
        )
    return (
        f"{row.name} stays, at {price} {until} at most: `gpuctl terminate {row.name}` ends it now"
    )


def end_command(row: MachineRow) -> str:
    """Return the command that ends a machine of Terraform's."""
    folder = f" -chdir={shlex.quote(row.terraform)}" if row.terraform else ""
    return f"terraform{folder} destroy"


def refuse_to_end(rows: Sequence[MachineRow]) -> None:
    """Let nobody end what is Terraform's.

    Raises:
        UsageError: one of them is.
    """
    for row in rows:
        if row.borrowed and not row.closed:
            raise UsageError(
                f"{row.name} is Terraform's, and gpuctl never ends what it did not make",
                machine=row.name,
                next=f"`{end_command(row)}` ends it.",
            )


def _way(access: SshAccess) -> dict[str, object]:
    return {
        "kind": "ssh",
        "host": access.host,
        "port": access.port,
        "user": access.user,
        "host_keys": list(access.host_keys),
        "identities": list(access.identities),
        "proxy": list(access.proxy),
    }


def _address(facts: Mapping[str, Any]) -> SshAccess:
    # Ledgers of older versions lack the later facts.
    return SshAccess(
        str(facts["host"]),
        int(facts["port"]),
        str(facts["user"]),
        tuple(facts.get("host_keys", ())),
        tuple(facts.get("identities", ())),
        tuple(facts.get("proxy", ())),
    )
