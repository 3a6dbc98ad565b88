"""Connections through a command: they come up, end, and leave nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gpuctl.errors import RemoteError
from gpuctl.remote.ssh_login import Unreachable
from providers.base import SshAccess
from tests.remote.conftest import BRIEF, Connect
from tests.remote.proxy import JOIN
from tests.remote.sshd import Sshd, free_port
from tests.waiting import until


@pytest.fixture
def note(tmp_path: Path) -> Path:
    """Where the proxies of a test write their process numbers."""
    file = tmp_path / "proxies"
    file.touch()
    return file


def join(port: int, note: Path, words: str = "") -> tuple[str, ...]:
    """The argv of a proxy."""
    return (sys.executable, "-I", "-c", JOIN, str(port), str(note), words)


def behind(sshd: Sshd, proxy: tuple[str, ...]) -> SshAccess:
    """A machine that only its proxy reaches."""
    return replace(sshd.access, host="machine.invalid", port=1, proxy=proxy)


def left(note: Path) -> list[int]:
    """Which of the proxies are still there, zombies included."""
    return [pid for pid in map(int, note.read_text().split()) if there(pid)]


def there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_it_carries_everything_and_ends_with_the_connection(
    sshd: Sshd, connect: Connect, note: Path
) -> None:
    connection = connect(access=behind(sshd, join(sshd.port, note)))
    content = os.urandom(5_000_000)
    assert connection.run(["cat"], stdin=content, timeout=30).stdout == content
    channel = connection.channels().open(["cat"], own_link=True)  # a proxy of its own
    assert len(left(note)) == 2
    channel.close()
    assert until(lambda: len(left(note)) == 1, 5)
    connection.close()
    assert until(lambda: not left(note), 5)
    assert len(note.read_text().split()) == 2


def test_the_steps_are_told(sshd: Sshd, connect: Connect, note: Path) -> None:
    connection = connect(access=behind(sshd, join(sshd.port, note)))
    connection.run(["true"], timeout=20)
    assert connection.steps["tcp"] > 0
    assert set(connection.steps) == {"tcp", "banner", "login"}


def test_a_real_jump_host(sshd: Sshd, connect: Connect) -> None:
    """`ssh -W` through the same sshd, which then is the jump host and the machine."""
    through = connect().ssh_argv()
    proxy = (*through[:-2], "-W", f"127.0.0.1:{sshd.port}", *through[-2:])
    access = behind(sshd, proxy)
    assert connect(access=access).run(["echo", "far"], timeout=20).stdout == b"far\n"
    argv = connect(access=access).ssh_argv(["echo", "50%"])
    done = subprocess.run(argv, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.stdout == b"50%\n", done.stderr


def test_what_it_said_last_is_in_the_error(sshd: Sshd, connect: Connect, note: Path) -> None:
    proxy = join(free_port(), note, "first\n")
    with pytest.raises(Unreachable, match="it said: ConnectionRefusedError") as caught:
        connect(access=behind(sshd, proxy)).run(["true"], timeout=20)
    assert "machine.invalid" in caught.value.message
    assert "first" not in caught.value.message
    assert not left(note)


def test_what_it_said_cannot_move_the_cursor(sshd: Sshd, connect: Connect) -> None:
    proxy = ("sh", "-c", r"printf '\033[2J\033]0;owned\007 gone\n' >&2")
    with pytest.raises(Unreachable, match="it said: gone") as caught:
        connect(access=behind(sshd, proxy)).run(["true"], timeout=20)
    assert caught.value.message.isprintable()


def test_a_program_that_is_not_there(sshd: Sshd, connect: Connect) -> None:
    access = behind(sshd, ("no-such-proxy-at-all", "x"))
    with pytest.raises(Unreachable, match="no-such-proxy-at-all cannot be started: No such file"):
        connect(access=access).run(["true"], timeout=20)
    again = replace(access, alternatives=(sshd.access,))
    assert connect(access=again).run(["true"], timeout=20).exit_code == 0


def test_a_proxy_that_never_connects_has_its_deadline(sshd: Sshd, connect: Connect) -> None:
    begun = time.monotonic()
    proxy = ("sh", "-c", "echo trying >&2; exec sleep 71")
    hasty = replace(BRIEF, connect=0.5, login=0.5)
    with pytest.raises(Unreachable, match=r"nothing came through it within 1 s; it said: trying"):
        connect(access=behind(sshd, proxy), patience=hasty).run(["true"], timeout=20)
    assert time.monotonic() - begun < 5
    assert not running("sleep 71")


def test_a_proxy_that_does_not_want_to_end(sshd: Sshd, connect: Connect, note: Path) -> None:
    """It ignores the polite signal, and so does what it started."""
    stubborn = ("sh", "-c", 'trap "" TERM HUP; sleep 72 & "$@"', "sh", *join(sshd.port, note))
    connection = connect(access=behind(sshd, stubborn))
    connection.run(["true"], timeout=20)
    assert running("sleep 72")
    connection.close()
    assert until(lambda: not running("sleep 72") and not left(note), 5)


def test_nobody_stays_after_a_login_that_failed(
    sshd: Sshd, connect: Connect, note: Path, tmp_path: Path
) -> None:
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    with pytest.raises(RemoteError, match="it refused"):
        connect(access=behind(sshd, join(sshd.port, note)), home=stranger).run(["true"], timeout=20)
    assert until(lambda: not left(note), 5)
    access = behind(sshd, ("sh", "-c", "echo hello; exec sleep 73"))
    with pytest.raises(Unreachable, match="not as an SSH server should"):
        connect(access=access, patience=replace(BRIEF, login=1)).run(["true"], timeout=20)
    assert until(lambda: not running("sleep 73"), 5)


def test_a_proxy_that_dies_is_a_broken_link(sshd: Sshd, connect: Connect, note: Path) -> None:
    connection = connect(access=behind(sshd, join(sshd.port, note)))
    process = connection.open(["cat"])
    os.kill(left(note)[0], signal.SIGKILL)
    with pytest.raises(RemoteError, match="was lost"):
        list(process.lines())
    assert until(lambda: not left(note), 5)  # collected, too
    assert connection.run(["echo", "again"], timeout=20).stdout == b"again\n"


def test_ctrl_c_does_not_reach_it(sshd: Sshd, connect: Connect, note: Path) -> None:
    connection = connect(access=behind(sshd, join(sshd.port, note)))
    connection.run(["true"], timeout=20)
    (pid,) = left(note)
    assert os.getpgid(pid) != os.getpgid(0)
    assert os.getsid(pid) != os.getsid(0)


def test_a_loud_proxy_is_listened_to_in_bounds(sshd: Sshd, connect: Connect, note: Path) -> None:
    shouting = 'yes nonsense | head -c 20000000 >&2; exec "$@"'
    access = behind(sshd, ("sh", "-c", shouting, "sh", *join(sshd.port, note)))
    connection = connect(access=access)
    assert connection.run(["echo", "heard"], timeout=20).stdout == b"heard\n"
    assert threading.active_count() < 50


def running(words: str) -> bool:
    """Whether a process with these arguments is there."""
    listing = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, timeout=10).stdout
    return words in listing.decode(errors="replace").splitlines()
