"""From what a provider says about reaching a machine to a connection."""

from __future__ import annotations

from pathlib import Path

from gpuctl.errors import RemoteError
from gpuctl.home import home_path
from gpuctl.remote.connection import Connection
from providers.base import LocalAccess, SshAccess


def connect(
    access: LocalAccess | SshAccess | None,
    *,
    machine: str | None = None,
    home: Path | None = None,
) -> Connection:
    """Return a connection to the machine that ``access`` describes. Does not connect yet.

    Args:
        access: as its provider says; None when it does not tell (yet).
        machine: its name, for what goes wrong; the host keys of a machine are kept under it.
        home: GPUCTL_HOME; the environment's by default.

    Raises:
        RemoteError: there is no way in.
        UsageError: its environment or PATH has a name that no shell takes.
    """
    match access:
        case LocalAccess():
            from gpuctl.remote.local import LocalConnection

            return LocalConnection(access, machine=machine)
        case SshAccess():
            from gpuctl.remote.ssh import SshConnection

            return SshConnection(access, home=home or home_path(), machine=machine)
        case None:
            raise RemoteError(
                "The provider does not say how to reach the machine",
                machine=machine,
                next="Look at its state with `gpuctl list --refresh`.",
            )
