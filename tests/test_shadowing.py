"""A folder called `providers` or `gpuctl` where the user works does not take the place of ours.

`providers` is a common name for a folder, and Python looks in the working directory first when
it is started with -m or -c. The console script is immune; so is every child process, which gets
-P or -I (tests/test_architecture.py reads that from the source). With `python -m gpuctl` Python
has chosen which `gpuctl` to run before our first line: a folder `gpuctl` wins there unless
Python is given -P, but `providers` must not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

CONSOLE_SCRIPT = str(Path(sys.executable).parent / "gpuctl")
TRAP = """
from pathlib import Path
Path({file!r}).touch()
raise SystemExit("the folder in the working directory was imported")
"""


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A working directory with packages that leave a trace when something imports them."""
    folder = tmp_path / "work"
    for package in ("providers", "gpuctl", "click", "yaml"):
        (folder / package).mkdir(parents=True)
        trap = TRAP.format(file=str(tmp_path / "imported"))
        for name in ("__init__.py", "__main__.py", "base.py", "registry.py"):
            (folder / package / name).write_text(trap)
    return folder


def gpuctl(command: Sequence[str], work: Path) -> subprocess.CompletedProcess[str]:
    """Run gpuctl in the working directory, with a home of its own."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environ["GPUCTL_HOME"] = str(work.parent / "home")
    return subprocess.run(
        command, cwd=work, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def assert_ours(command: Sequence[str], work: Path) -> None:
    """Check that a command which loads a provider ran our code and none of the folder's."""
    done = gpuctl([*command, "providers", "--json"], work)
    assert not (work.parent / "imported").exists(), done.stderr
    assert done.returncode == 0, done.stderr
    assert "local" in done.stdout
    json.loads(done.stdout)


def test_the_console_script_is_immune(work: Path) -> None:
    assert_ours([CONSOLE_SCRIPT], work)


@pytest.mark.parametrize("flag", ["-P", "-I"])
def test_a_module_started_as_gpuctl_starts_its_children_is_immune(work: Path, flag: str) -> None:
    assert_ours([sys.executable, flag, "-m", "gpuctl"], work)


def test_python_m_gpuctl_finds_our_providers(work: Path) -> None:
    for package in ("gpuctl", "click", "yaml"):
        (work / package).rename(work.parent / package)
    assert_ours([sys.executable, "-m", "gpuctl"], work)


def test_the_trap_works(work: Path) -> None:
    done = gpuctl([sys.executable, "-c", "import providers"], work)
    assert done.returncode == 1
    assert (work.parent / "imported").exists()
