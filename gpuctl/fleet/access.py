"""How to reach a machine, as the ledger keeps it: enough to do so without its provider."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from providers.base import LocalAccess, SshAccess


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
