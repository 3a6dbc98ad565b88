"""A process that lives long, and the gpuctl on disk that may be another one by now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gpuctl
from providers.base import Clock

_LOOK_SECONDS = 10.0
_STEADY_SECONDS = 30.0  # an upgrade takes files away before it brings the new ones
_TRY_SECONDS = 60.0


class Upgrade:
    """Tells when another version of gpuctl has taken the place of the one that runs here.

    Args:
        clock: how long the files have been as they are.
        package: the file that holds the version.
    """

    def __init__(self, clock: Clock, package: Path | None = None) -> None:
        self._clock = clock
        self._package = package or Path(gpuctl.__file__)
        self._running = self._seen = self._content()
        self._looked = self._since = clock.monotonic()

    def is_there(self) -> bool:
        """Whether it is, has been for a while, and can be started. Looks now and then only."""
        now = self._clock.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        content = self._content()
        if content != self._seen:
            self._seen, self._since = content, now
        if content is None or content == self._running or now - self._since < _STEADY_SECONDS:
            return False
        if not _starts():
            self._since = now
            return False
        return True

    def _content(self) -> bytes | None:
        try:
            return self._package.read_bytes()
        except OSError:
            return None


def _starts() -> bool:
    """Whether the watchdog of the gpuctl on disk can be loaded: half an installation cannot."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", "import gpuctl.fleet.watchdog"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            timeout=_TRY_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
