"""What a pod was charged, in buckets of time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tests.clouds.runpod_cloud.account import Account
from tests.clouds.runpod_cloud.pods import Pod, Span

_STEPS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
_LONG = {"month": timedelta(days=31), "year": timedelta(days=366)}  # at most
_EPOCH = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
_HOUR = Decimal(3600)


def what_is_wrong(query: Mapping[str, str]) -> str | None:
    """Why a question cannot be answered; None when it can."""
    if query.get("bucketSize", "day") not in {**_STEPS, **_LONG}:
        return "bucketSize must be one of hour, day, week, month, year"
    if "lastN" in query and {"startTime", "endTime"} & set(query):
        return "lastN and startTime/endTime are mutually exclusive"
    return None


def answer(account: Account, query: Mapping[str, str]) -> dict[str, Any]:
    """The records of one pod, or of all."""
    size = query.get("bucketSize", "day")
    now = account.clock.now()
    end = _next(_moment(query.get("endTime")) or now, size)
    begin = _bucket(_moment(query.get("startTime")) or now - timedelta(days=30), size)
    if "lastN" in query:
        begin = _bucket(now, size)
        for _ in range(int(query["lastN"]) - 1):
            begin = _bucket(begin - timedelta(seconds=1), size)
    only = query.get("podId")
    records: list[dict[str, Any]] = []
    for pod in account.pods.values():
        if only in (None, pod.id):
            records += _records(pod, begin, end, size, now)
    totals = {
        key: round(sum(record[key] for record in records), 6)
        for key in ("totalAmount", "gpuAmount", "cpuAmount", "diskAmount")
    }
    asked = {"startTime": _text(begin), "endTime": _text(end), "bucketSize": size}
    return {
        "records": records,
        "metadata": {
            "query": {**asked, "podId": only},
            "recordCount": len(records),
            "uniquePodCount": len({record["podId"] for record in records}),
            "totals": totals,
        },
    }


def _records(
    pod: Pod, begin: datetime, end: datetime, size: str, now: datetime
) -> list[dict[str, Any]]:
    found = []
    at = _bucket(max(begin, pod.created_at), size)
    kind = "cpuAmount" if "cpu" in pod.body else "gpuAmount"
    while at < min(end, now):
        after = _next(at, size)
        compute = sum((_part(s, at, after, now) * s.compute for s in pod.spans), Decimal(0))
        disks = sum((_part(s, at, after, now) * s.disks for s in pod.spans), Decimal(0))
        if compute or disks:
            amounts = {"gpuAmount": 0.0, "cpuAmount": 0.0, "diskAmount": float(disks)}
            amounts[kind] = float(compute)
            found.append(
                {
                    "startTime": _text(at),
                    "endTime": _text(after),
                    "podId": pod.id,
                    "totalAmount": float(compute + disks),
                    **amounts,
                }
            )
        at = after
    return found


def _part(span: Span, begin: datetime, end: datetime, now: datetime) -> Decimal:
    """The hours of a span that lie in a bucket."""
    since, until = max(span.begin, begin), min(span.end or now, end)
    return Decimal(str(max((until - since).total_seconds(), 0))) / _HOUR


def _bucket(at: datetime, size: str) -> datetime:
    """Where the bucket begins that a moment is in."""
    if size in _STEPS:
        return _EPOCH + (at - _EPOCH) // _STEPS[size] * _STEPS[size]
    first = {"day": 1} if size == "month" else {"day": 1, "month": 1}
    return at.replace(hour=0, minute=0, second=0, microsecond=0, **first)


def _next(at: datetime, size: str) -> datetime:
    """Where the bucket after that begins."""
    begin = _bucket(at, size)
    return begin + _STEPS[size] if size in _STEPS else _bucket(begin + _LONG[size], size)


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _text(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
