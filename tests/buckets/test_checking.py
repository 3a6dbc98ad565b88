"""What a bucket is asked before a machine is rented."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gpuctl.buckets import check_source, check_target
from gpuctl.errors import NoCredentials, StoreError, UsageError
from tests.buckets.conftest import at, keys
from tests.buckets.gate import Fault, Gate
from tests.store.endpoints import settings


@pytest.fixture
def gate(moto_port: int) -> Iterator[Gate]:
    with Gate(moto_port) as made:
        yield made


def test_a_source(s3: Any, bucket: str, gate: Gate) -> None:
    s3.put_object(Bucket=bucket, Key="p/a", Body=b"x")
    for key in ("", "p", "p/", "p/a"):
        check_source(at(bucket, key), settings(gate.endpoint))
    for key in ("q", "p/a/", "p/b"):
        with pytest.raises(UsageError, match="There is nothing"):
            check_source(at(bucket, key), settings(gate.endpoint))
    assert len(gate.seen) <= 4 + 3 + 3  # a listing each, and a look at what may be one object


def test_a_target_is_proven_writable_and_left_as_it_was(s3: Any, bucket: str, gate: Gate) -> None:
    check_target(at(bucket, "p"), settings(gate.endpoint))
    assert keys(s3, bucket) == {}
    assert not s3.list_multipart_uploads(Bucket=bucket).get("Uploads")
    gate.judge = lambda asked: Fault(403) if asked.method == "POST" else None
    with pytest.raises(NoCredentials, match="access was denied"):
        check_target(at(bucket, "p"), settings(gate.endpoint))


def test_a_store_without_uploads_in_parts_is_given_a_chance(bucket: str, gate: Gate) -> None:
    gate.judge = lambda asked: Fault(501, "NotImplemented") if asked.method == "POST" else None
    check_target(at(bucket, "p"), settings(gate.endpoint))


def test_a_bucket_that_is_not_there(gate: Gate) -> None:
    with pytest.raises(StoreError, match="there is no such bucket"):
        check_target(at("no-such-bucket", "p"), settings(gate.endpoint))
