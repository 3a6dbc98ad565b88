"""Asking RunPod's REST API v2: at its pace, page by page, and telling its answers apart."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

from providers.base import (
    Ambiguous,
    AuthFailed,
    Clock,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    ProviderError,
    RateLimited,
)
from providers.http_client import Answer, HttpClient

_LONGEST_WAIT_SECONDS = 90.0  # a minute's window, and a little more
_READ_TRIES = 3
_MOST_PAGES = 1000
_QUIET_SECONDS = 2.0
_MOST_LINES = 400
_WINDOW = re.compile(r'"(\w+)";r=(\d+);t=(\d+)')
_CAPACITY = re.compile(
    r"no (longer any )?instances available|not enough free GPUs|does not have the resources"
    r"|SUPPLY_CONSTRAINT|Insufficient resources",
    re.IGNORECASE,
)
_CURSORS = ("nextCursor", "next_cursor", "cursor", "nextPageToken")
_MORE = re.compile(r"^(?!prev).*(cursor|next|more)", re.IGNORECASE)


class Pace:
    """What is left of the account's quotas, as its answers tell. Safe to share between threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._windows: dict[str, tuple[int, float]] = {}  # name -> requests left, until when

    def wait(self) -> None:
        """Wait until a request is allowed, and count it.

        Raises:
            RateLimited: that would take longer than a minute's window.
        """
        waited = 0.0
        while (hold := self._hold()) > 0:
            waited += hold
            if waited > _LONGEST_WAIT_SECONDS:
                raise RateLimited(
                    f"RunPod's request quota is used up for another {hold:.0f} s", hold
                )
            self._clock.sleep(hold)

    def learn(self, headers: Mapping[str, str]) -> None:
        """Take note of what an answer says is left."""
        now = self._clock.monotonic()
        with self._lock:
            for name, left, seconds in _WINDOW.findall(headers.get("ratelimit", "")):
                ends = now + int(seconds)
                known = self._windows.get(name)
                same = known is not None and abs(known[1] - ends) < 2
                # Requests of other threads may be under way that this answer does not count.
                rest = min(known[0], int(left)) if same and known else int(left)
                self._windows[name] = (rest, ends)

    def refused(self, seconds: float) -> None:
        """Take note of a 429."""
        with self._lock:
            self._windows["refused"] = (0, self._clock.monotonic() + seconds)

    def _hold(self) -> float:
        """Return the seconds to wait; 0: the request is counted and may go."""
        now = self._clock.monotonic()
        with self._lock:
            self._windows = {n: w for n, w in self._windows.items() if w[1] > now}
            used_up = [ends - now for left, ends in self._windows.values() if left <= 0]
            if used_up:
                return max(used_up)
            self._windows = {n: (left - 1, ends) for n, (left, ends) in self._windows.items()}
            return 0.0


class RunpodClient:
    """REST v2 with one key.

    Args:
        root: the API's address, without a path.
        key: the account's; never shown.
        clock: for pauses.
    """

    def __init__(self, root: str, key: str, clock: Clock) -> None:
        self._http = HttpClient("RunPod", root, {"Authorization": f"Bearer {key}"}, clock=clock)
        self._pace = Pace(clock)

    def read(
        self,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        method: str = "GET",
        body: Any = None,
    ) -> Answer:
        """Ask for something; too early a question is repeated when its time has come.

        Raises:
            Ambiguous, AuthFailed, RateLimited: there was no answer to go by.
        """
        for left in reversed(range(_READ_TRIES)):
            self._pace.wait()
            try:
                answer = self._http.read(path, query=query, method=method, body=body)
            except RateLimited as error:
                self._pace.refused(error.retry_after)
                if not left:
                    raise
                continue
            self._pace.learn(answer.headers)
            return answer
        raise AssertionError("no try was made")

    def first_lines(self, path: str, query: Mapping[str, Any]) -> list[str]:
        """Return what a stream of events has to say by now. Raises as `HttpClient.first_lines`."""
        self._pace.wait()
        return self._http.first_lines(path, query=query, quiet=_QUIET_SECONDS, most=_MOST_LINES)

    def change(self, method: str, path: str, body: Any = None) -> Answer:
        """Change something. Never repeated. Raises as `HttpClient.write`."""
        self._pace.wait()
        try:
            answer = self._http.write(method, path, body)
        except RateLimited as error:
            self._pace.refused(error.retry_after)
            raise
        self._pace.learn(answer.headers)
        return answer

    def all_of(
        self, path: str, key: str, query: Mapping[str, Any] | None = None
    ) -> list[Mapping[str, Any]]:
        """Return a whole list, however many pages it has.

        Raises:
            Ambiguous: it is not certain that this is all.
        """
        found: list[Mapping[str, Any]] = []
        seen: set[str] = set()
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            asked = {**(query or {}), **({"cursor": cursor} if cursor else {})}
            answer = self.read(path, asked)
            if answer.status != 200:
                raise read_refusal(f"GET {path}", answer)
            found += _rows(path, key, answer.body)
            cursor = next_cursor(answer.body, key)
            if cursor is None:
                return found
            if cursor in seen:
                raise Ambiguous(f"RunPod's pages of {path} lead in a circle.")
            seen.add(cursor)
        raise Ambiguous(f"RunPod's list {path} has more than {_MOST_PAGES} pages.")


def next_cursor(body: Mapping[str, Any], key: str) -> str | None:
    """Return what leads to the next page of a list; None: that was the last.

    The name of the field is in no document, so a page that hints at more and does not say how to
    get it counts as no answer: a list that lacks something is worse than none.

    Raises:
        Ambiguous: there is more, and no way to it.
    """
    told = [(name, value) for name, value in body.items() if name != key]
    for _, value in list(told):
        told += value.items() if isinstance(value, Mapping) else ()
    hints = {name: value for name, value in told if _MORE.match(name)}
    for name in _CURSORS:
        cursor = hints.get(name)
        if isinstance(cursor, str | int) and not isinstance(cursor, bool) and cursor != "":
            return str(cursor)
    more = sorted(name for name, value in hints.items() if value)
    if more:
        raise Ambiguous(
            f"RunPod's answer is one page of several ({', '.join(more)}) and does not say how to "
            "get the others; update gpuctl."
        )
    return None


def is_no_capacity(detail: str) -> bool:
    """Whether a refusal means "none left": the API has no code for it, only this sentence."""
    return _CAPACITY.search(detail) is not None


def detail_of(answer: Answer) -> str:
    """Return what an error answer says, for people."""
    if not isinstance(answer.body, Mapping):
        return answer.text
    detail = str(answer.body.get("detail") or answer.body.get("title") or answer.text)
    errors = answer.body.get("errors")
    if isinstance(errors, list) and errors:
        detail = f"{detail.rstrip('.')}: {'; '.join(str(one) for one in errors[:5])}"
    return detail[:300]


def read_refusal(what: str, answer: Answer) -> ProviderError:
    """Return the error for a read that was answered with something else than what was asked."""
    if answer.status == 403:
        return _forbidden(what, answer)
    if answer.status == 410:
        return Ambiguous(_switched_off(what))
    return Ambiguous(f"RunPod answered {answer.status} to {what}: {detail_of(answer)}")


def refusal(what: str, answer: Answer) -> ProviderError:
    """Return the error for a change that was refused: it did not happen, unless Ambiguous."""
    detail = detail_of(answer)
    match answer.status:
        case 402:
            return InsufficientFunds(
                f"The RunPod account has too little money for it: {detail}. RunPod wants at least "
                "an hour's worth; top it up at https://console.runpod.io/user/billing"
            )
        case 403:
            return _forbidden(what, answer)
        case 410:
            return InvalidRequest(_switched_off(what))
        case 400 if is_no_capacity(detail):
            return NoCapacity(f"RunPod has none left of it: {detail}")
        case status if 400 <= status < 500:
            return InvalidRequest(f"RunPod refuses {what} ({status}): {detail}")
    return Ambiguous(f"RunPod answered {answer.status} to {what}: {detail}")


def _forbidden(what: str, answer: Answer) -> ProviderError:
    if not isinstance(answer.body, Mapping):
        return Ambiguous(
            f"The edge before RunPod's API turned {what} away (403: {answer.text}). That says "
            "nothing of the key; a proxy or another network may be the cause."
        )
    return AuthFailed(
        f"RunPod's key is valid and may not do that ({what}: {detail_of(answer)}). It needs read "
        "and write access to pods; or the account may not use that part of RunPod."
    )


def _switched_off(what: str) -> str:
    return (
        f"RunPod has switched off the API that was asked ({what} was answered with 410). "
        "RUNPOD_API_URL should be https://api.runpod.io or unset; else update gpuctl."
    )


def _rows(path: str, key: str, body: Any) -> list[Mapping[str, Any]]:
    rows = body.get(key) if isinstance(body, Mapping) else None
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise Ambiguous(f"RunPod's answer to GET {path} has no list {key!r}.")
    return rows
