"""One transfer by gpuctl, in a process that does nothing else.

python ours.py up|down PORT HOME USER SOURCE TARGET; prints seconds without and with the login,
CPU seconds with Python's own start, and MB of memory at most.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

from gpuctl.remote.ssh import SshConnection
from providers.base import SshAccess

_RSS_UNIT = 1 if sys.platform == "darwin" else 1024


def main(direction: str, port: str, home: str, user: str, source: str, target: str) -> None:
    """Connect and move it."""
    began = time.perf_counter()
    access = SshAccess("127.0.0.1", int(port), user)
    connection = SshConnection(access, home=Path(home), machine=f"bench-{port}")
    connection.channels().round_trip  # noqa: B018 - logs in
    logged_in = time.perf_counter()
    if direction == "down":
        connection.get(source, Path(target))
    else:
        connection.put(Path(source), target)
    done = time.perf_counter()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _RSS_UNIT / 1e6
    print(done - logged_in, done - began, cpu, memory)
    connection.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
