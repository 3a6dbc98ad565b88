"""The command line in this process, on a home of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gpuctl.cli import entry
from gpuctl.fleet import asking, catalog, context, guarding, health
from gpuctl.ledger import Ledger
from providers import registry
from providers.base import SystemClock
from tests.clouds.memory_cloud import MemoryCloud


@dataclass(frozen=True)
class Answer:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one document on stdout."""
        documents = self.out.splitlines()
        assert len(documents) == 1, self.out
        return json.loads(documents[0])


Gpuctl = Callable[..., Answer]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that nobody has used, and an empty working folder."""
    path = tmp_path / "home"
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.setenv("GPUCTL_HOME", str(path))
    monkeypatch.delenv("GPUCTL_OWNER", raising=False)
    monkeypatch.chdir(work)
    return path


@pytest.fixture
def gpuctl(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Gpuctl]:
    """Run one command line; whatever is still rented is ended afterwards."""

    # The watchdog is a process of its own, which does not know a cloud in this one's memory.
    monkeypatch.setattr(guarding, "revive", lambda _fleet: None)

    def run(*argv: object) -> Answer:
        capfd.readouterr()
        code = entry.run([str(word) for word in argv])
        out, err = capfd.readouterr()
        return Answer(code, out, err)

    yield run
    if (home / "ledger.db").exists():
        entry.run(["terminate", "--all", "--yes"])


@pytest.fixture
def ledger(home: Path) -> Iterator[Ledger]:
    """The ledger of the home, to look at or write behind the command line's back."""
    home.mkdir(exist_ok=True)
    with Ledger.open(home / "ledger.db", clock=SystemClock()) as opened:
        yield opened


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> MemoryCloud:
    """A cloud called ``memory`` that the registry knows beside ``local``."""
    made = MemoryCloud(SystemClock(), settle_seconds=0.05)

    def create(name: str, *args: Any, **more: Any) -> Any:
        return made if name == "memory" else registry.create_provider(name, *args, **more)

    monkeypatch.setattr(context, "create_provider", create)
    for module in (context, asking, health, catalog):
        monkeypatch.setattr(module, "names", lambda: ("local", "memory"))
    return made
