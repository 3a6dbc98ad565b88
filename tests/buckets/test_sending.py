"""From a machine to a bucket."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuctl.buckets import NothingThere, from_here, key_of_output, send
from gpuctl.errors import NoCredentials, StoreError
from tests.buckets.conftest import MakeTrip, at, keys
from tests.buckets.gate import Asked, Fault, Gate


@pytest.fixture
def gate(moto_port: int) -> Iterator[Gate]:
    with Gate(moto_port) as made:
        yield made


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> int:
    """Parts of 5 MiB, the least that S3 takes."""
    monkeypatch.setattr(from_here, "PART_BYTES", 5 << 20)
    return 5 << 20


def uploads(s3: Any, bucket: str) -> list[Any]:
    """What was begun in parts and never completed: it would bill for good."""
    return list(s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []))


def fill(root: Path, **content: bytes) -> None:
    for name, body in content.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


def test_a_folders_contents_land_below_the_prefix(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, said: list[str]
) -> None:
    fill(root, out__a=b"one", out__deep__b=b"two" * 1000, out__empty=b"")
    (root / "out/ä ?#%+.txt").write_bytes(b"odd")
    (root / "out/link").symlink_to("a")
    moved = send(trip(), "out", at(bucket, "p/q"))
    assert keys(s3, bucket) == {
        "p/q/a": b"one",
        "p/q/deep/b": b"two" * 1000,
        "p/q/empty": b"",
        "p/q/ä ?#%+.txt": b"odd",
    }
    assert (moved.files, moved.bytes, moved.skipped) == (4, 3006, 0)
    assert moved.left_out == ("link: a link, which S3 cannot hold",)
    assert said == [f"s3://{bucket}/p/q is written straight from the machine"]


def test_what_is_there_with_the_same_content_is_not_sent_again(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, small_parts: int
) -> None:
    fill(root, out__a=b"one", out__b=b"two", out__large=random.Random(1).randbytes(12 << 20))
    send(trip(), "out", at(bucket, "p/"))
    (root / "out/b").write_bytes(b"owt")
    os.utime(root / "out/b", (1, 1))  # older than the object
    again = send(trip(), "out", at(bucket, "p/"))
    assert (again.files, again.bytes, again.skipped) == (1, 3, 2)
    assert keys(s3, bucket)["p/b"] == b"owt"


@pytest.mark.parametrize(
    ("key", "output", "lands"),
    [
        ("", False, "score.txt"),
        ("p/", False, "p/score.txt"),
        ("p", False, "p"),
        ("p", True, "p/score.txt"),
        ("p/other.txt", True, "p/other.txt"),
    ],
)
def test_where_one_file_lands(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, key: str, output: bool, lands: str
) -> None:
    fill(root, score__txt=b"1")
    (root / "score/txt").rename(root / "score.txt")
    more: dict[str, Any] = {"file_key": key_of_output} if output else {}
    assert send(trip(), "score.txt", at(bucket, key), **more).files == 1
    assert keys(s3, bucket) == {lands: b"1"}


def test_a_large_file_goes_in_parts_and_none_is_left(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, gate: Gate, small_parts: int
) -> None:
    content = random.Random(2).randbytes(small_parts * 3 + 7)
    fill(root, large=content)
    stumbles = [503, 403]
    gate.judge = lambda asked: (
        Fault(stumbles.pop())
        if stumbles and asked.presigned and "partNumber" in asked.path
        else None
    )
    moved = send(trip(at=gate.endpoint), "large", at(bucket, "large"))
    assert keys(s3, bucket) == {"large": content}
    assert (moved.files, moved.bytes) == (1, len(content))
    assert uploads(s3, bucket) == []


def test_an_upload_that_fails_leaves_no_parts(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, gate: Gate, small_parts: int
) -> None:
    fill(root, large=bytes(small_parts * 3))
    gate.judge = lambda asked: (
        Fault(403) if asked.presigned and "partNumber=2" in asked.path else None
    )
    with pytest.raises(NoCredentials):
        send(trip(at=gate.endpoint), "large", at(bucket, "large"))
    assert keys(s3, bucket) == {}
    assert uploads(s3, bucket) == []


@pytest.mark.slow
def test_a_transfer_that_is_stopped_leaves_no_parts(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, small_parts: int
) -> None:
    fill(root, large=bytes(small_parts * 3))

    def stop(done: int, total: int) -> None:
        if done > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        send(trip(progress=stop, rate=8e6), "large", at(bucket, "large"))
    assert uploads(s3, bucket) == []


def test_a_store_that_loses_what_it_took(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, gate: Gate
) -> None:
    """The machine's word is not enough: the bucket is asked."""
    fill(root, out__a=b"one", out__b=b"two")

    def judge(asked: Asked) -> Fault | None:
        if asked.method == "GET" and "list-type" in asked.path and gate.count("PUT"):
            s3.delete_object(Bucket=bucket, Key="p/b")
        return None

    gate.judge = judge
    with pytest.raises(StoreError, match="p/b is not there as it was sent"):
        send(trip(at=gate.endpoint), "out", at(bucket, "p/"))


@pytest.mark.parametrize("name", ["line\nbreak", b"latin-\xe4", "x/" * 600 + "y"])
def test_names_that_s3_cannot_hold(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, name: str | bytes
) -> None:
    path = root / "out" / os.fsdecode(name)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    with pytest.raises(StoreError, match="can be no key in S3") as raised:
        send(trip(), "out", at(bucket, "p"))
    assert raised.value.message.isprintable()
    assert keys(s3, bucket) == {}


def test_nothing_there(trip: MakeTrip, bucket: str) -> None:
    with pytest.raises(NothingThere, match="out is not there"):
        send(trip(), "out", at(bucket, "p"))


def test_a_bucket_that_is_not_there(trip: MakeTrip, root: Path) -> None:
    fill(root, out__a=b"one")
    with pytest.raises(StoreError, match="there is no such bucket"):
        send(trip(), "out", at("no-such-bucket", "p"))
