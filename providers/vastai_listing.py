"""The list of all instances: every page of it, or an error."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from providers.base import Ambiguous
from providers.vastai_client import VastClient

Row = dict[str, Any]
_PATH = "/api/v1/instances/"
_PAGE = 25  # the most that the server gives
_MOST_PAGES = 400


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


def first_page(client: VastClient) -> dict[str, Any]:
    """Return the shortest page of the list: whether the account answers, and how much it has."""
    return client.read("list", _PATH, "instances", query={"limit": "1"})


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
