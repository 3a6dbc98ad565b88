"""Buckets on moto over real HTTP, and machines that are a folder on this computer."""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from gpuctl.buckets import Trip
from gpuctl.remote.local import LocalConnection
from gpuctl.store.bucket import Address
from providers.base import LocalAccess
from providers.processes import carriers
from tests.remote.conftest import connect, gpuctl_home, sshd
from tests.store.endpoints import settings

__all__ = ["connect", "gpuctl_home", "sshd"]

NAME = "gpuctl-test-000000-00000001"
MakeTrip = Callable[..., Trip]


@pytest.fixture(scope="session")
def moto_port() -> Iterator[int]:
    """A moto that listens on every address of this computer."""
    server = ThreadedMotoServer("0.0.0.0", port=0, verbose=False)  # noqa: S104 - see tests over SSH
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture(scope="session")
def endpoint(moto_port: int) -> str:
    return f"http://127.0.0.1:{moto_port}"


@pytest.fixture(scope="session")
def s3(endpoint: str) -> Any:
    """The client of somebody beside gpuctl."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id="x",
        aws_secret_access_key="y",
        region_name="us-east-1",
    )


@pytest.fixture
def bucket(s3: Any) -> str:
    """The name of an empty bucket."""
    name = f"b-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that is the machine."""
    folder = tmp_path / "machine" / "root"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def machine(root: Path) -> Iterator[LocalConnection]:
    env = {"PATH": os.environ["PATH"], "HOME": str(root), "MARK": str(root)}
    yield LocalConnection(LocalAccess(str(root), (), env), machine=NAME)
    for pid in carriers({"MARK": str(root)}):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def said() -> list[str]:
    """What a trip told its user."""
    return []


@pytest.fixture
def trip(machine: LocalConnection, endpoint: str, tmp_path: Path, said: list[str]) -> MakeTrip:
    """Makes a trip between the machine and the buckets."""

    def make(**options: Any) -> Trip:
        at = options.pop("at", endpoint)
        given = {
            "connection": machine,
            "environ": settings(at),
            "scratch": tmp_path / "scratch",
            "say": said.append,
            "machine": NAME,
            **options,
        }
        return Trip(**given)

    return make


def at(bucket: str, key: str = "") -> Address:
    """An address."""
    return Address(bucket, key)


def keys(s3: Any, bucket: str) -> dict[str, bytes]:
    """Everything in a bucket."""
    listed = s3.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {
        one["Key"]: s3.get_object(Bucket=bucket, Key=one["Key"])["Body"].read() for one in listed
    }


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, drafts included."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
