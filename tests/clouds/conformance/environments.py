"""Environments for clients that nobody here wrote: one each, below .make/, made on demand."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
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
        what = " ".join(requirements)
        _made([sys.executable, "-I", "-m", "venv", "--clear", str(place)], what)
        _made([str(python), "-I", "-m", "pip", "install", "--quiet", *requirements], what)
        (place / "made").touch()
    return str(python)


def node_modules_with(name: str, package: str) -> Path:
    """Return the node_modules of an environment that has an npm package; skips likewise."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip(f"{package} needs node and npm")
    place = _FOLDER / f"{name}-{hashlib.sha256(package.encode()).hexdigest()[:8]}"
    place.mkdir(parents=True, exist_ok=True)
    with (_FOLDER / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "made").exists():
            quiet = ("--silent", "--no-audit", "--no-fund", "--ignore-scripts")
            _made([npm, "install", *quiet, "--prefix", str(place), package], package)
            (place / "made").touch()
    return place / "node_modules"


def _made(argv: list[str], what: str) -> None:
    """Run one step; skips when it fails."""
    try:
        subprocess.run(argv, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        said = getattr(error, "stderr", None) or b""
        why = said.decode(errors="replace").strip().splitlines()[-1:] or [str(error)]
        pytest.skip(f"{what} cannot be installed here: {why[0][:200]}")
