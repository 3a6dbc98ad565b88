"""What a machine may do in S3 with a grant, and where there can be none."""

from __future__ import annotations

import base64
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from gpuctl.errors import StoreError
from gpuctl.store import Store, open_store
from gpuctl.store.opening import s3_objects
from gpuctl.store.s3 import S3Objects
from tests.conformance.store_suite import RUN, SMALL, put
from tests.store.endpoints import SECRET, settings
from tests.store.faulty_s3 import FaultyS3


def post(grant: dict[str, Any], key: str, body: bytes) -> int:
    """Do what an agent does with a grant."""
    return requests.post(
        grant["url"],
        data={**grant["fields"], "key": grant["prefix"] + key},
        files={"file": ("x", body)},
        timeout=10,
    ).status_code


def test_a_grant_writes_below_the_run(moto: str, moto_bucket: str) -> None:
    store = open_store(f"s3://{moto_bucket}/ckpt", RUN, environ=settings(moto))
    assert not store.reachable_from_machine  # the endpoint is this computer
    expires = datetime.now(UTC) + timedelta(hours=2)
    grant = store.write_grant(expires)
    assert grant is not None
    assert grant["kind"] == "s3post"
    assert grant["prefix"] == f"ckpt/{RUN}/"
    assert abs(grant["expires"] - expires.timestamp()) < 5
    assert SECRET not in str(grant)
    assert post(grant, "blobs/ab/x", b"by a machine") < 300
    objects = s3_objects(f"s3://{moto_bucket}/ckpt", RUN, settings(moto))
    assert objects.read("blobs/ab/x", 100) == b"by a machine"


def test_a_grant_covers_the_prefix_and_one_blob_and_nothing_else(
    objects: S3Objects, bucket: str
) -> None:
    grant = objects.write_grant(datetime.now(UTC) + timedelta(days=30))
    assert grant is not None
    assert "key" not in grant["fields"]
    policy = json.loads(base64.b64decode(grant["fields"]["policy"]))
    assert ["starts-with", "$key", f"ckpt/{RUN}/"] in policy["conditions"]
    assert ["content-length-range", 0, 65 * 1024 * 1024] in policy["conditions"]
    assert {"bucket": bucket} in policy["conditions"]
    assert grant["expires"] <= time.time() + 7 * 24 * 3600 + 1


def test_no_grant_where_posts_do_not_arrive(faulty: FaultyS3, objects: S3Objects) -> None:
    faulty.takes_posts = False
    assert objects.write_grant(datetime.now(UTC) + timedelta(hours=1)) is None
    asked = faulty.count("POST", "")
    assert objects.write_grant(datetime.now(UTC) + timedelta(hours=1)) is None
    assert faulty.count("POST", "") == asked == 1


def test_a_post_that_fails_for_a_moment_decides_nothing(
    faulty: FaultyS3, objects: S3Objects
) -> None:
    faulty.fail("POST", "", "503")
    soon = datetime.now(UTC) + timedelta(hours=1)
    with pytest.raises(StoreError, match="503"):
        objects.write_grant(soon)
    assert objects.write_grant(soon) is not None


def test_a_grant_that_is_over_is_refused(objects: S3Objects) -> None:
    with pytest.raises(StoreError, match="before it begins"):
        objects.write_grant(datetime.now(UTC) - timedelta(seconds=1))


def test_anybody_reads_with_the_urls(moto: str, moto_bucket: str, entry: Path) -> None:
    store = Store(s3_objects(f"s3://{moto_bucket}", RUN, settings(moto)), RUN, blob_bytes=SMALL)
    manifest = put(store, entry, 1)
    urls = store.read_urls(manifest)
    assert set(urls) == {blob.sha256 for blob in manifest.blobs()}
    for blob in manifest.blobs():
        answer = requests.get(urls[blob.sha256], timeout=10)
        assert len(answer.content) == blob.size


def test_urls_that_are_refused_are_said_without_the_signature(
    faulty: FaultyS3, store: Store, entry: Path
) -> None:
    manifest = put(store, entry, 1)
    faulty.takes_presigned = False
    with pytest.raises(StoreError, match="presigned") as caught:
        store.read_urls(manifest)
    assert "Signature" not in str(caught.value)
