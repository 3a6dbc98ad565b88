"""How the emulated RunPod answers: problem+json, and what it reads of a request."""

from __future__ import annotations

from typing import Any

from tests.clouds.http_cloud import Reply, Request

TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    402: "Payment Required",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    422: "Unprocessable Entity",
    429: "Too Many Requests",
    500: "Internal Server Error",
}


def problem(status: int, detail: str, errors: list[str] | None = None) -> Reply:
    """An error as the API answers it."""
    said: dict[str, Any] = {"title": TITLES[status], "status": status, "detail": detail}
    if errors:
        said["errors"] = errors
    return Reply(status, said, {"Content-Type": "application/problem+json"})


def invalid(errors: list[str]) -> Reply:
    """A body that breaks the schema."""
    return problem(422, "Request validation failed.", errors)


def body_of(request: Request) -> dict[str, Any]:
    """The object that was sent; empty when it was none."""
    try:
        body = request.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
