"""The options for the system's ssh, as that ssh itself reads them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuctl.errors import UsageError
from gpuctl.remote.known_hosts import KnownHost
from gpuctl.remote.ssh_options import host_block, ssh_argv
from gpuctl.remote.ssh_setup import shell_line
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
    argv = ssh_argv(
        SshAccess("h", 22, "me"), None, known, shell_line(["a b", "$c"], ""), terminal=True
    )
    assert argv[-1] == "exec 'a b' '$c'"
    assert "-tt" in argv


# ---------------------------------------------------------------------- Host blocks


def test_a_block_is_read_as_it_was_meant(tmp_path: Path) -> None:
    if shutil.which("ssh") is None:
        pytest.skip("no ssh: openssh-client")
    access = SshAccess("fe80::1%eth0", 2222, "me", proxy=("nc", "50%", "it's"))
    key, known = tmp_path / "a key", KnownHost(tmp_path / "ho me", "m")
    file = tmp_path / "config"
    file.write_text(host_block(["long-name", "short"], access, key, known))
    for name in ("long-name", "short"):
        read = as_ssh_reads_it(["ssh", "-F", str(file), name])
        assert read["hostname"] == "fe80::1%eth0"
        assert (read["port"], read["user"]) == ("2222", "me")
        assert read["proxycommand"].replace("%%", "%") == "nc 50% 'it'\"'\"'s'"
        assert read["forwardagent"] == "no"
        assert "remotecommand" not in read
    assert "proxycommand" not in as_ssh_reads_it(["ssh", "-F", str(file), "other"])


TEXT = st.text(max_size=30) | st.sampled_from(
    ["a\nProxyCommand x", "a\rb", 'a"b', "-oX", "a\\", "#"]
)


@settings(deadline=None, max_examples=300)
@given(TEXT, TEXT, st.lists(TEXT, max_size=3), TEXT)
def test_no_text_makes_a_line_of_its_own(
    host: str, user: str, proxy: list[str], identity: str
) -> None:
    access = SshAccess(host, 22, user, proxy=tuple(proxy))
    known = KnownHost(Path("/home/of/mine"), "m")
    try:
        block = host_block(["m"], access, Path(f"/keys/{identity}"), known)
    except UsageError:
        return
    lines = block.splitlines()
    words = [text.split()[0] for text in lines]
    assert words[:4] == ["Host", "HostName", "Port", "User"]
    assert len(words) == len(set(words)) == (19 if proxy else 18)
    assert all(text.startswith("    ") for text in lines[1:])
