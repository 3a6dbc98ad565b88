"""What can go wrong at the emulated Hetzner Cloud, each thing by its name.

`Switches` are states of the cloud; the functions make faults that strike single requests, to be
appended to ``cloud.faults``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.clouds.hetzner_cloud.errors import DRAINED, ApiError
from tests.clouds.http_cloud import Fault, Reply

_SERVERS = "/servers$"


@dataclass
class Switches:
    """Set at any time."""

    capacity_out: set[tuple[str, str]] = field(default_factory=set)  # (type, location); "*" = any
    error_on_success_action: bool = False  # actions carry an error whatever their status
    create_action_fails: bool = False  # accepted, and then the action ends with an error
    delete_action_fails: int = 0  # so many deletions are accepted, and then the server runs on
    shutdown_ignored: bool = False  # ACPI: the action succeeds, the server runs on
    auto_delete_false: bool = False  # addresses made with a server stay when it goes
    locked_for_s: float = 0  # a new server cannot be changed for so long
    list_lag_s: float = 0  # a new server is not in listings for so long
    partial_list: bool = False  # the last row of every page is missing
    null_arrays: bool = False  # null where an empty array is expected
    details_null: bool = False  # invalid_input without its details
    servers_limit: int | None = None  # resource_limit_exceeded above it
    maintenance: bool = False  # 403 on every change
    forbidden: bool = False  # 403 on every change, for want of a right
    read_only: bool = False  # the token may only read
    token_of_64: bool = False  # refuse tokens of another length
    ssh_refused_for: float = 0  # seconds after "running"
    status_instead: str | None = None  # what every server's status is said to be
    created_price_factor: str | None = None  # prices on the reply to a create, times this


def commit_then_timeout(seconds: float = 2.0) -> Fault:
    """A server is made, and nobody hears of it: the reply hangs, then the connection breaks."""
    return Fault(path=_SERVERS, method="POST", when="after", how="hang", seconds=seconds)


def commit_then_drop(path: str = _SERVERS, method: str = "POST") -> Fault:
    """It takes effect, and the connection breaks before the reply."""
    return Fault(path=path, method=method, when="after", how="drop")


def html_502(path: str = "", method: str = "", times: int | None = 1) -> Fault:
    """A proxy in between answers."""
    page = Reply(502, b"<html><h1>502 Bad Gateway</h1></html>", {"Content-Type": "text/html"})
    return Fault(path, method, how="answer", reply=page, times=times)


def answers(error: ApiError, path: str = "", method: str = "", times: int | None = 1) -> Fault:
    """The API answers an error, before anything took effect."""
    return Fault(path, method, how="answer", reply=error.reply(), times=times)


def answers_after_commit(error: ApiError, path: str = _SERVERS, method: str = "POST") -> Fault:
    """It takes effect, and the API answers an error all the same."""
    return Fault(path, method, when="after", how="answer", reply=error.reply())


def rate_limited(path: str = "", method: str = "", times: int | None = 1) -> Fault:
    """The bucket is empty: 429 without Retry-After."""
    return answers(DRAINED, path, method, times)


TIMEOUT = ApiError(504, "timeout", "the request timed out, please try again")
BAD_GATEWAY = ApiError(502, "bad_gateway", "bad gateway")
SERVER_ERROR = ApiError(500, "server_error", "error within the API backend")
UNAVAILABLE = ApiError(503, "unavailable", "service or product is currently not available")
CONFLICT = ApiError(409, "conflict", "resource has changed during the request, please retry")
PLACEMENT = ApiError(422, "placement_error", "error during placement")
SERVICE_ERROR = ApiError(422, "service_error", "error within a service")
