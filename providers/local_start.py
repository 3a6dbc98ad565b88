"""Starting the process behind a local machine, and hearing from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from providers import local_machine
from providers.local_account import marker

_TIMEOUT_SECONDS = 60


class NotStarted(Exception):
    """The process behind the machine could not be started. The text says why."""


def namespaces_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the setting leaves namespaces on."""
    return environ.get("GPUCTL_LOCAL_NAMESPACES") != "0"


def begin(folder: Path, environ: Mapping[str, str], mode: str = "") -> subprocess.Popen[bytes]:
    """Start the starter of the machine in ``folder``; `hear` waits for it.

    It runs in a session of its own, so what ends gpuctl in between does not end it.

    Raises:
        OSError: this computer cannot start a process.
    """
    package = Path(local_machine.__file__).parents[1]
    mode = mode or ("namespaces" if namespaces_wanted(environ) else "plain")
    argv = [sys.executable, "-I", "-S", "-c", local_machine.BOOT, str(package), str(folder), mode]
    return subprocess.Popen(
        argv,
        # Nothing else of the caller's environment: it lives as long as the machine.
        env={"PATH": environ.get("PATH", os.defpath), **marker(folder)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def hear(starter: subprocess.Popen[bytes]) -> None:
    """Wait until the machine is up.

    Raises:
        NotStarted: it says that it cannot, or says nothing in time.
    """
    try:
        said, _ = starter.communicate(timeout=_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        starter.kill()
        raise NotStarted(f"no answer within {_TIMEOUT_SECONDS} s") from error
    try:
        answer = json.loads(said)
    except ValueError as error:
        raise NotStarted(f"its process ended with status {starter.returncode}") from error
    if "error" in answer:
        raise NotStarted(answer["error"])


def why_no_namespaces(environ: Mapping[str, str]) -> str | None:
    """Try whether machines get namespaces of their own. Returns what stands against it."""
    if not namespaces_wanted(environ):
        return "switched off by GPUCTL_LOCAL_NAMESPACES"
    with tempfile.TemporaryDirectory(prefix="gpuctl-") as folder:
        (Path(folder) / "root").mkdir()
        try:
            with begin(Path(folder), environ, "probe") as starter:
                hear(starter)
        except (OSError, NotStarted) as error:
            return str(error)
    return None
