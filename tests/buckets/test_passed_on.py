"""Through this computer: the machine cannot reach the bucket, or has no python3."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from gpuctl.buckets import NothingThere, bring, bringing, from_here, send, send_from_here, sending
from gpuctl.errors import StoreError
from gpuctl.remote.local import LocalConnection
from gpuctl.store.bucket import Bucket
from providers.base import LocalAccess
from tests.buckets.conftest import NAME, MakeTrip, at, files, keys
from tests.buckets.gate import Asked, Fault, Gate
from tests.remote.sshd import free_port
from tests.store.endpoints import settings


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses lead nowhere from the machine, as with an endpoint in a private network."""
    dead = f"http://127.0.0.1:{free_port()}"

    def elsewhere(self: Bucket, key: str) -> str:
        return f"{dead}/{self.name}/{key}?X-Amz-Signature=canary"

    monkeypatch.setattr(Bucket, "read_url", elsewhere)
    monkeypatch.setattr(Bucket, "write_url", elsewhere)


@pytest.fixture
def without_python(root: Path, tmp_path: Path) -> LocalConnection:
    """A machine with a shell and its tools, and no python3."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "test", "cat"):
        (tools / name).symlink_to(f"/bin/{name}" if name != "test" else "/usr/bin/test")
    return LocalConnection(LocalAccess(str(root), (), {"PATH": str(tools)}), machine=NAME)


def objects(s3: Any, bucket: str) -> None:
    for key in ("p/a", "p/deep/b", "p/deep/.gitignore", "p/data.log"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    s3.put_object(Bucket=bucket, Key="p/deep/.gitignore", Body=b"*\n")


HERE = {"a": b"p/a", "deep/b": b"p/deep/b", "deep/.gitignore": b"*\n", "data.log": b"p/data.log"}


def test_in_when_the_machine_has_no_route(
    far_away: None,
    trip: MakeTrip,
    s3: Any,
    bucket: str,
    root: Path,
    said: list[str],
    tmp_path: Path,
) -> None:
    objects(s3, bucket)
    seen: list[tuple[int, int]] = []
    moved = bring(
        trip(progress=lambda done, total: seen.append((done, total))), at(bucket, "p"), "data"
    )
    assert files(root / "data") == HERE
    assert (moved.files, moved.bytes, moved.skipped) == (4, sum(map(len, HERE.values())), 0)
    assert seen[-1] == (moved.bytes, moved.bytes)
    assert [line for line in said if "passed on by this computer" in line] == said[1:]
    assert "canary" not in str(said)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert bring(trip(), at(bucket, "p"), "data").skipped == 4


@pytest.mark.parametrize("key", ["p/a", "p"])
def test_in_without_python(
    trip: MakeTrip,
    s3: Any,
    bucket: str,
    root: Path,
    said: list[str],
    without_python: LocalConnection,
    key: str,
) -> None:
    objects(s3, bucket)
    moved = bring(trip(connection=without_python), at(bucket, key), "data")
    assert (files(root / "data") if key == "p" else files(root)["data"]) == (
        HERE if key == "p" else b"p/a"
    )
    assert moved.files == (4 if key == "p" else 1)
    assert len(said) == 1
    assert "there is no python3" in said[0]


@pytest.mark.slow
def test_in_pieces_that_fit_here(
    far_away: None,
    trip: MakeTrip,
    s3: Any,
    bucket: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(bringing, "BATCH_BYTES", 2 << 20)
    for number in range(5):
        s3.put_object(Bucket=bucket, Key=f"p/{number}", Body=bytes([number]) * (1 << 20))
    held: list[int] = []

    def watch(done: int, total: int) -> None:
        if (tmp_path / "scratch").exists():
            held.append(sum(len(body) for body in files(tmp_path / "scratch").values()))

    assert bring(trip(progress=watch), at(bucket, "p"), "data").files == 5
    assert 0 < max(held) <= 2 << 20
    assert len(files(root / "data")) == 5


def test_what_is_cut_or_vanishes_while_it_is_passed_on(
    far_away: None, trip: MakeTrip, s3: Any, bucket: str, root: Path, moto_port: int
) -> None:
    objects(s3, bucket)
    cuts = [3]

    def judge(asked: Asked) -> Fault | None:
        if "p/deep/b" in asked.path and asked.method == "GET" and cuts:
            return Fault(cut_after=cuts.pop())
        return Fault(404, "NoSuchKey") if asked.path.endswith("p/a") else None

    with Gate(moto_port, judge) as gate:
        moved = bring(trip(at=gate.endpoint), at(bucket, "p"), "data")
    assert files(root / "data") == {key: body for key, body in HERE.items() if key != "a"}
    assert moved.left_out == ("a: it vanished while the others were read",)
    assert moved.files == 3


def test_out_when_the_machine_has_no_route(
    far_away: None, trip: MakeTrip, s3: Any, bucket: str, root: Path, said: list[str]
) -> None:
    (root / "out/deep").mkdir(parents=True)
    (root / "out/a").write_bytes(b"one")
    (root / "out/deep/b").write_bytes(b"two")
    (root / "out/link").symlink_to("a")
    moved = send(trip(), "out", at(bucket, "p"))
    assert keys(s3, bucket) == {"p/a": b"one", "p/deep/b": b"two"}
    assert moved.left_out == ("link: a link, which S3 cannot hold",)
    assert (moved.files, moved.bytes) == (2, 6)
    assert "through this computer, because the machine cannot reach it" in said[-1]
    again = send(trip(), "out", at(bucket, "p"))
    assert (again.files, again.skipped) == (0, 2)


@pytest.mark.slow
def test_out_file_by_file_when_it_is_much(
    far_away: None,
    trip: MakeTrip,
    s3: Any,
    bucket: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sending, "AT_ONCE_BYTES", 4)
    (root / "out/deep").mkdir(parents=True)
    (root / "out/a").write_bytes(b"one")
    (root / "out/deep/b").write_bytes(b"two")
    assert send(trip(), "out", at(bucket, "p")).files == 2
    assert keys(s3, bucket) == {"p/a": b"one", "p/deep/b": b"two"}


def test_out_without_python(
    trip: MakeTrip, s3: Any, bucket: str, root: Path, without_python: LocalConnection
) -> None:
    (root / "score.txt").write_bytes(b"1")
    there = trip(connection=without_python)
    assert send(there, "score.txt", at(bucket, "p/")).files == 1
    assert keys(s3, bucket) == {"p/score.txt": b"1"}
    with pytest.raises(NothingThere):
        send(there, "nothing", at(bucket, "p/"))


@pytest.mark.slow
def test_from_here_in_parts(
    endpoint: str, s3: Any, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_here, "PART_BYTES", 5 << 20)
    large = tmp_path / "large"
    large.write_bytes(os.urandom((5 << 20) * 2 + 1))
    how: dict[str, Any] = {"environ": settings(endpoint), "name": "large"}
    assert send_from_here(large, at(bucket, "p"), **how).files == 1
    assert keys(s3, bucket) == {"p": large.read_bytes()}
    assert send_from_here(large, at(bucket, "p"), **how).skipped == 1


def test_a_scratch_folder_that_cannot_be_made(
    far_away: None, trip: MakeTrip, s3: Any, bucket: str, tmp_path: Path
) -> None:
    objects(s3, bucket)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="This computer cannot hold"):
        bring(trip(scratch=tmp_path / "file"), at(bucket, "p"), "data")
