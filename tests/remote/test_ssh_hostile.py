"""Servers that never let us in and never stop talking, and what of ours a machine gets to see."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest
from paramiko.common import MSG_IGNORE, MSG_USERAUTH_BANNER
from paramiko.message import Message

from gpuctl.errors import RemoteError
from gpuctl.remote.ssh_login import Unreachable
from providers.base import SshAccess
from tests.remote.conftest import BRIEF, Connect
from tests.remote.relay import Relay
from tests.remote.sshd import Sshd
from tests.waiting import until

Talk = Callable[[socket.socket], None]
HASTY = replace(BRIEF, login=1)
KIB_50_MB = 50_000


@pytest.fixture
def pretend() -> Iterator[Callable[[Talk], SshAccess]]:
    """Listens, and lets a function talk to whoever connects."""
    with contextlib.ExitStack() as closing:

        def serve(talk: Talk) -> SshAccess:
            listener = socket.create_server(("127.0.0.1", 0))
            closing.callback(listener.close)
            closing.callback(listener.shutdown, socket.SHUT_RDWR)

            def loop() -> None:
                with contextlib.suppress(OSError):
                    while True:
                        peer, _ = listener.accept()
                        with peer, contextlib.suppress(OSError, EOFError):
                            talk(peer)

            threading.Thread(target=loop, daemon=True).start()
            return SshAccess("127.0.0.1", listener.getsockname()[1], "root")

        yield serve


def packet(payload: bytes) -> bytes:
    """An SSH packet as it is before keys are agreed on."""
    padding = 8 - (len(payload) + 5) % 8 + 8
    size = (len(payload) + padding + 1).to_bytes(4, "big")
    return size + bytes([padding]) + payload + bytes(padding)


def peak() -> int:
    """The most memory that this process ever had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_packets_that_mean_nothing_before_any_key(
    connect: Connect, pretend: Callable[[Talk], SshAccess]
) -> None:
    one = packet(bytes([MSG_IGNORE]) + (30_000).to_bytes(4, "big") + bytes(30_000))

    def talk(peer: socket.socket) -> None:
        peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        while True:
            peer.sendall(one * 10)

    begun, memory = time.monotonic(), peak()
    with pytest.raises(Unreachable, match="not as an SSH server should"):
        connect(access=pretend(talk), patience=HASTY).run(["true"], timeout=20)
    assert time.monotonic() - begun < HASTY.login + 3
    assert peak() - memory < KIB_50_MB


def test_a_greeting_that_comes_a_byte_at_a_time(
    connect: Connect, pretend: Callable[[Talk], SshAccess]
) -> None:
    def talk(peer: socket.socket) -> None:
        while True:
            peer.sendall(b"x")
            threading.Event().wait(0.05)

    begun = time.monotonic()
    with pytest.raises(Unreachable, match="not as an SSH server should"):
        connect(access=pretend(talk), patience=HASTY).run(["true"], timeout=20)
    assert time.monotonic() - begun < HASTY.login + 3


class Babbler(paramiko.ServerInterface):
    """Answers every login with banners without end, or with nothing at all."""

    def __init__(self, transport: paramiko.Transport, text: bytes) -> None:
        self._transport = transport
        self._text = text

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        while self._text and self._transport.is_active():
            banner = Message()
            banner.add_byte(bytes([MSG_USERAUTH_BANNER]))
            banner.add_string(self._text)
            banner.add_string("")
            self._transport._send_message(banner)
        while self._transport.is_active():
            threading.Event().wait(0.1)
        return paramiko.common.AUTH_FAILED


@pytest.mark.parametrize("text", [b"w\x1b[2J" * 6000, b""], ids=["banners", "silence"])
def test_a_login_without_an_end(
    connect: Connect, pretend: Callable[[Talk], SshAccess], text: bytes
) -> None:
    host_key = paramiko.Ed25519Key.from_private_key_file(str(_made_key()))

    def talk(peer: socket.socket) -> None:
        transport = paramiko.Transport(peer)
        transport.add_server_key(host_key)
        transport.start_server(server=Babbler(transport, text))
        while transport.is_active():
            threading.Event().wait(0.1)

    begun, memory = time.monotonic(), peak()
    with pytest.raises(RemoteError) as caught:
        connect(access=pretend(talk), patience=HASTY).run(["true"], timeout=20)
    assert time.monotonic() - begun < HASTY.login + 3
    assert peak() - memory < KIB_50_MB
    assert caught.value.message.isprintable()
    assert "did not answer" in caught.value.message


def _made_key() -> Path:
    import tempfile

    from gpuctl.remote.keys import key_file

    return key_file(Path(tempfile.mkdtemp()))


# ---------------------------------------------------------------------- what a machine sees


def seen_in_proc(canary: bytes) -> list[str]:
    """Where in the arguments and environments of all processes it is."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) == os.getpid():
            continue
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):  # it has ended, or is not ours to read
                content = (process / name).read_bytes()
                if canary in content:
                    found.append(f"{process.name}/{name}: {content[:300]!r}")
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
def test_nothing_of_ours_is_on_the_machine(
    sshd: Sshd,
    relay: Relay,
    connect: Connect,
    gpuctl_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An account's key in our environment, a secret on stdin, and a transfer meanwhile."""
    canary = f"canary-{os.urandom(8).hex()}"
    monkeypatch.setenv("RUNPOD_API_KEY", canary)
    monkeypatch.setenv("LC_CANARY", canary)  # what ssh's usual SendEnv would take along
    relay.bandwidth = 4 << 20
    there = tmp_path / "there"
    there.mkdir()
    access = replace(sshd.access, folder=str(there), env={"SEEN": "by all"})
    connection = connect(relay, access=access)
    (tmp_path / "data").write_bytes(os.urandom(4 << 20))
    holding = connection.open(["sh", "-c", "read secret; echo ready; read go; echo ${#secret}"])
    lines = holding.lines()
    holding.send(f"{canary}\n".encode())
    assert next(lines) == b"ready"
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(connection.put, tmp_path / "data", "data")
        assert until(lambda: relay.moved > 1 << 20, 20)
        assert not seen_in_proc(canary.encode())
        assert seen_in_proc(b"SEEN=by all")  # it looks where there is something to see
        assert (
            connection.run("env; cat /proc/$PPID/environ", timeout=20).stdout.count(canary.encode())
            == 0
        )
        sending.result(30)
    holding.send(b"\n")
    assert next(lines) == str(len(canary)).encode()
    for folder in (sshd.folder, gpuctl_home, there):
        for file in folder.rglob("*"):
            assert not file.is_file() or canary.encode() not in file.read_bytes(), file
