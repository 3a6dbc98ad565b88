"""Hetzner's rules for names, labels, selectors and pages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.clouds.hetzner_cloud.errors import ApiError, invalid
from tests.clouds.http_cloud import Request

Json = dict[str, Any]

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_LABEL_VALUE = re.compile(rf"^(?:{_WORD})?$")
_LABEL_NAME = re.compile(rf"^{_WORD}$")
_PREFIX = re.compile(r"^(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9-]+)*$")
_HOST = re.compile(
    r"^(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9-]+)*$"
)
_IN = re.compile(r"^(?P<key>\S+)\s+(?P<verb>in|notin)\s*\((?P<values>[^)]*)\)$")
_COMPARE = re.compile(r"^(?P<key>[^=!\s]+)\s*(?P<verb>==|=|!=)\s*(?P<value>\S*)$")
_PER_PAGE, _MOST_PER_PAGE = 25, 50


def check_labels(labels: object) -> dict[str, str]:
    """Return labels that Hetzner accepts. Raises ApiError (422)."""
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise invalid("labels", "must be an object")
    for key, value in labels.items():
        prefix, _, name = str(key).rpartition("/")
        good = _LABEL_NAME.fullmatch(name) and (not prefix or _PREFIX.fullmatch(prefix))
        if not good or prefix == "hetzner.cloud" or prefix.endswith(".hetzner.cloud"):
            raise invalid("labels", f"label key {key} is not valid")
        if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
            raise invalid("labels", f"label value of {key} is not valid")
    return dict(labels)


def check_hostname(name: object) -> str:
    """Return a name that a server may have. Raises ApiError (422)."""
    if not isinstance(name, str) or not _HOST.fullmatch(name):
        raise invalid("name", "must be a valid hostname")
    return name


def selected(labels: Mapping[str, str], selector: str) -> bool:
    """Whether labels match a selector. Raises ApiError for one that is malformed."""
    return all(_term(term.strip())(labels) for term in re.split(r",(?![^(]*\))", selector))


def _term(text: str) -> Callable[[Mapping[str, str]], bool]:
    if found := _IN.match(text):
        key, verb, listed = found["key"], found["verb"], found["values"]
        values = {value.strip() for value in listed.split(",")}
        return lambda labels: (labels.get(key) in values) is (verb == "in")
    if found := _COMPARE.match(text):
        key, verb, value = found["key"], found["verb"], found["value"]
        return lambda labels: (labels.get(key) == value) is (verb != "!=")
    if re.match(r"^!?[A-Za-z0-9./_-]+$", text):
        return lambda labels: (text.lstrip("!") in labels) is not text.startswith("!")
    raise invalid("label_selector", "is malformed")


def repeated(request: Request, name: str) -> list[str]:
    """The values of a parameter that may be repeated."""
    return [value for key, value in request.pairs if key == name]


def filtered(request: Request, rows: Sequence[Json]) -> list[Json]:
    """Apply name, label_selector, status and sort."""
    found = list(rows)
    if name := request.query.get("name"):
        found = [row for row in found if row.get("name") == name]
    if selector := request.query.get("label_selector"):
        found = [row for row in found if selected(row.get("labels", {}), selector)]
    for key in ("status", "type", "architecture", "fingerprint", "ip"):
        if wanted := repeated(request, key):
            found = [row for row in found if row.get(key) in wanted]
    for order in reversed(repeated(request, "sort")):
        key, _, direction = order.partition(":")
        if key not in ("id", "name", "created") or direction not in ("", "asc", "desc"):
            raise invalid("sort", "is not supported")
        found.sort(key=lambda row: row[key], reverse=direction == "desc")
    return found


def page(request: Request, rows: Sequence[Json]) -> tuple[list[Json], Json]:
    """Cut one page out; return it, and ``meta``. Raises ApiError (422)."""
    number = _number(request, "page", 1, 1 << 31)
    size = _number(request, "per_page", _PER_PAGE, _MOST_PER_PAGE)
    last = max(1, -(-len(rows) // size))
    meta = {
        "page": number,
        "per_page": size,
        "previous_page": number - 1 if number > 1 else None,
        "next_page": number + 1 if number < last else None,
        "last_page": last,
        "total_entries": len(rows),
    }
    return list(rows[(number - 1) * size : number * size]), {"pagination": meta}


def _number(request: Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise invalid(name, f"must be between 1 and {most}")
    return int(text)


def identity(text: str) -> int:
    """Return an id. Raises ApiError (404) where it is none."""
    if not text.isdecimal() or int(text) > 2**53 - 1:
        raise ApiError(404, "not_found", "resource not found")
    return int(text)
