"""What commands begin with: folder, environment and PATH; on a shell, and over a real sshd."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import strategies as st

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
def test_the_folder_is_entered(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    setup = setup_script(replace(PLAIN, folder=str(folder)))
    for command in (["pwd"], "pwd"):
        assert through(command_line(command, setup)).stdout.endswith(f"\n{folder}\n".encode())


def test_without_its_folder_nothing_is_started(tmp_path: Path) -> None:
    setup = setup_script(replace(PLAIN, folder=str(tmp_path / "gone")))
    for command in (["echo", "started"], "echo started"):
        done = through(command_line(command, setup))
        assert done.returncode == 1
        assert b"started" not in done.stdout
    assert not (tmp_path / "gone").exists()


def test_path_comes_before_what_was_there(tool: Path) -> None:
    line = command_line("mine; echo $PATH", setup_script(replace(PLAIN, path=(str(tool), "/y"))))
    _, said, path = through(line).stdout.decode().splitlines()
    assert said == "mine"
    assert path == f"{tool}:/y:{os.environ['PATH']}"


def test_a_shell_to_type_into_gets_it_after_the_login_scripts(tmp_path: Path, tool: Path) -> None:
    (tmp_path / "ours").mkdir()
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
    folder.mkdir()
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
    folder = tmp_path / "our folder"
    folder.mkdir()
    connection = connect(access=replace(sshd.access, folder=str(folder)))
    connection.put(tmp_path / "file", "sub/name")
    assert (folder / "sub/name").read_bytes() == b"content"
    connection.get("sub/name", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"content"


def test_a_folder_that_vanished_is_not_made_again(
    sshd: Sshd, connect: Connect, tmp_path: Path
) -> None:
    folder = tmp_path / "ours"
    folder.mkdir()
    connection = connect(access=replace(sshd.access, folder=str(folder)))
    assert connection.run(["pwd"], timeout=20).stdout == f"{folder}\n".encode()
    folder.rmdir()
    assert connection.run(["echo", "started"], timeout=20).stdout == b""
    assert list(connection.open(["echo", "started"]).lines()) == []
    assert not folder.exists()


def test_another_way_in_has_the_same_folder(sshd: Sshd, connect: Connect, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    dead = replace(sshd.access, port=1, folder=str(tmp_path / "ours"), env={"X": "1"})
    connection = connect(access=replace(dead, alternatives=(sshd.access,)))
    done = connection.run(["sh", "-c", "pwd; echo $X"], timeout=20)
    assert done.stdout.decode() == f"{tmp_path}/ours\n1\n"


def test_the_environment_reaches_python_too(sshd: Sshd, connect: Connect) -> None:
    access = replace(sshd.access, env={"X": NASTY})
    program = "import os, sys; sys.stdout.write(os.environ['X'])"
    done = connect(access=access).run([sys.executable, "-I", "-c", program], timeout=20)
    assert done.stdout.decode() == NASTY
