"""An HTTP gate in front of an S3 endpoint that refuses, hangs up and meddles when told to."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came by."""

    method: str
    path: str  # with its query
    headers: dict[str, str]

    @property
    def presigned(self) -> bool:
        """Whether it comes from a machine."""
        return "X-Amz-Signature=" in self.path


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens instead of the answer, or to it."""

    status: int = 0  # refuse with it
    code: str = "AccessDenied"
    cut_after: int | None = None  # hang up after so many bytes of the answer
    flip: bool = False  # change the first byte of the answer


Judge = Callable[[Asked], Fault | None]


@dataclass
class Gate:
    """A context manager; ``judge`` may be changed while it runs."""

    target: int  # the port of 127.0.0.1 behind it
    judge: Judge = lambda _: None
    seen: list[Asked] = field(default_factory=list)
    host: str = "127.0.0.1"

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"gate": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def count(self, method: str, part: str = "", *, presigned: bool = True) -> int:
        """How many requests of a kind came by."""
        return sum(
            asked.method == method and part in asked.path and asked.presigned == presigned
            for asked in self.seen
        )


class _Handler(BaseHTTPRequestHandler):
    gate: Gate
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_args: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = Asked(self.command, self.path, dict(self.headers))
        self.gate.seen.append(asked)
        fault = self.gate.judge(asked) or Fault()
        if fault.status:
            said = f"<Error><Code>{fault.code}</Code><Message>m</Message></Error>".encode()
            self._answer(fault.status, {"Content-Length": str(len(said))}, said)
            return
        behind = http.client.HTTPConnection("127.0.0.1", self.gate.target, timeout=30)
        behind.request(self.command, self.path, body, dict(self.headers))
        answer = behind.getresponse()
        content = answer.read()
        if fault.flip and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        headers = {
            name: value
            for name, value in answer.getheaders()
            if name.lower() not in ("connection", "transfer-encoding", "date", "server")
        }
        headers.setdefault("Content-Length", str(len(content)))
        if fault.cut_after is not None:
            content = content[: fault.cut_after]
            self.close_connection = True
        self._answer(answer.status, headers, content)
        behind.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - what the class calls
