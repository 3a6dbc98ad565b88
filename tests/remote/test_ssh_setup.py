"""What commands begin with: folder, environment and PATH; on a shell, and over a real sshd."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuctl.errors import RemoteError, UsageError
from gpuctl.remote.ssh_command import command_line
from gpuctl.remote.ssh_setup import setup_script, shell_line
from providers.base import SshAccess
from tests.remote.conftest import Connect
from tests.remote.sshd import Sshd

PLAIN = SshAccess("h", 22, "me")
NASTY = 'it\'s "$HOME" `id` \\ \n;|&*ü'
WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


def through(line: bytes, shell: str = "sh") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([shell, "-c", line], capture_output=True, timeout=30)


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """A folder with a program of its own."""
    folder = tmp_path / "tools with 'space"
    folder.mkdir()
    program = folder / "mine"
    program.write_text("#!/bin/sh\necho mine\n")
    program.chmod(0o755)
    return folder


@pytest.mark.parametrize("name", ["plain", "with space", "it's", "-dash", "$HOME"])
def test_the_folder_is_made_for_us_alone_and_entered(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "new" / name
    setup = setup_script(replace(PLAIN, folder=str(folder)))
    for command in (["pwd"], "pwd"):
        assert through(command_line(command, setup)).stdout.endswith(f"\n{folder}\n".encode())
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    assert through(command_line("true", setup_script(replace(PLAIN, folder=str(tmp_path)))))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_folder_that_cannot_be_made_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    setup = setup_script(replace(PLAIN, folder=str(tmp_path / "file" / "below")))
    for command in (["echo", "started"], "echo started"):
        done = through(command_line(command, setup))
        assert done.returncode == 1
        assert b"started" not in done.stdout
        assert b"Not a directory" in done.stderr


@settings(deadline=None, max_examples=30)
@given(WORDS, st.sampled_from(["sh", "bash"]))
def test_every_value_arrives(value: str, shell: str) -> None:
    if shutil.which(shell) is None:
        return
    line = command_line(["printenv", "X"], setup_script(replace(PLAIN, env={"X": value})))
    done = through(line, shell)
    assert done.stdout.split(b"\n", 1)[1] == value.encode() + b"\n"


@pytest.mark.parametrize("name", ["", "1A", "A B", "A;id", "A=B", "Ä", "$(id)", "A\n"])
def test_names_that_no_shell_takes_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name for an environment variable"):
        setup_script(replace(PLAIN, env={name: "x"}))


@pytest.mark.parametrize("folder", ["", "/a:/b"])
def test_folders_that_no_path_takes_are_refused(folder: str) -> None:
    with pytest.raises(UsageError, match="empty or has a colon"):
        setup_script(replace(PLAIN, path=("/usr/bin", folder)))


def test_path_comes_before_what_was_there(tool: Path) -> None:
    line = command_line("mine; echo $PATH", setup_script(replace(PLAIN, path=(str(tool), "/y"))))
    _, said, path = through(line).stdout.decode().splitlines()
    assert said == "mine"
    assert path == f"{tool}:/y:{os.environ['PATH']}"


def test_a_shell_to_type_into_gets_it_after_the_login_scripts(tmp_path: Path, tool: Path) -> None:
    (tmp_path / ".profile").write_text("PATH=/usr/bin:/bin; export LOGIN=yes; cd /")
    access = replace(PLAIN, folder=str(tmp_path / "ours"), env={"X": NASTY}, path=(str(tool),))
    line = shell_line([], setup_script(access))
    for shell in ("sh", "bash"):
        if (where := shutil.which(shell)) is None:
            continue
        done = subprocess.run(
            [where, "-c", line],
            input=b'pwd; echo "$LOGIN"; mine; printf %s "$X"\n',
            capture_output=True,
            timeout=30,
            env={"HOME": str(tmp_path), "SHELL": where, "PATH": os.environ["PATH"]},
        )
        assert done.stdout.decode() == f"{tmp_path}/ours\nyes\nmine\n{NASTY}", done.stderr


def test_nothing_to_set_up_is_a_plain_login() -> None:
    assert setup_script(PLAIN) == ""
    assert shell_line([], "") == ""


# ---------------------------------------------------------------------- over a real sshd


def test_every_way_to_start_a_command_has_it(
    sshd: Sshd, connect: Connect, tmp_path: Path, tool: Path
) -> None:
    folder = tmp_path / "ours"
    access = replace(sshd.access, folder=str(folder), env={"X": NASTY}, path=(str(tool),))
    connection = connect(access=access)
    script = 'pwd; mine; printf "%s" "$X"'
    expected = f"{folder}\nmine\n{NASTY}".encode()
    assert connection.run(script, timeout=20).stdout == expected
    assert connection.run(["sh", "-c", script], timeout=20).stdout == expected
    assert b"\n".join(connection.open(["sh", "-c", script]).lines()) == expected
    for own_link in (False, True):
        channel = connection.channels().open(["sh", "-c", script], own_link=own_link)
        assert b"".join(iter(lambda one=channel: one.read(1 << 16), b"")) == expected
        channel.close()
    for argv in (connection.ssh_argv(["sh", "-c", script]), connection.ssh_argv()):
        done = subprocess.run(argv, input=script.encode() + b"\n", capture_output=True, timeout=30)
        assert done.stdout == expected, done.stderr
    assert connection.home == str(folder)


def test_a_transfer_lands_in_the_folder(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    folder = tmp_path / "not" / "there yet"
    connection = connect(access=replace(sshd.access, folder=str(folder)))
    connection.put(tmp_path / "file", "sub/name")
    assert (folder / "sub/name").read_bytes() == b"content"
    connection.get("sub/name", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"content"


def test_a_folder_that_vanished_is_not_made_again_behind_somebodys_back(
    sshd: Sshd, connect: Connect, tmp_path: Path
) -> None:
    folder = tmp_path / "ours"
    connection = connect(access=replace(sshd.access, folder=str(folder)))
    assert connection.home == str(folder)
    folder.rmdir()
    assert connection.run(["echo", "started"], timeout=20).stdout == b""
    assert list(connection.open(["echo", "started"]).lines()) == []
    assert not folder.exists()


def test_a_folder_that_cannot_be_is_told(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    connection = connect(access=replace(sshd.access, folder=str(tmp_path / "file" / "x")))
    with pytest.raises(RemoteError, match=r"no folder for us: .*Not a directory"):
        _ = connection.home


def test_another_way_in_has_the_same_folder(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    dead = replace(sshd.access, port=1, folder=str(tmp_path / "ours"), env={"X": "1"})
    connection = connect(access=replace(dead, alternatives=(sshd.access,)))
    done = connection.run(["sh", "-c", "pwd; echo $X"], timeout=20)
    assert done.stdout.decode() == f"{tmp_path}/ours\n1\n"


def test_the_environment_reaches_python_too(sshd: Sshd, connect: Connect) -> None:
    access = replace(sshd.access, env={"X": NASTY})
    program = "import os, sys; sys.stdout.write(os.environ['X'])"
    done = connect(access=access).run([sys.executable, "-I", "-c", program], timeout=20)
    assert done.stdout.decode() == NASTY
