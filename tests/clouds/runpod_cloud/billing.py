"""What a pod was charged, in buckets of time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tests.clouds.runpod_cloud.account import Account
from tests.clouds.runpod_cloud.pods import Pod, Span

_BUCKETS = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(days=7)}
_EPOCH = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
_HOUR = Decimal(3600)


def answer(account: Account, query: Mapping[str, str]) -> dict[str, Any]:
    """The records of one pod, or of all."""
    size = query.get("bucketSize", "day")
    step = _BUCKETS[size]
    now = account.clock.now()
    end = _bucket(_moment(query.get("endTime")) or now, step) + step
    begin = _bucket(_moment(query.get("startTime")) or now - timedelta(days=30), step)
    if "lastN" in query:
        begin = end - int(query["lastN"]) * step
    only = query.get("podId")
    records: list[dict[str, Any]] = []
    for pod in account.pods.values():
        if only in (None, pod.id):
            records += _records(pod, begin, end, step, now)
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
    pod: Pod, begin: datetime, end: datetime, step: timedelta, now: datetime
) -> list[dict[str, Any]]:
    found = []
    at = _bucket(max(begin, pod.created_at), step)
    kind = "cpuAmount" if "cpu" in pod.body else "gpuAmount"
    while at < min(end, now):
        compute = sum((_part(s, at, at + step, now) * s.compute for s in pod.spans), Decimal(0))
        disks = sum((_part(s, at, at + step, now) * s.disks for s in pod.spans), Decimal(0))
        if compute or disks:
            amounts = {"gpuAmount": 0.0, "cpuAmount": 0.0, "diskAmount": float(disks)}
            amounts[kind] = float(compute)
            found.append(
                {
                    "startTime": _text(at),
                    "endTime": _text(at + step),
                    "podId": pod.id,
                    "totalAmount": float(compute + disks),
                    **amounts,
                }
            )
        at += step
    return found


def _part(span: Span, begin: datetime, end: datetime, now: datetime) -> Decimal:
    """The hours of a span that lie in a bucket."""
    since, until = max(span.begin, begin), min(span.end or now, end)
    return Decimal(str(max((until - since).total_seconds(), 0))) / _HOUR


def _bucket(at: datetime, step: timedelta) -> datetime:
    return _EPOCH + (at - _EPOCH) // step * step


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _text(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
