"""What a call of the instance list asks for."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from tests.clouds.vastai_cloud.market import found

_PAGE = 25
_STORED = ("actual_status", "gpu_name", "verification", "id", "label")


class BadList(ValueError):
    """A listing that the server refuses."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error


class ListQuery:
    """What a call of the list asks for."""

    def __init__(self, query: Mapping[str, str]) -> None:
        try:
            asked = int(query.get("limit", _PAGE))
            self.filters = json.loads(query.get("select_filters", "{}"))
            self.order = json.loads(query.get("order_by", "[]"))
        except ValueError as error:
            raise BadList("invalid_request", f"Error in query parameters: {error}") from error
        self.limit = min(asked, _PAGE) if asked > 0 else 5
        token = query.get("after_token")
        self.after = 0 if token is None else _place(token)
        for column in self.filters:
            if column not in _STORED:
                msg = f"Error in query parameters: {column} is not a valid search key"
                raise BadList("invalid_request", msg)

    def wants(self, row: Mapping[str, Any]) -> bool:
        """Whether a row passes the filters."""
        return bool(found([dict(row)], self.filters, defaults=False, ignored=frozenset()))

    def sorted(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """In order of id; other orders do not page here."""
        return sorted(rows, key=lambda row: int(row["id"]))


def token(id: int) -> str:
    """Where the next page begins."""
    return base64.b64encode(json.dumps({"values": {"id": id}}).encode()).decode()


def _place(token: str) -> int:
    try:
        return int(json.loads(base64.b64decode(token))["values"]["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadList("invalid_token", "Invalid pagination token") from error
