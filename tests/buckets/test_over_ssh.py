"""Buckets and a machine behind a real sshd."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from gpuctl.buckets import bring, from_here, send
from tests.buckets.conftest import MakeTrip, at, files, keys
from tests.remote.conftest import Connect
from tests.remote.relay import Relay
from tests.remote.sshd import Sshd
from tests.waiting import until


def address_of_this_computer() -> str | None:
    """An address that is not the loopback's; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        found = str(probe.getsockname()[0])
    return None if found.startswith("127.") else found


HOST = address_of_this_computer()
needs_address = pytest.mark.skipif(HOST is None, reason="this computer has only a loopback")


@needs_address
def test_straight_in_and_out(
    connect: Connect,
    trip: MakeTrip,
    s3: Any,
    bucket: str,
    moto_port: int,
    tmp_path: Path,
    said: list[str],
) -> None:
    there = tmp_path / "there"
    for key, body in (("p/a", b"one"), ("p/deep/b", b"two")):
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    travel = trip(connection=connect(), at=f"http://{HOST}:{moto_port}")
    assert bring(travel, at(bucket, "p"), str(there)).files == 2
    assert files(there) == {"a": b"one", "deep/b": b"two"}
    assert send(travel, str(there), at(bucket, "q")).files == 2
    assert keys(s3, bucket)["q/deep/b"] == b"two"
    assert [line.partition(" ")[2] for line in said] == [
        "goes straight to the machine",
        "is written straight from the machine",
    ]


def test_an_endpoint_on_this_computer_is_passed_on(
    connect: Connect, trip: MakeTrip, s3: Any, bucket: str, tmp_path: Path, said: list[str]
) -> None:
    there = tmp_path / "there"
    for key, body in (("p/a", b"one"), ("p/deep/b", b"two")):
        s3.put_object(Bucket=bucket, Key=key, Body=body)
    travel = trip(connection=connect())
    assert bring(travel, at(bucket, "p"), str(there)).files == 2
    assert files(there) == {"a": b"one", "deep/b": b"two"}
    assert bring(travel, at(bucket, "p"), str(there)).skipped == 2
    assert send(travel, str(there), at(bucket, "q")).files == 2
    assert keys(s3, bucket)["q/deep/b"] == b"two"
    assert all("because it is on this computer" in line for line in said)


@pytest.mark.slow
@needs_address
def test_a_link_that_breaks_is_made_anew(
    connect: Connect,
    sshd: Sshd,
    trip: MakeTrip,
    s3: Any,
    bucket: str,
    moto_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(from_here, "PART_BYTES", 5 << 20)
    content = os.urandom(40 << 20)
    s3.put_object(Bucket=bucket, Key="large", Body=content)
    there, cuts = tmp_path / "large", []

    def cut(done: int, total: int) -> None:
        if len(cuts) < 1 and done > 8 << 20:
            cuts.append(done)
            network.cut()

    with Relay(sshd.port) as network:
        travel = trip(
            connection=connect(network),
            at=f"http://{HOST}:{moto_port}",
            progress=cut,
            rate=30e6,
        )
        assert bring(travel, at(bucket, "large"), str(there)).files == 1
        assert there.read_bytes() == content
        assert len(cuts) == 1
        cuts.clear()
        assert send(travel, str(there), at(bucket, "back")).files == 1
        assert len(cuts) == 1
    assert keys(s3, bucket)["back"] == content
    assert not s3.list_multipart_uploads(Bucket=bucket).get("Uploads")
    assert until(lambda: set(files(tmp_path)) >= {"large"}, 5)
    assert not [name for name in files(tmp_path) if ".gpuctl-part" in name]
