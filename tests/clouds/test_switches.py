"""Every fault that can be switched on has a test that switches it on."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path

import pytest

from tests.clouds import runpod_cloud, vastai_cloud

TESTS = Path(__file__).parents[1]
CLOUDS = {"runpod": runpod_cloud.Switches, "vastai": vastai_cloud.Switches}
NAMES = [
    (cloud, field.name) for cloud, kind in CLOUDS.items() for field in dataclasses.fields(kind)
]


@cache
def text_of(cloud: str) -> str:
    """What the tests of a cloud say."""
    files = [*TESTS.rglob(f"test_*{cloud}*.py"), *TESTS.rglob(f"at_{cloud}.py")]
    return "\n".join(file.read_text() for file in files)


@pytest.mark.parametrize(("cloud", "name"), NAMES, ids=lambda one: str(one))
def test_it_is_switched_on_somewhere(cloud: str, name: str) -> None:
    assert re.search(rf"\b{name}\b", text_of(cloud)), f"no test of {cloud} names {name}"
