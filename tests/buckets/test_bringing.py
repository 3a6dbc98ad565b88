"""From a bucket to a machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gpuctl.buckets import bring, bringing
from gpuctl.errors import StoreError, UsageError
from tests.buckets.conftest import MakeTrip, at, files
from tests.buckets.gate import Fault, Gate


def fill(s3: Any, bucket: str, **objects: bytes) -> None:
    for key, body in objects.items():
        s3.put_object(Bucket=bucket, Key=key.replace("__", "/"), Body=body)


def test_a_prefix_lands_like_a_folders_contents(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, said: list[str]
) -> None:
    fill(s3, bucket, p__a=b"one", p__deep__b=b"two" * 1000, p__empty=b"", pq=b"not this")
    s3.put_object(Bucket=bucket, Key="p/folder/", Body=b"")
    s3.put_object(Bucket=bucket, Key="p/ä ?#%+.txt", Body=b"odd")
    moved = bring(trip(), at(bucket, "p"), "work/data")
    assert files(root / "work/data") == {
        "a": b"one",
        "deep/b": b"two" * 1000,
        "empty": b"",
        "ä ?#%+.txt": b"odd",
    }
    assert (moved.files, moved.bytes, moved.skipped) == (4, 3006, 0)
    assert said == [f"s3://{bucket}/p goes straight to the machine"]
    modified = s3.head_object(Bucket=bucket, Key="p/a")["LastModified"]
    assert (root / "work/data/a").stat().st_mtime == modified.timestamp()


def test_what_is_there_is_not_brought_again(
    trip: MakeTrip, s3: Any, bucket: str, root: Path
) -> None:
    fill(s3, bucket, p__a=b"one", p__b=b"two")
    bring(trip(), at(bucket, "p/"), "data")
    again = bring(trip(), at(bucket, "p/"), "data")
    assert (again.files, again.bytes, again.skipped) == (0, 0, 2)
    state = (root / "data/a").stat()
    (root / "data/a").write_bytes(b"eno")
    os.utime(root / "data/a", ns=(state.st_atime_ns, state.st_mtime_ns))
    assert bring(trip(), at(bucket, "p/"), "data").files == 0
    assert bring(trip(checksum=True), at(bucket, "p/"), "data").files == 1
    assert (root / "data/a").read_bytes() == b"one"


@pytest.mark.parametrize(
    ("target", "lands"), [("x/", "x/tokens.bin"), ("there", "there/tokens.bin"), ("new", "new")]
)
def test_an_object_lands_like_a_file(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, target: str, lands: str
) -> None:
    (root / "there").mkdir()
    fill(s3, bucket, **{"p/tokens.bin": b"tokens"})
    assert bring(trip(), at(bucket, "p/tokens.bin"), target).files == 1
    assert (root / lands).read_bytes() == b"tokens"
    assert bring(trip(), at(bucket, "p/tokens.bin"), target).skipped == 1


@pytest.mark.parametrize("key", ["nothing", "nothing/", "p/a/"])
def test_nothing_there(trip: MakeTrip, s3: Any, bucket: str, key: str) -> None:
    fill(s3, bucket, p__a=b"one")
    with pytest.raises(UsageError, match="There is nothing at s3://"):
        bring(trip(), at(bucket, key), "data")


def test_a_stored_sha256_is_checked(
    trip: MakeTrip,
    s3: Any,
    bucket: str,
    root: Path,
    moto_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a bucket encrypts with keys of its own, and ETags are no MD5."""
    monkeypatch.setattr(bringing, "is_md5", lambda _: False)
    s3.put_object(Bucket=bucket, Key="a", Body=b"one", ChecksumAlgorithm="SHA256")
    with Gate(moto_port, lambda asked: Fault(flip=True) if asked.presigned else None) as gate:
        with pytest.raises(StoreError, match="another content than its checksum"):
            bring(trip(at=gate.endpoint), at(bucket, "a"), "a")
        gate.judge = lambda _: None
        assert bring(trip(at=gate.endpoint), at(bucket, "a"), "a").files == 1
    assert files(root) == {"a": b"one"}
