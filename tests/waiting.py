"""Waiting for real processes: polls with a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def until(true: Callable[[], object], seconds: float, every: float = 0.02) -> bool:
    """Return whether it became true within so many seconds."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while time.monotonic() < deadline:
        if true():
            return True
        pause.wait(every)
    return bool(true())
