"""The registry: lazy, and one broken package costs its own name only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from providers import registry
from providers.base import AuthFailed, SystemClock
from providers.registry import (
    BrokenProvider,
    UnknownProvider,
    create_provider,
    known_systems,
    names,
    reference_only,
)


class _Whole:
    """Has every verb; the registry looks no deeper."""

    name = "thirdcloud"
    capabilities = configured = offers = create = get = list = None
    destroy = leftovers = remove = billed = check = None

    def __init__(self, environ: Mapping[str, str], home: Path) -> None:
        self.environ = environ
        self.home = home

    @classmethod
    def from_environment(cls, environ: Mapping[str, str], *, home: Path, **_: object) -> _Whole:
        return cls(environ, home)


class _Partial:
    name = "partial"

    @classmethod
    def from_environment(cls, *_: object, **__: object) -> _Partial:
        return cls()


class _Raises:
    @classmethod
    def from_environment(cls, environ: Mapping[str, str], **_: object) -> _Raises:
        raise RuntimeError(f"bad token {environ['TOKEN']}")


class _Refuses:
    @classmethod
    def from_environment(cls, *_: object, **__: object) -> _Refuses:
        raise AuthFailed("The key of refuses has expired.")


def make(name: str, tmp_path: Path, **environ: str) -> Any:
    return create_provider(name, environ, home=tmp_path, clock=SystemClock())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def point(name: str, value: str) -> EntryPoint:
        return EntryPoint(name, value, registry.ENTRY_POINT_GROUP)

    here = __name__
    points = [
        point("thirdcloud", f"{here}:_Whole"),
        point("partial", f"{here}:_Partial"),
        point("raises", f"{here}:_Raises"),
        point("refuses", f"{here}:_Refuses"),
        point("missing", "no_such_package_at_all:Provider"),
        point("twice", f"{here}:_Whole"),
        point("twice", f"{here}:_Partial"),
        point("same", f"{here}:_Whole"),
        point("same", f"{here}:_Whole"),
        point("local", f"{here}:_Raises"),
    ]
    monkeypatch.setattr(
        "importlib.metadata.entry_points",
        lambda *, group: points if group == registry.ENTRY_POINT_GROUP else [],
    )


@pytest.mark.usefixtures("installed")
def test_a_third_partys_provider_is_made_from_the_environment(tmp_path: Path) -> None:
    made = make("thirdcloud", tmp_path, KEY="v")
    assert (made.environ, made.home) == ({"KEY": "v"}, tmp_path)
    assert make("same", tmp_path).name == "thirdcloud"


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing", "ModuleNotFoundError"),
        ("raises", "RuntimeError"),
        ("partial", "lacks capabilities"),
        ("twice", "Two packages"),
    ],
)
def test_a_broken_one_says_so_and_costs_nobody_else(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BrokenProvider, match=says) as caught:
        make(name, tmp_path, TOKEN="hunter2")
    assert name in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert make("thirdcloud", tmp_path).name == "thirdcloud"


@pytest.mark.usefixtures("installed")
def test_a_providers_own_error_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(AuthFailed, match="expired"):
        make("refuses", tmp_path)


@pytest.mark.usefixtures("installed")
def test_nobody_takes_the_place_of_a_built_in_one() -> None:
    listed = names()
    assert listed.count("local") == 1
    assert listed[0] == "local"
    assert {"thirdcloud", "missing", "twice"} <= set(listed)
    assert registry.BUILT_IN["local"] == "providers.local:LocalProvider"


def test_an_unknown_name_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UnknownProvider, match="Did you mean local") as caught:
        make("locall", tmp_path)
    assert caught.value.suggestions[0] == "local"
    assert isinstance(caught.value, ValueError)
    with pytest.raises(UnknownProvider, match="Providers that work: local"):
        make("zzzz", tmp_path)


def test_a_known_system_without_an_adapter_says_so(tmp_path: Path) -> None:
    for name in reference_only():
        with pytest.raises(UnknownProvider, match="no adapter"):
            make(name, tmp_path)
    assert {"local", "ssh"}.isdisjoint(reference_only())
    assert not known_systems()["runpod"].spot
    assert not known_systems()["hetzner"].gpus


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, providers.registry, providers.gpus; "
        "heavy = {'requests', 'boto3', 'hcloud', 'paramiko', 'pydantic', 'yaml', "
        "'importlib.metadata', 'providers.local'}; "
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_the_built_in_provider_is_made(tmp_path: Path) -> None:
    made = make("local", tmp_path)
    assert made.name == "local"
    assert made.capabilities.by_name_only
