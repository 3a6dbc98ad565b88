"""A key is found in a request however it is wrapped."""

from __future__ import annotations

import base64
import gzip
import json
from urllib.parse import urlencode

import pytest

from tests.clouds.http_cloud import Logged
from tests.clouds.unwrapping import unwrapped

KEY = b"an-account-key+with/odd=signs"
SCRIPT = b"#!/bin/sh\nexport KEY='" + KEY + b"'\n"


def packed(script: bytes) -> str:
    return base64.b64encode(gzip.compress(script)).decode()


@pytest.mark.parametrize(
    "body",
    [
        KEY,
        json.dumps({"env": {"A": KEY.decode()}}).encode(),
        json.dumps([{KEY.decode(): 1}]).encode(),
        urlencode({"UserData": base64.b64encode(SCRIPT).decode()}).encode(),
        json.dumps({"user_data": f"#cloud-config\nruncmd: [echo {packed(SCRIPT)}]"}).encode(),
        json.dumps({"onstart": f"echo '{packed(SCRIPT)}' | base64 -d | gzip -d | sh"}).encode(),
        urlencode({"Input": json.dumps({"inside": packed(SCRIPT)})}).encode(),
    ],
)
def test_in_a_body(body: bytes) -> None:
    assert any(KEY in text for text in unwrapped(Logged("POST", "/", {}, body, 200)))


def test_in_the_address() -> None:
    for line in (
        Logged("GET", f"/x/{KEY.decode()}", {}, b"", 200),
        Logged("GET", "/x", {"api_key": KEY.decode()}, b"", 200),
    ):
        assert any(KEY in text for text in unwrapped(line))


def test_not_where_it_is_not() -> None:
    line = Logged("POST", "/", {"a": "b"}, json.dumps({"env": {"A": "harmless"}}).encode(), 200)
    assert not any(KEY in text for text in unwrapped(line))
