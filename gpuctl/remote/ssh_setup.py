"""What every command on a machine begins with: its folder, its environment and its PATH."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from gpuctl.errors import UsageError
from providers.base import SshAccess

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# The login scripts come first, and what was asked for after them: they may set PATH anew.
_LOGIN_SHELL = 'exec "${{SHELL:-sh}}" -l -c {inner}'
_INNER = "exec sh -c {script}"


def setup_script(access: SshAccess) -> str:
    """Return POSIX shell commands that enter the folder and set the environment.

    They end with a separator, and are empty when there is nothing to set up. A folder that is not
    there is an error, never made: it went with its machine. The environment is visible to every
    user of the machine while a command starts: it is no place for secrets.

    Raises:
        UsageError: the environment or PATH has something in it that no shell takes.
    """
    script = ""
    if access.folder:
        script += f"cd -- {shlex.quote(access.folder)} || exit 1; "
    for name, value in access.env.items():
        if not _NAME.fullmatch(name):
            raise _wrong(f"{name!r} is no name for an environment variable")
        script += f"export {name}={shlex.quote(value)}; "
    if access.path:
        if any(":" in folder or not folder for folder in access.path):
            raise _wrong(f"a folder for PATH is empty or has a colon in it: {access.path}")
        ours = shlex.quote(":".join(access.path))
        script += f'PATH={ours}"${{PATH:+:$PATH}}"; export PATH; '
    return script


def shell_line(command: Sequence[str], setup: str) -> str:
    """Return what the system's ssh is given to run; "" for a login shell without a set-up.

    Args:
        command: an argv; empty for a shell to type into.
        setup: from `setup_script`.
    """
    if command:
        if not setup:
            return f"exec {shlex.join(command)}"
        return "exec " + shlex.join(["sh", "-c", f'{setup}exec "$@"', "sh", *command])
    if not setup:
        return ""
    script = f'{setup}exec "${{SHELL:-sh}}"'
    return _LOGIN_SHELL.format(inner=shlex.quote(_INNER.format(script=shlex.quote(script))))


def _wrong(why: str) -> UsageError:
    return UsageError(
        f"Commands on the machine cannot be given their environment: {why}",
        next="Correct it where the machine is described.",
    )
