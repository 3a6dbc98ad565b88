"""How the emulated Vast.ai says no, in the shapes that the contract lists."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from tests.clouds.http_cloud import Reply
from tests.clouds.vastai_cloud.switches import Switches


def failed(status: int, error: str, msg: str, **more: Any) -> Reply:
    """The usual shape."""
    return Reply(status, {"success": False, "error": error, "msg": msg, **more})


def no_key(path: str) -> Reply:
    """Nobody said who asks."""
    if "/volumes" in path:
        return Reply(401, {"detail": "Authentication credentials were not provided."})
    return failed(403, "auth_error", "This action requires login.")


def bad_key(switches: Switches) -> Reply:
    """An unknown key often looks like an absence."""
    return failed(switches.bad_key_status, "auth_error", "Invalid user key")


def session_expired() -> Reply:
    """A second factor has to be given again."""
    return failed(404, "auth_error", "Session expired. Please log in again.")


def no_right() -> Reply:
    """The key is known and may not do that."""
    return failed(403, "auth_error", "This key does not have the required permissions.")


def offer_gone(switches: Switches, id: int) -> Reply:
    """The offer is not available, in one of the ways that were seen."""
    told = f"Instance type {id} is no longer available."
    if switches.offer_gone == 404:
        msg = f"error 404/3603: no_such_ask Instance type by id {id} is not available."
        return failed(404, "invalid_args", msg, ask_id=id)
    if switches.offer_gone == 410:
        return failed(410, "no_such_ask", f"error 410/3907: no_such_ask {told}", ask_id=id)
    return failed(
        switches.offer_gone, "no_such_ask", f"error 400/3907: no_such_ask {told}", ask_id=id
    )


def too_many(switches: Switches, threshold: float) -> Reply:
    """429 in one of its forms."""
    headers = {} if switches.retry_after is None else {"Retry-After": switches.retry_after}
    if switches.too_many == "text":
        factor = float(switches.pacing or 1)
        text = f"API requests too frequent: endpoint threshold={threshold}*{factor}"
        return Reply(429, text.encode(), {**headers, "Content-Type": "text/plain"})
    told = f"API requests too frequent endpoint threshold={threshold}"
    if switches.too_many == "detail":
        return Reply(429, {"detail": told}, headers)
    body = {"success": False, "error": "rate_limit_exceeded", "msg": told}
    return Reply(429, body, headers)


def quota_used_up(now: datetime) -> Reply:
    """The day's searches are used up; it ends at midnight UTC."""
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    body = {
        "success": False,
        "error": "search_quota_exceeded",
        "msg": "Daily search quota exceeded",
    }
    return Reply(429, body, {"X-RateLimit-Reset": str(int(midnight.timestamp()))})


def no_instance(id: str, status: int = 404) -> Reply:
    """There is no such instance, or it is not yours."""
    return failed(status, "no_such_instance", f"Instance {id} not found.")
