"""Commands over a real sshd."""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gpuctl.errors import RemoteError, UsageError
from gpuctl.remote.channels import ByteChannel, Channels
from gpuctl.remote.connection import Connection, RemoteProcess
from gpuctl.remote.opening import connect as open_connection
from gpuctl.remote.ssh import SshConnection
from tests.remote.conftest import MACHINE, Connect
from tests.remote.relay import Relay
from tests.remote.sshd import Sshd
from tests.waiting import until


def alive(pid: int) -> bool:
    """Whether a process runs, and is not just waiting to be collected."""
    state = subprocess.run(
        ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, timeout=10
    ).stdout
    return bool(state.strip()) and not state.startswith(b"Z")


def pid_in(file: Path) -> int:
    """The process number that a command wrote into a file."""
    assert until(lambda: file.exists() and file.read_text().endswith("\n"), 10)
    return int(file.read_text())


def test_is_the_connection_of_the_contract(connect: Connect) -> None:
    connection: Connection = connect()
    channels: Channels = connect().channels()
    process: RemoteProcess = connection.open(["true"])
    channel: ByteChannel = channels.open(["true"])
    assert process.wait(10) == 0
    assert channel.exit_code(10) == 0
    channel.close()


def test_opening_reaches_the_sshd(
    sshd: Sshd, gpuctl_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPUCTL_HOME", str(gpuctl_home))
    connection = open_connection(sshd.access, machine=MACHINE)
    assert connection.run("echo $((6 * 7))", timeout=20).stdout == b"42\n"
    connection.close()


def test_argv_arrives_as_it_is(connect: Connect) -> None:
    words = [
        "a b",
        "",
        "'",
        '"',
        "$HOME",
        "*",
        "back\\slash",
        "new\nline",
        "-n",
        "ü",
        ";",
        "\udcff",
    ]
    program = "import os, sys; sys.stdout.buffer.write(b'\\0'.join(map(os.fsencode, sys.argv[1:])))"
    done = connect().run([sys.executable, "-I", "-c", program, *words], timeout=20)
    assert done.stdout == b"\0".join(os.fsencode(word) for word in words)
    assert done.exit_code == 0


def test_streams_are_apart_and_whole(connect: Connect) -> None:
    done = connect().run("printf out; printf err >&2; printf '\\nmore'; exit 7", timeout=20)
    assert (done.exit_code, done.stdout, done.stderr) == (7, b"out\nmore", b"err")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_script_runs_in_bash(connect: Connect) -> None:
    assert connect().run('x=(1 2 3); echo "${x[2]}"', timeout=20).stdout == b"3\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_signal_is_128_and_its_number(connect: Connect, number: int) -> None:
    done = connect().run(["sh", "-c", f"kill -{int(number)} $$"], timeout=20)
    assert done.exit_code == 128 + number


def test_no_such_command(connect: Connect) -> None:
    done = connect().run(["no-such-command-at-all"], timeout=20)
    assert done.exit_code == 127
    assert b"no-such-command-at-all" in done.stderr


def test_stdin_larger_than_the_window_to_a_command_that_answers_at_the_end(
    connect: Connect,
) -> None:
    content = os.urandom(7_000_003)
    done = connect().run(["wc", "-c"], stdin=content, timeout=30)
    assert int(done.stdout) == len(content)


def test_stdin_and_stdout_larger_than_the_window_come_back_the_same(connect: Connect) -> None:
    content = os.urandom(9_000_001)
    assert connect().run(["cat"], stdin=content, timeout=30).stdout == content


def test_stdin_that_nobody_reads(connect: Connect) -> None:
    assert connect().run(["true"], stdin=bytes(8 << 20), timeout=20).exit_code == 0


def test_stdin_after_stdout_was_closed(connect: Connect, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    done = connect().run(f"exec >&-; cat > {kept}", stdin=bytes(5 << 20), timeout=20)
    assert done.exit_code == 0
    assert kept.stat().st_size == 5 << 20


def test_what_is_left_in_the_background_is_not_waited_for(connect: Connect, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    begun = time.monotonic()
    done = connect().run(f"sleep 60 & echo $! > {file}; echo done", timeout=20)
    assert done.stdout == b"done\n"
    assert time.monotonic() - begun < 10
    pid = pid_in(file)
    assert alive(pid)
    os.kill(pid, signal.SIGKILL)


def test_a_command_that_takes_too_long_is_killed_with_its_children(
    connect: Connect, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    with pytest.raises(RemoteError, match=r"did not end within 1 s and was killed") as caught:
        connect().run(f"sleep 61 & echo $! > {file}; wait", timeout=1)
    assert caught.value.machine == MACHINE
    assert until(lambda: not alive(pid_in(file)), 5)


def test_endless_output_is_stopped(connect: Connect) -> None:
    connection = connect(output_limit=1 << 20)
    with pytest.raises(RemoteError, match="wrote more than 1048576 bytes and was killed"):
        connection.run("echo $$ >&2; exec yes", timeout=30)
    with pytest.raises(RemoteError, match="wrote more than 1048576 bytes and was killed"):
        connection.run("exec yes >&2", timeout=30)
    assert connection.run(["echo", "well"], timeout=20).stdout == b"well\n"


def test_a_command_that_no_shell_takes_is_refused_here(connect: Connect) -> None:
    with pytest.raises(UsageError, match="longer than 120 KiB"):
        connect().run(["echo", "x" * 200_000], timeout=20)
    with pytest.raises(UsageError, match="NUL"):
        connect().run(["echo", "a\0b"], timeout=20)


def test_a_chatty_login_script_is_not_output(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    sshd.stop()
    chatty = tmp_path / "chatty"
    chatty.write_text('#!/bin/sh\necho "Welcome, you have mail"\nsh -c "$SSH_ORIGINAL_COMMAND"\n')
    chatty.chmod(0o755)
    sshd.config.append(f"ForceCommand {chatty}")
    sshd.start()
    assert connect().run(["echo", "mine"], timeout=20).stdout == b"mine\n"


def test_endless_login_script(sshd: Sshd, connect: Connect) -> None:
    sshd.stop()
    sshd.config.append("ForceCommand yes")
    sshd.start()
    with pytest.raises(RemoteError, match="login scripts print without an end"):
        connect().run(["true"], timeout=20)


def test_home_and_a_folder_of_our_own(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    assert connect().home == str(Path.home())
    place = tmp_path / "ours"
    place.mkdir()
    connection = connect(access=replace(sshd.access, folder=str(place)))
    assert connection.home == str(place)
    assert connection.run("pwd", timeout=20).stdout.decode().strip() == str(place)
    connection.write("a/b", b"c")
    assert (place / "a/b").read_bytes() == b"c"


def test_write_is_whole_with_its_mode(connect: Connect, tmp_path: Path) -> None:
    connection = connect()
    target = tmp_path / "new folder" / "it's"
    connection.write(str(target), b"\0\xff" * 1_500_000, mode=0o640)
    assert target.read_bytes() == b"\0\xff" * 1_500_000
    assert target.stat().st_mode & 0o777 == 0o640
    connection.write(str(target), b"")
    assert target.read_bytes() == b""
    assert [one.name for one in target.parent.iterdir()] == ["it's"]


def test_write_says_why_not(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="a folder is where a file should go"):
        connect().write(str(tmp_path), b"x")
    (tmp_path / "file").write_text("")
    with pytest.raises(RemoteError, match="was not written"):
        connect().write(str(tmp_path / "file" / "below"), b"x")


def test_a_file_and_a_tree_there_and_back(connect: Connect, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "big").write_bytes(os.urandom(3_000_000))
    (tree / "empty").write_bytes(b"")
    connection = connect()
    sent = connection.put(tree, str(tmp_path / "there"))
    assert (sent.files, sent.bytes) == (2, 3_000_000)
    fetched = connection.get(str(tmp_path / "there"), tmp_path / "back")
    assert fetched.files == 2
    assert (tmp_path / "back/sub/big").read_bytes() == (tree / "sub/big").read_bytes()


def test_talking_to_a_command(connect: Connect) -> None:
    program = "import sys\nfor line in sys.stdin: print(line.strip()[::-1], flush=True)"
    process = connect().open([sys.executable, "-I", "-c", program])
    lines = process.lines()
    process.send(b"abc\n")
    assert next(lines) == b"cba"
    process.send(b"12\n34")
    assert next(lines) == b"21"
    process.close_stdin()
    assert list(lines) == [b"43"]
    assert process.wait(10) == 0


def test_killing_a_command_ends_its_lines_and_its_children(
    connect: Connect, tmp_path: Path
) -> None:
    file = tmp_path / "pid"
    process = connect().open(["sh", "-c", f"sleep 62 & echo $! > {file}; echo up; wait"])
    lines = process.lines()
    assert next(lines) == b"up"
    pid = pid_in(file)
    rest: list[bytes] = []
    reading = threading.Thread(target=lambda: rest.extend(lines), daemon=True)
    reading.start()
    process.kill()
    reading.join(10)
    assert not reading.is_alive()
    assert until(lambda: not alive(pid), 5)


def test_waiting_has_an_end(connect: Connect) -> None:
    process = connect().open(["sleep", "63"])
    with pytest.raises(RemoteError, match=r"did not end within 0\.2 s"):
        process.wait(0.2)
    process.kill()


def test_a_line_without_an_end(connect: Connect) -> None:
    process = connect().open(["sh", "-c", "cat /dev/zero"])
    with pytest.raises(RemoteError, match="a line of more than 16 MiB"):
        next(process.lines())


def test_a_byte_channel_streams_both_ways_at_once(connect: Connect) -> None:
    content = os.urandom(30_000_000)
    channel = connect().channels().open(["cat"], own_link=True)

    def feed() -> None:
        channel.write(content)
        channel.close_write()

    feeding = threading.Thread(target=feed)
    feeding.start()
    back = bytearray()
    while chunk := channel.read(1 << 18):
        back += chunk
    feeding.join(20)
    assert bytes(back) == content
    assert channel.exit_code(10) == 0
    channel.close()
    channel.close()


def test_a_byte_channel_tells_stderr_and_its_deadline(connect: Connect) -> None:
    channel = connect().channels().open(["sh", "-c", "echo trouble >&2; sleep 64"])
    assert until(lambda: channel.stderr_tail() == b"trouble\n", 10)
    with pytest.raises(RemoteError, match="nothing came for 3 s; it said: trouble"):
        channel.read(1)
    channel.close()


def test_a_peer_that_stops_reading_is_given_up(connect: Connect) -> None:
    channel = connect().channels().open(["sleep", "65"])
    with pytest.raises(RemoteError, match="it took nothing for 3 s"):
        channel.write(bytes(64 << 20))
    channel.close()


def test_many_commands_at_once_more_than_the_server_takes_on_one_link(connect: Connect) -> None:
    connection = connect()

    def echo(number: int) -> bytes:
        return connection.run(f"sleep 0.5; echo {number}", timeout=60).stdout

    with ThreadPoolExecutor(14) as pool:  # MaxSessions is 10
        assert list(pool.map(echo, range(14))) == [b"%d\n" % n for n in range(14)]


def test_a_command_on_an_open_connection_takes_one_round_trip(
    relay: Relay, connect: Connect
) -> None:
    connection = connect(relay)

    def seconds() -> float:
        begun = time.monotonic()
        assert connection.run(["true"], timeout=20).exit_code == 0
        return time.monotonic() - begun

    connection.run(["true"], timeout=20)
    near = statistics.median(seconds() for _ in range(5))  # what the machine itself needs
    relay.round_trip = 0.4
    far = statistics.median(seconds() for _ in range(3))
    assert far - near <= 1.3 * relay.round_trip
    assert connection.round_trip < 0.2  # measured when it was near


def test_the_round_trip_is_measured(relay: Relay, connect: Connect) -> None:
    relay.round_trip = 0.2
    connection = connect(relay)
    for _ in range(3):
        connection.run(["true"], timeout=20)
    assert until(lambda: 0.19 < connection.round_trip < 0.35, 5)


def test_each_step_of_getting_in_has_its_time(connect: Connect) -> None:
    connection = connect()
    connection.run(["true"], timeout=20)
    assert set(connection.steps) == {"tcp", "banner", "login"}
    assert all(0 <= seconds < 20 for seconds in connection.steps.values())


def test_sftp_is_there_for_machines_without_python(connect: Connect, tmp_path: Path) -> None:
    session = connect().sftp()
    with session.open(str(tmp_path / "file"), "wb") as file:
        file.write(b"content" * 100_000)
    assert (tmp_path / "file").read_bytes() == b"content" * 100_000
    session.close()


def test_the_systems_ssh_gets_in_with_the_pinned_key(connect: Connect) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh binary: install openssh-client")
    argv = connect().ssh_argv(["echo", "a  b"])
    done = subprocess.run(argv, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.stdout == b"a  b\n", done.stderr


def test_interactive_gives_the_exit_code(connect: Connect) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh binary: install openssh-client")
    assert connect().interactive(["sh", "-c", "exit 9"]) == 9


def test_interactive_hands_over_the_terminal(sshd: Sshd, gpuctl_home: Path) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh binary: install openssh-client")
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path\n"
        "from gpuctl.remote.ssh import SshConnection\n"
        "from providers.base import SshAccess\n"
        "host, port, user, home = sys.argv[1:]\n"
        "way = SshConnection(SshAccess(host, int(port), user), home=Path(home), machine='m')\n"
        "sys.exit(way.interactive(['sh', '-c', 'test -t 0 && read word && exit $word']))"
    )
    ours, theirs = os.openpty()
    access = sshd.access
    arguments = [access.host, str(access.port), access.user, str(gpuctl_home)]
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", program, *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=Path(__file__).parents[2],
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, b"23\n")
    try:
        assert process.wait(30) == 23
    finally:
        process.kill()
        os.close(ours)


def test_paramiko_is_not_loaded_before_it_is_needed() -> None:
    program = (
        "import sys; sys.path.insert(0, '.')\n"
        "import gpuctl.remote.opening, gpuctl.remote.keys, gpuctl.remote.known_hosts\n"
        "print('paramiko' in sys.modules, 'cryptography' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program],
        capture_output=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert done.stdout == b"False False\n", done.stderr


def test_closing_is_final(connect: Connect) -> None:
    connection: SshConnection = connect()
    connection.run(["true"], timeout=20)
    connection.close()
    with pytest.raises(RemoteError, match="was closed"):
        connection.run(["true"], timeout=20)
