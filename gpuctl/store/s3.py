"""A store in an S3 bucket, on AWS or on anything that speaks its language.

An object is one request, atomic by itself. What an endpoint merely claims is tried once: the
key ``probe`` of a run shows whether conditional writes and presigned POSTs work there.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

import tenacity

from gpuctl.errors import StoreError
from gpuctl.store.manifest import MAX_BLOB_BYTES
from gpuctl.store.objects import Missing, Stored
from gpuctl.store.s3_client import (
    CONNECT_SECONDS,
    READ_SECONDS,
    error_code,
    is_loopback,
    said,
    status_of,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_LOG = logging.getLogger(__name__)
_CHUNK = 1 << 20
_POST_SLACK = 1 << 20  # a manifest is at most half a blob; this is for stores that count the form
_MAX_PRESIGNED = timedelta(days=7)  # the longest that signature version 4 allows
_PROBE = "probe"
_UNSUPPORTED = {400, 403, 405, 501}

_honours_conditions: dict[tuple[str, str], bool] = {}
_takes_posts: dict[tuple[str, str], bool] = {}
_probing = threading.Lock()


class _BrokenBody(Exception):
    """An answer ended early; asking again may help."""


class _Conflict(Exception):
    """Another conditional write of the same key is under way (409); asking again decides."""


class S3Objects:
    """The objects of one run in a bucket."""

    def __init__(
        self, client: S3Client, bucket: str, prefix: str, run_id: str, *, ca_bundle: str | None
    ) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = f"{prefix}/{run_id}/" if prefix else f"{run_id}/"
        self._ca_bundle = ca_bundle
        self._place = (client.meta.endpoint_url, bucket)

    @property
    def location(self) -> str:
        """The s3:// address of the run."""
        return f"s3://{self._bucket}/{self._prefix.rstrip('/')}"

    @property
    def folder(self) -> None:
        """None: a bucket is no folder."""
        return

    @property
    def reachable_from_machine(self) -> bool:
        """Whether the endpoint is more than this computer talking to itself."""
        return not is_loopback(self._client.meta.endpoint_url)

    def listing(self, folder: str) -> Sequence[Stored]:
        """See `Objects.listing`."""
        with said(self.location):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{self._prefix}{folder}/"
            )
            return [
                Stored(item["Key"].removeprefix(self._prefix), item["Size"], item["LastModified"])
                for page in pages
                for item in page.get("Contents", [])
            ]

    def read(self, key: str, limit: int) -> bytes | bytearray:
        """See `Objects.read`. A body that breaks off is asked for twice more."""
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_BrokenBody),
            stop=tenacity.stop_after_attempt(3),
            wait=tenacity.wait_random_exponential(multiplier=0.4, max=5),
            reraise=True,
        )
        try:
            return again(self._read_once, key, limit)
        except _BrokenBody as error:
            raise StoreError(
                f"{self.location} broke off in the middle of {key}, three times",
                next="Check the network, then try again.",
            ) from error

    def write(self, key: str, body: bytes | bytearray) -> None:
        """See `Objects.write`."""
        with said(self.location):
            self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + key,
                Body=_body(body),
                ContentLength=len(body),
            )

    def create(self, key: str, body: bytes | bytearray) -> bool:
        """See `Objects.create`. Where conditions are ignored: for one writer at a time."""
        if self.honours_conditions():
            return self._put_if_absent(key, body)
        if self._modified(key) is not None:
            return False
        self.write(key, body)
        return True

    def remove(self, stored: Stored) -> bool:
        """See `Objects.remove`. S3 cannot ask and remove in one step: the gap is one request."""
        modified = self._modified(stored.key)
        if modified is None:
            return True
        # A HEAD has whole seconds where some stores' listings have milliseconds.
        if modified.replace(microsecond=0) > stored.modified.replace(microsecond=0):
            return False
        with said(self.location):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + stored.key)
        return True

    def sweep_unfinished(self, before: datetime) -> int:
        """See `Objects.sweep_unfinished`: multipart uploads under the run's prefix.

        gpuctl makes none itself; another tool that copied into the prefix may have.
        """
        from botocore.exceptions import ClientError

        swept = 0
        try:
            with said(self.location):
                pages = self._client.get_paginator("list_multipart_uploads").paginate(
                    Bucket=self._bucket, Prefix=self._prefix
                )
                for upload in [one for page in pages for one in page.get("Uploads", [])]:
                    if upload["Initiated"] < before:
                        self._client.abort_multipart_upload(
                            Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                        )
                        swept += 1
        except StoreError as error:
            cause = error.__cause__
            if not (isinstance(cause, ClientError) and status_of(cause) in (404, 405, 501)):
                raise
            if error_code(cause) == "NoSuchBucket":
                raise
            # Ended meanwhile, or a store without multipart uploads: nothing to sweep.
            _LOG.info("%s lists no unfinished uploads: %s", self.location, error_code(cause))
        return swept

    def write_grant(self, expires: datetime) -> dict[str, Any] | None:
        """See `Objects.write_grant`: a presigned POST for this run's prefix and nothing else.

        It lives seven days at most, and no longer than the credentials that signed it. None
        where a trial post did not arrive (Cloudflare R2 and RunPod volumes take none).
        """
        seconds = _seconds_until(expires)
        if not self._posts_arrive():
            return None
        with said(self.location):
            post = self._presign_post(seconds)
        return {
            "kind": "s3post",
            "url": post["url"],
            "fields": post["fields"],
            "prefix": self._prefix,
            "expires": int(datetime.now(UTC).timestamp()) + seconds,
        }

    def read_urls(self, keys: Iterable[str], expires: datetime) -> dict[str, str]:
        """See `Objects.read_urls`: presigned, for seven days at most; one of them is tried."""
        seconds = _seconds_until(expires)
        with said(self.location):
            urls = {
                key: self._client.generate_presigned_url(
                    "get_object",
                    Params={"Bucket": self._bucket, "Key": self._prefix + key},
                    ExpiresIn=seconds,
                )
                for key in keys
            }
        if urls and self._http("GET", next(iter(urls.values()))) not in (200, 206):
            raise StoreError(
                f"{self.location} gives nobody else a way to read: it refuses presigned addresses",
                next="Use a store that takes them, or a key with the right to get objects.",
            )
        return urls

    def honours_conditions(self) -> bool:
        """Whether this endpoint refuses an If-None-Match on a key that is there; tried once."""
        with _probing:
            if self._place not in _honours_conditions:
                _honours_conditions[self._place] = self._try_conditions()
            return _honours_conditions[self._place]

    def _try_conditions(self) -> bool:
        try:
            # The probe is often there from before; then one request has already answered.
            return not self._put_if_absent(_PROBE, b"1") or not self._put_if_absent(_PROBE, b"2")
        except StoreError as error:
            from botocore.exceptions import ClientError

            cause = error.__cause__
            if isinstance(cause, ClientError) and status_of(cause) in (400, 501):
                self.write(_PROBE, b"1")  # says so at once when puts as such are refused
                return False
            raise

    def _put_if_absent(self, key: str, body: bytes | bytearray) -> bool:
        again = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Conflict),
            stop=tenacity.stop_after_attempt(5),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=2),
            reraise=True,
        )
        try:
            return again(self._put_if_absent_once, key, body)
        except _Conflict as error:
            raise StoreError(
                f"{self.location}: somebody else keeps writing {key}",
                next="See that only one gpuctl and one machine work on this run.",
            ) from error

    def _put_if_absent_once(self, key: str, body: bytes | bytearray) -> bool:
        from botocore.exceptions import ClientError

        with said(self.location):
            try:
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._prefix + key,
                    Body=_body(body),
                    ContentLength=len(body),
                    IfNoneMatch="*",
                )
            except ClientError as error:
                if status_of(error) == 412:
                    return False
                if status_of(error) == 409:
                    raise _Conflict from error
                raise
        return True

    def _read_once(self, key: str, limit: int) -> bytearray:
        from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
        from urllib3.exceptions import HTTPError

        with said(self.location):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)
            except ClientError as error:
                if error_code(error) in ("NoSuchKey", "404"):
                    raise Missing(f"{self.location} has no {key}") from error
                raise
        # As long as it will be from the start: growing would hold parts of it twice.
        body = bytearray(min(answer["ContentLength"], limit + 1))
        filled = 0
        try:
            with answer["Body"] as stream:
                while filled < len(body) and (
                    chunk := stream.read(min(_CHUNK, len(body) - filled))
                ):
                    body[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
        except (HTTPClientError, IncompleteReadError, HTTPError, OSError) as error:
            raise _BrokenBody from error
        if filled < len(body):
            raise _BrokenBody
        return body

    def _modified(self, key: str) -> datetime | None:
        from botocore.exceptions import ClientError

        with said(self.location):
            try:
                return self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)[
                    "LastModified"
                ]
            except ClientError as error:
                if status_of(error) == 404 and error_code(error) != "NoSuchBucket":
                    return None
                raise

    def _presign_post(self, seconds: int) -> dict[str, Any]:
        # "${filename}" makes the SDK sign a starts-with condition on what comes before it.
        post = self._client.generate_presigned_post(
            Bucket=self._bucket,
            Key=self._prefix + "${filename}",
            Conditions=[["content-length-range", 0, MAX_BLOB_BYTES + _POST_SLACK]],
            ExpiresIn=seconds,
        )
        fields = {name: value for name, value in post["fields"].items() if name != "key"}
        return {"url": post["url"], "fields": fields}

    def _posts_arrive(self) -> bool:
        self.honours_conditions()  # a wrong key or bucket is said here, not taken for a refusal
        with _probing:
            if self._place not in _takes_posts:
                _takes_posts[self._place] = self._try_post()
            return _takes_posts[self._place]

    def _try_post(self) -> bool:
        token = secrets.token_hex(8).encode()
        with said(self.location):
            post = self._presign_post(300)
        status = self._http(
            "POST", post["url"], post["fields"] | {"key": self._prefix + _PROBE}, token
        )
        return status < 300 and self.read(_PROBE, 64) == token

    def _http(
        self, method: str, url: str, fields: dict[str, str] | None = None, body: bytes | None = None
    ) -> int:
        import requests

        try:
            with requests.request(
                method,
                url,
                data=fields,
                files=None if body is None else {"file": ("probe", body)},
                headers={"Range": "bytes=0-0"} if method == "GET" else {},
                timeout=(CONNECT_SECONDS, READ_SECONDS),
                verify=self._ca_bundle or True,
                allow_redirects=False,
                stream=True,
            ) as answer:
                status = answer.status_code
        except requests.RequestException as error:
            raise StoreError(
                f"{self.location} cannot be used: no answer came ({type(error).__name__})",
                next="Check the network and AWS_ENDPOINT_URL_S3, then try again.",
            ) from None  # the library's own text holds the signed address
        if status >= 300 and status not in _UNSUPPORTED:
            raise StoreError(
                f"{self.location} cannot be used: it answered {status} to a presigned request",
                next="Try again; look at the store's own status.",
            )
        return status


def _body(content: bytes | bytearray) -> bytes:
    # The SDK takes both as they are, its types name one; a copy would double the memory.
    return cast(bytes, content)


def _seconds_until(expires: datetime) -> int:
    left = min(expires - datetime.now(UTC), _MAX_PRESIGNED)
    if left < timedelta(seconds=1):
        raise StoreError(
            "A grant on the store cannot end before it begins", next="Check the clock."
        )
    return int(left.total_seconds())
