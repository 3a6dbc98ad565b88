"""What every emulated cloud is built on: a real HTTP server with routes, a log, and faults.

A cloud subclasses `HttpCloud` and marks its methods with `@route`. Faults are scripted from
outside, by tests or by hand, and strike before a request is served, or after it has taken effect:
a reply that is lost after the commit is the one that costs money.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from providers.base import Clock, SystemClock

_MAX_BODY = 16 << 20
_Handler = TypeVar("_Handler", bound=Callable[..., "Reply"])


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came."""

    method: str
    path: str  # decoded, without the query
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case
    body: bytes
    pairs: Sequence[tuple[str, str]] = ()  # the query as it came: names may stand twice

    def json(self) -> Any:
        """The body as JSON; raises ValueError when it is none."""
        return json.loads(self.body) if self.body else None


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered: JSON unless `body` is bytes; or a stream, for as long as it goes on."""

    status: int = 200
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stream: Callable[[], Iterable[bytes]] | None = None

    def content(self) -> bytes:
        """The bytes on the wire."""
        if self.body is None:
            return b""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Fault:
    """Something that goes wrong.

    Attributes:
        method, path: which requests; ``path`` is a regular expression, searched.
        when: before the request takes effect, or after it has.
        how: drop the connection without an answer, answer something else, or hang (until the
            client gives up; at most ``seconds``).
        reply: the other answer.
        times: how many requests it hits; None for all.
    """

    path: str = ""
    method: str = ""
    when: Literal["before", "after"] = "before"
    how: Literal["drop", "answer", "hang"] = "drop"
    reply: Reply = field(default_factory=lambda: Reply(500, {"error": "internal error"}))
    seconds: float = 60
    times: int | None = 1

    def strikes(self, request: Request, when: str) -> bool:
        """Whether it hits this request; counts it."""
        if self.when != when or self.times == 0:
            return False
        if self.method and self.method != request.method:
            return False
        if not re.search(self.path, request.path):
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass(frozen=True, slots=True)
class Logged:
    """One line of the access log; no headers but one, for they hold keys."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    status: int  # 0: dropped
    at: float = 0.0  # on the cloud's `clock.monotonic()`
    agent: str = ""  # how the caller names itself


def route(method: str, pattern: str) -> Callable[[_Handler], _Handler]:
    """Serve requests by this method: ``{name}`` in the pattern becomes an argument."""
    regex = re.compile("^" + re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern) + "/?$")

    def mark(handler: _Handler) -> _Handler:
        handler.routes = [*getattr(handler, "routes", []), (method, regex)]  # type: ignore[attr-defined]
        return handler

    return mark


class HttpCloud:
    """A server on 127.0.0.1; a context manager.

    Args:
        clock: the cloud's own time.
        port: 0 for any.
    """

    def __init__(self, *, clock: Clock | None = None, port: int = 0) -> None:
        self.clock = clock or SystemClock()
        self.faults: list[Fault] = []
        self.log: list[Logged] = []
        self.lock = threading.RLock()  # held while a request takes effect
        self._routes = [
            (method, regex, name)
            for name in dir(type(self))
            for method, regex in getattr(getattr(type(self), name), "routes", ())
        ]
        self._server = _server(self, port)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    @property
    def url(self) -> str:
        """Its root."""
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    # ------------------------------------------------------------------ for subclasses

    def gate(self, request: Request) -> Reply | None:
        """Look at a request before its handler does: keys, rate limits, user agents."""
        del request
        return None

    def adorn(self, request: Request, reply: Reply) -> Reply:
        """Change a reply on its way out: rate limit headers and the like."""
        del request
        return reply

    def nothing_there(self, request: Request) -> Reply:
        """What is answered where there is no route."""
        return Reply(404, {"error": f"no route {request.method} {request.path}"})

    # ------------------------------------------------------------------ serving

    def serve(self, request: Request) -> Reply | None:
        """Answer one request; None drops the connection."""
        if (struck := self._struck(request, "before")) is not None:
            return self._noted(request, struck)
        with self.lock:
            reply = self.gate(request) or self._dispatch(request)
        if (struck := self._struck(request, "after")) is not None:
            return self._noted(request, struck)
        return self._noted(request, [self.adorn(request, reply)])

    def requests(self, method: str, pattern: str) -> list[Logged]:
        """The log's lines of a method whose path matches."""
        return [x for x in self.log if x.method == method and re.search(pattern, x.path)]

    def _dispatch(self, request: Request) -> Reply:
        for method, regex, name in self._routes:
            found = regex.match(request.path)
            if found and method == request.method:
                reply = getattr(self, name)(request, **found.groupdict())
                assert isinstance(reply, Reply)
                return reply
        return self.nothing_there(request)

    def _struck(self, request: Request, when: str) -> list[Reply] | None:
        """What a fault makes of it: [] for no answer, None when there is no fault."""
        with self.lock:
            fault = next((x for x in self.faults if x.strikes(request, when)), None)
        if fault is None:
            return None
        if fault.how == "hang":
            threading.Event().wait(fault.seconds)
        return [fault.reply] if fault.how == "answer" else []

    def _noted(self, request: Request, replies: list[Reply]) -> Reply | None:
        reply = replies[0] if replies else None
        status = reply.status if reply else 0
        with self.lock:
            self.log.append(
                Logged(
                    request.method,
                    request.path,
                    request.query,
                    request.body,
                    status,
                    self.clock.monotonic(),
                    request.headers.get("user-agent", ""),
                )
            )
        return reply


def _server(cloud: HttpCloud, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60
        disable_nagle_algorithm = True  # head and body are two writes: 40 ms each time

        def handle_one(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            if length > _MAX_BODY:
                self.send_error(413)
                return
            address = urlsplit(self.path)
            pairs = parse_qsl(address.query, keep_blank_values=True)
            request = Request(
                self.command,
                unquote(address.path),
                dict(pairs),
                {name.lower(): value for name, value in self.headers.items()},
                self.rfile.read(length),
                pairs,
            )
            reply = cloud.serve(request)
            if reply is None:
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            if reply.stream is not None:
                self._send_stream(reply)
                return
            content = reply.content()
            self.send_response(reply.status)
            # An empty answer is no JSON: Hetzner's Go client would try to read it as some.
            kind = {"Content-Type": "application/json; charset=utf-8"} if content else {}
            for name, value in {**kind, **reply.headers}.items():
                self.send_header(name, value)
            if reply.status not in (204, 304) and "Content-Length" not in reply.headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if reply.status not in (204, 304) and self.command != "HEAD":
                self.wfile.write(content)

        def _send_stream(self, reply: Reply) -> None:
            assert reply.stream is not None
            self.send_response(reply.status)
            for name, value in {**reply.headers, "Transfer-Encoding": "chunked"}.items():
                self.send_header(name, value)
            self.end_headers()
            for part in reply.stream():
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = handle_one  # noqa: N815

        def date_time_string(self, timestamp: float | None = None) -> str:
            """The cloud's own time: what its answers are dated with."""
            return super().date_time_string(timestamp or cloud.clock.now().timestamp())

        def log_message(self, *_: object) -> None:
            """The cloud keeps its own log."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is part of the test; a mistake in a handler is not."""
            if not isinstance(sys.exc_info()[1], OSError):
                traceback.print_exc()

    return Server(("127.0.0.1", port), Handler)
