"""Where the agent hears that its machine will be taken away."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gpuctl.agent.machine_agent import metadata_root
from gpuctl.run.launch import _notices
from providers.base import Machine, State

ROOT = "http://169.254.169.254"


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        (None, ROOT),
        ("", ROOT),
        ("http://127.0.0.1:1338", "http://127.0.0.1:1338"),
        ("file:///etc/passwd", ROOT),
    ],
)
def test_the_machine_knows_its_metadata_service_best(
    monkeypatch: pytest.MonkeyPatch, own: str | None, expected: str
) -> None:
    monkeypatch.delenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", raising=False)
    if own is not None:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", own)
    assert metadata_root(ROOT) == expected


@pytest.mark.parametrize("root", [None, ROOT])
def test_a_job_listens_where_its_provider_says(root: str | None, tmp_path: Path) -> None:
    machine = Machine("m", "aws", "r/i-1", State.READY, "running", notice_root=root)
    ready = SimpleNamespace(machine=machine, connection=SimpleNamespace(home=str(tmp_path)))
    sources = _notices(cast(Any, ready))
    assert sources[0] == {"file": f"{tmp_path}/.interruption"}
    assert list(sources[1:]) == ([] if root is None else [{"aws": root}])
