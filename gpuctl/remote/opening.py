"""From what a provider says about reaching a machine to a connection."""

from __future__ import annotations

from gpuctl.errors import RemoteError
from gpuctl.remote.connection import Connection
from providers.base import LocalAccess, SshAccess


def connect(access: LocalAccess | SshAccess | None, *, machine: str | None = None) -> Connection:
    """Return a connection to the machine that ``access`` describes.

    Args:
        access: as its provider says; None when it does not tell (yet).
        machine: its name, for what goes wrong.

    Raises:
        RemoteError: there is no way in.
    """
    match access:
        case LocalAccess():
            from gpuctl.remote.local import LocalConnection

            return LocalConnection(access, machine=machine)
        case SshAccess():
            raise RemoteError(
                f"{access.user}@{access.host}, port {access.port}: not built yet: the ssh "
                "transport arrives with the first cloud provider",
                machine=machine,
                next="Use the local provider (--provider local) for now.",
            )
        case None:
            raise RemoteError(
                "The provider does not say how to reach the machine",
                machine=machine,
                next="Look at its state with `gpuctl list --refresh`.",
            )
