"""An S3 bucket as far as presigned POST and GET go, with faults on demand."""

from __future__ import annotations

import email
import email.policy
import http.server
import threading
from typing import Any


class PostStore:
    """Takes multipart POSTs under a prefix and answers GETs.

    ``faults`` is used up one request at a time: a status to answer with, or "drop".
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.order: list[str] = []
        self.faults: list[int | str] = []
        self.refused = 0
        self.policy = "policy-1"
        store = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.failed():
                    return
                fields = parse_form(self.headers["Content-Type"], body)
                if fields["policy"] != store.policy.encode():
                    store.refused += 1
                    self.reply(403, b"<Error><Code>AccessDenied</Code></Error>")
                    return
                key = fields["key"].decode()
                assert key.startswith("ckpt/demo-1a2b3c/")
                assert list(fields)[-1] == "file", "S3 ignores what comes after the file"
                store.objects[key.removeprefix("ckpt/demo-1a2b3c/")] = fields["file"]
                store.order.append(key)
                self.reply(204, b"")

            def do_GET(self) -> None:
                if self.failed():
                    return
                found = store.objects.get(self.path.lstrip("/").partition("?")[0])
                self.reply(404 if found is None else 200, found or b"")

            def failed(self) -> bool:
                if not store.faults:
                    return False
                fault = store.faults.pop(0)
                if fault == "drop":
                    self.close_connection = True
                    self.connection.close()
                else:
                    self.reply(int(fault), b"<Error><Code>SlowDown</Code></Error>")
                return True

            def reply(self, code: int, body: bytes) -> None:
                self.send_response(code)
                if code in (301, 307):
                    self.send_header("Location", f"{store.url}/elsewhere")
                if code != 204:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # connections that are dropped on purpose

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def grant(self, **changes: Any) -> dict[str, Any]:
        return {
            "kind": "s3post",
            "url": f"{self.url}/bucket",
            "fields": {"policy": self.policy, "x-amz-signature": "canary-signature"},
            "prefix": "ckpt/demo-1a2b3c/",
            "expires": 4e9,
            **changes,
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def parse_form(content_type: str, body: bytes) -> dict[str, bytes]:
    """Take a multipart form apart with the standard library's own parser."""
    head = f"Content-Type: {content_type}\r\nMIME-Version: 1.0\r\n\r\n".encode()
    message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
    fields: dict[str, bytes] = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        fields[str(name)] = content
    return fields
