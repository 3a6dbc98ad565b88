"""SSH when the network, the server or somebody in between does not do as it should."""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gpuctl.errors import RemoteError
from gpuctl.remote.keys import public_key
from gpuctl.remote.known_hosts import HostKeyChanged
from gpuctl.remote.ssh import SshConnection
from gpuctl.remote.ssh_login import LoginRefused, Unreachable
from gpuctl.remote.ssh_packets import FastPacketizer
from gpuctl.remote.ssh_transport import check_paramiko
from providers.base import SshAccess
from tests.remote.conftest import BRIEF, MACHINE, Connect
from tests.remote.relay import Relay
from tests.remote.sshd import Sshd, free_port
from tests.waiting import until

Server = Callable[[socket.socket], None]


@pytest.fixture
def pretend() -> Iterator[Callable[[Server], SshAccess]]:
    """Listens, and lets a function talk to whoever connects."""
    listeners: list[socket.socket] = []

    def serve(talk: Server) -> SshAccess:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def loop() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer, contextlib.suppress(OSError):
                    talk(peer)

        threading.Thread(target=loop, daemon=True).start()
        return SshAccess("127.0.0.1", listener.getsockname()[1], "root")

    yield serve
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def flood(content: bytes) -> Server:
    """Sends the same for as long as somebody listens, 1 GB at most."""

    def talk(peer: socket.socket) -> None:
        block = content * (1 + (1 << 20) // len(content))
        sent = 0
        while sent < 1_000_000_000:
            peer.sendall(block)
            sent += len(block)

    return talk


# ---------------------------------------------------------------------- who answers


def test_a_changed_host_key_is_an_error_that_explains_itself(
    sshd: Sshd, connect: Connect, gpuctl_home: Path
) -> None:
    connect().run(["true"], timeout=20)
    sshd.stop()
    sshd.new_host_key()
    sshd.start()
    with pytest.raises(HostKeyChanged, match="not the machine that it was") as caught:
        connect().run(["true"], timeout=20)
    assert caught.value.machine == MACHINE
    assert caught.value.next is not None
    assert str(gpuctl_home / "known_hosts" / MACHINE) in caught.value.next
    assert "Accepted publickey" not in sshd.log.split("Server listening")[-1]


def test_a_host_key_that_was_handed_over_must_be_shown(
    sshd: Sshd, connect: Connect, tmp_path: Path
) -> None:
    given = sshd.access
    right = SshAccess(given.host, given.port, given.user, (f"ignored {sshd.host_key}",))
    assert connect(access=right).run(["true"], timeout=20).exit_code == 0
    wrong = replace(given, host_keys=(made_key(tmp_path / "other"),))
    with pytest.raises(HostKeyChanged, match="handed over at creation"):
        connect(access=wrong).run(["true"], timeout=20)


def test_a_key_that_the_machine_does_not_know(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    with pytest.raises(LoginRefused, match="it refused") as caught:
        connect(home=stranger).run(["true"], timeout=20)
    assert caught.value.next is not None
    assert "authorized_keys" in caught.value.next


def test_the_users_own_key_is_tried_after_ours(
    sshd: Sshd, connect: Connect, tmp_path: Path
) -> None:
    (tmp_path / ".ssh").mkdir()
    own = tmp_path / ".ssh" / "id_ed25519"
    (sshd.folder / "authorized_keys").write_text(made_key(own))
    connection = connect(environ={"HOME": str(tmp_path)})
    assert connection.run(["true"], timeout=20).exit_code == 0
    assert str(own) in " ".join(connection.ssh_argv())


def made_key(file: Path, passphrase: str = "") -> str:
    """Make a private key; return its public half."""
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(file)]
    subprocess.run(argv, check=True, timeout=30)
    return file.with_name(f"{file.name}.pub").read_text()


def test_a_key_named_for_the_machine_is_tried_after_ours(
    sshd: Sshd, connect: Connect, tmp_path: Path
) -> None:
    named, locked = tmp_path / "named", tmp_path / "locked"
    made_key(locked, "secret")
    (sshd.folder / "authorized_keys").write_text(made_key(named))
    access = replace(sshd.access, identities=(str(locked), str(tmp_path / "none"), str(named)))
    connection = connect(access=access)
    assert connection.run(["true"], timeout=20).exit_code == 0
    assert connection.identity == str(named)
    done = subprocess.run(
        connection.ssh_argv(["echo", "in"]),
        capture_output=True,
        timeout=30,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout == b"in\n", done.stderr


def test_keys_that_cannot_be_used_are_named_when_nothing_else_works(
    sshd: Sshd, connect: Connect, tmp_path: Path
) -> None:
    locked, none = tmp_path / "locked", tmp_path / "none"
    (sshd.folder / "authorized_keys").write_text(made_key(locked, "secret"))
    access = replace(sshd.access, identities=(str(locked), str(none)))
    with pytest.raises(LoginRefused, match="locked has a passphrase") as caught:
        connect(access=access).run(["true"], timeout=20)
    assert f"{none} cannot be used: No such file" in caught.value.message


def test_a_server_that_takes_only_passwords(sshd: Sshd, connect: Connect) -> None:
    sshd.stop()
    sshd.config += ["PubkeyAuthentication no", "PasswordAuthentication yes"]
    sshd.start()
    with pytest.raises(LoginRefused, match="it takes only: password"):
        connect().run(["true"], timeout=20)


def test_nothing_listens(connect: Connect) -> None:
    access = SshAccess("127.0.0.1", free_port(), "root")
    with pytest.raises(Unreachable, match="does not take connections: Connection refused"):
        connect(access=access).run(["true"], timeout=20)


def test_the_second_address_when_the_first_does_not_answer(sshd: Sshd, connect: Connect) -> None:
    dead = SshAccess("127.0.0.1", free_port(), sshd.access.user)
    connection = connect(access=replace(dead, alternatives=(sshd.access,)))
    assert connection.run(["true"], timeout=20).exit_code == 0


def test_every_address_is_named_when_none_answers(connect: Connect) -> None:
    first, second = (SshAccess("127.0.0.1", free_port(), "root") for _ in range(2))
    with pytest.raises(Unreachable) as caught:
        connect(access=replace(first, alternatives=(second,))).run(["true"], timeout=20)
    assert str(first.port) in caught.value.message
    assert str(second.port) in caught.value.message


# ---------------------------------------------------------------------- hostile servers


@pytest.mark.parametrize(
    "content",
    [b"x" * 4096, b"x\n", b"SSH-2.0-" + b"y" * 65536],
    ids=["no line ever ends", "lines without end", "a version without end"],
)
def test_a_banner_of_a_gigabyte(
    connect: Connect, pretend: Callable[[Server], SshAccess], content: bytes
) -> None:
    begun, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Unreachable, match="not as an SSH server should"):
        connect(access=pretend(flood(content))).run(["true"], timeout=20)
    assert time.monotonic() - begun < BRIEF.login + 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000  # KiB


def test_a_first_packet_of_gigabytes(
    connect: Connect, pretend: Callable[[Server], SshAccess]
) -> None:
    def talk(peer: socket.socket) -> None:
        peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n\x7f\xff\xff\xfc\x04")
        flood(b"\0" * 4096)(peer)

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(Unreachable, match="impossible length"):
        connect(access=pretend(talk)).run(["true"], timeout=20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000  # KiB


def test_a_server_that_says_nothing(
    connect: Connect, pretend: Callable[[Server], SshAccess]
) -> None:
    def listen(peer: socket.socket) -> None:
        while peer.recv(1024):
            pass

    begun = time.monotonic()
    with pytest.raises(Unreachable, match=r"did not finish its greeting|not as an SSH server"):
        connect(access=pretend(listen), patience=replace(BRIEF, login=1)).run(["true"], timeout=20)
    assert time.monotonic() - begun < 5


def test_what_a_server_says_cannot_move_the_cursor(
    connect: Connect, pretend: Callable[[Server], SshAccess]
) -> None:
    def talk(peer: socket.socket) -> None:
        peer.sendall(b"SSH-9.9-\x1b[2J\x1b]0;owned\x07\r\n")
        peer.recv(1024)

    with pytest.raises(Unreachable) as caught:
        connect(access=pretend(talk)).run(["true"], timeout=20)
    assert caught.value.message.isprintable()


def test_an_altered_packet_ends_the_link_and_not_the_tool(
    sshd: Sshd, connect: Connect, pretend: Callable[[Server], SshAccess]
) -> None:
    """Somebody in between flips bits of what comes from the machine after the login."""

    def between(peer: socket.socket) -> None:
        far = socket.create_connection(("127.0.0.1", sshd.port), 10)

        def up() -> None:
            with contextlib.suppress(OSError):
                while data := peer.recv(65536):
                    far.sendall(data)

        threading.Thread(target=up, daemon=True).start()
        passed = 0
        while data := far.recv(65536):
            passed += len(data)
            peer.sendall(data if passed < 100_000 else bytes(one ^ 1 for one in data))

    access = pretend(between)
    connection = connect(access=SshAccess("127.0.0.1", access.port, sshd.access.user))
    with pytest.raises(RemoteError, match=r"altered on the way|impossible"):
        connection.run("cat /dev/zero | head -c 1000000", timeout=20)


# ---------------------------------------------------------------------- broken links


def test_a_cut_under_a_command_is_told_and_the_next_one_works(
    relay: Relay, connect: Connect
) -> None:
    connection = connect(relay)
    connection.run(["true"], timeout=20)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(connection.run, "sleep 30", timeout=40)
        assert until(lambda: relay.moved > 0 and not running.done(), 5)
        threading.Event().wait(0.3)
        relay.cut()
        with pytest.raises(RemoteError, match="broke while a command ran"):
            running.result(10)
    assert connection.run(["echo", "again"], timeout=20).stdout == b"again\n"
    assert relay.connections == 2


def test_a_cut_between_commands_is_not_noticed(relay: Relay, connect: Connect) -> None:
    connection = connect(relay)
    for _ in range(5):
        assert connection.run(["echo", "x"], timeout=20).stdout == b"x\n"
        relay.cut()
        assert until(lambda: not connection.connected, 5)


def test_a_freeze_ends_in_an_error_and_a_thaw_in_a_new_link(relay: Relay, connect: Connect) -> None:
    connection = connect(relay)
    process = connection.open(["sh", "-c", "while sleep 0.1; do echo beat; done"])
    lines = process.lines()
    assert next(lines) == b"beat"
    relay.freeze()
    begun = time.monotonic()
    with pytest.raises(RemoteError, match="nothing came from the machine for"):
        for _ in lines:
            pass
    assert time.monotonic() - begun < 10
    relay.thaw()
    assert connection.run(["echo", "back"], timeout=20).stdout == b"back\n"


def test_a_short_freeze_is_survived(relay: Relay, connect: Connect) -> None:
    connection = connect(relay)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(connection.run, "sleep 1.5; echo whole", timeout=40)
        assert until(lambda: relay.moved > 5000, 10)
        relay.freeze()
        threading.Event().wait(0.9)
        relay.thaw()
        assert running.result(20).stdout == b"whole\n"
    assert relay.connections == 1


def test_a_command_has_its_deadline_on_a_frozen_link(relay: Relay, connect: Connect) -> None:
    connection = connect(relay)
    connection.run(["true"], timeout=20)
    relay.freeze()
    begun = time.monotonic()
    with pytest.raises(RemoteError):
        connection.run("sleep 20", timeout=1)
    assert time.monotonic() - begun < 15
    relay.thaw()


def test_a_restarted_sshd(sshd: Sshd, connect: Connect) -> None:
    connection = connect()
    process = connection.open(["cat"])
    sshd.stop()
    with pytest.raises(RemoteError):
        list(process.lines())
    starting = threading.Timer(1, sshd.start)
    starting.start()
    assert connection.run(["echo", "up"], timeout=20).stdout == b"up\n"
    starting.join()


def test_a_machine_that_stays_away(sshd: Sshd, connect: Connect) -> None:
    connection = connect(patience=replace(BRIEF, reconnect=1.5))
    connection.run(["true"], timeout=20)
    sshd.stop()
    assert until(lambda: not connection.connected, 5)
    begun = time.monotonic()
    with pytest.raises(Unreachable):
        connection.run(["true"], timeout=20)
    assert 0.5 < time.monotonic() - begun < 10


def test_a_stream_that_is_cut_says_so(relay: Relay, connect: Connect) -> None:
    channel = connect(relay).channels().open(["cat", "/dev/zero"], own_link=True)
    assert channel.read(1 << 16)
    relay.cut()
    with pytest.raises(RemoteError, match="connection to the machine failed"):
        all(iter(lambda: channel.read(1 << 20), b""))
    channel.close()


def test_new_keys_in_the_middle(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastPacketizer, "REKEY_BYTES", 3 << 20)
    connection = connect()
    content = os.urandom(20 << 20)
    assert connection.run(["cat"], stdin=content, timeout=60).stdout == content


@pytest.mark.parametrize("cipher", ["aes128-ctr", "aes256-gcm@openssh.com"])
def test_other_ciphers(sshd: Sshd, connect: Connect, cipher: str) -> None:
    sshd.stop()
    sshd.config.append(f"Ciphers {cipher}")
    sshd.start()
    content = os.urandom(5 << 20)
    assert connect().run(["cat"], stdin=content, timeout=60).stdout == content


# ---------------------------------------------------------------------- secrets, versions


def test_a_secret_on_stdin_is_found_nowhere(
    sshd: Sshd, connect: Connect, gpuctl_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    canary = f"canary-{os.urandom(8).hex()}"
    caplog.set_level(logging.DEBUG)
    connection: SshConnection = connect()
    # The listing itself is made while the secret is held by a command.
    done = connection.run(
        "read secret; ps axeww -o args 2>/dev/null || ps axeww; exit ${#secret}",
        stdin=f"{canary}\n".encode(),
        timeout=20,
    )
    assert done.exit_code == len(canary)
    assert b"read secret; ps" in done.stdout  # it is a listing
    assert canary.encode() not in done.stdout
    with pytest.raises(RemoteError) as caught:
        connection.run("sleep 20", stdin=canary.encode(), timeout=0.5)
    assert canary not in repr(caught.value)
    assert canary not in caplog.text
    for folder in (sshd.folder, gpuctl_home):
        for file in folder.rglob("*"):
            assert not file.is_file() or canary.encode() not in file.read_bytes(), file


def test_the_private_key_stays_here(
    sshd: Sshd, connect: Connect, gpuctl_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    connection = connect()
    connection.run(["true"], timeout=20)
    secret = "".join((gpuctl_home / "ssh/id_ed25519").read_text().splitlines()[1:-1])
    assert len(secret) > 100
    assert secret[-60:] not in caplog.text + sshd.log + " ".join(connection.ssh_argv())
    assert public_key(gpuctl_home).split()[1] in sshd.folder.joinpath("authorized_keys").read_text()


@pytest.mark.parametrize("version", ["3.5.1", "6.0.0"])
def test_an_unknown_paramiko_is_refused_with_a_word(version: str) -> None:
    with pytest.raises(RemoteError, match=f"paramiko {version} is not one that gpuctl knows") as it:
        check_paramiko(version)
    assert it.value.next is not None
    assert "pip install" in it.value.next
