"""Giving the caller's terminal to another program."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence

from gpuctl.remote.local_process import exit_code


def call_in_foreground(argv: Sequence[str]) -> int:
    """Run a program on our own stdin, stdout and stderr; return its exit code.

    Ctrl-C is for the program meanwhile: we live on to tell how it ended.

    Raises:
        FileNotFoundError: there is no such program.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return exit_code(
            subprocess.call(argv, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        )
    finally:
        signal.signal(signal.SIGINT, before)
