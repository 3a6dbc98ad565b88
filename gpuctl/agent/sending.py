"""Putting the agent on a machine: a Python found, the agent sent, armed and asked, in one command.

A command costs a round trip and, on many machines, a slow start of a shell and a Python, while
a machine that bills waits for its work.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpuctl.errors import RemoteError
from gpuctl.remote.connection import Completed, Connection

AGENT_FILE = Path(__file__).with_name("machine_agent.py")

_TIMEOUT_SECONDS = 60.0
_UNFIT = 97
_ANSWERED = 100  # what is added to the agent's own exit code, so that no shell's is taken for it

PYTHONS = (
    "python3 python3.13 python3.12 python3.11 python3.10 python3.9 python3.8 "
    "python /usr/bin/python3 /usr/local/bin/python3 /opt/conda/bin/python3"
)
"""Where a Python may be on a machine, the likeliest first; for a shell."""

NEEDED = "argparse ctypes fcntl hashlib json select ssl subprocess urllib.request zlib"
"""What the agent imports: a bare Debian has a Python without parts of its library."""

_FIND_PYTHON = f"""
for python in {PYTHONS}; do
  command -v "$python" >/dev/null 2>&1 || continue
  "$python" -I -c 'import sys; sys.version_info >= (3, 8) or sys.exit(1)
import {NEEDED.replace(" ", ", ")}
print("python=" + sys.executable)' 2>/dev/null && exit 0
done
exit 1
"""

_FIND = f"""
for python in {PYTHONS}; do
  command -v "$python" >/dev/null 2>&1 || continue
  "$python" -I -c "$1" "$2" "$3"
  code=$?
  case $code in {_ANSWERED}|{_ANSWERED + 1}|{_ANSWERED + 2}) exit $code;; esac
done
exit {_UNFIT}
"""

# stdin: a line of JSON with the size of the packed agent, the packed agent, the orders.
_RECEIVE = f"""
import sys
if sys.version_info < (3, 8): sys.exit({_UNFIT})
from importlib.util import find_spec
if not all(map(find_spec, {NEEDED.split()!r})): sys.exit({_UNFIT})
import json, os, zlib
head = sys.stdin.buffer.readline()
if not head: sys.exit({_UNFIT})
source = zlib.decompress(sys.stdin.buffer.read(json.loads(head)["size"]))
folder, path = sys.argv[1:]
os.umask(0o077)
try:
    os.makedirs(folder, mode=0o700, exist_ok=True)
    os.chmod(folder, 0o700)
    file = os.path.join(folder, "machine_agent.py")
    with open("%s.%d" % (file, os.getpid()), "wb") as out: out.write(source)
    os.replace(out.name, file)
except OSError as error:
    message = "%s: %s" % (error.strerror, error.filename or folder)
    print(json.dumps({{"error": {{"kind": "Disk", "message": message}}}}))
    sys.exit({_ANSWERED + 1})
sys.path.insert(0, folder)
import machine_agent
sys.exit({_ANSWERED} + machine_agent.main(["begin", folder, path]))
"""


def send(
    connection: Connection,
    directory: str,
    path: str,
    orders: Mapping[str, Any],
    *,
    machine: str | None = None,
) -> Completed:
    """Send the agent and have it `begin`: guard the lease, and tell the facts of the machine.

    Args:
        directory: of the agent, absolute on the machine; made if needed.
        path: whose free disk counts there.
        orders: as the verb `arm` takes them.
        machine: its name, for what goes wrong.

    Returns what the agent answered, with its exit code.

    Raises:
        RemoteError: the machine does not answer, or has no Python for the agent.
    """
    packed = zlib.compress(AGENT_FILE.read_bytes(), 9)
    head = json.dumps({"size": len(packed)}).encode()
    done = connection.run(
        ["sh", "-c", _FIND, "sh", _RECEIVE, directory, path],
        stdin=head + b"\n" + packed + json.dumps(orders).encode(),
        timeout=_TIMEOUT_SECONDS,
    )
    if done.exit_code == _UNFIT:
        raise _no_python(machine)
    if done.exit_code < _ANSWERED:
        return done
    return replace(done, exit_code=done.exit_code - _ANSWERED)


def find_python(connection: Connection, *, machine: str | None = None) -> str:
    """Return the path of a Python on the machine that can run the agent.

    Raises:
        RemoteError: there is none, or the machine does not answer.
    """
    done = connection.run(_FIND_PYTHON, timeout=_TIMEOUT_SECONDS)
    for line in done.stdout.decode(errors="replace").splitlines():
        if line.startswith("python=/"):
            return line.removeprefix("python=")
    raise _no_python(machine)


def _no_python(machine: str | None) -> RemoteError:
    return RemoteError(
        "The machine has no python3 of version 3.8 or newer with its standard library, "
        "and gpuctl's agent needs one",
        machine=machine,
        next="Take an image that has it (`image:` in train.yaml); on Debian: apt install python3.",
    )
