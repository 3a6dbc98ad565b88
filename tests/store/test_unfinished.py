"""Uploads in parts: whoever is killed in the middle of one leaves word of it, and no bill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gpuctl.errors import GpuctlError, StoreError
from gpuctl.fleet.audit import audit
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.uploads import give_up_uploads
from gpuctl.home import Home
from gpuctl.ledger import Ledger
from gpuctl.store.bucket import Bucket
from gpuctl.store.unfinished import Unfinished, give_up_all, notes_folder, unfinished
from providers.base import SystemClock
from tests.store.endpoints import settings

BEGIN = (
    "import json, sys; from gpuctl.store.bucket import Bucket;"
    "environ = json.loads(sys.argv[1]);"
    "bucket = Bucket(sys.argv[2], environ); print(bucket.begin_upload('out/big.bin'), flush=True);"
    "sys.stdin.read()"
)


@pytest.fixture
def environ(tmp_path: Path, moto: str) -> dict[str, str]:
    return {**settings(moto), "GPUCTL_HOME": str(tmp_path / "home")}


def begun(environ: dict[str, str], bucket: str) -> subprocess.Popen[str]:
    """Another gpuctl in the middle of an upload."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", BEGIN, json.dumps(environ), bucket],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline()
    return process


def killed(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)


def left(client: Any, bucket: str) -> list[str]:
    found = client.list_multipart_uploads(Bucket=bucket).get("Uploads", [])
    return [upload["Key"] for upload in found]


def fleet_of(environ: dict[str, str], ledger: Ledger) -> Fleet:
    home = Home(Path(environ["GPUCTL_HOME"]), "a1b2c3d4e5f6")
    return Fleet(home, ledger, SystemClock(), environ)


def test_what_a_killed_process_began_is_given_up(
    environ: dict[str, str], moto_bucket: str, moto_client: Any
) -> None:
    process = begun(environ, moto_bucket)
    home = Path(environ["GPUCTL_HOME"])
    with Ledger.open(home / "ledger.db", clock=SystemClock()) as ledger:
        fleet = fleet_of(environ, ledger)
        assert give_up_uploads(fleet) == []
        assert left(moto_client, moto_bucket) == ["out/big.bin"], "it goes on"
        killed(process)
        [billing] = [one for one in audit(fleet).billing if one.leftover]
        assert billing.leftover is not None
        assert billing.leftover.id == f"s3://{moto_bucket}/out/big.bin"
        assert billing.unaccounted
        assert give_up_uploads(fleet) == []
        assert left(moto_client, moto_bucket) == []
        assert unfinished(environ) == []
        assert [one for one in audit(fleet).billing if one.leftover] == []


def test_what_cannot_be_given_up_is_told_and_kept(
    environ: dict[str, str], moto_bucket: str, moto_client: Any
) -> None:
    killed(begun(environ, moto_bucket))

    def down(_one: Unfinished) -> None:
        raise StoreError("503", next="Try again.")

    failed = give_up_all(environ, down)
    assert list(failed) == [f"s3://{moto_bucket}/out/big.bin"]
    [one] = unfinished(environ)
    Bucket(moto_bucket, environ).give_up_unfinished(one)
    Bucket(moto_bucket, environ).give_up_unfinished(one)  # gone already is fine
    assert left(moto_client, moto_bucket) == []


def test_one_whose_id_was_never_written_down_is_found_by_its_key(
    environ: dict[str, str], moto_bucket: str, moto_client: Any
) -> None:
    for key in ("out/big.bin", "out/big.bin.other", "elsewhere"):
        moto_client.create_multipart_upload(Bucket=moto_bucket, Key=key)
    # moto says that every upload was initiated in 2010.
    one = Unfinished(moto_bucket, "out/big.bin", None, datetime(2009, 1, 1, tzinfo=UTC))
    bucket = Bucket(moto_bucket, environ)
    bucket.give_up_unfinished(replace(one, begun=datetime.now(UTC)))
    assert len(left(moto_client, moto_bucket)) == 3, "those are older: somebody else's"
    bucket.give_up_unfinished(one)
    assert sorted(left(moto_client, moto_bucket)) == ["elsewhere", "out/big.bin.other"]


def test_nothing_is_noted_of_what_was_completed_given_up_or_refused(
    environ: dict[str, str], moto_bucket: str
) -> None:
    folder = notes_folder(environ)
    assert folder is not None
    bucket = Bucket(moto_bucket, environ)
    upload = bucket.begin_upload("a")
    assert len(list(folder.iterdir())) == 1
    bucket.give_up_upload("a", upload)
    assert list(folder.iterdir()) == []
    with pytest.raises(GpuctlError):
        Bucket("no-such-bucket-anywhere", environ).begin_upload("a")
    assert list(folder.iterdir()) == []
    big = folder.parent / "big"
    big.write_bytes(b"x" * (6 << 20))
    bucket.store(big, "whole", 5 << 20, lambda _: None)
    assert list(folder.iterdir()) == []


def test_a_home_that_cannot_be_written_hinders_no_upload(
    environ: dict[str, str], moto_bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    bucket = Bucket(moto_bucket, {**environ, "GPUCTL_HOME": str(tmp_path / "file")})
    bucket.give_up_upload("a", bucket.begin_upload("a"))


def test_a_note_that_is_cut_off_means_nothing_was_begun(environ: dict[str, str]) -> None:
    folder = notes_folder(environ)
    assert folder is not None
    folder.mkdir(parents=True)
    (folder / "x.json").write_text('{"bucket": "b"')
    assert unfinished(environ) == []
    assert list(folder.iterdir()) == []
