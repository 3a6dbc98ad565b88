"""Environments for clients that nobody here wrote: one each, below .make/, made on demand."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

_FOLDER = Path(__file__).resolve().parents[3] / ".make" / "sdks"
_INSTALL_SECONDS = 600


def python_with(name: str, *requirements: str) -> str:
    """Return the Python of an environment that has these packages; skips where it cannot be made.

    Args:
        name: of the environment.
        requirements: as pip takes them; when they change, it is made anew.
    """
    key = hashlib.sha256(" ".join(requirements).encode()).hexdigest()[:8]
    place = _FOLDER / f"{name}-{key}"
    python = place / "bin" / "python"
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes side by side make it once
        if (place / "made").exists():
            return str(python)
        try:
            _run([sys.executable, "-I", "-m", "venv", "--clear", str(place)])
            _run([str(python), "-I", "-m", "pip", "install", "--quiet", *requirements])
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
            said = getattr(error, "stderr", None) or b""
            why = said.decode(errors="replace").strip().splitlines()[-1:] or [str(error)]
            pytest.skip(f"{' '.join(requirements)} cannot be installed here: {why[0][:200]}")
        (place / "made").touch()
    return str(python)


def _run(argv: list[str]) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
