"""What Hetzner's error codes mean, in our closed set. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from providers.base import (
    Ambiguous,
    AuthFailed,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
)

REFILL_SECONDS = 1.0
"""The bucket of requests gets one back a second; a 429 does not say when."""

_AUTH = {
    "unauthorized": "Hetzner does not accept the token. Set HCLOUD_TOKEN to one of the project",
    "token_readonly": "The Hetzner token may only read. Make one with Read & Write",
    "forbidden": "The Hetzner token may not do that",
}
_NO_CAPACITY = {
    "resource_unavailable",
    "placement_error",
    "no_space_left_in_location",
    "server_type_unavailable",
}
_BUSY = {"conflict", "locked", "maintenance", "robot_unavailable"}  # nothing happened; try later
_INVALID = {
    "invalid_input",
    "invalid_server_type",
    "json_error",
    "method_not_allowed",
    "deprecated_api_endpoint",
    "uniqueness_error",
    "unsupported_error",
    "protected",
    "resource_in_use",
    "must_be_unassigned",
    "server_not_stopped",
    "primary_ip_assigned",
    "primary_ip_datacenter_mismatch",
    "primary_ip_version_mismatch",
}


class Refusal(Exception):
    """The API answered with an error code.

    Attributes:
        code: as Hetzner's API has it, or an HTTP status where a proxy answered.
    """

    def __init__(
        self, code: str | int, message: str, details: object = None, trace: str | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = " ".join(str(message).split())[:300] or "no reason given"
        self.details = details
        self.trace = trace

    def error(self, what: str, *, creating: bool = False) -> ProviderError:
        """Return what it means, in a sentence.

        Args:
            what: was asked, to be put after "Hetzner".
            creating: nothing exists yet that could be asked for again.
        """
        code = "rate_limit_exceeded" if self.code == 429 else self.code
        code = "unauthorized" if code == 401 else code
        said = self._said()
        if code == "rate_limit_exceeded":
            return RateLimited(f"Hetzner takes no more requests for now {said}", REFILL_SECONDS * 2)
        if code in _AUTH:
            return AuthFailed(f"{_AUTH[str(code)]} {said}")
        if code in _NO_CAPACITY:
            return NoCapacity(f"Hetzner has none left there {said}")
        if code == "resource_limit_exceeded":
            return QuotaExceeded(
                f"The Hetzner project may not have more{self._limits()} {said}; its limits are in "
                "the Console, and can be raised there"
            )
        if code == "not_found":
            return (InvalidRequest if creating else NotFound)(
                f"Hetzner does not know {what} {said}"
            )
        if code in _BUSY:
            kind = NoCapacity if creating else Ambiguous
            return kind(f"Hetzner does not do {what} now {said}; try again later")
        if code in _INVALID:
            return InvalidRequest(f"Hetzner refuses {what} {said}{self._fields()}")
        # server_error, unavailable, timeout, bad_gateway, service_error, a proxy's page, and what
        # nobody has seen before: it may have happened.
        return Ambiguous(f"Hetzner failed at {what} {said}")

    def _said(self) -> str:
        trace = f", {self.trace}" if self.trace else ""
        return f"({self.message}; {self.code}{trace})"

    def _fields(self) -> str:
        """Which fields are wrong and why; details may be missing."""
        return "".join(
            f"; {field.get('name')}: {', '.join(map(str, field.get('messages') or ()))}"
            for field in self._listed("fields")
        )

    def _limits(self) -> str:
        names = [str(limit.get("name")) for limit in self._listed("limits")]
        return f" ({', '.join(names)})" if names else ""

    def _listed(self, key: str) -> list[Mapping[str, Any]]:
        found = self.details.get(key) if isinstance(self.details, Mapping) else None
        return [x for x in found if isinstance(x, Mapping)] if isinstance(found, list) else []
