"""How the system's ssh reaches a machine as safely as we do: as an argv, and as a Host block."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from gpuctl.errors import UsageError
from gpuctl.remote.known_hosts import KnownHost
from providers.base import SshAccess

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_WORD = re.compile(r"[A-Za-z0-9_.:\[][A-Za-z0-9_.:\[\]@+%~-]*")


def ssh_options(access: SshAccess, key: Path | None, known: KnownHost) -> dict[str, str]:
    """Return ssh_config keywords and values; the machine must have been reached once.

    Args:
        access: the way in that works.
        key: the private key that the machine takes; None when the user's agent has it.
        known: its pinned host keys.

    Raises:
        UsageError: a path or the proxy has something in it that ssh would not take as it is.
    """
    options = {
        "UserKnownHostsFile": _path(known.file),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": known.alias,
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "PasswordAuthentication": "no",  # hosts are strangers: nothing is typed or lent to them
        "KbdInteractiveAuthentication": "no",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ServerAliveInterval": "10",
        "ServerAliveCountMax": "4",
        "ConnectTimeout": "20",
    }
    if access.proxy:
        options["ProxyCommand"] = _one_line(shlex.join(access.proxy)).replace("%", "%%")
    if key is not None:
        options |= {"IdentityFile": _path(key), "IdentitiesOnly": "yes"}
    return options


def ssh_argv(
    access: SshAccess,
    key: Path | None,
    known: KnownHost,
    line: str = "",
    *,
    terminal: bool = False,
    forwards: Sequence[str] = (),
) -> list[str]:
    """Return the argv of an ssh to the machine.

    Args:
        access: the address that works.
        key: see `ssh_options`.
        known: see `ssh_options`.
        line: for the login shell there; a login shell when empty.
        terminal: whether the line gets one; a login shell gets one wherever there is one.
        forwards: arguments from `gpuctl.remote.forwarding`; ssh ends when one cannot be had.

    Raises:
        UsageError: as `ssh_options`.
    """
    argv = ["ssh", "-F", "/dev/null"]
    for name, value in ssh_options(access, key, known).items():
        argv += ["-o", f"{name}={value}"]
    argv += ["-p", str(access.port), "-l", access.user]
    if forwards:
        argv += ["-o", "ExitOnForwardFailure=yes", *forwards]
    if line:
        argv += ["-tt" if terminal else "-T"]
    argv += ["--", access.host]
    return [*argv, line] if line else argv


def host_block(names: Sequence[str], access: SshAccess, key: Path | None, known: KnownHost) -> str:
    """Return a block for ssh_config, so that `ssh NAME`, scp, rsync and editors get in.

    Whoever logs in with it gets the login shell in the login folder, for scp and rsync break when
    a command is set.

    Args:
        names: what it is to be called.
        access: see `ssh_options`.
        key: see `ssh_options`.
        known: see `ssh_options`.

    Raises:
        UsageError: something that the provider or the machine said would not stay in its line.
    """
    host, user = (_word(text) for text in (access.host, access.user))
    lines = [f"Host {' '.join(_word(name) for name in names)}"]
    where = {"HostName": host.replace("%", "%%"), "Port": str(access.port), "User": user}
    options = where | ssh_options(access, key, known)
    return "\n".join([*lines, *(f"    {name} {value}" for name, value in options.items()), ""])


def _path(path: Path) -> str:
    """Quote a path as ssh_config does; % begins a token there."""
    text = _one_line(str(path))
    if '"' in text or "\\" in text or "${" in text:
        raise UsageError(
            f"ssh cannot be given the path {text}: it has a quote, a backslash or ${{ in it",
            next="Use another GPUCTL_HOME, or another place for the key.",
        )
    return '"' + text.replace("%", "%%") + '"'


def _one_line(text: str) -> str:
    if _CONTROLS.search(text):
        raise UsageError(f"ssh cannot be given {text!r}: it has control characters in it")
    return text


def _word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise UsageError(f"ssh cannot be given {text!r} as the name of a host or user")
    return text
