"""One S3 bucket as a place of files: listed, presigned, read and written by its keys.

Stores have their own layout (`gpuctl.store.s3`); this is for what people keep in buckets
themselves. Only this computer has credentials: a machine gets presigned addresses, each for one
object and some minutes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tenacity

from gpuctl.errors import NoCredentials, StoreError, UsageError
from gpuctl.store.s3_client import (
    credentials_failed,
    error_code,
    is_loopback,
    make_client,
    said,
    status_of,
)
from gpuctl.store.unfinished import Note, Unfinished, notes_folder

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

URL_SECONDS = 900
"""How long a presigned address lives; a new one is made when it was not enough."""

_CHUNK = 1 << 20
_ATTEMPTS = 5
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_NOT_BUILT_THERE = {405, 501}
_SKEW = timedelta(minutes=5)  # between this computer's clock and the bucket's


class Gone(StoreError):
    """There is no such object, or not any more."""


class Changed(StoreError):
    """The object was replaced while it was read."""


class _BrokeOff(Exception):
    """An answer ended early; asking for the rest may help."""


@dataclass(frozen=True, slots=True)
class Address:
    """What an ``s3://`` address names."""

    bucket: str
    key: str  # of an object, or a prefix; "" for the whole bucket

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def folder(self) -> str:
        """The key as a prefix of others: "" or with ``/`` at its end."""
        return self.key if self.key == "" or self.key.endswith("/") else self.key + "/"


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as the bucket lists it."""

    key: str
    size: int
    modified: datetime  # whole seconds: that is all that every store tells everywhere
    etag: str  # without quotes
    has_sha256: bool  # whether it was stored with one; `Bucket.sha256` tells it


def is_address(text: str) -> bool:
    """Whether something is meant as an S3 address."""
    return text.lower().startswith("s3://")


def parse_address(text: str) -> Address:
    """Read ``s3://bucket``, ``s3://bucket/key`` or ``s3://bucket/prefix/``.

    Raises:
        UsageError: it is none of them.
    """
    bucket, _, key = text[len("s3://") :].partition("/")
    if not text.startswith("s3://") or not _BUCKET.fullmatch(bucket):
        raise UsageError(f"{text!r} is not an address in S3", next="Write s3://bucket/prefix.")
    parts = key.removesuffix("/").split("/") if key else []
    if not key.isprintable() or any(part in ("", ".", "..") for part in parts):
        raise UsageError(
            f"The key in {text!r} has an empty part, dots or control characters",
            next="Write s3://bucket/prefix with plain names.",
        )
    return Address(bucket, key)


class Bucket:
    """A bucket, asked with this computer's credentials.

    Every method may raise `StoreError`, or `NoCredentials` when the key is what is wrong.

    Args:
        name: of the bucket.
        environ: the AWS SDK's own settings.
    """

    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        self.name = name
        self._notes_at = notes_folder(environ)
        self._notes: dict[str, Note] = {}  # by the upload's id
        self.ca_bundle = environ.get("AWS_CA_BUNDLE") or None
        with self._asking(""):
            self._client: S3Client = make_client(environ)

    @property
    def endpoint(self) -> str:
        """Where it is asked: a URL."""
        return self._client.meta.endpoint_url

    @property
    def is_on_this_computer(self) -> bool:
        """Whether the endpoint is this computer talking to itself, which no other one reaches."""
        return is_loopback(self.endpoint)

    # ------------------------------------------------------------------ looking

    def listing(self, prefix: str, *, most: int | None = None) -> Iterator[Entry]:
        """Yield the objects whose keys start with a prefix, in the order of their keys.

        Args:
            prefix: "" for all.
            most: one request for so many (at most 1000) instead of all.
        """
        with self._asking(prefix):
            if most is not None:
                page = self._client.list_objects_v2(
                    Bucket=self.name, Prefix=prefix, MaxKeys=min(most, 1000)
                )
                yield from map(_entry, page.get("Contents", []))
                return
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.name, Prefix=prefix
            )
            for page in pages:
                yield from map(_entry, page.get("Contents", []))

    def look(self, key: str) -> Entry | None:
        """Return one object; None when it is not there."""
        # A HEAD would not tell of checksums; of all keys with this prefix it is the first.
        first = next(self.listing(key, most=1), None)
        return first if first is not None and first.key == key else None

    def sha256(self, entry: Entry) -> str | None:
        """Return the SHA-256 that an object was stored with, in base64; None without one.

        One of a multipart upload is over its parts' own, and says nothing about the whole.
        """
        if not entry.has_sha256:
            return None
        with self._asking(entry.key):
            head = self._client.head_object(
                Bucket=self.name, Key=entry.key, IfMatch=f'"{entry.etag}"', ChecksumMode="ENABLED"
            )
        found = head.get("ChecksumSHA256", "")
        return found if found and "-" not in found else None

    def check_writing(self, key: str) -> None:
        """Prove that a key may be written, and leave nothing: a multipart upload, given up."""
        from botocore.exceptions import ClientError

        with self._asking(key):
            try:
                upload = self._client.create_multipart_upload(Bucket=self.name, Key=key)
            except ClientError as error:
                if status_of(error) in _NOT_BUILT_THERE:
                    return  # a store without multipart uploads: the write itself will tell
                raise
            self._client.abort_multipart_upload(
                Bucket=self.name, Key=key, UploadId=upload["UploadId"]
            )

    # ------------------------------------------------------------------ presigning

    def read_url(self, key: str) -> str:
        """Return an address that reads one object, for `URL_SECONDS`."""
        return self._presigned("get_object", Key=key)

    def write_url(self, key: str) -> str:
        """Return an address that writes one object, for `URL_SECONDS`."""
        return self._presigned("put_object", Key=key)

    def part_url(self, key: str, upload: str, number: int) -> str:
        """Return an address that writes one part of an upload, for `URL_SECONDS`."""
        return self._presigned("upload_part", Key=key, UploadId=upload, PartNumber=number)

    def _presigned(self, what: str, **names: Any) -> str:
        with self._asking(names["Key"]):
            return self._client.generate_presigned_url(
                what, Params={"Bucket": self.name, **names}, ExpiresIn=URL_SECONDS
            )

    # ------------------------------------------------------------------ large objects

    def begin_upload(self, key: str) -> str:
        """Begin an object in parts; it must be completed or given up, for it bills."""
        from botocore.exceptions import ClientError

        note = Note(self._notes_at, self.name, key)
        try:
            with self._asking(key):
                made = self._client.create_multipart_upload(Bucket=self.name, Key=key)["UploadId"]
        except StoreError as error:
            cause = error.__cause__
            if isinstance(cause, ClientError) and status_of(cause) < 500:
                note.remove()  # refused
            else:
                note.leave()
            raise
        note.named(made)
        self._notes[made] = note
        return made

    def complete_upload(self, key: str, upload: str, etags: Sequence[str]) -> None:
        """Make an object of its parts."""
        parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, 1)]
        with self._asking(key):
            self._client.complete_multipart_upload(
                Bucket=self.name,
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},  # type: ignore[typeddict-item]
            )
        self._forget(upload)

    def give_up_upload(self, key: str, upload: str) -> None:
        """Remove the parts of an upload; one that is gone already is fine."""
        from botocore.exceptions import ClientError

        with self._asking(key):
            try:
                self._client.abort_multipart_upload(Bucket=self.name, Key=key, UploadId=upload)
            except ClientError as error:
                if status_of(error) != 404:
                    raise
        self._forget(upload)

    def give_up_unfinished(self, one: Unfinished) -> None:
        """Give up what a process that was killed had begun.

        Without its id, every upload of that very key that is not older is it.
        """
        if one.upload is not None:
            self.give_up_upload(one.key, one.upload)
            return
        with self._asking(one.key):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.name, Prefix=one.key
            )
            found = [row for page in pages for row in page.get("Uploads", [])]
        for row in found:
            if row["Key"] == one.key and row["Initiated"] >= one.begun - _SKEW:
                self.give_up_upload(one.key, row["UploadId"])

    def _forget(self, upload: str) -> None:
        note = self._notes.pop(upload, None)
        if note is not None:
            note.remove()

    # ------------------------------------------------------------------ here

    def fetch(self, entry: Entry, place: Path, seen: Callable[[int], None]) -> None:
        """Write an object into a new file here; a break is carried on from where it was.

        Args:
            seen: told how many more bytes came.

        Raises:
            Gone: it vanished.
            Changed: it was replaced since it was listed.
            OSError: the file cannot be written.
        """
        with place.open("xb") as file:
            again = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(_BrokeOff),
                stop=tenacity.stop_after_attempt(_ATTEMPTS),
                wait=tenacity.wait_random_exponential(multiplier=0.4, max=5),
                reraise=True,
            )
            while file.tell() < entry.size:
                try:
                    again(self._fetch_rest, entry, file, seen)
                except _BrokeOff as error:
                    raise StoreError(
                        f"s3://{self.name}/{entry.key} broke off again and again",
                        next="Check the network, then try again.",
                    ) from error

    def _fetch_rest(self, entry: Entry, file: Any, seen: Callable[[int], None]) -> None:
        from botocore.exceptions import HTTPClientError, IncompleteReadError
        from urllib3.exceptions import HTTPError

        start = file.tell()
        with self._asking(entry.key):
            answer = self._client.get_object(
                Bucket=self.name,
                Key=entry.key,
                Range=f"bytes={start}-{entry.size - 1}",
                IfMatch=f'"{entry.etag}"',
            )
        try:
            with answer["Body"] as stream:
                for chunk in iter(lambda: stream.read(_CHUNK), b""):
                    file.write(chunk)
                    seen(len(chunk))
        except (HTTPClientError, IncompleteReadError, HTTPError) as error:
            raise _BrokeOff from error
        if file.tell() < entry.size:
            raise _BrokeOff

    def store(self, place: Path, key: str, part: int, seen: Callable[[int], None]) -> None:
        """Write a file of this computer as an object, in parts of ``part`` bytes if it is larger.

        Raises:
            OSError: the file cannot be read.
        """
        size = place.stat().st_size
        with place.open("rb") as file:
            if size <= part:
                with self._asking(key):
                    self._client.put_object(
                        Bucket=self.name, Key=key, Body=file, ContentLength=size
                    )
                seen(size)
                return
            upload = self.begin_upload(key)
            try:
                etags = [
                    self._store_part(file, key, upload, number, part, seen)
                    for number in range(1, -(-size // part) + 1)
                ]
                self.complete_upload(key, upload, etags)
            except BaseException:
                self.give_up_upload(key, upload)
                raise

    def _store_part(
        self, file: Any, key: str, upload: str, number: int, part: int, seen: Callable[[int], None]
    ) -> str:
        file.seek((number - 1) * part)
        content = file.read(part)
        with self._asking(key):
            done = self._client.upload_part(
                Bucket=self.name, Key=key, UploadId=upload, PartNumber=number, Body=content
            )
        seen(len(content))
        return done["ETag"].strip('"')

    @contextlib.contextmanager
    def _asking(self, key: str) -> Iterator[None]:
        where = f"s3://{self.name}/{key}"
        try:
            with said(where):
                yield
        except StoreError as error:
            from botocore.exceptions import ClientError

            answer = error.__cause__
            status = status_of(answer) if isinstance(answer, ClientError) else 0
            if status == 404 and error_code(answer) != "NoSuchBucket":
                raise Gone(f"{where} is not there any more") from error
            if status == 412:
                raise Changed(
                    f"{where} was replaced while it was read", next="Try again."
                ) from error
            if credentials_failed(error):
                raise NoCredentials(error.message, next=error.next) from error
            raise


def _entry(found: Mapping[str, Any]) -> Entry:
    return Entry(
        found["Key"],
        found["Size"],
        found["LastModified"].replace(microsecond=0),
        found.get("ETag", "").strip('"'),
        "SHA256" in found.get("ChecksumAlgorithm", ()),
    )
