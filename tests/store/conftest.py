"""S3 on loopback: moto for how it should be, a double for how it goes wrong."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from gpuctl.store import Store
from gpuctl.store.opening import s3_objects
from gpuctl.store.s3 import S3Objects
from tests.conformance.store_suite import RUN, SMALL
from tests.store.endpoints import settings
from tests.store.faulty_s3 import FaultyS3


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def moto_client(moto: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=moto,
        aws_access_key_id="x",
        aws_secret_access_key="y",
        region_name="us-east-1",
    )


@pytest.fixture
def moto_bucket(moto_client: Any) -> str:
    name = f"b-{uuid.uuid4().hex[:12]}"
    moto_client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def faulty() -> FaultyS3:
    return FaultyS3(buckets={f"b-{uuid.uuid4().hex[:12]}"})


@pytest.fixture
def endpoint(faulty: FaultyS3) -> Iterator[str]:
    with faulty.server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def bucket(faulty: FaultyS3) -> str:
    return next(iter(faulty.buckets))


@pytest.fixture
def objects(endpoint: str, bucket: str) -> S3Objects:
    return s3_objects(f"s3://{bucket}/ckpt", RUN, settings(endpoint))


@pytest.fixture
def store(objects: S3Objects) -> Store:
    return Store(objects, RUN, blob_bytes=SMALL)


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    entry = tmp_path / "epoch-1"
    entry.write_bytes(os.urandom(3 * SMALL))
    return entry
