"""`gpuctl ssh`, and the system's ssh, scp and rsync, against a real sshd."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuctl.cli.opening import opened
from gpuctl.fleet import context
from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.keeper import this_process
from gpuctl.fleet.ready import make_ready
from providers import registry
from providers.base import SystemClock
from tests.cli.conftest import Gpuctl
from tests.clouds.ssh_cloud import SshCloud
from tests.remote.proxy import JOIN
from tests.remote.sshd import SSHD, Sshd, free_port

pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None, reason="no sshd or ssh: install openssh"
)
NASTY = "it's $HOME"
Rent = Callable[..., str]


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    folder = tmp_path / "sshd"
    folder.mkdir()
    server = Sshd(folder)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def rent(sshd: Sshd, home: Path, monkeypatch: pytest.MonkeyPatch) -> Rent:
    """Rents a machine that the sshd answers for, and returns its name."""
    ways: dict[str, Any] = {"way": lambda access: access}
    cloud = SshCloud(SystemClock(), sshd, way=lambda a: ways["way"](a), settle_seconds=0.05)

    def create(name: str, *args: Any, **more: Any) -> Any:
        return cloud if name == "memory" else registry.create_provider(name, *args, **more)

    monkeypatch.setattr(context, "create_provider", create)

    def make(middle: str = "demo", **changes: Any) -> str:
        ways["way"] = lambda access: replace(access, **changes)
        need = Need(middle=middle, lease_seconds=600, purpose="provision")
        with opened() as fleet:
            keeper = this_process("provision")
            row, machine = acquire(fleet, cloud.offer(), need, keeper, guard=lambda: None)
            make_ready(fleet, row, machine, answer_seconds=10).connection.close()
        return row.name

    return make


@pytest.fixture
def web(tmp_path: Path) -> Iterator[int]:
    """The port of a web server that says hello."""

    class Hello(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello\n")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hello) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def fetch(port: int) -> list[str]:
    """A command that asks a web server."""
    program = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=10).read())"
    return [sys.executable, "-I", "-c", program, f"http://127.0.0.1:{port}/"]


def plain(argv: list[Any]) -> subprocess.CompletedProcess[bytes]:
    """Run a program of the system as a person would, without a terminal."""
    words = [str(word) for word in argv]
    return subprocess.run(words, capture_output=True, timeout=30, stdin=subprocess.DEVNULL)


@pytest.fixture
def config(gpuctl: Gpuctl, rent: Rent, tmp_path: Path) -> tuple[str, Path]:
    """A machine, and a file with what `--config` printed for it."""
    name = rent()
    file = tmp_path / "config"
    file.write_text(gpuctl("ssh", "demo", "--config").out)
    return name, file


# ---------------------------------------------------------------------- gpuctl ssh


def test_a_command_with_its_exit_code_and_surroundings(
    gpuctl: Gpuctl, rent: Rent, tmp_path: Path
) -> None:
    (tmp_path / "ours").mkdir()
    rent(folder=str(tmp_path / "ours"), env={"X": NASTY}, path=("/first",))
    script = 'pwd; echo "$X"; echo "$PATH" | cut -d: -f1; exit 9'
    done = gpuctl("ssh", "demo", "--", "sh", "-c", script)
    assert (done.code, done.out.splitlines()) == (9, [f"{tmp_path}/ours", NASTY, "/first"])


def test_a_line_in_one_argument_goes_through_a_shell(gpuctl: Gpuctl, rent: Rent) -> None:
    rent()
    done = gpuctl("ssh", "demo", "--", "echo one && exit 3")
    assert (done.code, done.out.strip()) == (3, "one")


def test_a_port_here_leads_there(gpuctl: Gpuctl, rent: Rent, web: int) -> None:
    rent()
    port = free_port()
    # The machine is this computer, so the command there can knock at our end of the tunnel.
    done = gpuctl("ssh", "demo", "-L", f"{port}:localhost:{web}", "--", *fetch(port))
    assert (done.code, done.out) == (0, "b'hello\\n'\n")
    assert plain(fetch(port)).returncode != 0  # it went with the session


def test_a_port_there_leads_here(gpuctl: Gpuctl, rent: Rent, web: int) -> None:
    rent()
    port = free_port()
    done = gpuctl("ssh", "demo", "-R", f"{port}:localhost:{web}", "--", *fetch(port))
    assert (done.code, done.out) == (0, "b'hello\\n'\n")


def test_a_port_that_is_taken_is_an_error(gpuctl: Gpuctl, rent: Rent, web: int) -> None:
    rent()
    done = gpuctl("ssh", "demo", "-L", web, "--", "echo", "started")
    assert (done.code, done.out) == (255, "")
    assert "in use" in done.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["demo", "-L", "x"], "-L 'x' is not understood"),
        (["demo", "-R", "0"], "ports are 1 to 65535"),
        (["demo", "--config", "-L", "6006"], "--config opens nothing"),
        (["demo", "--config", "--", "true"], "--config opens nothing"),
        (["demo", "--config", "--write"], "The file has all machines"),
        (["demo", "--write"], "--write goes with --config"),
        (["demo", "--json", "--", "true"], "--json opens nothing"),
        ([], "Missing argument 'MACHINE'"),
        (["nobody"], "No machine is called 'nobody'"),
    ],
)
def test_wrong_usage_is_2(gpuctl: Gpuctl, argv: list[str], said: str) -> None:
    done = gpuctl("ssh", *argv)
    assert done.code == 2
    assert said in done.err


def test_a_machine_on_this_computer_has_its_ports_here(gpuctl: Gpuctl, rent: Rent) -> None:
    name = rent()
    with opened() as fleet:
        access = {"kind": "local", "root": "/m"}
        fleet.ledger.record("ready", machine=name, steps={}, access=access, gpus=0)
    done = gpuctl("ssh", "demo", "-L", "6006")
    assert done.code == 2
    assert "its ports are this computer's own already" in done.err
    assert "not reached over SSH" in gpuctl("ssh", "demo", "--config").err
    assert "Host " not in gpuctl("ssh", "--config").out


def test_json_tells_how_to_get_in(gpuctl: Gpuctl, rent: Rent, sshd: Sshd, home: Path) -> None:
    rent()
    shape = gpuctl("ssh", "demo", "--json").json["machine"]["ssh"]
    assert (shape["host"], shape["port"]) == ("127.0.0.1", sshd.port)
    assert shape["key_file"] == str(home / "ssh/id_ed25519")


def test_the_way_in_that_worked_is_the_one_that_is_told(
    gpuctl: Gpuctl, rent: Rent, sshd: Sshd
) -> None:
    rent(port=free_port(), alternatives=(sshd.access,))
    assert gpuctl("ssh", "demo", "--json").json["machine"]["ssh"]["port"] == sshd.port
    assert f"Port {sshd.port}\n" in gpuctl("ssh", "demo", "--config").out


# ---------------------------------------------------------------------- the system's own tools


def test_ssh_gets_in_by_both_names(config: tuple[str, Path]) -> None:
    for name in (config[0], "demo"):
        done = plain(["ssh", "-F", config[1], name, "echo in; exit 7"])
        assert (done.returncode, done.stdout) == (7, b"in\n"), done.stderr


def test_scp_there_and_back(config: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    there = f"{config[0]}:{tmp_path}"
    for argv in (
        ["scp", "-F", config[1], tmp_path / "file", f"{there}/copy"],
        ["scp", "-F", config[1], f"{there}/copy", tmp_path / "back"],
    ):
        done = plain(argv)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "back").read_bytes() == b"content"


@pytest.mark.skipif(shutil.which("rsync") is None, reason="no rsync")
def test_rsync(config: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_bytes(b"content")
    remote_shell = f"ssh -F {config[1]}"
    done = plain(["rsync", "-a", "-e", remote_shell, f"{tmp_path}/tree", f"demo:{tmp_path}/there"])
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there/tree/sub/file").read_bytes() == b"content"


def test_ssh_through_a_proxy(gpuctl: Gpuctl, rent: Rent, sshd: Sshd, tmp_path: Path) -> None:
    file = tmp_path / "50% 'join.py"
    file.write_text(JOIN)
    rent(
        host="nowhere.invalid",
        port=1,
        proxy=(sys.executable, "-I", str(file), str(sshd.port), os.devnull, ""),
    )
    (tmp_path / "config").write_text(gpuctl("ssh", "demo", "--config").out)
    done = plain(["ssh", "-F", tmp_path / "config", "demo", "echo in"])
    assert done.stdout == b"in\n", done.stderr


def test_a_changed_host_key_is_refused_by_ssh_too(config: tuple[str, Path], sshd: Sshd) -> None:
    sshd.stop()
    sshd.new_host_key()
    sshd.start()
    done = plain(["ssh", "-F", config[1], "demo", "true"])
    assert done.returncode == 255
    assert b"HOST IDENTIFICATION HAS CHANGED" in done.stderr
    assert "Accepted publickey" not in sshd.log.split("Server listening")[-1]


def test_a_machine_that_was_never_reached_is_not_offered(
    gpuctl: Gpuctl, rent: Rent, home: Path
) -> None:
    name = rent()
    (home / "known_hosts" / name).unlink()
    done = gpuctl("ssh", "demo", "--config")
    assert done.code == 2
    assert "its host key is not known" in done.err
    assert "Host " not in gpuctl("ssh", "--config").out


# ---------------------------------------------------------------------- the file


def test_the_file_follows_the_machines(
    gpuctl: Gpuctl, rent: Rent, home: Path, tmp_path: Path
) -> None:
    first = rent("first")
    done = gpuctl("ssh", "--config", "--write")
    file = home / "ssh_config"
    assert done.code == 0
    assert f'Include "{file}"' in done.out
    assert file.stat().st_mode & 0o777 == 0o600
    assert f"Host {first} first\n" in file.read_text()

    second = rent("second")
    assert f"Host {second} second\n" in file.read_text()
    gpuctl("terminate", "first", "--yes")
    assert first not in file.read_text()

    # As a person includes it, in a configuration of their own.
    theirs = tmp_path / "theirs"
    include = done.out.splitlines()[-1].strip()
    theirs.write_text(f"{include}\n\nHost *\n    ForwardAgent yes\n    User nobody\n")
    assert plain(["ssh", "-F", theirs, "second", "true"]).returncode == 0
    read = plain(["ssh", "-G", "-F", theirs, "second"]).stdout.decode()
    assert "\nforwardagent no\n" in read
    assert not [one for one in home.iterdir() if one.suffix == ".part"]


def test_nothing_is_written_before_somebody_asks(gpuctl: Gpuctl, rent: Rent, home: Path) -> None:
    rent()
    gpuctl("ssh", "--config")
    gpuctl("terminate", "demo", "--yes")
    assert not (home / "ssh_config").exists()


def test_machines_of_the_same_name_are_called_in_full(gpuctl: Gpuctl, rent: Rent) -> None:
    names = {rent("twin"), rent("twin")}
    hosts = gpuctl("ssh", "--config", "--json").json["hosts"]
    assert {one["machine"] for one in hosts} == names
    assert {one["alias"] for one in hosts} == {None}
    out = gpuctl("ssh", "--config").out
    assert {text for text in out.splitlines() if text.startswith("Host ")} == {
        f"Host {name}" for name in names
    }


def test_what_a_provider_says_stays_in_its_line(gpuctl: Gpuctl, rent: Rent) -> None:
    good, evil = rent("good"), rent("evil")
    with opened() as fleet:
        access = {
            "kind": "ssh",
            "host": "h\n    ProxyCommand touch /tmp/x",
            "port": 22,
            "user": "u",
        }
        fleet.ledger.record("ready", machine=evil, steps={}, access=access, gpus=0)
    done = gpuctl("ssh", "--config")
    assert done.code == 0
    assert "ProxyCommand" not in done.out
    assert f"Host {good} good" in done.out
    assert f"{evil} is left out: ssh cannot be given" in done.err
    assert gpuctl("ssh", "evil", "--config").code == 2


def test_json_of_the_configuration(gpuctl: Gpuctl, rent: Rent, home: Path) -> None:
    name = rent()
    shown = gpuctl("ssh", "--config", "--json").json
    assert shown["hosts"] == [{"machine": name, "alias": "demo"}]
    assert shown["config"] == gpuctl("ssh", "--config").out
    assert (shown["file"], shown["include"]) == (None, None)
    written = gpuctl("ssh", "--config", "--write", "--json").json
    assert written["file"] == str(home / "ssh_config")
    assert written["include"] == f'Include "{home}/ssh_config"'
    assert Path(written["file"]).read_text() == written["config"]


def test_a_file_that_cannot_be_written_does_not_keep_a_machine_alive(
    gpuctl: Gpuctl, rent: Rent, home: Path
) -> None:
    name = rent()
    (home / "ssh_config").mkdir()
    assert gpuctl("ssh", "--config", "--write").code == 2
    done = gpuctl("terminate", "demo", "--yes", "--json")
    assert done.json["receipts"][0]["name"] == name
    assert "not up to date" in done.err
    assert not list((home / "ssh_config").iterdir())
