"""The options with which the system's ssh reaches a machine as safely as we do."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from gpuctl.remote.known_hosts import KnownHost
from providers.base import SshAccess


def ssh_options(key: Path | None, known: KnownHost) -> dict[str, str]:
    """Return ssh_config keywords and values; the machine must have been reached once.

    Args:
        key: the private key that the machine takes; None when the user's agent has it.
        known: its pinned host keys.
    """
    options = {
        "UserKnownHostsFile": _quoted(str(known.file)),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": known.alias,
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "ServerAliveInterval": "10",
        "ServerAliveCountMax": "4",
        "ConnectTimeout": "20",
    }
    if key is not None:
        options |= {"IdentityFile": _quoted(str(key)), "IdentitiesOnly": "yes"}
    return options


def ssh_argv(
    access: SshAccess,
    key: Path | None,
    known: KnownHost,
    command: Sequence[str] = (),
    *,
    terminal: bool = False,
) -> list[str]:
    """Return the argv of an ssh to the machine.

    Args:
        access: the address that works.
        key: see `ssh_options`.
        known: see `ssh_options`.
        command: what to run there; a login shell when empty.
        terminal: whether the command gets one; a login shell gets one wherever there is one.
    """
    argv = ["ssh", "-F", "/dev/null"]
    for name, value in ssh_options(key, known).items():
        argv += ["-o", f"{name}={value}"]
    argv += ["-p", str(access.port), "-l", access.user]
    if command:
        argv += ["-tt" if terminal else "-T"]
    argv += ["--", access.host]
    if command:
        argv += [f"exec {shlex.join(command)}"]
    return argv


def _quoted(path: str) -> str:
    """Quote a path as ssh_config does; % begins a token there."""
    return '"' + path.replace("%", "%%") + '"'
