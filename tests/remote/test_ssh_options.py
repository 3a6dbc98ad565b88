"""The options for the system's ssh, as that ssh itself reads them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gpuctl.remote.known_hosts import KnownHost
from gpuctl.remote.ssh_options import ssh_argv
from providers.base import SshAccess

needs_ssh = pytest.mark.skipif(shutil.which("ssh") is None, reason="no ssh: openssh-client")


def as_ssh_reads_it(argv: list[str]) -> dict[str, str]:
    done = subprocess.run(["ssh", "-G", *argv[1:]], capture_output=True, timeout=30, check=True)
    return dict(line.split(" ", 1) for line in done.stdout.decode().splitlines() if " " in line)


@needs_ssh
@pytest.mark.parametrize("name", ["plain", "with space", "50%"])
def test_ssh_reads_what_was_meant(tmp_path: Path, name: str) -> None:
    home = tmp_path / name
    known = KnownHost(home, "gpuctl-a-abcdef-01234567")
    argv = ssh_argv(SshAccess("10.0.0.1", 2222, "me"), home / "ssh/id_ed25519", known)
    read = as_ssh_reads_it(argv)
    assert read["hostname"] == "10.0.0.1"
    assert (read["port"], read["user"]) == ("2222", "me")
    assert read["stricthostkeychecking"] == "true"
    assert read["hostkeyalias"] == "gpuctl-a-abcdef-01234567"
    assert read["identitiesonly"] == "yes"
    for key in ("identityfile", "userknownhostsfile"):
        assert str(home) in read[key].replace("%%", "%").replace('"', "")


@needs_ssh
def test_a_host_that_looks_like_an_option_is_a_host(tmp_path: Path) -> None:
    argv = ssh_argv(SshAccess("-oProxyCommand=x", 22, "me"), None, KnownHost(tmp_path, "m"))
    assert argv[-2:] == ["--", "-oProxyCommand=x"]
    done = subprocess.run(argv, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)
    assert done.returncode == 255


def test_commands_are_quoted_for_the_shell_there(tmp_path: Path) -> None:
    known = KnownHost(tmp_path, "m")
    argv = ssh_argv(SshAccess("h", 22, "me"), None, known, ["a b", "$c"], terminal=True)
    assert argv[-1] == "exec 'a b' '$c'"
    assert "-tt" in argv
