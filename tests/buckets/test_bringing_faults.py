"""From a bucket to a machine when something goes wrong on the way."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuctl.buckets import bring
from gpuctl.errors import NoCredentials, RemoteError, StoreError
from tests.buckets.conftest import MakeTrip, at, files
from tests.buckets.gate import Asked, Fault, Gate

LARGE = 50 << 20


@pytest.fixture
def gate(moto_port: int) -> Iterator[Gate]:
    with Gate(moto_port) as made:
        yield made


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def test_a_large_object_is_carried_on_where_it_broke_off(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, gate: Gate
) -> None:
    content = noise(LARGE)
    s3.put_object(Bucket=bucket, Key="model.bin", Body=content)
    cuts = [5 << 20, 1, 11 << 20, 3 << 20]

    def judge(asked: Asked) -> Fault | None:
        if asked.presigned and cuts:
            return Fault(cut_after=cuts.pop())
        return None

    gate.judge = judge
    moved = bring(trip(at=gate.endpoint), at(bucket, "model.bin"), "model.bin")
    assert files(root) == {"model.bin": content}
    assert (moved.files, moved.bytes) == (1, LARGE)
    starts = [asked.headers["Range"] for asked in gate.seen if asked.presigned]
    assert len(starts) == 2 + 4  # two parts, and a request more for each break
    assert len(set(starts)) == 6  # none of them from the beginning again


@pytest.mark.slow
def test_a_transfer_that_was_killed_is_carried_on_by_the_next(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, gate: Gate
) -> None:
    content = noise(LARGE)
    s3.put_object(Bucket=bucket, Key="model.bin", Body=content)

    def stop(done: int, total: int) -> None:
        if done >= 32 << 20:
            raise KeyboardInterrupt

    gate.judge = lambda asked: (
        Fault(503, "SlowDown") if asked.presigned and "bytes=33554432" in str(asked) else None
    )
    with pytest.raises(KeyboardInterrupt):
        bring(trip(at=gate.endpoint, progress=stop), at(bucket, "model.bin"), "model.bin")
    assert not (root / "model.bin").exists()
    gate.judge = lambda _: None
    gate.seen.clear()
    bring(trip(at=gate.endpoint), at(bucket, "model.bin"), "model.bin")
    assert files(root) == {"model.bin": content}
    assert [a.headers["Range"] for a in gate.seen if a.presigned] == ["bytes=33554432-52428799"]


def test_what_vanishes_after_it_was_listed_is_left_out_and_named(
    trip: MakeTrip, s3: Any, bucket: str, root: Path
) -> None:
    for key in ("p/a", "p/b", "p/c"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    moved = bring(
        trip(say=lambda _: s3.delete_object(Bucket=bucket, Key="p/b")), at(bucket, "p"), "data"
    )
    assert files(root / "data") == {"a": b"p/a", "c": b"p/c"}
    assert moved.left_out == ("b: it vanished while the others were read",)
    assert (moved.files, moved.bytes) == (2, 6)


def test_the_one_object_that_vanishes_is_an_error(
    trip: MakeTrip, s3: Any, bucket: str, root: Path
) -> None:
    s3.put_object(Bucket=bucket, Key="one", Body=b"1")
    with pytest.raises(StoreError, match="vanished while it was read"):
        bring(
            trip(say=lambda _: s3.delete_object(Bucket=bucket, Key="one")), at(bucket, "one"), "x"
        )
    assert files(root) == {}


def test_what_is_replaced_after_it_was_listed_arrives_as_it_is_now(
    trip: MakeTrip, s3: Any, bucket: str, root: Path
) -> None:
    s3.put_object(Bucket=bucket, Key="one", Body=b"the old content")
    moved = bring(
        trip(say=lambda _: s3.put_object(Bucket=bucket, Key="one", Body=b"new")),
        at(bucket, "one"),
        "x",
    )
    assert files(root) == {"x": b"new"}
    assert moved.bytes == 3


def test_addresses_that_are_too_old_are_made_anew(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, gate: Gate
) -> None:
    for number in range(5):
        s3.put_object(Bucket=bucket, Key=f"p/{number}", Body=b"x")
    old: set[str] = set()

    def judge(asked: Asked) -> Fault | None:
        key = asked.path.partition("?")[0]
        if asked.presigned and key not in old:
            old.add(key)
            return Fault(403, "AccessDenied")
        return None

    gate.judge = judge
    assert bring(trip(at=gate.endpoint), at(bucket, "p"), "data").files == 5
    assert len(files(root / "data")) == 5


def test_a_key_that_may_list_and_not_read(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, gate: Gate
) -> None:
    s3.put_object(Bucket=bucket, Key="p/a", Body=b"x")
    gate.judge = lambda asked: Fault(403) if asked.presigned else None
    with pytest.raises(NoCredentials, match="refuses what was signed") as raised:
        bring(trip(at=gate.endpoint), at(bucket, "p"), "data")
    assert "X-Amz" not in str(raised.value)
    assert files(root / "data") == {}


def test_a_key_that_may_not_list(trip: MakeTrip, s3: Any, bucket: str, gate: Gate) -> None:
    gate.judge = lambda _: Fault(403)
    with pytest.raises(NoCredentials, match="access was denied"):
        bring(trip(at=gate.endpoint), at(bucket, "p"), "data")


def test_content_that_is_damaged_on_its_way_is_fetched_again(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, gate: Gate
) -> None:
    s3.put_object(Bucket=bucket, Key="a", Body=b"content")
    flips = [1]
    gate.judge = lambda asked: (
        Fault(flip=True) if asked.presigned and flips and flips.pop() else None
    )
    bring(trip(at=gate.endpoint), at(bucket, "a"), "a")
    assert files(root) == {"a": b"content"}


def test_content_that_stays_damaged_is_an_error(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, gate: Gate
) -> None:
    s3.put_object(Bucket=bucket, Key="a", Body=b"content")
    gate.judge = lambda asked: Fault(flip=True) if asked.presigned else None
    with pytest.raises(StoreError, match="another content than its checksum"):
        bring(trip(at=gate.endpoint), at(bucket, "a"), "a")
    assert files(root) == {}


@pytest.mark.slow
def test_a_store_that_stutters(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, gate: Gate
) -> None:
    s3.put_object(Bucket=bucket, Key="a", Body=b"content")
    answers = ["503", "500"]
    gate.judge = lambda asked: (
        Fault(int(answers.pop()), "SlowDown") if asked.presigned and answers else None
    )
    bring(trip(at=gate.endpoint), at(bucket, "a"), "a")
    assert files(root) == {"a": b"content"}


@pytest.mark.parametrize("key", ["p/../../escape", "p//twice", "p/./dot", "p/" + "x" * 300])
def test_keys_that_can_be_no_files_names(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, key: str
) -> None:
    s3.put_object(Bucket=bucket, Key="p/good", Body=b"x")
    s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    with pytest.raises(StoreError, match="can be no file's name"):
        bring(trip(), at(bucket, "p"), "data")
    assert files(root.parent) == {}


def test_an_object_that_would_be_a_folder_too(trip: MakeTrip, s3: Any, bucket: str) -> None:
    for key in ("p/a", "p/a/b"):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    with pytest.raises(StoreError, match="a file and a folder"):
        bring(trip(), at(bucket, "p"), "data")


def test_nothing_is_written_through_a_link(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "data").mkdir()
    (root / "data/deep").symlink_to(outside)
    s3.put_object(Bucket=bucket, Key="p/deep/file", Body=b"x")
    bring(trip(), at(bucket, "p"), "data")
    assert files(outside) == {}
    assert files(root / "data") == {"deep/file": b"x"}


def test_a_target_outside_of_a_machine_that_is_a_folder(
    trip: MakeTrip, s3: Any, bucket: str
) -> None:
    s3.put_object(Bucket=bucket, Key="a", Body=b"x")
    with pytest.raises(RemoteError, match="outside of the machine's folder"):
        bring(trip(), at(bucket, "a"), "../../escape")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small tmpfs")
class TestFullDisk:
    @pytest.fixture
    def small(self, root: Path) -> Iterator[Path]:
        folder = root / "small"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
        subprocess.run(mount, check=True, timeout=10)
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)

    def test_it_is_said_before_anything_is_fetched(
        self, trip: MakeTrip, s3: Any, bucket: str, small: Path
    ) -> None:
        s3.put_object(Bucket=bucket, Key="p/a", Body=noise(8 << 20))
        with pytest.raises(RemoteError, match=r"8\.39 MB are needed, 4\.19 MB are free"):
            bring(trip(), at(bucket, "p"), "small")
        assert files(small) == {}

    @pytest.mark.slow
    def test_one_that_fills_up_meanwhile(
        self, trip: MakeTrip, s3: Any, bucket: str, small: Path
    ) -> None:
        s3.put_object(Bucket=bucket, Key="p/a", Body=noise(3 << 20))

        def fill(done: int, total: int) -> None:
            if done > 0 and not (small / "other").exists():
                (small / "other").write_bytes(bytes(2 << 20))

        with pytest.raises(RemoteError, match="disk is full"):
            bring(trip(progress=fill, rate=2e6), at(bucket, "p"), "small")
        assert set(files(small)) <= {"other"}
