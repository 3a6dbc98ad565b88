"""The agent and the store were written from one text: each reads what the other writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gpuctl.agent.machine_agent as agent_module
from gpuctl.store import Store, open_store
from tests.conformance.store_suite import RUN, make_tree, picture, put
from tests.store.endpoints import settings
from tests.waiting import until

COMMAND = """
mkdir -p ck/epoch-1/sub out
head -c 100000 /dev/urandom > ck/epoch-1/sub/model
: > ck/epoch-1/empty
ln -s sub/model ck/epoch-1/latest
echo result > out/x
"""


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"), RUN, environ={})
    endpoint, bucket = (request.getfixturevalue(name) for name in ("moto", "moto_bucket"))
    return open_store(f"s3://{bucket}", RUN, environ=settings(endpoint))


def agent(verb: str, folder: Path, document: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run one verb of the agent on this computer."""
    ran = subprocess.run(
        [sys.executable, str(agent_module.__file__), verb, str(folder)],
        input=json.dumps(document) if document is not None else "",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_what_the_agent_ships_is_believed_and_fetched(store: Store, tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "ck").mkdir(parents=True)
    folder = tmp_path / "agent"
    folder.mkdir(mode=0o700)
    job = {
        "run": RUN,
        "attempt": 1,
        "workdir": str(work),
        "env": {},
        "secrets": {},
        "preflight": None,
        "setup": None,
        "command": COMMAND,
        "checkpoint_dir": str(work / "ck"),
        "settle_seconds": 0.2,
        "outputs": [{"from": "out"}],
        "store": store.write_grant(),
        "stop_after_seconds": None,
        "term_grace_seconds": 2,
        "notice": [],
        "poll_seconds": 0.1,
        "log_keep_bytes": 1 << 20,
    }
    agent("submit", folder, job)
    assert until(lambda: agent("status", folder)["job"]["phase"] == "ended", 60, every=0.2)

    output, checkpoint = store.manifests()
    assert (output.kind, checkpoint.kind, store.corrupt()) == ("output", "checkpoint", [])
    assert store.newest_whole().manifest == checkpoint
    assert picture(store.fetch(checkpoint, tmp_path / "got").path) == picture(work / "ck/epoch-1")
    assert (store.fetch(output, tmp_path / "out").path / "x").read_text() == "result\n"


def test_what_the_store_writes_is_restored_by_the_agent(store: Store, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "in" / "epoch-1")
    manifest = put(store, tree, 1)
    source: dict[str, object]
    if store.folder is not None:
        source = {"folder": os.fspath(store.folder)}
    else:
        source = {"urls": store.read_urls(manifest)}
    folder = tmp_path / "agent"
    folder.mkdir(mode=0o700)
    dest = tmp_path / "back" / "epoch-1"
    dest.parent.mkdir()
    document = {
        "manifest": json.loads(manifest.to_json()),
        "dest": str(dest),
        "source": source,
    }
    agent("restore", folder, document)
    assert picture(dest) == picture(tree)
