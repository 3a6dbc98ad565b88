"""Opening a store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from gpuctl.errors import StoreError
from gpuctl.store import open_store
from tests.conformance.store_suite import RUN

AWS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}


@pytest.mark.parametrize(
    "location",
    [
        "relative/path",
        "",
        "~/store",
        "gs://bucket/x",
        "file:///x",
        "s3://",
        "s3:///prefix",
        "s3://b",
        "s3://bad bucket/x",
        "s3://bucket/a/../b",
        "s3://bucket/a//b",
        "s3://bucket/a\nb",
    ],
)
def test_what_is_not_a_store_is_said_with_what_to_write(location: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(location, RUN, environ=AWS)
    assert "s3://bucket/prefix" in (caught.value.next or "")


@pytest.mark.parametrize("run", ["", "../x", "a/b", ".", "A", "-x", "x" * 64, "a\n"])
def test_what_is_not_a_run_is_refused(run: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not the id of a run"):
        open_store(str(tmp_path), run, environ={})


def test_opening_a_folder_writes_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"), RUN, environ={})
    assert store.folder == tmp_path / "store" / RUN
    assert store.location == str(store.folder)
    assert not store.reachable_from_machine
    assert store.write_grant() == {"kind": "folder", "path": str(store.folder)}
    assert store.manifests() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://bucket", f"s3://bucket/{RUN}"),
        ("s3://bucket/", f"s3://bucket/{RUN}"),
        ("s3://bucket/a/b/", f"s3://bucket/a/b/{RUN}"),
    ],
)
def test_an_s3_location_is_said_in_full(location: str, expected: str) -> None:
    store = open_store(location, RUN, environ=AWS)
    assert store.location == expected
    assert store.folder is None


@pytest.mark.parametrize(
    ("endpoint", "reachable"),
    [
        ("http://localhost:9000", False),
        ("http://127.0.0.1:9000", False),
        ("http://[::1]:9000", False),
        ("https://minio.example.org", True),
        ("http://10.0.0.7:9000", True),
    ],
)
def test_an_endpoint_on_this_computer_is_not_for_machines(endpoint: str, reachable: bool) -> None:
    store = open_store("s3://bucket", RUN, environ=AWS | {"AWS_ENDPOINT_URL": endpoint})
    assert store.reachable_from_machine is reachable


def test_a_folder_needs_no_provider_library(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from gpuctl.store import open_store\n"
        f"open_store({str(tmp_path)!r}, {RUN!r}, environ={{}}).prune(1)\n"
        "print(sorted({'boto3', 'botocore', 'requests', 'urllib3'} & set(sys.modules)))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.strip() == "[]"
