"""Passing on what a machine keeps in its outbox, with folders on both sides."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gpuctl.errors import UsageError
from gpuctl.remote.local import LocalConnection
from gpuctl.run.relay import Relay
from gpuctl.store import Manifest, Store, open_store
from providers.base import LocalAccess, SystemClock
from tests.waiting import until

RUN = "demo-1a2b3c"


class Sides:
    """A machine with an outbox, and this computer with a store."""

    def __init__(self, folder: Path) -> None:
        self.machine = folder / "machine"
        self.machine.mkdir()
        self.there = open_store(str(self.machine), RUN, environ={})
        self.here = open_store(str(folder / "store"), RUN, environ={})
        self.home = folder / "home"
        self.outbox = self.machine / RUN

    def put(self, seq: int, content: bytes) -> Manifest:
        """Have the machine keep an entry."""
        file = self.machine / "entry"
        file.write_bytes(content)
        at = datetime(2026, 11, 21, tzinfo=UTC)
        return self.there.put_entry(
            file,
            attempt=1,
            seq=seq,
            kind="checkpoint",
            name=f"ck-{seq}",
            version=1,
            step=seq,
            at=at,
        )

    def end(self) -> None:
        """Have the machine leave word of the job's end."""
        ending: dict[str, Any] = {
            "format": 1, "run": RUN, "attempt": 1, "at": "2026-11-21T13:00:00.000000Z",
            "outcome": "completed", "exit_code": 0, "reason": "exit code 0", "outputs": [],
        }  # fmt: skip
        canonical = json.dumps(ending, sort_keys=True, separators=(",", ":")).encode()
        ending["sha256"] = hashlib.sha256(canonical).hexdigest()
        (self.outbox / "ends").mkdir()
        (self.outbox / "ends/a0001.json").write_text(json.dumps(ending))

    def spoil(self, manifest: Manifest) -> None:
        """Change a blob of an entry on the machine."""
        [blob] = manifest.blobs()
        (self.outbox / blob.key).write_bytes(b"x" * blob.size)

    def relay(self) -> Relay:
        """A relay between them."""
        env = {"PATH": os.environ["PATH"]}
        connection = LocalConnection(LocalAccess(str(self.machine), (), env), machine="m-1")
        agent = SimpleNamespace(python=sys.executable)
        live: Any = SimpleNamespace(number=1, machine="m-1", connection=connection, agent=agent)
        home = SimpleNamespace(path=self.home)
        fleet = SimpleNamespace(home=home, clock=SystemClock())
        return Relay(SimpleNamespace(store=self.here, fleet=fleet), live, str(self.outbox))  # type: ignore[arg-type]

    def left_behind(self) -> list[str]:
        """What the passing on left on either side."""
        scratch = self.home / "scratch"
        here = [place.name for place in scratch.iterdir()] if scratch.exists() else []
        return [*here, *(place.name for place in self.outbox.glob(".relay-*"))]


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    return Sides(tmp_path)


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=30)


def names(store: Store) -> list[str]:
    return [manifest.name for manifest in store.manifests()]


def test_what_is_offered_arrives_and_the_rest_at_the_end(sides: Sides) -> None:
    first, second = sides.put(1, b"one"), sides.put(2, b"two")
    relay = sides.relay()
    relay.offer(2)
    assert until(lambda: relay.has_arrived(2), 20)
    assert names(sides.here) == ["ck-2"]
    sides.end()
    assert relay.finish(soon()) is True
    assert relay.trouble is None
    assert names(sides.here) == ["ck-2", "ck-1"]
    assert sides.here.verify(first) == sides.here.verify(second) == []
    ending = sides.here.ending(1)
    assert ending is not None
    assert ending.outcome == "completed"
    assert sides.left_behind() == []


def test_a_corrupt_entry_keeps_no_other_back(sides: Sides) -> None:
    """And it is never counted as safe: the ending, which says that all arrived, stays away."""
    sides.put(1, b"one")
    bad = sides.put(2, b"two")
    sides.put(3, b"three")
    sides.spoil(bad)
    sides.end()
    relay = sides.relay()
    for seq in (1, 2, 3):
        relay.offer(seq)
    assert until(lambda: relay.has_arrived(1) and relay.has_arrived(3), 20)
    assert relay.finish(soon()) is False
    assert "ck-2" in str(relay.trouble)
    assert names(sides.here) == ["ck-3", "ck-1"]
    assert not relay.has_arrived(2)
    assert sides.here.ending(1) is None
    assert sides.left_behind() == []


def test_an_entry_that_was_trimmed_is_let_go(sides: Sides) -> None:
    sides.put(1, b"one")
    relay = sides.relay()
    relay.offer(7)
    relay.offer(1)
    assert until(lambda: relay.has_arrived(1), 20)
    assert relay.finish(soon()) is True
    assert names(sides.here) == ["ck-1"]


def test_a_disk_that_is_full_for_a_while_ends_nothing(
    sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the crash matrix: the relay died of it, with a traceback."""
    get = LocalConnection.get
    full = [UsageError("no space left on device")] * 2

    def refused(*given: Any, **named: Any) -> object:
        if full:
            raise full.pop()
        return get(*given, **named)

    monkeypatch.setattr(LocalConnection, "get", refused)
    monkeypatch.setattr("gpuctl.run.relay._PAUSE_SECONDS", 0.1)
    sides.put(1, b"one")
    relay = sides.relay()
    relay.offer(1)
    assert until(lambda: relay.has_arrived(1), 20), relay.trouble
    assert relay.finish(soon()) is True
    assert sides.left_behind() == []
