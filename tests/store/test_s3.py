"""The store in S3: the shared suite on moto and on a liar, and every way in which S3 can fail."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from gpuctl.errors import StoreError
from gpuctl.store import CorruptEntry, Store, open_store
from gpuctl.store import s3 as s3_module
from gpuctl.store.objects import Objects
from gpuctl.store.opening import s3_objects
from gpuctl.store.s3 import S3Objects
from tests.conformance.store_suite import RUN, SMALL, ObjectsOf, StoreConformance, put
from tests.store.endpoints import SECRET, settings
from tests.store.faulty_s3 import FaultyS3


class TestMoto(StoreConformance):
    @pytest.fixture
    def objects_of(self, moto: str, moto_bucket: str) -> ObjectsOf:
        return lambda run: s3_objects(f"s3://{moto_bucket}/some/prefix", run, settings(moto))


class TestAStoreThatIgnoresConditions(StoreConformance):
    @pytest.fixture
    def objects_of(self, faulty: FaultyS3, endpoint: str, bucket: str) -> ObjectsOf:
        faulty.honours_conditions = False

        def make(run: str) -> Objects:
            objects = s3_objects(f"s3://{bucket}", run, settings(endpoint))
            assert not objects.honours_conditions()
            return objects

        return make


def test_moto_honours_conditions_and_is_asked_once(
    moto: str, moto_bucket: str, moto_client: Any
) -> None:
    for _ in range(2):
        objects = s3_objects(f"s3://{moto_bucket}/p", RUN, settings(moto))
        assert objects.honours_conditions()
    listed = moto_client.list_objects_v2(Bucket=moto_bucket)["Contents"]
    assert [item["Key"] for item in listed] == [f"p/{RUN}/probe"]


def test_a_store_that_knows_no_conditions_at_all(
    faulty: FaultyS3, objects: S3Objects, store: Store, entry: Path
) -> None:
    faulty.fail("PUT", "probe", "501")
    manifest = put(store, entry, 1)
    assert not objects.honours_conditions()
    assert store.verify(manifest) == []


def test_a_conflict_of_conditional_writes_is_tried_again(
    faulty: FaultyS3, store: Store, entry: Path
) -> None:
    faulty.fail("PUT", "manifests/", "409", times=2)
    manifest = put(store, entry, 1)
    assert store.manifests() == [manifest]


def test_a_conflict_that_does_not_end_is_said(faulty: FaultyS3, store: Store, entry: Path) -> None:
    faulty.fail("PUT", "manifests/", "409", times=99)
    with pytest.raises(StoreError, match="keeps writing"):
        put(store, entry, 1)
    assert store.manifests() == []


def test_one_manifest_of_many_racers_wins(moto: str, moto_bucket: str) -> None:
    objects = s3_objects(f"s3://{moto_bucket}", RUN, settings(moto))
    start = threading.Barrier(6)
    won: list[bytes] = []

    def write(body: bytes) -> None:
        start.wait(10)
        if objects.create("manifests/x", body):
            won.append(body)

    threads = [threading.Thread(target=write, args=(str(n).encode(),)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [bytes(objects.read("manifests/x", 9))] == won


# ------------------------------------------------------------------------------ faults


@pytest.mark.parametrize("fault", ["503", "drop reply"])
@pytest.mark.parametrize("where", ["blobs/", "manifests/", "probe"])
def test_a_stutter_is_ridden_out(
    faulty: FaultyS3, store: Store, entry: Path, fault: Any, where: str
) -> None:
    faulty.fail("PUT", where, fault, times=2)
    manifest = put(store, entry, 1)
    assert store.manifests() == [manifest]
    assert store.verify(manifest) == []


def test_a_store_that_stays_down_is_said_and_nothing_is_visible(
    faulty: FaultyS3, store: Store, entry: Path
) -> None:
    faulty.fail("PUT", "manifests/", "503", times=99)
    with pytest.raises(StoreError, match="SlowDown"):
        put(store, entry, 1)
    faulty.rules.clear()
    assert store.manifests() == []
    sent = faulty.count("PUT", "blobs/")
    manifest = put(store, entry, 1)
    assert faulty.count("PUT", "blobs/") == sent  # what arrived the first time is not sent again
    assert store.verify(manifest) == []


def test_an_answer_that_ends_early_is_asked_for_again(
    faulty: FaultyS3, store: Store, entry: Path, tmp_path: Path
) -> None:
    manifest = put(store, entry, 1)
    faulty.fail("GET", "manifests/", "truncate", times=2)
    faulty.fail("GET", manifest.files[0].blobs[1].key, "truncate", times=1)
    assert store.manifests() == [manifest]
    assert store.fetch(manifest, tmp_path / "out").path.read_bytes() == entry.read_bytes()


def test_an_answer_that_always_ends_early_is_no_corruption(
    faulty: FaultyS3, store: Store, entry: Path, tmp_path: Path
) -> None:
    """A bad line must not make anybody fall back to an older checkpoint, nor prune one."""
    manifest = put(store, entry, 1)
    faulty.fail("GET", "blobs/", "truncate", times=999)
    with pytest.raises(StoreError, match="broke off") as caught:
        store.fetch(manifest, tmp_path / "out")
    assert not isinstance(caught.value, CorruptEntry)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-1"]
    with pytest.raises(StoreError, match="broke off"):
        store.newest_whole()


def test_bytes_that_rot_are_found(
    faulty: FaultyS3, store: Store, entry: Path, tmp_path: Path
) -> None:
    first = put(store, entry, 1)
    entry.write_bytes(os.urandom(3 * SMALL))
    second = put(store, entry, 2)
    faulty.fail("GET", second.files[0].blobs[2].key, "corrupt", times=99)
    with pytest.raises(CorruptEntry, match="other bytes"):
        store.fetch(second, tmp_path / "out")
    newest = store.newest_whole()
    assert newest.manifest == first
    assert [passed.key for passed in newest.passed_over] == [second.key]


def test_a_listing_that_fails_is_never_an_empty_store(faulty: FaultyS3, store: Store) -> None:
    for ask in (store.manifests, store.newest_whole, lambda: store.prune(1)):
        faulty.fail("GET", "list-type=2", "403")
        with pytest.raises(StoreError, match="denied"):
            ask()


def test_an_endpoint_that_is_down_is_said(tmp_path: Path, bucket: str, entry: Path) -> None:
    with closing(FaultyS3().server().socket) as unused:
        port = unused.getsockname()[1]
    store = open_store(f"s3://{bucket}", RUN, environ=settings(f"http://127.0.0.1:{port}"))
    with pytest.raises(StoreError, match="no whole answer") as caught:
        put(store, entry, 1)
    assert "AWS_ENDPOINT_URL_S3" in (caught.value.next or "")


def test_a_bucket_that_is_not_there_is_said(endpoint: str) -> None:
    store = open_store("s3://nowhere", RUN, environ=settings(endpoint))
    for ask in (store.manifests, store.write_grant):
        with pytest.raises(StoreError, match="no such bucket") as caught:
            ask()
        assert "bucket" in (caught.value.next or "")


def test_a_key_without_rights_is_said_without_the_secret(
    faulty: FaultyS3, store: Store, entry: Path
) -> None:
    faulty.fail("PUT", "", "403", times=99)
    with pytest.raises(StoreError, match="denied") as caught:
        put(store, entry, 1)
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r}"
    with pytest.raises(StoreError, match="denied"):
        store.write_grant()


def test_no_credentials_at_all_is_said(endpoint: str, bucket: str) -> None:
    environ = {
        name: value
        for name, value in settings(endpoint).items()
        if name not in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("AWS_"):
                patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        store = open_store(f"s3://{bucket}", RUN, environ=environ)
        with pytest.raises(StoreError, match="no credentials") as caught:
            store.manifests()
    assert "AWS_PROFILE" in (caught.value.next or "")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            {"AWS_PROFILE": "nobody", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "profile",
        ),
        ({"AWS_ENDPOINT_URL_S3": "not a url"}, "malformed"),
    ],
)
def test_settings_that_are_wrong_are_said(change: dict[str, str], why: str) -> None:
    with pytest.raises(StoreError, match=why):
        open_store("s3://bucket", RUN, environ=settings("http://127.0.0.1:9") | change)


def test_checksums_are_the_default_on_aws_and_none_elsewhere() -> None:
    aws = s3_objects(
        "s3://bucket", RUN, {**settings("x"), "AWS_ENDPOINT_URL_S3": "", "AWS_ENDPOINT_URL": ""}
    )
    own = s3_objects("s3://bucket", RUN, settings("https://s3.example.org"))
    assert aws.reachable_from_machine
    assert own.reachable_from_machine
    modes = [
        objects._client.meta.config.request_checksum_calculation  # type: ignore[attr-defined]
        for objects in (aws, own)
    ]
    assert modes == ["when_supported", "when_required"]


def test_an_endpoint_that_a_profile_names_is_used(
    faulty: FaultyS3, endpoint: str, bucket: str, tmp_path: Path
) -> None:
    (tmp_path / "config").write_text(
        f"[profile own]\nregion = us-east-1\nservices = here\n"
        f"[services here]\ns3 =\n  endpoint_url = {endpoint}\n"
    )
    (tmp_path / "credentials").write_text(
        "[own]\naws_access_key_id = a\naws_secret_access_key = b\n"
    )
    objects = s3_objects(
        f"s3://{bucket}",
        RUN,
        {
            "AWS_PROFILE": "own",
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"),
        },
    )
    objects.write("blobs/ab/x", b"1")
    assert f"{RUN}/blobs/ab/x" in faulty.objects
    mode = objects._client.meta.config.request_checksum_calculation  # type: ignore[attr-defined]
    assert mode == "when_required"


# ------------------------------------------------------------------------------ the rest


def test_uploads_that_others_left_are_aborted(
    moto: str, moto_bucket: str, moto_client: Any
) -> None:
    ours = moto_client.create_multipart_upload(Bucket=moto_bucket, Key=f"p/{RUN}/blobs/ab/x")
    other = moto_client.create_multipart_upload(Bucket=moto_bucket, Key="p/other/x")
    store = open_store(f"s3://{moto_bucket}/p", RUN, environ=settings(moto))
    now = datetime.now(UTC)

    def left() -> list[str]:
        found = moto_client.list_multipart_uploads(Bucket=moto_bucket).get("Uploads", [])
        return [upload["UploadId"] for upload in found]

    assert store.abort_stale_uploads(datetime(2000, 1, 1, tzinfo=UTC)) == 0
    assert set(left()) == {ours["UploadId"], other["UploadId"]}
    # moto says that every upload was initiated in 2010.
    assert store.abort_stale_uploads(now + timedelta(minutes=1)) == 1
    assert left() == [other["UploadId"]]


def test_a_store_without_multipart_uploads_can_be_pruned(
    faulty: FaultyS3, store: Store, entry: Path
) -> None:
    put(store, entry, 1)
    faulty.fail("GET", "?uploads", "501", times=9)
    assert store.prune(1).unfinished == 0


def test_blobs_of_64_mib_go_there_and_back(moto: str, moto_bucket: str, tmp_path: Path) -> None:
    file = tmp_path / "big"
    with file.open("wb") as handle:
        handle.write(b"begin")
        handle.truncate(64 * 1024 * 1024 + 5)
    store = open_store(f"s3://{moto_bucket}", RUN, environ=settings(moto))
    manifest = put(store, file, 1)
    assert [blob.size for blob in manifest.blobs()] == [64 * 1024 * 1024, 5]
    copy = Store(s3_objects(f"s3://{moto_bucket}/2", RUN, settings(moto)), RUN)
    copy.import_from(store, manifest)
    assert copy.verify(manifest) == []


def test_what_was_found_out_is_kept_for_the_place(objects: S3Objects, endpoint: str) -> None:
    objects.honours_conditions()
    assert (endpoint, objects.location.split("/")[2]) in s3_module._honours_conditions
