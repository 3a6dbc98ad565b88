"""Asking a cloud's JSON API over HTTP, and telling its answers apart.

A read is repeated when it is cut off or the server fails; a call that changes something never is:
what became of it is for the caller to find out (`Ambiguous`).
"""

from __future__ import annotations

import email.utils
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from providers.base import Ambiguous, AuthFailed, Clock, NotFound, RateLimited

if TYPE_CHECKING:
    import requests

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
_MAX_BYTES = 64 << 20
_READ_TRIES = 3
_FIRST_PAUSE_SECONDS = 0.5
_DEFAULT_RETRY_AFTER_SECONDS = 5.0
_LONGEST_RETRY_AFTER_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered to a call that it understood: any status below 500 but 401 and 429.

    ``body`` is the JSON, or None where there was none.
    """

    status: int
    body: Any
    headers: Mapping[str, str]  # names in lower case
    text: str  # of the body, cut, printable: for error messages


def user_agent() -> str:
    """How we call ourselves: some clouds refuse the default ones of libraries."""
    try:
        number = version("gpuctl")
    except PackageNotFoundError:
        number = "dev"
    return f"gpuctl/{number} (+https://pypi.org/project/gpuctl)"


class HttpClient:
    """One API.

    Args:
        provider: its name, for what goes wrong.
        root: its address, without a slash at the end.
        headers: sent with every call; they may hold keys and are never shown.
        clock: for the pauses between reads that are repeated.
    """

    def __init__(
        self, provider: str, root: str, headers: Mapping[str, str], *, clock: Clock
    ) -> None:
        self._provider = provider
        self._root = root.rstrip("/")
        self._headers = {"User-Agent": user_agent(), "Accept": "application/json", **headers}
        self._clock = clock
        self._session: requests.Session | None = None

    def read(
        self,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        method: str = "GET",
    ) -> Answer:
        """Ask for something; repeated a few times where there is no answer.

        Args:
            body: for searches that are sent as POST or PUT.

        Raises:
            Ambiguous: no answer, or the server failed.
            AuthFailed: 401.
            RateLimited: 429.
        """
        pause = _FIRST_PAUSE_SECONDS
        for left in reversed(range(_READ_TRIES)):
            try:
                return self._call(method, path, query, body)
            except Ambiguous:
                if not left:
                    raise
                self._clock.sleep(pause)
                pause *= 2
        raise AssertionError("no try was made")

    def write(
        self, method: str, path: str, body: Any = None, *, query: Mapping[str, Any] | None = None
    ) -> Answer:
        """Change something. Never repeated.

        Raises:
            Ambiguous: no answer, or the server failed: it may have happened.
            AuthFailed: 401: it did not happen.
            RateLimited: 429: a cloud may have done it all the same; look before you repeat.
        """
        return self._call(method, path, query, body)

    def first_lines(
        self, path: str, *, query: Mapping[str, Any] | None = None, quiet: float, most: int
    ) -> list[str]:
        """Return what a stream that does not end has to say by now.

        Args:
            quiet: seconds without a word after which that was all.
            most: lines, and seconds in all.

        Raises:
            Ambiguous: no answer, or not a stream.
        """
        import requests

        what, found, began = f"GET {path}", [], self._clock.monotonic()
        try:
            with self._open("GET", path, query, None, quiet) as response:
                if response.status_code != 200:
                    raise Ambiguous(f"{self._provider} answered {response.status_code} to {what}.")
                for line in response.iter_lines(1):
                    found.append(_printable(line))
                    if len(found) >= most or self._clock.monotonic() - began > most:
                        break
        except (requests.RequestException, OSError) as error:
            if not found:
                raise Ambiguous(
                    f"{self._provider} did not answer {what} ({_kind(error)})."
                ) from None
        return found

    def not_found(self, what: str) -> NotFound:
        """Return the error for a 404 that a caller takes for an absence."""
        return NotFound(f"{self._provider} has no {what}.")

    def unexpected(self, what: str, answer: Answer) -> Ambiguous:
        """Return the error for an answer that nobody documented."""
        return Ambiguous(f"{self._provider} answered {answer.status} to {what}: {answer.text}")

    # ------------------------------------------------------------------ inside

    def _call(self, method: str, path: str, query: Mapping[str, Any] | None, body: Any) -> Answer:
        import requests

        what = f"{method} {path}"
        try:
            with self._open(method, path, query, body, READ_SECONDS) as response:
                content = response.raw.read(_MAX_BYTES + 1, decode_content=True)
                status = response.status_code
                headers = {name.lower(): value for name, value in response.headers.items()}
        except (requests.RequestException, OSError) as error:
            # Its text may hold the address with a key in it; its kind says enough.
            raise Ambiguous(f"{self._provider} did not answer {what} ({_kind(error)}).") from None
        if len(content) > _MAX_BYTES:
            raise Ambiguous(f"{self._provider} answered {what} with more than {_MAX_BYTES} bytes.")
        return self._told(what, status, headers, content)

    def _open(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Any, seconds: float
    ) -> requests.Response:
        import requests

        if self._session is None:
            self._session = requests.Session()
            self._session.trust_env = True
        return self._session.request(
            method,
            f"{self._root}{path}",
            params=query,
            data=None if body is None else json.dumps(body),
            headers={**self._headers, **_content_type(body)},
            timeout=(CONNECT_SECONDS, seconds),
            allow_redirects=False,  # a redirect would carry the key elsewhere
            stream=True,
        )

    def _told(self, what: str, status: int, headers: Mapping[str, str], content: bytes) -> Answer:
        text = _printable(content)
        if status == 401:
            raise AuthFailed(f"{self._provider} does not accept the key: {text}")
        if status == 429:
            raise RateLimited(
                f"{self._provider} takes no more requests for now: {text}",
                retry_after(headers, self._clock),
            )
        if status >= 500:
            raise Ambiguous(f"{self._provider} failed at {what} ({status}): {text}")
        try:
            body = json.loads(content) if content.strip() else None
        except ValueError:
            if status < 300:
                raise Ambiguous(f"{self._provider} answered {what} with no JSON: {text}") from None
            body = None
        return Answer(status, body, headers, text)


def retry_after(headers: Mapping[str, str], clock: Clock) -> float:
    """Return the seconds that a 429 asks for: a number or a date, within reason."""
    said = headers.get("retry-after", "").strip()
    seconds = _DEFAULT_RETRY_AFTER_SECONDS
    if re.fullmatch(r"\d+(\.\d+)?", said):
        seconds = float(said)
    elif said:
        try:
            when = email.utils.parsedate_to_datetime(said)
            seconds = (when.replace(tzinfo=when.tzinfo or UTC) - clock.now()).total_seconds()
        except (ValueError, TypeError):
            pass  # no date either: the default stands
    return min(max(seconds, 0.0), _LONGEST_RETRY_AFTER_SECONDS)


def _content_type(body: Any) -> dict[str, str]:
    return {} if body is None else {"Content-Type": "application/json"}


def _kind(error: BaseException) -> str:
    names = [type(error).__name__]
    while (error := error.__cause__ or error.__context__) is not None:  # type: ignore[assignment]
        names.append(type(error).__name__)
    return names[0] if len(names) == 1 else f"{names[0]}: {names[-1]}"


def _printable(content: bytes) -> str:
    text = content[:2000].decode(errors="replace")
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text[:300] or "no reason given"
