"""An S3 double on loopback that lies, stutters and breaks off when told to.

It speaks as much of S3 as the store uses, path style, and checks no signatures. Semantics are
moto's business (tests/store/test_s3.py runs the shared suite against it); this is for faults.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

Fault = Literal[
    "503",  # nothing is done
    "403",
    "501",
    "409",  # another conditional write is under way
    "drop reply",  # it is done, and the connection closed without a word
    "truncate",  # the body ends early, after an honest Content-Length
    "corrupt",  # a bit is flipped, everything else is right
]


@dataclass(slots=True)
class Rule:
    """The next ``times`` requests of this kind meet a fault."""

    method: str
    contains: str
    fault: Fault
    times: int


@dataclass(slots=True)
class FaultyS3:
    """What the double holds and how it behaves. All of it may be changed while it runs."""

    objects: dict[str, tuple[bytes, datetime]] = field(default_factory=dict)
    buckets: set[str] = field(default_factory=lambda: {"bucket"})
    rules: list[Rule] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    honours_conditions: bool = True
    takes_posts: bool = True
    takes_presigned: bool = True
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, method: str, contains: str, fault: Fault, times: int = 1) -> None:
        """Have the next ``times`` requests whose path contains this meet a fault."""
        self.rules.append(Rule(method, contains, fault, times))

    def fault_of(self, method: str, path: str) -> Fault | None:
        """Note a request and return the fault that it meets."""
        with self.lock:
            self.requests.append((method, path))
            for rule in self.rules:
                if rule.method == method and rule.contains in path and rule.times > 0:
                    rule.times -= 1
                    return rule.fault
        return None

    def count(self, method: str, contains: str) -> int:
        """How many requests of a kind there were."""
        with self.lock:
            return sum(m == method and contains in path for m, path in self.requests)

    def server(self) -> ThreadingHTTPServer:
        """A server on a free port of the loopback, to be started by the caller."""
        handler = type("Handler", (_Handler,), {"state": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True  # a client that keeps its connection does not hold us up
        return server


class _Handler(BaseHTTPRequestHandler):
    state: FaultyS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # head and body leave together

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def handle_expect_100(self) -> bool:
        """Let the client go on at once; left in the buffer it would wait a second for this."""
        self.send_response_only(100)
        self.end_headers()
        self.wfile.flush()
        return True

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).lstrip("/").partition("/")
        query = parse_qs(url.query, keep_blank_values=True)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.state.fault_of(self.command, unquote(self.path))
        if fault in ("503", "403", "501", "409"):
            codes = {"503": "SlowDown", "403": "AccessDenied", "501": "NotImplemented"}
            self._error(int(fault), codes.get(fault, "ConditionalRequestConflict"))
            return
        if bucket not in self.state.buckets:
            self._error(404, "NoSuchBucket")
            return
        if "X-Amz-Signature" in query and not self.state.takes_presigned:
            self._error(403, "AccessDenied")
            return
        self._dropping = fault == "drop reply"
        if self.command == "GET" and not key:
            self._list(query)
        elif self.command in ("GET", "HEAD"):
            self._get(key, fault)
        elif self.command == "PUT":
            self._put(key, body)
        elif self.command == "POST":
            self._post(body)
        else:
            with self.state.lock:
                self.state.objects.pop(key, None)
            self._answer(204)

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        with self.state.lock:
            found = sorted((k, v) for k, v in self.state.objects.items() if k.startswith(prefix))
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(body)}</Size>"
            f"<LastModified>{modified:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
            for key, (body, modified) in found
        )
        self._answer(
            200,
            f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode(),
        )

    def _get(self, key: str, fault: Fault | None) -> None:
        with self.state.lock:
            held = self.state.objects.get(key)
        if held is None:
            self._error(404, "NoSuchKey")
            return
        body, modified = held
        headers = {"Last-Modified": format_datetime(modified, usegmt=True)}
        if fault == "corrupt" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        sent = body[: len(body) // 2] if fault == "truncate" else body
        self._answer(200, sent, headers, length=len(body))

    def _put(self, key: str, body: bytes) -> None:
        refused = False
        with self.state.lock:
            if self.headers.get("If-None-Match") == "*" and self.state.honours_conditions:
                refused = key in self.state.objects
            if not refused:
                self.state.objects[key] = (body, datetime.now(UTC).replace(microsecond=0))
        if refused:
            self._error(412, "PreconditionFailed")
        else:
            self._answer(200)

    def _post(self, body: bytes) -> None:
        if not self.state.takes_posts:
            self._error(405, "MethodNotAllowed")
            return
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        form = BytesParser(policy=HTTP).parsebytes(head + body)
        fields: dict[str, bytes] = {}
        for part in form.iter_parts():
            name = str(part.get_param("name", header="Content-Disposition"))
            content = part.get_payload(decode=True)
            fields[name] = content if isinstance(content, bytes) else b""
        with self.state.lock:
            self.state.objects[fields["key"].decode()] = (
                fields["file"],
                datetime.now(UTC).replace(microsecond=0),
            )
        self._answer(204)

    def _error(self, status: int, code: str) -> None:
        self._dropping = False
        self._answer(status, f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode())

    def _answer(
        self,
        status: int,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        if self._dropping:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if length is not None and len(body) != length:
            self.close_connection = True
