"""Asking the Vast.ai API: its pace, and its many ways to say no.

A 200 can be a failure, a bad key often looks like an absence (404), and a 429 comes in several
forms; see docs/clouds/vastai.md.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

from providers.base import (
    Ambiguous,
    AuthFailed,
    Clock,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    NotFound,
    ProviderError,
    QuotaExceeded,
    RateLimited,
)
from providers.http_client import Answer, HttpClient
from providers.vastai_pace import LIMITS, Pace

KEY = "VAST_API_KEY"
ROOT = "VAST_URL"
DEFAULT_ROOT = "https://console.vast.ai"
_READ_TRIES = 4
_PATIENCE_SECONDS = 60.0  # in all, for one read that is told to come later
_SEARCH_WAIT_SECONDS = 12.0  # somebody looks at a quote and waits
_NO_SUCH_ASK = "no_such_ask"
_ABSENT = ("no_such_instance", "not_found", "no_such_ssh_key", "no_such_volume")
_BAD_KEY = re.compile(r"invalid user key|session expired|requires login", re.IGNORECASE)
_FUNDS = ("insufficient_credit", "missing_billing")
_QUOTA = ("spend_rate_limit", "search_quota_exceeded")
_THRESHOLD = re.compile(r"threshold=(\d+(?:\.\d+)?)(?:\*(\d+(?:\.\d+)?))?")


def api_key(environ: Mapping[str, str]) -> str | None:
    """Find the account's key where the official tools do; None when there is none."""
    if key := environ.get(KEY, "").strip():
        return key
    home = environ.get("HOME", "")
    config = environ.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    places = [f"{config}/vastai/vast_api_key"] if config else []
    places += [f"{home}/.vast_api_key"] if home else []
    for place in places:
        try:
            if key := Path(place).read_text().strip():
                return key
        except (OSError, UnicodeError):
            continue  # not there, or not for us: no key
    return None


class VastClient:
    """One account.

    Args:
        key: of the account; None makes every call raise `AuthFailed`.
        root: of the API, without a path.
        pace: when calls may leave.
    """

    def __init__(self, key: str | None, root: str, pace: Pace, clock: Clock) -> None:
        self._key = key
        self._pace = pace
        self._clock = clock
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = HttpClient("Vast.ai", root, headers, clock=clock)

    def read(
        self,
        what: str,
        path: str,
        expected: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
    ) -> dict[str, Any]:
        """Ask for something; waited for when it is told to come later.

        Args:
            what: a kind of call in `vastai_pace.LIMITS`.
            expected: the key that a good answer has.
            body: for searches, which are sent by POST.

        Raises:
            NotFound: an answer said that it is absent.
            Ambiguous, AuthFailed, RateLimited, QuotaExceeded: see `Provider`.
        """
        answer = self.read_any(what, path, query=query, body=body)
        if not succeeded(answer) or expected not in answer.body:
            raise refusal(f"asking for {what}", answer)
        return dict(answer.body)

    def read_any(
        self, what: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> Answer:
        """Ask for something whose answer the caller judges; a refused key is raised here."""
        self._need_key()
        method = "GET" if body is None else "POST"
        at_most = _SEARCH_WAIT_SECONDS if what == "search" else _PATIENCE_SECONDS
        waited = 0.0
        for left in reversed(range(_READ_TRIES)):
            self._pace.wait(what, at_most=at_most)
            try:
                answer = self._http.read(path, query=query, body=body, method=method)
            except RateLimited as limited:
                pause = self._told_to_wait(what, limited)
                waited += pause
                if _is_quota(limited):
                    raise self._quota(limited) from limited
                if not left or waited > at_most:
                    raise
                self._clock.sleep(pause)
            else:
                _check_key(answer)
                return answer
        raise AssertionError("no try was made")

    def write(self, method: str, what: str, path: str, body: Any) -> Answer:
        """Change something; never repeated. The caller judges the answer.

        Raises:
            Ambiguous: no answer, or the server failed: it may have happened.
            AuthFailed: the key is refused.
            RateLimited: the next call waits by itself.
        """
        self._need_key()
        self._pace.wait(what)
        try:
            answer = self._http.write(method, path, body)
        except RateLimited as limited:
            self._pace.back_off(what, self._told_to_wait(what, limited))
            raise
        _check_key(answer)
        return answer

    def _quota(self, limited: RateLimited) -> RateLimited:
        """Say when there are searches again: at midnight UTC."""
        now = self._clock.now().astimezone(UTC)
        midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        return RateLimited(
            f"The day's searches of this account are used up until midnight UTC: {limited}",
            (midnight - now).total_seconds(),
        )

    def _told_to_wait(self, what: str, limited: RateLimited) -> float:
        """Seconds until the next try makes sense: what was said, but the threshold at least."""
        told = _THRESHOLD.search(str(limited))
        threshold = float(told[1]) * float(told[2] or 1) if told else LIMITS[what].seconds
        return max(limited.retry_after, threshold)

    def _need_key(self) -> None:
        if not self._key:
            raise AuthFailed(f"Vast.ai needs a key: set {KEY}, or run `vastai set api-key`.")
        import requests  # noqa: F401  # takes a while, which must not pass between pace and call


def is_absence(answer: Answer) -> bool:
    """Whether the thing is said to be absent, rather than the key to be bad."""
    said = _said(answer)
    return answer.status in (200, 404) and said[0] in _ABSENT


def succeeded(answer: Answer) -> bool:
    """Whether it worked: 200, and nothing in the body says that it did not."""
    return (
        answer.status == 200
        and isinstance(answer.body, dict)
        and answer.body.get("success") is not False
    )


def _said(answer: Answer) -> tuple[str, str]:
    """The error's code and its text; either may be empty."""
    body = answer.body if isinstance(answer.body, dict) else {}
    text = body.get("msg") or body.get("message") or body.get("detail") or ""
    return str(body.get("error") or ""), str(text)


def _check_key(answer: Answer) -> None:
    """Raise AuthFailed where a refused key hides behind another status."""
    code, text = _said(answer)
    if answer.status < 400 and code != "auth_error":
        return
    if answer.status == 403 and code == "auth_error" and "login" not in text.lower():
        raise AuthFailed(f"The Vast.ai key lacks a right: {answer.text}")
    if code == "auth_error" or (answer.status in (403, 404) and _BAD_KEY.search(answer.text)):
        raise AuthFailed(
            f"Vast.ai does not accept the key (it answered {answer.status}): {text or answer.text}"
        )


def refusal(doing: str, answer: Answer) -> ProviderError:
    """Return what a no means; anything that nobody documented is `Ambiguous`."""
    code, text = _said(answer)
    told = f"Vast.ai refused {doing}: {text or answer.text}"
    if _NO_SUCH_ASK in code or _NO_SUCH_ASK in text:
        return NoCapacity(f"The offer is taken or withdrawn: {text or answer.text}")
    if code in _FUNDS:
        return InsufficientFunds(f"{told} Add credit at https://cloud.vast.ai/billing/.")
    if code in _QUOTA:
        return QuotaExceeded(told)
    if is_absence(answer):
        return NotFound(told)
    if code == "deprecated_endpoint" or answer.status == 410:
        return Ambiguous(f"{told} This version of gpuctl asks an endpoint that is retired.")
    if 400 <= answer.status < 500 and answer.status not in (404, 408):
        return InvalidRequest(told)
    return Ambiguous(f"Vast.ai answered {answer.status} to {doing}: {answer.text}")


def _is_quota(limited: RateLimited) -> bool:
    return "search_quota_exceeded" in str(limited)
