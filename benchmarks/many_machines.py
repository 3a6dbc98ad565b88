"""How long `list --refresh`, `audit` and `reap` take with 500 machines on one account.

On the emulated clouds, with the limits that each documents and nothing behind the API. Time is the
cloud's: a clock that jumps over what everybody waits for, so that Vast.ai's 25 minutes pass in
seconds; what passes is what pacing and settling ask for. Beside it stands what the fewest requests
would take at the documented pace, and, in the last column, the seconds of this computer.

    python benchmarks/many_machines.py [--machines 500] [--cloud vastai ...]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.fleet.many import NAMES, Many, many_at, refused  # noqa: E402

COMMANDS = ("list", "audit", "reap")
HEAD = ("cloud", "command", "seconds", "least", "ratio", "calls", "least", "refused", "own s")
ROW = "{:<9}{:<9}{:>9}{:>9}{:>7}{:>8}{:>8}{:>9}{:>8}"


def measure(many: Many, count: int) -> None:
    """Print a line for each command."""
    many.rent(count)
    for command in COMMANDS:
        many.clock.pass_time(3600)
        least = many.least(command, count)
        began = time.perf_counter()
        done = many.take(command)
        own = time.perf_counter() - began
        early = len(refused(done.log)) + len(many.too_often(done.log))
        ratio = f"{done.seconds / least.seconds:.2f}" if least.seconds else "-"
        print(
            ROW.format(
                many.name,
                command,
                f"{done.seconds:.0f}",
                f"{least.seconds:.0f}",
                ratio,
                done.calls,
                least.calls,
                early,
                f"{own:.1f}",
            ),
            flush=True,
        )
    if left := len(many.left()):
        raise SystemExit(f"{many.name}: {left} of {count} are left in the cloud's books")


def main() -> None:
    """Measure every cloud that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--machines", type=int, default=500)
    parser.add_argument("--cloud", nargs="*", choices=NAMES, default=NAMES)
    given = parser.parse_args()
    print(ROW.format(*HEAD))
    for name in given.cloud:
        with tempfile.TemporaryDirectory() as folder, many_at(name, Path(folder)) as many:
            measure(many, given.machines)


if __name__ == "__main__":
    main()
