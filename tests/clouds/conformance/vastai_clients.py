"""Vast.ai's own package, in an environment of its own, set on the emulated cloud."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.clouds.conformance.environments import python_with
from tests.clouds.vastai_cloud import VastCloud, main_settings

PACKAGE = "vastai==1.9.1"
_SECONDS = 100


def python() -> Path:
    """A Python that has the package; skips where none can be made."""
    return Path(python_with("vastai", PACKAGE, "pytest>=8", "pytest-asyncio>=0.24"))


def environ(cloud: VastCloud, home: Path, **more: str) -> dict[str, str]:
    """What leads the package to the emulated cloud, and nowhere else."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    quiet = {"HOME": str(home), "VASTAI_NO_UPDATE_CHECK": "1", "NO_COLOR": "1"}
    return {**kept, **quiet, **main_settings(cloud), **more}


def sdk(cloud: VastCloud, home: Path, program: str, **more: str) -> Any:
    """Run a program that has the package's client as ``v``; return what it gave to ``say``."""
    head = (
        "import json, os\n"
        "from vastai import VastAI\n"
        "v = VastAI(os.environ['VAST_API_KEY'], server_url=os.environ['VAST_URL'], quiet=True)\n"
        "def say(x): print('SAID ' + json.dumps(x))\n"
    )
    argv = [str(python()), "-I", "-c", head + program]
    done = subprocess.run(
        argv, env=environ(cloud, home, **more), capture_output=True, text=True, timeout=_SECONDS
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("SAID ")]
    assert lines, done.stdout
    return json.loads(lines[-1].removeprefix("SAID "))


def cli(
    cloud: VastCloud, home: Path, *arguments: str, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the `vastai` command."""
    argv = [str(python().with_name("vastai")), *arguments]
    return subprocess.run(
        argv,
        env=environ(cloud, home, **(more or {})),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
