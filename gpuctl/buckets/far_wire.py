"""On the machine: lines of JSON to who started us, and requests to a bucket that do not give up.

Standard library only, Python >= 3.8; see `gpuctl.buckets.talking` for how it gets there. The
addresses that it is told are secrets: they are kept in memory and appear in no message.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import random
import re
import signal
import socket
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Any, BinaryIO

IDLE_SECONDS = 900  # hearing nothing for so long, it ends: the other end is gone
TICK_SECONDS = 0.5
TIMEOUT_SECONDS = 30.0
CONNECT_SECONDS = 10.0
ADDRESS_SECONDS = 300.0  # how long an address may take to come
CHUNK = 1 << 18
LINES = 5000  # entries of one line
_TRIES = 7  # in a row that moved nothing; the waits between them add up to a minute
_FIRST_TRIES = 2  # as long as nothing ever answered
_DENIALS = 2  # of addresses that are new
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_NOT_MD5 = ("x-amz-server-side-encryption-customer-algorithm",)


class Failed(Exception):
    """It cannot go on: a kind that the other end knows, and one sentence."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Missing(Exception):
    """The object is not there (any more)."""


class Replaced(Exception):
    """The object is not the one that was listed."""


class Pace:
    """A limit in bytes a second that all threads share."""

    def __init__(self, rate: float | None) -> None:
        self._rate, self._lock, self._free_at = rate, threading.Lock(), 0.0

    def wait(self, size: int) -> None:
        """Wait until so many bytes more may go."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            start = max(now, self._free_at)
            self._free_at = start + size / self._rate
        if start > now:
            time.sleep(start - now)


class Wire:
    """Both ways of the conversation; telling is safe from several threads."""

    def __init__(self, stdin: BinaryIO) -> None:
        self._stdin, self._lock = stdin, threading.Lock()

    def hear(self) -> Any:
        """The next message; None when there will be no more."""
        signal.alarm(IDLE_SECONDS)
        line = self._stdin.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def tell(self, what: str, **said: Any) -> None:
        """Send one message. When nobody reads it any more, there is nothing left to do here."""
        line = memoryview(json.dumps(dict(said, t=what)).encode() + b"\n")
        with self._lock:
            while line:
                try:
                    line = line[os.write(1, line) :]
                except OSError:
                    os._exit(1)


class Addresses:
    """Presigned addresses by file and part; asked for when there is none, or it is too old."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._changed = wire, threading.Condition()
        self._known: dict[tuple[int, int], str] = {}

    def put(self, number: int, part: int, url: str) -> None:
        """Take note of one."""
        with self._changed:
            self._known[number, part] = url
            self._changed.notify_all()

    def get(self, number: int, part: int, refused: str | None = None) -> str:
        """Return the address of a file's part; another one than ``refused``."""
        with self._changed:
            if self._known.get((number, part)) in (None, refused):
                self._known.pop((number, part), None)
                self._wire.tell("url", i=number, part=part)
            if not self._changed.wait_for(lambda: (number, part) in self._known, ADDRESS_SECONDS):
                raise Failed("silent", "no address came")
            return self._known[number, part]

    def forget(self, number: int, part: int) -> None:
        """It is not needed any more."""
        with self._changed:
            self._known.pop((number, part), None)


class Answer:
    """What a bucket answered, as far as anybody asks."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status, self.response = response.status, response
        self.etag = (response.headers.get("ETag") or "").strip('"')
        scheme = response.headers.get("x-amz-server-side-encryption") or ""
        # An ETag is an MD5 unless the store encrypts with keys that are not its own.
        self.has_md5 = not scheme.startswith("aws:kms") and not any(
            response.headers.get(name) for name in _NOT_MD5
        )


class Lane:
    """One thread's connection to the bucket, kept open from one request to the next."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._to: tuple[str, str] = ("", "")
        self._connection: http.client.HTTPConnection | None = None
        self._got = 0

    def count(self, size: int) -> None:
        """So many bytes more came: what happens to the connection now is no lack of progress."""
        self._got += size
        self._world.count(size)

    def ask(
        self,
        number: int,
        part: int,
        method: str,
        headers: Callable[[], dict[str, str]],
        talk: Callable[[Answer], bool],
        body: Callable[[Callable[[bytes], None]], None] | None = None,
    ) -> None:
        """Make a request again and again until it is answered well.

        Args:
            number: of the file, for its address; likewise ``part``.
            headers: made anew for each try.
            talk: reads a good answer; returns whether that was all.
            body: sends the body through the function that it is given.

        Raises:
            Missing, Replaced: there is no such object, or another one.
            Failed: it does not get better.
        """
        tries = denials = 0
        url = self._world.addresses.get(number, part)
        while True:
            before = self._got
            trouble = ""
            try:
                answer = self._try(url, method, headers(), body)
                if answer.status in (200, 206):
                    denials = 0
                    if talk(answer):
                        return
                    trouble = "the answers end too early"
                    self.close()
                else:
                    code = self._code(answer)
                    if answer.status in (401, 403) or code == "ExpiredToken":
                        denials += 1
                        if denials > _DENIALS:
                            raise Failed("denied", f"{answer.status} {code}")
                        url = self._world.addresses.get(number, part, refused=url)
                        continue
                    trouble = self._judge(answer.status, code)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                trouble = _why(error)
            tries = 0 if self._got > before else tries + 1
            if tries >= (_TRIES if self._world.answered else _FIRST_TRIES):
                kind = "network" if self._world.answered else "unreachable"
                raise Failed(kind, trouble)
            time.sleep(min(2.0 ** (tries - 2), 15.0) * random.uniform(0.7, 1.3) if tries else 0)  # noqa: S311

    def close(self) -> None:
        """Hang up."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _try(
        self,
        url: str,
        method: str,
        headers: dict[str, str],
        body: Callable[[Callable[[bytes], None]], None] | None,
    ) -> Answer:
        parts = urllib.parse.urlsplit(url)
        connection = self._connected(parts.scheme, parts.netloc)
        connection.putrequest(method, f"{parts.path}?{parts.query}")
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        if body is not None:
            try:
                body(connection.send)
            except (BrokenPipeError, ConnectionResetError):
                # It may have refused and hung up; then it has said why.
                answer = Answer(connection.getresponse())
                if answer.status < 300:
                    raise
                return answer
        answer = Answer(connection.getresponse())
        self._world.answered = True
        return answer

    def _connected(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        stands = self._connection is not None and self._connection.sock is not None
        if self._connection is None or not stands or self._to != (scheme, netloc):
            self.close()
            if scheme == "https":
                made: http.client.HTTPConnection = http.client.HTTPSConnection(
                    netloc, timeout=CONNECT_SECONDS, context=self._world.tls
                )
            else:
                made = http.client.HTTPConnection(netloc, timeout=CONNECT_SECONDS)
            made.connect()
            made.sock.settimeout(TIMEOUT_SECONDS)
            self._connection, self._to = made, (scheme, netloc)
        return self._connection

    def _code(self, answer: Answer) -> str:
        """What an answer that is no good says; the connection may be used again after it."""
        said = answer.response.read(1 << 16)
        if not answer.response.isclosed():
            self.close()
        found = re.search(rb"<Code>([A-Za-z0-9.]{1,64})</Code>", said)
        return found.group(1).decode() if found else ""

    def _judge(self, status: int, code: str) -> str:
        if status == 404:
            raise Missing
        if status in (412, 416):
            raise Replaced
        said = f"{status} {code}".strip()
        if status not in _TRANSIENT:
            raise Failed("refused", said)
        return "it answered " + said


class World:
    """What all threads share."""

    def __init__(self, wire: Wire, start: dict[str, Any]) -> None:
        self.wire, self.addresses = wire, Addresses(wire)
        self.pace = Pace(start.get("rate"))
        self.rate = start.get("rate")
        self.tls = ssl.create_default_context(cadata=start.get("ca"))
        self.answered = False  # whether the bucket ever did
        self.moved = 0  # bytes, both kept and moved, tried again or not
        self.tasks: queue.Queue[Callable[[Lane], None]] = queue.Queue()
        self._lock = threading.Lock()

    def count(self, size: int) -> None:
        """So many bytes more are done."""
        with self._lock:
            self.moved += size

    @property
    def chunk(self) -> int:
        """How much to move at once: less when a limit makes that take long."""
        return max(1024, min(CHUNK, int(self.rate / 8))) if self.rate else CHUNK

    def begin(self, lanes: int) -> None:
        """Start the threads that work, and the one that says how far they are."""
        for _ in range(lanes):
            threading.Thread(target=self._work, daemon=True).start()
        threading.Thread(target=self._tick, daemon=True).start()

    def _work(self) -> None:
        lane = Lane(self)
        while True:
            task = self.tasks.get()
            try:
                task(lane)
            except Failed as failed:
                self.wire.tell("fail", kind=failed.kind, message=str(failed))
            except OSError as error:
                self.wire.tell(
                    "fail",
                    kind="disk",
                    errno=error.errno,
                    message=error.strerror or str(error),
                    path=str(error.filename or ""),
                )
            except Exception as error:
                self.wire.tell("fail", kind="bug", message=type(error).__name__ + ": " + str(error))

    def _tick(self) -> None:
        while True:
            time.sleep(TICK_SECONDS)
            self.wire.tell("bytes", n=self.moved)


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return "TLS: " + (error.reason or type(error).__name__)
    if isinstance(error, socket.gaierror):
        return "its name is not known there"
    if isinstance(error, socket.timeout):
        return "no answer"
    return (getattr(error, "strerror", None) or type(error).__name__).lower()
