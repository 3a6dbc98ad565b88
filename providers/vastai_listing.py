"""The list of all instances: every page of it, and shared by those who ask at the same time."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from providers.base import Ambiguous
from providers.vastai_client import VastClient

Row = dict[str, Any]
_PATH = "/api/v1/instances/"
_PAGE = 25  # the most that the server gives
_MOST_PAGES = 400
_T = TypeVar("_T")


def all_rows(client: VastClient) -> list[Row]:
    """Return every instance of the account, or raise: never a part of them.

    Raises:
        Ambiguous: pages are missing, or of an unknown shape. See `VastClient.read` for others.
    """
    rows: dict[str, Row] = {}
    token: str | None = None
    for _ in range(_MOST_PAGES):
        query = {"limit": str(_PAGE), "order_by": json.dumps([{"col": "id", "dir": "asc"}])}
        page = client.read(
            "list",
            _PATH,
            "instances",
            query=query if token is None else {**query, "after_token": token},
        )
        for row in _rows_of(page):
            rows[str(row["id"])] = row
        token = page.get("next_token")
        if not token:
            return _whole(rows, page)
    raise Ambiguous(f"The list of instances had no end within {_MOST_PAGES} pages.")


def _rows_of(page: dict[str, Any]) -> Sequence[Row]:
    rows = page["instances"]
    if rows is None and page.get("total_instances") == 0:
        return []  # it has been seen to say so for an account without instances
    if not isinstance(rows, list) or not all(isinstance(r, dict) and r.get("id") for r in rows):
        raise Ambiguous("The list of instances has a shape that nobody knows.")
    return rows


def _whole(rows: dict[str, Row], last: dict[str, Any]) -> list[Row]:
    total = last.get("total_instances")
    if isinstance(total, int) and len(rows) < total:
        raise Ambiguous(f"The list has {len(rows)} of {total} instances; the rest is missing.")
    return list(rows.values())


class Together(Generic[_T]):
    """Several threads that want the same answer get one that was asked for after they came.

    A listing of 500 machines takes 20 calls a second apart. Ten threads that each want to see
    whether their machine is gone need two of them, not ten.
    """

    def __init__(self, ask: Callable[[], _T]) -> None:
        self._ask = ask
        self._changed = threading.Condition()
        self._begun = 0
        self._done = 0
        self._answer: _T | Exception | None = None

    def get(self) -> _T:
        """Return an answer that was asked for not before now; raises what the asking raised."""
        with self._changed:
            wanted = self._begun + 1
            while self._done < wanted and self._begun > self._done:
                self._changed.wait()
            if self._done >= wanted:
                return self._given()
            self._begun += 1
        try:
            answer = self._ask()
        except BaseException as error:
            # What stopped this thread (Ctrl-C) is no answer for the others.
            told = error if isinstance(error, Exception) else Ambiguous("Nobody asked to the end.")
            self._finish(told)
            raise
        self._finish(answer)
        return answer

    def _finish(self, answer: _T | Exception) -> None:
        with self._changed:
            self._done = self._begun
            self._answer = answer
            self._changed.notify_all()

    def _given(self) -> _T:
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer  # type: ignore[return-value]
