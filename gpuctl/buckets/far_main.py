"""On the machine: where the program starts, and what it says first.

Standard library only, Python >= 3.8.
"""

from __future__ import annotations

import sys
from typing import Any, BinaryIO

from gpuctl.buckets.far_fetch import Fetch
from gpuctl.buckets.far_send import Send
from gpuctl.buckets.far_wire import Failed, Wire, World


def main(stdin: BinaryIO) -> None:
    """Serve this process's stdin and stdout until there is no more to hear."""
    wire = Wire(stdin)
    wire.tell("hello", python=sys.version.split()[0])
    start = wire.hear()
    if start is None:
        return
    try:
        _serve(wire, start)
    except Failed as failed:
        wire.tell("fail", kind=failed.kind, message=str(failed))
    except OSError as error:
        about = {"message": error.strerror or str(error), "path": str(error.filename or "")}
        wire.tell("fail", kind="disk", errno=error.errno, **about)


def _serve(wire: Wire, start: Any) -> None:
    world = World(wire, start)
    world.begin(start["lanes"])
    work = Fetch(world, start) if start["way"] == "in" else Send(world, start)
    while True:
        said = wire.hear()
        if said is None:
            return
        if said["t"] == "url":
            world.addresses.put(said["i"], said["part"], said["url"])
        elif said["t"] != "beat":
            work.hear(said)
