"""The logs of a pod, as a stream of events that does not end by itself."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from tests.clouds.runpod_cloud.pods import Pod

_SOURCES = ("container", "system")
_MOST_LINES = 5000
_USUAL_LINES = 100
_LOOK_SECONDS = 0.05
_BEATS = 100  # looks between two signs of life


class BadQuery(ValueError):
    """Logs that were asked for wrongly."""


@dataclass(frozen=True)
class Asked:
    """Which lines somebody wants; from a moment on, or the last ones and what comes."""

    source: str | None
    tail: int
    since: datetime | None

    @classmethod
    def read(cls, query: Mapping[str, str], headers: Mapping[str, str]) -> Asked:
        """Raises BadQuery."""
        source = query.get("source")
        if source not in (None, *_SOURCES):
            raise BadQuery("source must be one of 'container', 'system'")
        since = headers.get("last-event-id") or query.get("since")
        try:
            tail = int(query.get("tail", _USUAL_LINES))
            moment = datetime.fromisoformat(since.partition("/")[0]) if since else None
        except ValueError as error:
            raise BadQuery(f"invalid query: {error}") from error
        if not 0 <= tail <= _MOST_LINES:
            raise BadQuery(f"tail must be from 0 to {_MOST_LINES}")
        return cls(source, tail, moment)


def events(pod: Pod, asked: Asked, over: threading.Event) -> Iterator[bytes]:
    """Yield what there is, and then what comes, until the cloud closes or the client leaves."""
    told = 0
    if asked.since is None:
        wanted = [n for n, line in enumerate(pod.logged) if asked.source in (None, line[1])]
        told = len(pod.logged) if not asked.tail else min(wanted[-asked.tail :], default=0)
    for look in itertools.count(1):
        if over.wait(_LOOK_SECONDS):
            return
        if look % _BEATS == 0:
            yield b": here\n\n"  # finds out whether anybody listens
        while told < len(pod.logged):
            at, source, line = pod.logged[told]
            told += 1
            late = asked.since is None or at > asked.since
            if late and asked.source in (None, source):
                yield _event(told, at, source, line)


def _event(number: int, at: datetime, source: str, line: str) -> bytes:
    moment = at.isoformat().replace("+00:00", "Z")
    said = json.dumps({"ts": moment, "source": source, "line": line})
    return f"id: {moment}/{number:012d}\ndata: {said}\n\n".encode()
