"""`upload` and `download` between a machine, this computer and S3."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.buckets.conftest import bucket, endpoint, keys, moto_port, s3
from tests.cli.conftest import Gpuctl
from tests.store.endpoints import settings

__all__ = ["bucket", "endpoint", "moto_port", "s3"]


@pytest.fixture
def box(gpuctl: Gpuctl, home: Path, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine called ``box``; its folder."""
    for name, value in settings(endpoint).items():
        monkeypatch.setenv(name, value)
    answer = gpuctl("provision", "--provider", "local", "--name", "box", "--yes", "--json")
    assert answer.code == 0, answer.err
    return home / "local/machines" / answer.json["machine"]["name"] / "root"


def test_from_s3_and_back(gpuctl: Gpuctl, box: Path, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="tokens/a", Body=b"one")
    up = gpuctl("upload", "box", f"s3://{bucket}/tokens", "work/data", "--json")
    assert up.code == 0, up.err
    assert {name: up.json[name] for name in ("files", "bytes", "skipped", "left_out")} == {
        "files": 1,
        "bytes": 3,
        "skipped": 0,
        "left_out": [],
    }
    assert up.json["source"] == f"s3://{bucket}/tokens"
    assert "goes straight to the machine" in up.err
    assert (box / "work/data/a").read_bytes() == b"one"

    (box / "work/data/link").symlink_to("a")
    down = gpuctl("download", "box", "work/data", f"s3://{bucket}/back/")
    assert down.code == 0, down.err
    assert down.out.splitlines() == [
        f"work/data -> s3://{bucket}/back/: 1 files, 3 B",
        "  left out: link: a link, which S3 cannot hold",
    ]
    assert keys(s3, bucket)["back/a"] == b"one"


def test_checksum_and_limit(gpuctl: Gpuctl, box: Path) -> None:
    Path("file").write_bytes(b"one")
    assert gpuctl("upload", "box", "file", "file", "--limit", "5MB/s").code == 0
    state = Path("file").stat()
    (box / "file").write_bytes(b"eno")
    os.utime(box / "file", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert gpuctl("upload", "box", "file", "file", "--json").json["skipped"] == 1
    assert gpuctl("upload", "box", "file", "file", "--checksum", "--json").json["files"] == 1
    assert (box / "file").read_bytes() == b"one"
    assert gpuctl("download", "box", "file", ".", "--checksum", "--json").json["skipped"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["upload", "box", "x", "s3://bucket/y"], "gpuctl download box PATH s3://bucket/y"),
        (["download", "box", "s3://bucket/y", "x"], "gpuctl upload box s3://bucket/y PATH"),
        (["upload", "box", "s3://UPPER/y", "x"], "is not an address in S3"),
        (["upload", "box", "s3://bucket/../y", "x"], "empty part, dots"),
        (["upload", "box", "x", "y", "--limit", "20"], "such as 20MB"),
        (["upload", "box", "x", "y", "--limit", "0MB"], "such as 20MB"),
        (["upload", "box", "x", "y", "--limit", "fast"], "such as 20MB"),
    ],
)
def test_what_makes_no_sense(gpuctl: Gpuctl, home: Path, words: list[str], said: str) -> None:
    answer = gpuctl(*words)
    assert answer.code == 2
    assert said in answer.err


def test_nothing_there_and_no_key(
    gpuctl: Gpuctl, box: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = gpuctl("upload", "box", f"s3://{bucket}/nothing", "x", "--json")
    assert (nothing.code, nothing.json["error"]["kind"]) == (2, "Usage")
    assert gpuctl("download", "box", "nothing", f"s3://{bucket}/x").code == 1
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    no_key = gpuctl("upload", "box", f"s3://{bucket}/x", "x", "--json")
    assert (no_key.code, no_key.json["error"]["kind"]) == (4, "Credentials")
