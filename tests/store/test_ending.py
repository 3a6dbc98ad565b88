"""How an attempt ended, as the agent leaves it in the store: believed whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.agent import machine_agent
from gpuctl.store import open_store
from gpuctl.store.ending import Ending, ending_key, parse_ending

RUN = "demo-1a2b3c"
OUTCOMES = ("completed", "failed", "interrupted", "cancelled", "capped", "lease")


def written(**changes: Any) -> bytes:
    """An ending as the agent writes it."""
    document = {
        "format": 1,
        "run": RUN,
        "attempt": 2,
        "at": "2026-11-21T13:00:00.123456Z",
        "outcome": "completed",
        "exit_code": 0,
        "reason": "exit code 0",
        "outputs": [
            {"from": "out", "seq": 3, "bytes": 5, "shipped": True},
            {"from": "gone", "missing": True},
        ],
        **changes,
    }
    document["sha256"] = hashlib.sha256(machine_agent.canonical(document)).hexdigest()
    return machine_agent.canonical(document)


def read(content: bytes) -> Ending | None:
    return parse_ending(content, RUN, 2)


def test_it_reads_back() -> None:
    ending = read(written())
    assert ending is not None
    assert (ending.outcome, ending.exit_code, ending.reason) == ("completed", 0, "exit code 0")
    assert [(o.source, o.seq, o.shipped) for o in ending.outputs] == [
        ("out", 3, True),
        ("gone", None, False),
    ]
    assert ending.at.utcoffset() is not None


@given(
    outcome=st.sampled_from(OUTCOMES),
    exit_code=st.none() | st.integers(0, 255),
    reason=st.text(max_size=2000).filter(lambda text: text.isprintable()),
)
def test_every_ending_of_an_agent_reads_back(
    outcome: str, exit_code: int | None, reason: str
) -> None:
    ending = read(written(outcome=outcome, exit_code=exit_code, reason=reason))
    assert ending is not None
    assert (ending.outcome, ending.exit_code, ending.reason) == (outcome, exit_code, reason)


@given(st.data())
def test_a_flipped_or_missing_byte_is_not_believed(data: st.DataObject) -> None:
    whole = written()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        broken = whole[:at]
    else:
        flip = data.draw(st.integers(1, 255))
        broken = whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :]
    assert read(broken) is None


@given(st.binary(max_size=200))
def test_garbage_is_not_there(content: bytes) -> None:
    assert read(content) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"run": "other-1a2b3c"},
        {"attempt": 3},
        {"outcome": "exploded"},
        {"exit_code": "0"},
        {"at": "yesterday"},
        {"reason": "x" * 2001},
        {"outputs": {}},
    ],
    ids=str,
)
def test_what_is_not_as_it_should_be_is_not_there(changes: dict[str, Any]) -> None:
    assert read(written(**changes)) is None


def test_a_newer_agent_may_add_keys() -> None:
    assert read(written(epochs=3)) == read(written())


def test_the_store_finds_it_and_prune_leaves_it_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), RUN, environ={})
    assert store.ending(2) is None
    file = tmp_path / RUN / ending_key(2)
    file.parent.mkdir(parents=True)
    file.write_bytes(written())
    assert store.ending(2) == read(written())
    assert (store.ending(1), store.manifests(), store.corrupt()) == (None, [], [])
    store.prune(keep=1)
    assert json.loads(file.read_bytes())["outcome"] == "completed"
    assert machine_agent.ending_key(2) == ending_key(2)
