"""EC2's query protocol on the wire: forms in, XML out; and the errors of all of AWS's protocols."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from tests.clouds.http_cloud import Reply

_PAGE = 1000
_NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
SERVER_ERRORS = {  # everything else is the client's fault: 400
    "InsufficientInstanceCapacity": 500,
    "InsufficientCapacity": 500,
    "InsufficientVolumeCapacity": 500,
    "InsufficientAddressCapacity": 500,
    "InsufficientHostCapacity": 500,
    "InsufficientReservedInstanceCapacity": 500,
    "BandwidthLimitExceeded": 500,
    "InternalError": 500,
    "InternalFailure": 500,
    "ServerInternal": 500,
    "ServiceUnavailable": 503,
    "Unavailable": 503,
    "RequestLimitExceeded": 503,
    "AuthFailure": 401,
    "UnauthorizedOperation": 403,
    "DryRunOperation": 412,
}


class Refused(Exception):
    """EC2 says no. The text is on the wire as it stands."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def form(body: bytes) -> dict[str, str]:
    """Read a query request."""
    return dict(parse_qsl(body.decode(), keep_blank_values=True))


def listed(params: Mapping[str, str], prefix: str) -> list[str]:
    """Read ``prefix.1``, ``prefix.2`` ..."""
    found = []
    while (value := params.get(f"{prefix}.{len(found) + 1}")) is not None:
        found.append(value)
    return found


def filters(params: Mapping[str, str]) -> dict[str, list[str]]:
    """Read the filters: name -> values."""
    found = {}
    number = 1
    while name := params.get(f"Filter.{number}.Name"):
        found[name] = listed(params, f"Filter.{number}.Value")
        number += 1
    return found


def without_filters(params: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """The request without some of its filters."""
    kept = {name: values for name, values in filters(params).items() if name not in set(names)}
    rest = {key: value for key, value in params.items() if not key.startswith("Filter.")}
    for number, (name, values) in enumerate(kept.items(), 1):
        rest[f"Filter.{number}.Name"] = name
        rest |= {f"Filter.{number}.Value.{n}": value for n, value in enumerate(values, 1)}
    return rest


def tags(params: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Read the tags of a launch: kind of resource -> its tags."""
    found: dict[str, dict[str, str]] = {}
    number = 1
    while kind := params.get(f"TagSpecification.{number}.ResourceType"):
        own, tag = {}, 1
        while name := params.get(f"TagSpecification.{number}.Tag.{tag}.Key"):
            own[name] = params.get(f"TagSpecification.{number}.Tag.{tag}.Value", "")
            tag += 1
        found[kind] = own
        number += 1
    return found


def tag_set(own: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags as a reply shows them."""
    return [{"key": key, "value": value} for key, value in own.items()]


def fits(value: str, patterns: Iterable[str]) -> bool:
    """Whether a value matches one of a filter's, with its ``*`` and ``?``."""
    return any(
        re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), value)
        for pattern in patterns
    )


def paged(rows: list[Any], params: Mapping[str, str]) -> tuple[list[Any], str]:
    """Cut one page out; return it, and the token of the next ("" for none)."""
    begin = int(params.get("NextToken") or 0)
    end = begin + min(int(params.get("MaxResults") or _PAGE), _PAGE)
    return rows[begin:end], str(end) if end < len(rows) else ""


def xml(action: str, content: Mapping[str, Any]) -> Reply:
    """Return a reply: mappings become elements, lists ``<item>``s."""
    inside = _elements({"requestId": "r-emulated", **content})
    text = f'<{action}Response xmlns="{_NAMESPACE}">{inside}</{action}Response>'
    return Reply(200, text.encode(), {"Content-Type": "text/xml;charset=UTF-8"})


def refusal(code: str, message: str) -> Reply:
    """Return an error as EC2 words it."""
    text = (
        f"<Response><Errors><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        "</Errors><RequestID>r-emulated</RequestID></Response>"
    )
    return Reply(
        SERVER_ERRORS.get(code, 400), text.encode(), {"Content-Type": "text/xml;charset=UTF-8"}
    )


def json_reply(content: object) -> Reply:
    """Return a reply of the services that speak JSON."""
    return Reply(200, content, {"Content-Type": "application/x-amz-json-1.1"})


def json_refusal(code: str, message: str, status: int = 400) -> Reply:
    """Return an error of the services that speak JSON."""
    headers = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-ErrorType": code}
    return Reply(status, {"__type": code, "message": message, "Message": message}, headers)


def throttled() -> Reply:
    """Return what EC2 answers to too many requests."""
    return refusal("RequestLimitExceeded", "Request limit exceeded.")


def _elements(content: Any) -> str:
    if isinstance(content, Mapping):
        return "".join(f"<{name}>{_elements(value)}</{name}>" for name, value in content.items())
    if isinstance(content, list):
        return "".join(f"<item>{_elements(value)}</item>" for value in content)
    if isinstance(content, bool):
        return "true" if content else "false"
    return escape(str(content))
