"""Asking Hetzner's API, through the hcloud library, with deadlines and repeats of our own.

The library repeats a call by itself, a create too, and sleeps meanwhile on a clock of its own.
That is switched off where it can be: a read is repeated here, a change never is. Where a later
version does it all the same, it is harmless: a server's name is unique, so the second create is
refused, and the server of the first is adopted (see `hetzner.HetznerProvider.create`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from providers.base import Ambiguous, AuthFailed, Clock, RateLimited
from providers.hetzner_errors import REFILL_SECONDS, Refusal

Json = dict[str, Any]
_T = TypeVar("_T")

TIMEOUTS = (10.0, 30.0)
"""Seconds to connect, and to wait for an answer."""

_PER_PAGE = 50
_MOST_PAGES = 2000
_PASSES = 4
_READ_TRIES = 3
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 60.0


class Api:
    """One project.

    Args:
        token: finds its token; asked on first use.
        root: the API's address, with its path.
        clock: for the pauses between reads that are repeated.
        timeouts: see `TIMEOUTS`.
    """

    def __init__(
        self,
        token: Callable[[], str | None],
        root: str,
        clock: Clock,
        timeouts: tuple[float, float] = TIMEOUTS,
    ) -> None:
        self._token = token
        self._root = root
        self._clock = clock
        self._timeouts = timeouts
        self._client: Any = None
        self._lock = threading.Lock()

    def read(self, path: str, query: Mapping[str, Any] | None = None) -> Json:
        """Ask for something; repeated a few times where there is no answer.

        Raises:
            Refusal: the API answered with an error code that is about the thing asked for.
            Ambiguous, AuthFailed, RateLimited: there is no answer.
        """
        failed, waited, pause = 0, 0.0, REFILL_SECONDS
        while True:
            try:
                return self._told("GET", path, query)
            except RateLimited:
                if waited >= _LONGEST_WAIT_SECONDS:
                    raise
                self._clock.sleep(pause)
                waited, pause = waited + pause, pause * 2
            except Ambiguous:
                failed += 1
                if failed == _READ_TRIES:
                    raise
                self._clock.sleep(_FIRST_PAUSE_SECONDS * 2 ** (failed - 1))

    def write(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Json:
        """Change something. Never repeated.

        Raises:
            Refusal: the API answered with an error code; some leave open what happened.
            Ambiguous: no answer.
        """
        return self._call(method, path, json=body)

    def pages(self, kind: str, query: Mapping[str, Any] | None = None) -> list[Json]:
        """Return all of a list, which may change while its pages are read.

        Something that goes away moves all behind it forward, over the edge of a page and out of
        sight. So it is read again, and added to what was found, until it held still.

        Raises:
            Ambiguous: it never did, or some of it was withheld.
        """
        found: dict[int, Json] = {}
        for _ in range(_PASSES):
            seen, totals = self._one_pass(kind, query or {})
            found |= seen
            if totals == {len(seen)}:
                return list(found.values())
        raise Ambiguous(
            f"Hetzner's list of {kind.replace('_', ' ')} is not whole: {sorted(totals)} announced, "
            f"{len(seen)} shown."
        )

    def _one_pass(self, kind: str, query: Mapping[str, Any]) -> tuple[dict[int, Json], set[int]]:
        seen: dict[int, Json] = {}
        totals: set[int] = set()
        page: int | None = 1
        while page is not None and page <= _MOST_PAGES:
            asked = {**query, "page": page, "per_page": _PER_PAGE}
            said = self.read(f"/{kind}", asked)
            rows, pages = part(said, kind, list), part(part(said, "meta", dict), "pagination", dict)
            seen |= {int(part(row, "id", int)): row for row in rows}
            totals.add(pages.get("total_entries") or 0)
            page = pages.get("next_page")
        return seen, totals

    # ------------------------------------------------------------------ inside

    def _told(self, method: str, path: str, query: Mapping[str, Any] | None) -> Json:
        """Call; what is no answer about the thing itself becomes its error at once."""
        try:
            return self._call(method, path, params=query)
        except Refusal as refusal:
            error = refusal.error(f"{method} {path}")
            if isinstance(error, Ambiguous | AuthFailed | RateLimited):
                raise error from None
            raise

    def _call(self, method: str, path: str, **more: Any) -> Json:
        import hcloud
        import requests

        client = self._connected()
        try:
            said = client.request(method, path, **more)
        except hcloud.APIException as error:
            trace = getattr(error, "correlation_id", None)
            raise Refusal(error.code, error.message, error.details, trace) from None
        except (requests.RequestException, OSError, LookupError, TypeError, ValueError) as error:
            # Also an answer that the library cannot read: something in between spoke for the API.
            # Its text may hold more than a person should see; its kind says enough.
            raise Ambiguous(
                f"Hetzner did not answer {method} {path} ({type(error).__name__})."
            ) from None
        if not isinstance(said, dict):
            raise Ambiguous(f"Hetzner answered {method} {path} with something unreadable.")
        return said

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = self._new_client()
            return self._client

    def _new_client(self) -> Any:
        import hcloud

        token = self._token()
        if not token:
            raise AuthFailed(
                "There is no Hetzner token. Set HCLOUD_TOKEN, or use `hcloud context create`."
            )
        if not (token.isascii() and token.isprintable()) or " " in token:
            raise AuthFailed("The Hetzner token has characters that no token has.")
        client = hcloud.Client(
            token=token,
            api_endpoint=self._root,
            application_name="gpuctl",
            application_version=_own_version(),
            timeout=self._timeouts,
        )
        inside: Any
        for inside in (client, getattr(client, "_client", None)):
            if hasattr(inside, "_retry_max_retries"):
                inside._retry_max_retries = 0
        return client


def part(said: Mapping[str, Any], key: str, kind: type[_T]) -> _T:
    """Return one part of an answer. Raises Ambiguous where it is missing or something else."""
    found = said.get(key)
    if not isinstance(found, kind):
        raise Ambiguous(f"Hetzner's answer has no {key}.")
    return found


def _own_version() -> str:
    try:
        return version("gpuctl")
    except PackageNotFoundError:
        return "dev"
