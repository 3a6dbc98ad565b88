"""Errors as Hetzner's API words them."""

from __future__ import annotations

from typing import Any

from tests.clouds.http_cloud import Reply


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str, details: Any = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details

    def reply(self) -> Reply:
        """What goes over the wire."""
        error = {"code": self.code, "message": self.message, "details": self.details}
        return Reply(self.status, {"error": error})


def invalid(field: str, message: str) -> ApiError:
    """A field that cannot be what it is."""
    details = {"fields": [{"name": field, "messages": [message]}]}
    return ApiError(422, "invalid_input", f"invalid input in field '{field}'", details)


def taken(field: str, message: str) -> ApiError:
    """Something with the same name (or key) is there."""
    return ApiError(409, "uniqueness_error", message, {"fields": [{"name": field}]})


def missing(what: str, number: object) -> ApiError:
    """No such thing."""
    return ApiError(404, "not_found", f"{what} with ID '{number}' not found")


UNAUTHORIZED = ApiError(401, "unauthorized", "unable to authenticate")
READ_ONLY = ApiError(401, "token_readonly", "token is only authorized to read data")
DRAINED = ApiError(429, "rate_limit_exceeded", "limit of 3600 requests per hour reached")
NO_ROOM = ApiError(412, "resource_unavailable", "error during placement")
NO_DATACENTERS = ApiError(
    410,
    "deprecated_api_endpoint",
    "this API endpoint is deprecated and was removed",
    {"announcement": "https://docs.hetzner.cloud/changelog#2026-06-02-datacenters-deprecated"},
)
