"""Ports that are carried along by an ssh session. Pure."""

from __future__ import annotations

import re

from gpuctl.errors import UsageError

_HOST = r"(?:\[[0-9A-Fa-f:.%A-Za-z_]+\]|[^-\[\]:\s/\x00-\x1f][^\[\]:\s/\x00-\x1f]*)"
_SPEC = re.compile(
    rf"(?:(?P<bind>{_HOST}|\*):)?(?P<port>[0-9]+):(?P<host>{_HOST}):(?P<there>[0-9]+)"
)


def forwarding(option: str, spec: str) -> list[str]:
    """Return the arguments of the system's ssh for one port that is carried along.

    Args:
        option: ``-L`` (a port here leads there) or ``-R`` (a port there leads here).
        spec: ``PORT`` (the same on both sides, at localhost), ``PORT:HOST:PORT`` or
            ``ADDRESS:PORT:HOST:PORT``, as ssh takes them.

    Raises:
        UsageError: it is none of these.
    """
    full = f"{spec}:localhost:{spec}" if spec.isdecimal() else spec
    found = _SPEC.fullmatch(full)
    ports = [found["port"], found["there"]] if found else []
    if not found or not all(0 < int(port) < 1 << 16 for port in ports):
        why = "ports are 1 to 65535" if found else "PORT or PORT:HOST:PORT is expected"
        raise UsageError(
            f"{option} {spec!r} is not understood: {why}",
            next=f"Write it as in `{option} 6006` or `{option} 8080:localhost:80`.",
        )
    if option == "-L" and not found["bind"]:
        # Else ssh is content with ::1 where 127.0.0.1 is taken, and "localhost" may be either.
        full = f"127.0.0.1:{full}"
    return [option, full]
