"""What AWS's errors mean, in the closed set of `providers.base`.

Codes are read, never texts: the texts change, and some carry what nobody should read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from providers.base import (
    Ambiguous,
    AuthFailed,
    InvalidRequest,
    NoCapacity,
    NotFound,
    PriceChanged,
    ProviderError,
    QuotaExceeded,
    RateLimited,
)

RETRY_AFTER_SECONDS = 5.0
POLICY_HINT = "`gpuctl doctor --aws-policy` prints what the key needs"
NO_CAPACITY = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientCapacity",
        "InsufficientHostCapacity",
        "InsufficientReservedInstanceCapacity",
        "InsufficientVolumeCapacity",
        "InsufficientAddressCapacity",
        "InsufficientFreeAddressesInSubnet",
        "ReservationCapacityExceeded",
        "UnfulfillableCapacity",
        "Unsupported",
    }
)
VCPU_QUOTA = frozenset({"MaxSpotInstanceCountExceeded", "VcpuLimitExceeded"})
_OTHER_QUOTA = frozenset(
    {
        "InstanceLimitExceeded",
        "VolumeLimitExceeded",
        "MaxIOPSLimitExceeded",
        "AddressLimitExceeded",
        "NetworkInterfaceLimitExceeded",
        "SecurityGroupLimitExceeded",
        "KeyPairLimitExceeded",
        "MaxTemplateLimitExceeded",
        "MaxFleetCountExceeded",
    }
)
_THROTTLED = frozenset(
    {
        "RequestLimitExceeded",
        "RequestResourceCountExceeded",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_ACCOUNT = {
    "AuthFailure": "AWS does not accept this key.",
    "InvalidClientTokenId": "AWS does not know this key.",
    "UnrecognizedClientException": "AWS does not know this key.",
    "SignatureDoesNotMatch": "The secret key does not belong to the key.",
    "MissingAuthenticationToken": "The request was not signed: a key is missing.",
    "ExpiredToken": "The temporary credentials have expired: log in again.",
    "ExpiredTokenException": "The temporary credentials have expired: log in again.",
    "RequestExpired": (
        "This computer's clock is off by more than 15 minutes, or the temporary credentials have "
        "expired."
    ),
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": (
        "The account has no service-linked role for spot. Once: `aws iam "
        "create-service-linked-role --aws-service-name spot.amazonaws.com`."
    ),
    "UnauthorizedOperation": f"The key lacks a right for it; {POLICY_HINT}.",
    "AccessDenied": f"The key lacks a right for it; {POLICY_HINT}.",
    "AccessDeniedException": f"The key lacks a right for it; {POLICY_HINT}.",
    "OptInRequired": "The account has not signed up for it, or has not opted into this region.",
    "PendingVerification": "AWS is still verifying the account.",
    "Blocked": "AWS has blocked the account.",
    "TagPolicyViolation": "A tag policy of the organisation forbids gpuctl's tags.",
}
_SETTLES_BY_LOOKING = {
    "IdempotentParameterMismatch": "its token was used for something else before",
    "IdempotentInstanceTerminated": "its token belongs to a machine that has ended",
}
_NOT_FOUND = (".NotFound", ".Malformed", "ResourceNotFoundException", "ParameterNotFound")
_ADVICE = {
    "VPCIdNotSpecified": "the region has no default VPC; name subnets in GPUCTL_AWS_SUBNETS",
    "DefaultVpcDoesNotExist": "the region has no default VPC; name subnets in GPUCTL_AWS_SUBNETS",
}


class NoAnswer(Ambiguous):
    """Nothing came back, or nothing that can be read."""


@contextlib.contextmanager
def said(what: str) -> Iterator[None]:
    """Turn what the SDK raises inside into a `ProviderError` about ``what``.

    Args:
        what: the beginning of a sentence, such as "AWS in us-east-1 did not list machines".
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    try:
        yield
    except ClientError as error:
        raise meaning(code_of(error), status_of(error), what, _text(error)) from None
    except BotoCoreError as error:
        kind = type(error).__name__
        if kind in _NO_CREDENTIALS:
            raise AuthFailed(f"{what}: {_NO_CREDENTIALS[kind]}.") from None
        if kind in _SETTINGS:
            raise InvalidRequest(f"{what}: {_SETTINGS[kind]}.") from None
        raise NoAnswer(f"{what}: no whole answer came ({kind}).") from None
    except (ResponseParserError, HTTPError) as error:
        # Neither is a BotoCoreError, and both can follow a launch that took place.
        raise NoAnswer(f"{what}: the answer cannot be read ({type(error).__name__}).") from None


_NO_CREDENTIALS = {
    "NoCredentialsError": "there are no credentials for it",
    "PartialCredentialsError": "its credentials are incomplete",
    "CredentialRetrievalError": "the credentials could not be fetched",
    "ProfileNotFound": "there is no profile of that name",
    "UnauthorizedSSOTokenError": "the single sign-on has expired",
    "SSOTokenLoadError": "the single sign-on has expired",
    "TokenRetrievalError": "the single sign-on has expired",
}
_SETTINGS = {
    "ParamValidationError": "the SDK refused the request",
    "InvalidRegionError": "a region is misspelt in GPUCTL_AWS_REGIONS or AWS_REGION",
    "UnknownRegionError": "a region is misspelt in GPUCTL_AWS_REGIONS or AWS_REGION",
}


def meaning(code: str, status: int, what: str, text: str = "") -> ProviderError:
    """Return what an error means. Pure.

    Args:
        code: AWS's own.
        status: of HTTP.
        what: the beginning of the sentence.
        text: AWS's own words, repeated only for requests that it finds wrong.
    """
    if code in NO_CAPACITY:
        return NoCapacity(f"{what}: AWS has none of it there now ({code}).")
    if code in VCPU_QUOTA or code in _OTHER_QUOTA:
        return QuotaExceeded(f"{what}: the account may not have more of this ({code}).")
    if code in _THROTTLED:
        return RateLimited(f"{what}: too many requests ({code}).", RETRY_AFTER_SECONDS)
    if code in _ACCOUNT:
        return AuthFailed(f"{what}: {_ACCOUNT[code]}")
    if code == "SpotMaxPriceTooLow":
        return PriceChanged(f"{what}: spot costs more there than the price cap.")
    if code in _SETTLES_BY_LOOKING:
        return Ambiguous(f"{what}: {_SETTLES_BY_LOOKING[code]}.")
    if status >= 500 or not code or code.isdecimal():
        return NoAnswer(f"{what}: AWS failed inside ({code or status}).")
    if code in _ADVICE:
        return InvalidRequest(f"{what}: {_ADVICE[code]}.")
    if any(part in code for part in _NOT_FOUND):
        return NotFound(f"{what}: there is no such thing ({code}).")
    return InvalidRequest(f"{what}: AWS finds the request wrong ({code}: {_cut(text)}).")


def code_of(error: Any) -> str:
    """Return the code of a ClientError; "" where there was none."""
    return str(error.response.get("Error", {}).get("Code", ""))


def status_of(error: Any) -> int:
    """Return the HTTP status of a ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _text(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))


def _cut(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= 200 else plain[:200] + "..."
