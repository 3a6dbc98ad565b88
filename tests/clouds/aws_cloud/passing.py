"""Handing requests on to moto, in the name of one account."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import quote, urlencode

os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # 1300 of them, a second each region

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.test import EnvironBuilder, run_wsgi_app

from tests.clouds.http_cloud import Reply, Request

_OWN = ("content-length", "transfer-encoding", "host", "expect")  # made anew on the way
_FORM = {"content-type": "application/x-www-form-urlencoded"}


class Moto:
    """All of moto's services, for one account."""

    def __init__(self, account: str) -> None:
        self._account = account
        self._app = DomainDispatcherApplication(create_backend_app)

    def ask(self, region: str, params: Mapping[str, str]) -> Reply:
        """Ask EC2 by its query protocol."""
        body = urlencode({"Version": "2016-11-15", **params}).encode()
        return self.hand_on(region, "ec2", Request("POST", "/", {}, _FORM, body))

    def hand_on(self, region: str, service: str, request: Request) -> Reply:
        """Have moto answer a request as it came: method, path, query, headers and body."""
        given = {name: value for name, value in request.headers.items() if name not in _OWN}
        scope = f"AWS4-HMAC-SHA256 Credential=k/20260101/{region}/{service}/aws4_request, S="
        given |= {"authorization": scope, "x-moto-account-id": self._account}
        environ = EnvironBuilder(
            quote(request.query.get(" path", request.path)),
            method=request.method,
            query_string=urlencode(list(request.pairs)),
            headers=given,
            data=request.body,
        ).get_environ()
        chunks, status, answered = run_wsgi_app(self._app, environ)
        kept = dict(answered.items())
        length = kept.pop("Content-Length", None)
        if request.method == "HEAD" and length is not None:
            kept["Content-Length"] = length  # of what a GET would bring
        return Reply(int(status.split()[0]), b"".join(chunks), kept)
