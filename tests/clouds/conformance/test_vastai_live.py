"""Vast.ai's own live tests, from a checkout of vast-ai/vast-cli, against the emulated cloud.

``GPUCTL_VAST_CLI`` names the checkout. They are Vast.ai's word on what its API answers.
"""

from __future__ import annotations

import os
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clouds.conformance.vastai_clients import environ, python
from tests.clouds.vastai_cloud import VastCloud, usual_hosts

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(700)]

# They use fixtures that their own conftest.py does not have.
_FIXTURES = """
import os, pytest
from vastai import SyncClient
@pytest.fixture
def sync_client(): return SyncClient(os.environ["VAST_API_KEY"], vast_server=os.environ["VAST_URL"])
@pytest.fixture
def async_client(): pytest.skip("AsyncClient fetches a certificate from console.vast.ai first")
"""


@pytest.fixture
def checkout() -> Path:
    """The checkout; skips without one."""
    named = os.environ.get("GPUCTL_VAST_CLI")
    if not named:
        pytest.skip("GPUCTL_VAST_CLI names no checkout of github.com/vast-ai/vast-cli")
    folder = Path(named).resolve()
    if not (folder / "tests" / "live").is_dir():
        pytest.skip(f"{folder} has no tests/live")
    return folder


@pytest.fixture
def cloud() -> Iterator[VastCloud]:
    """An account that has an ssh key, as theirs does: the list of none is a 404."""
    with VastCloud() as made:
        made.contracts.hosts = usual_hosts()
        key = made._new_key("ssh-ed25519 AAAA somebody")
        made.ssh_keys[key["id"]] = key
        yield made


def outcomes(cloud: VastCloud, checkout: Path, folder: Path, *tests: str) -> dict[str, str]:
    """Run tests of the checkout; return how each ended."""
    (folder / "vast_fixtures.py").write_text(_FIXTURES)
    report = folder / "report.xml"
    argv = [
        str(python()),
        *("-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"),
        *("-p", "vast_fixtures", f"--junitxml={report}", *tests),
    ]
    done = subprocess.run(
        argv,
        cwd=checkout,
        env=environ(cloud, folder, PYTHONPATH=str(folder), PYTHONDONTWRITEBYTECODE="1"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert report.exists(), done.stdout + done.stderr
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314
        bad = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}.{case.get('name')}"] = bad[0] if bad else "passed"
    return found


def test_all_their_live_tests_pass(cloud: VastCloud, checkout: Path, tmp_path: Path) -> None:
    found = outcomes(cloud, checkout, tmp_path, "tests/live")
    assert len(found) >= 19
    assert set(found.values()) == {"passed"}, found


def test_their_searches_pass(cloud: VastCloud, checkout: Path, tmp_path: Path) -> None:
    found = outcomes(cloud, checkout, tmp_path, "tests/test_search.py")
    passed = [name for name, how in found.items() if how == "passed"]
    assert len(passed) == 4
    assert {how for name, how in found.items() if name not in passed} <= {"skipped"}, found
