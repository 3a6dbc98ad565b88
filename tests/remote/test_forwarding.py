"""Specs of ports, as we and as the real ssh understand them."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.errors import UsageError
from gpuctl.remote.forwarding import forwarding


@pytest.mark.parametrize(
    ("spec", "full", "as_shown"),
    [
        ("6006", "127.0.0.1:6006:localhost:6006", "[127.0.0.1]:6006 [localhost]:6006"),
        ("8080:localhost:80", "127.0.0.1:8080:localhost:80", "[127.0.0.1]:8080 [localhost]:80"),
        ("8080:10.0.0.5:80", "127.0.0.1:8080:10.0.0.5:80", "[127.0.0.1]:8080 [10.0.0.5]:80"),
        (
            "[127.0.0.2]:8080:db.internal:5432",
            "[127.0.0.2]:8080:db.internal:5432",
            "[127.0.0.2]:8080 [db.internal]:5432",
        ),
        ("[::1]:8080:[fe80::1]:80", "[::1]:8080:[fe80::1]:80", "[::1]:8080 [fe80::1]:80"),
        ("*:8080:localhost:80", "*:8080:localhost:80", "[*]:8080 [localhost]:80"),
    ],
)
def test_what_ssh_takes(spec: str, full: str, as_shown: str) -> None:
    assert forwarding("-L", spec) == ["-L", full]
    if shutil.which("ssh"):
        argv = ["ssh", "-G", "-F", "/dev/null", *forwarding("-L", spec), "host"]
        read = subprocess.run(argv, capture_output=True, timeout=30, check=True).stdout.decode()
        assert f"localforward {as_shown}\n" in read


@pytest.mark.parametrize(
    "spec",
    [
        "", "x", "0", "65536", "6006:", ":6006", "1:2", "6006:localhost", "a:b:c:d:e",
        "80:local host:80", "80:-oProxyCommand=x:80", "-oX:80:localhost:80",
        "6006:localhost:6006\n", "/tmp/s:localhost:80", "99999:localhost:80", "80:localhost:0",
        "80::80", "²",
    ],
)  # fmt: skip
def test_what_nobody_understands_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=r"-R .* is not understood") as caught:
        forwarding("-R", spec)
    assert caught.value.next


def test_a_port_there_is_left_to_the_machine() -> None:
    assert forwarding("-R", "5000") == ["-R", "5000:localhost:5000"]


@given(st.text(max_size=40))
def test_any_text_is_one_argument_or_an_error(spec: str) -> None:
    try:
        option, full = forwarding("-L", spec)
    except UsageError:
        return
    assert option == "-L"
    assert not full.startswith("-")
    assert full.isprintable()
