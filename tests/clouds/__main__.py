"""All emulated clouds at once, for trying things by hand: `make clouds`.

Prints the settings to export, and runs until Ctrl-C. With real machines behind them where this
computer allows it.
"""

from __future__ import annotations

import contextlib
import importlib
import shlex
import signal
import sys
import tempfile
import threading
from pathlib import Path

from tests.clouds.rented import why_not

CLOUDS = ("runpod", "vastai", "hetzner", "aws")


def main() -> int:
    """Start them, say how to use them, and wait."""
    machines = why_not()
    if machines is not None:
        print(f"# Without machines behind them: {machines}", file=sys.stderr)
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with contextlib.ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="gpuctl-clouds-")))
        settings = {"GPUCTL_HOME": str(folder / "home")}
        for name in CLOUDS:
            module = importlib.import_module(f"tests.clouds.{name}_cloud")
            cloud = running.enter_context(module.by_hand(folder / name, machines=machines is None))
            settings |= module.main_settings(cloud)
        for key, value in settings.items():
            print(f"export {key}={shlex.quote(value)}")
        print("# Export these in another terminal, then: gpuctl quote --gpu A100-40GB", flush=True)
        over.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
