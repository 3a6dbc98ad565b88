"""How gpuctl talks to S3, and how it says what went wrong there.

Any endpoint works, set the way every tool of the AWS SDK takes it (AWS_ENDPOINT_URL_S3,
AWS_ENDPOINT_URL, or a profile). boto3's transfer manager, and with it the CRT client that
ignores a configured endpoint, is never used: no object is above 64 MiB, so each is one request.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gpuctl.errors import StoreError

if TYPE_CHECKING:
    from boto3 import Session
    from mypy_boto3_s3 import S3Client

CONNECT_SECONDS = 10
READ_SECONDS = 60
ATTEMPTS = 5  # unless AWS_MAX_ATTEMPTS says otherwise; waits up to about 15 s in all
POOL = 8

_SESSION_VARIABLES = {
    "profile": ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"),
    "region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "config_file": ("AWS_CONFIG_FILE",),
    "credentials_file": ("AWS_SHARED_CREDENTIALS_FILE",),
    "ca_bundle": ("AWS_CA_BUNDLE",),
}
_BOTH_OR_NONE = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_AMAZON = re.compile(r"\.(amazonaws\.com(\.cn)?|api\.aws)$")
_KEYS = "Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE."
_CREDENTIALS = {
    "AccessDenied",
    "403",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "ExpiredToken",
    "InvalidToken",
}
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "UnauthorizedSSOTokenError",
    "SSOTokenLoadError",
    "TokenRetrievalError",
}
_ADVICE = {
    "NoSuchBucket": ("there is no such bucket", "Make the bucket, or correct its name."),
    "AccessDenied": ("access was denied", "The key needs the rights to list, get, put and delete."),
    "403": ("access was denied", "The key needs the rights to list, get, put and delete."),
    "InvalidAccessKeyId": ("the access key is unknown there", _KEYS),
    "SignatureDoesNotMatch": ("the secret key is wrong", _KEYS),
    "ExpiredToken": ("the credentials have expired", "Log in again."),
    "InvalidToken": ("the session token is wrong", _KEYS),
    "RequestTimeTooSkewed": ("this computer's clock is wrong", "Set the clock."),
    "PermanentRedirect": ("the bucket is in another region", "Set AWS_REGION to the bucket's."),
    "AuthorizationHeaderMalformed": (
        "the bucket is in another region",
        "Set AWS_REGION to the bucket's.",
    ),
}


def make_client(environ: Mapping[str, str]) -> S3Client:
    """Return a client with our time-outs and retries; sends nothing.

    Raises:
        StoreError: the profile, a setting or the endpoint is malformed.
    """
    try:
        with said("The S3 store"):
            return _client_for_endpoint(environ)
    except ValueError as error:
        raise StoreError(
            "The S3 store cannot be used: a setting is malformed",
            next="Look at AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL and AWS_REGION.",
        ) from error


def _client_for_endpoint(environ: Mapping[str, str]) -> S3Client:
    session = _session(environ)
    ignored = environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == "true"
    endpoint = None if ignored else _first(environ, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    client = _client(session, environ, endpoint)
    # Without a variable, a profile may still have named an endpoint: then it shows here.
    if endpoint is None and not _is_amazon(client.meta.endpoint_url):
        client = _client(session, environ, client.meta.endpoint_url)
    return client


def _is_amazon(endpoint: str) -> bool:
    return _AMAZON.search(urlsplit(endpoint).hostname or "") is not None


def is_loopback(endpoint: str) -> bool:
    """Whether an endpoint is a computer talking to itself."""
    host = urlsplit(endpoint).hostname or ""
    try:
        address = ipaddress.ip_address(host)
        return address.is_loopback or address.is_unspecified
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _session(environ: Mapping[str, str]) -> Session:
    import boto3
    import botocore.session
    from botocore.exceptions import PartialCredentialsError

    halves = [name for name in _BOTH_OR_NONE if environ.get(name)]
    if len(halves) == 1:  # the SDK would fail with it only when it signs, and without a word
        missing = next(name for name in _BOTH_OR_NONE if name not in halves)
        raise PartialCredentialsError(provider="environment", cred_var=missing)
    core = botocore.session.Session()
    for variable, names in _SESSION_VARIABLES.items():
        if value := _first(environ, *names):
            core.set_config_variable(variable, value)
    return boto3.Session(
        botocore_session=core,
        aws_access_key_id=environ.get("AWS_ACCESS_KEY_ID") or None,
        aws_secret_access_key=environ.get("AWS_SECRET_ACCESS_KEY") or None,
        aws_session_token=environ.get("AWS_SESSION_TOKEN") or None,
    )


def _client(session: Session, environ: Mapping[str, str], endpoint: str | None) -> S3Client:
    from botocore.config import Config

    # Elsewhere than on AWS the SDK's default checksums break puts (501, or a misleading 401).
    checksums: dict[str, Any] = (
        {}
        if endpoint is None or _is_amazon(endpoint)
        else {
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        }
    )
    # Presigned addresses would else name the global endpoint, which redirects for new buckets.
    style: dict[str, Any] = (
        {"s3": {"addressing_style": "virtual"}} if endpoint is None or _is_amazon(endpoint) else {}
    )
    attempts = environ.get("AWS_MAX_ATTEMPTS", "")
    config = Config(
        signature_version="s3v4",  # presigned POSTs and URLs would else be signed the old way
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=POOL,
        tcp_keepalive=True,
        retries={
            "mode": "standard",
            "total_max_attempts": int(attempts) if attempts.isdecimal() else ATTEMPTS,
        },
        **checksums,
        **style,
    )
    return session.client("s3", endpoint_url=endpoint, config=config)


def _first(environ: Mapping[str, str], *names: str) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


@contextlib.contextmanager
def said(what: str) -> Iterator[None]:
    """Turn what the SDK raises inside into a `StoreError` about ``what``.

    Only codes and kinds are repeated, never a server's or library's own text: it can hold keys.
    """
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectionError,
        HTTPClientError,
        IncompleteReadError,
    )
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        code = error_code(error)
        why, next_step = _ADVICE.get(
            code, (f"it answered {code}", "Try again; look at the store's own status.")
        )
        raise StoreError(f"{what} cannot be used: {why}", next=next_step) from error
    except (ConnectionError, HTTPClientError, HTTPError, IncompleteReadError) as error:
        raise StoreError(
            f"{what} cannot be used: no whole answer came ({type(error).__name__})",
            next="Check the network and AWS_ENDPOINT_URL_S3, then try again.",
        ) from error
    except BotoCoreError as error:
        kind = type(error).__name__
        raise StoreError(f"{what} cannot be used: {_settings_wrong(kind)}", next=_KEYS) from error


def credentials_failed(error: StoreError) -> bool:
    """Whether it was the key, or its rights, that `said` told of."""
    cause = error.__cause__
    if hasattr(cause, "response"):
        return error_code(cause) in _CREDENTIALS
    return type(cause).__name__ in _NO_CREDENTIALS


def error_code(error: Any) -> str:
    """Return the code of a ClientError: a word, or the HTTP status where there was no body."""
    return str(error.response.get("Error", {}).get("Code", "an error without a code"))


def status_of(error: Any) -> int:
    """Return the HTTP status of a ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _settings_wrong(kind: str) -> str:
    return {
        "NoCredentialsError": "there are no credentials for it",
        "PartialCredentialsError": "its credentials are incomplete",
        "ProfileNotFound": "there is no profile of that name",
        "UnauthorizedSSOTokenError": "the single sign-on has expired",
        "SSOTokenLoadError": "the single sign-on has expired",
        "TokenRetrievalError": "the single sign-on has expired",
        "PaginationError": "its listing never ends",
    }.get(kind, f"the AWS SDK says {kind}")
