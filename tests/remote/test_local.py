"""Commands and transfers on a machine that is a folder."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuctl.errors import RemoteError, UsageError
from gpuctl.remote.connection import Connection
from gpuctl.remote.local import LocalConnection
from gpuctl.remote.opening import connect
from gpuctl.remote.selection import everything
from providers.base import LocalAccess
from providers.processes import carriers
from tests.waiting import until

NAME = "gpuctl-test-000000-00000000"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "machine" / "root").mkdir(parents=True)
    return tmp_path / "machine" / "root"


@pytest.fixture
def access(root: Path) -> LocalAccess:
    env = {"PATH": os.environ["PATH"], "HOME": str(root), "GPUCTL_MACHINE": NAME, "MARK": str(root)}
    return LocalAccess(str(root), (), env)


@pytest.fixture
def machine(access: LocalAccess) -> Iterator[LocalConnection]:
    yield LocalConnection(access)
    for pid in carriers({"MARK": access.root}):
        os.kill(pid, signal.SIGKILL)


def living(root: Path) -> set[int]:
    return carriers({"MARK": str(root)})


# ------------------------------------------------------------------------ commands


def test_it_is_a_connection(access: LocalAccess) -> None:
    connection: Connection = connect(access)
    assert connection.home == access.root
    assert connection.run("pwd", timeout=10).stdout.decode().strip() == access.root


def test_a_command_sees_the_machines_environment_and_nothing_else(
    machine: LocalConnection, access: LocalAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    seen = machine.run(["env"], timeout=10).stdout.decode().splitlines()
    assert sorted(seen) == sorted(f"{key}={value}" for key, value in access.env.items())


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill -TERM $$", 143),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["true"], 0),
    ],
)
def test_exit_codes(machine: LocalConnection, command: str | list[str], code: int) -> None:
    assert machine.run(command, timeout=10).exit_code == code


def test_arguments_reach_the_command_as_they_are(machine: LocalConnection) -> None:
    odd = ["a b", "$HOME", "*", "", "new\nline", "é"]
    said = machine.run(
        [sys.executable, "-c", "import sys; print(sys.argv[1:])", *odd], timeout=20
    ).stdout
    assert said.decode().strip() == str(odd)


def test_large_input_and_output_do_not_block_each_other(machine: LocalConnection) -> None:
    data = os.urandom(8 << 20)
    done = machine.run(["cat"], stdin=data, timeout=30)
    assert done.stdout == data


def test_a_command_that_does_not_read_its_input_still_ends(machine: LocalConnection) -> None:
    assert machine.run(["true"], stdin=b"x" * (1 << 20), timeout=10).exit_code == 0


def test_a_timeout_kills_the_whole_tree(machine: LocalConnection, root: Path) -> None:
    began = time.monotonic()
    with pytest.raises(RemoteError, match=r"did not end within 0\.5 s") as caught:
        machine.run("setsid sleep 300 & sleep 300", timeout=0.5)
    assert time.monotonic() - began < 5
    assert caught.value.machine == NAME
    assert until(lambda: not living(root), 5)


def test_a_timeout_counts_for_a_command_that_closed_its_output(machine: LocalConnection) -> None:
    with pytest.raises(RemoteError, match="did not end"):
        machine.run("exec >&- 2>&-; sleep 300", timeout=0.5)


def test_what_was_left_in_the_background_is_not_waited_for(
    machine: LocalConnection, root: Path
) -> None:
    began = time.monotonic()
    done = machine.run("(sleep 300 &) ; echo started", timeout=30)
    assert (done.exit_code, done.stdout) == (0, b"started\n")
    assert time.monotonic() - began < 5
    assert living(root), "it was detached, so it lives on"


def test_too_much_output_is_an_error_not_memory(access: LocalAccess, root: Path) -> None:
    small = LocalConnection(access, output_limit=100_000)
    with pytest.raises(RemoteError, match="wrote more than 100000 bytes"):
        small.run(["yes"], timeout=30)
    assert until(lambda: not living(root), 5)


def test_a_machine_that_is_gone_says_so(machine: LocalConnection, root: Path) -> None:
    root.rmdir()
    for attempt in (
        lambda: machine.run("true", timeout=5),
        lambda: machine.open(["true"]),
        lambda: machine.put(Path(__file__), "x"),
        lambda: machine.get("x", root.parent / "x"),
        lambda: machine.write("x", b""),
        lambda: machine.interactive(["true"]),
    ):
        with pytest.raises(RemoteError, match="The machine is gone"):
            attempt()


def test_a_machine_that_goes_away_under_a_command_says_so(
    machine: LocalConnection, root: Path
) -> None:
    with pytest.raises(RemoteError, match="The machine is gone"):
        machine.run(f"rmdir {root}; kill -9 $$", timeout=10)


def test_interactive_returns_the_commands_code(machine: LocalConnection) -> None:
    assert machine.interactive(["sh", "-c", "exit 5"]) == 5


def test_no_access_is_told() -> None:
    with pytest.raises(RemoteError, match="does not say how to reach"):
        connect(None, machine=NAME)


# ------------------------------------------------------------------------ talking


def test_lines_come_as_they_are_written(machine: LocalConnection) -> None:
    process = machine.open(["sh", "-c", "read a; echo got $a; read b; printf 'last %s' $b"])
    lines = process.lines()
    process.send(b"one\n")
    assert next(lines) == b"got one"
    process.send(b"two\n")
    process.close_stdin()
    assert list(lines) == [b"last two"]
    assert process.wait(5) == 0


def test_kill_ends_the_command_and_a_reader_in_another_thread(
    machine: LocalConnection, root: Path
) -> None:
    # The second sleep holds the output open although it does not belong to the tree any more.
    process = machine.open(["bash", "-c", "(setsid sleep 300 &); echo up; sleep 300"])
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.extend(process.lines()))
    reader.start()
    assert until(lambda: seen, 5)
    process.kill()
    reader.join(5)
    assert not reader.is_alive()
    assert process.wait(5) == 137
    process.kill()  # twice is fine


def test_wait_says_what_the_command_complained_about(machine: LocalConnection) -> None:
    process = machine.open(["sh", "-c", "echo oh no >&2; sleep 300"])
    assert until(lambda: process.stderr_tail, 5)
    with pytest.raises(RemoteError, match=r"did not end within 0\.1 s; it said: oh no"):
        process.wait(0.1)
    process.kill()


def test_sending_to_a_command_that_ended_is_an_error(machine: LocalConnection) -> None:
    process = machine.open(["true"])
    assert process.wait(5) == 0
    with pytest.raises(RemoteError, match="does not take input"):
        process.send(b"x" * (1 << 20))


def test_opening_what_is_not_there_is_an_error(machine: LocalConnection) -> None:
    with pytest.raises(RemoteError, match="'no-such-command' cannot be started"):
        machine.open(["no-such-command"])


# ------------------------------------------------------------------------ transfers


def contents(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    listing = everything(folder)
    for file in listing.files:
        found[file.path] = (folder / file.path).read_bytes(), file.mode, file.mtime_ns
    for sub in listing.dirs:
        found[sub.path] = sub.mode
    for link in listing.links:
        found[link.path] = link.target
    return found


def a_tree(folder: Path) -> Path:
    folder.mkdir()
    (folder / "empty").touch()
    (folder / "script").write_text("#!/bin/sh\n")
    (folder / "script").chmod(0o755)
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_bytes(os.urandom(3 << 20))
    (folder / "sub" / "readonly").write_text("r")
    (folder / "sub" / "readonly").chmod(0o444)
    (folder / "sub" / "locked").mkdir()
    (folder / "sub" / "locked" / "inner").write_text("i")
    (folder / "sub" / "locked").chmod(0o555)
    (folder / "latest").symlink_to("sub/data")
    (folder / "dangling").symlink_to("./nowhere")
    (folder / os.fsdecode(b"odd\nname \xff")).write_text("odd")
    os.utime(folder / "script", ns=(1_700_000_000_123_456_789, 1_600_000_000_987_654_321))
    return folder


def test_a_tree_arrives_as_it_is_and_comes_back(machine: LocalConnection, tmp_path: Path) -> None:
    source = a_tree(tmp_path / "source")
    done = machine.put(source, "work")
    assert (done.files, done.skipped) == (6, 0)
    assert done.bytes == sum(file.size for file in everything(source).files)
    back = tmp_path / "back"
    machine.get("work", back)
    assert contents(back) == contents(source)
    again = machine.put(source, "work/")
    assert (again.files, again.bytes, again.skipped) == (0, 0, 6)


def test_only_what_changed_is_sent(machine: LocalConnection, tmp_path: Path, root: Path) -> None:
    source = a_tree(tmp_path / "source")
    machine.put(source, "work")
    (source / "empty").write_text("not any more")
    (source / "script").chmod(0o700)
    done = machine.put(source, "work")
    assert (done.files, done.bytes, done.skipped) == (1, 12, 5)
    assert contents(root / "work") == contents(source)


def test_sparse_files_stay_sparse(machine: LocalConnection, tmp_path: Path, root: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as out:
        out.seek(300 << 20)
        out.write(b"end")
        out.truncate(600 << 20)
    began = time.monotonic()
    machine.put(sparse, "sparse")
    assert time.monotonic() - began < 5
    landed = root / "sparse"
    assert landed.stat().st_size == 600 << 20
    with landed.open("rb") as there:
        there.seek(300 << 20)
        assert there.read(4) == b"end\0"
    if sparse.stat().st_blocks < 1000:  # this file system knows holes
        assert landed.stat().st_blocks < 1000


def test_where_a_file_lands(machine: LocalConnection, tmp_path: Path, root: Path) -> None:
    one = tmp_path / "one"
    one.write_text("1")
    machine.put(one, "renamed")
    machine.put(one, "into/")
    (root / "there").mkdir()
    machine.put(one, "there")
    machine.put(one, str(root / "absolute"))
    landed = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    assert landed == {"renamed", "into/one", "there/one", "absolute"}
    machine.get("renamed", tmp_path / "new/place")
    assert (tmp_path / "new/place").read_text() == "1"


def test_progress_ends_at_the_total(machine: LocalConnection, tmp_path: Path) -> None:
    source = a_tree(tmp_path / "source")
    seen: list[tuple[int, int]] = []
    machine.put(source, "work", progress=lambda done, total: seen.append((done, total)))
    total = sum(file.size for file in everything(source).files)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_ignored_files_stay_here(machine: LocalConnection, tmp_path: Path, root: Path) -> None:
    source = tmp_path / "source"
    (source / ".git").mkdir(parents=True)
    (source / ".gitignore").write_text("*.ckpt\n")
    (source / "big.ckpt").touch()
    (source / "train.py").touch()
    machine.put(source, ".")
    assert sorted(p.name for p in root.iterdir()) == [".gitignore", "train.py"]


def test_a_link_left_by_an_earlier_transfer_is_not_written_through(
    machine: LocalConnection, tmp_path: Path, root: Path
) -> None:
    """The machine first shows a link to the user's files, then a folder of that name."""
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "keys").write_text("mine")
    target = tmp_path / "artifacts"
    (root / "out").mkdir()
    (root / "out" / "a").symlink_to(precious)
    (root / "out" / "f").symlink_to(precious / "keys")
    machine.get("out", target)
    assert (target / "a").is_symlink()
    (root / "out" / "a").unlink()
    (root / "out" / "f").unlink()
    (root / "out" / "a").mkdir()
    (root / "out" / "a" / "keys").write_text("theirs")
    (root / "out" / "f").write_text("theirs")
    machine.get("out", target)
    assert (precious / "keys").read_text() == "mine"
    assert (target / "a" / "keys").read_text() == "theirs"
    assert (target / "f").read_text() == "theirs"


@pytest.mark.parametrize("path", ["..", "../x", "a/../../x", "/etc/x", "link/x", "link", "x/.."])
def test_nothing_is_written_outside_of_the_machine(
    machine: LocalConnection, tmp_path: Path, root: Path, path: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / "link").symlink_to(outside)
    source = tmp_path / "one"
    source.write_text("1")
    with pytest.raises(RemoteError, match="outside of the machine's folder"):
        machine.put(source, path)
    with pytest.raises(RemoteError, match="outside of the machine's folder"):
        machine.write(path, b"x")
    assert list(outside.iterdir()) == []


def test_nothing_is_read_outside_of_the_machine(
    machine: LocalConnection, tmp_path: Path, root: Path
) -> None:
    (root / "passwords").symlink_to("/etc/passwd")
    (root / "etc").symlink_to("/etc")
    for path in ("passwords", "etc", "etc/passwd", "../..", "/etc/passwd"):
        with pytest.raises(RemoteError, match="outside of the machine's folder"):
            machine.get(path, tmp_path / "got")
    assert not (tmp_path / "got").exists()


def test_pipes_and_sockets_are_not_fetched(
    machine: LocalConnection, tmp_path: Path, root: Path
) -> None:
    (root / "out").mkdir()
    os.mkfifo(root / "out" / "pipe")
    (root / "out" / "file").touch()
    machine.get("out", tmp_path / "got")
    assert [p.name for p in (tmp_path / "got").iterdir()] == ["file"]
    with pytest.raises(RemoteError, match="neither a file nor a folder"):
        machine.get("out/pipe", tmp_path / "pipe")


def test_set_uid_bits_do_not_travel(machine: LocalConnection, tmp_path: Path, root: Path) -> None:
    (root / "tool").write_text("x")
    (root / "tool").chmod(0o4755)
    machine.get("tool", tmp_path / "tool")
    assert stat.S_IMODE((tmp_path / "tool").stat().st_mode) == 0o755


def test_what_is_not_there_is_a_sentence(machine: LocalConnection, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent does not exist"):
        machine.put(tmp_path / "absent", "x")
    with pytest.raises(RemoteError, match="absent is neither a file nor a folder there"):
        machine.get("absent", tmp_path / "x")


def test_a_folder_in_the_way_of_a_file_is_a_sentence(
    machine: LocalConnection, tmp_path: Path, root: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_text("file")
    (root / "work" / "a").mkdir(parents=True)
    with pytest.raises(RemoteError, match=r"was not sent: .*a folder is where a file should go"):
        machine.put(source, "work")


def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(
    access: LocalAccess, tmp_path: Path, root: Path
) -> None:
    (tmp_path / "big").write_bytes(os.urandom(200_000))
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from gpuctl.errors import RemoteError\n"
        "from gpuctl.remote.local import LocalConnection\n"
        "from providers.base import LocalAccess\n"
        "try: LocalConnection(LocalAccess(sys.argv[1], (), {})).put(Path(sys.argv[2]), 'big')\n"
        "except RemoteError as error: print(error.message)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", code, str(root), str(tmp_path / "big")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    assert "big was not sent: " in said
    assert "File too large" in said
    assert list(root.iterdir()) == []


def test_write_is_whole_private_and_replaces_a_link(
    machine: LocalConnection, tmp_path: Path, root: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (root / "state").symlink_to(elsewhere)
    machine.write("sub/secret", b"\0\1")
    machine.write("state", b"theirs", mode=0o644)
    assert (root / "sub/secret").read_bytes() == b"\0\1"
    assert stat.S_IMODE((root / "sub/secret").stat().st_mode) == 0o600
    assert (root / "state").read_bytes() == b"theirs"
    assert stat.S_IMODE((root / "state").stat().st_mode) == 0o644
    assert elsewhere.read_text() == "mine"


file_names = st.binary(min_size=1, max_size=8).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)


@given(tree=st.dictionaries(file_names, st.binary(max_size=300), max_size=6))
@settings(max_examples=40, deadline=None)
def test_any_names_and_contents_come_back(
    tree: dict[bytes, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.mktemp("any")
    for folder in ("source", "root"):
        (base / folder).mkdir()
    for name, content in tree.items():
        Path(os.fsdecode(os.fsencode(base / "source") + b"/" + name)).write_bytes(content)
    machine = LocalConnection(LocalAccess(str(base / "root"), (), {}))
    if not {b".git", b".gitignore", b".gpuctlignore"} & tree.keys():
        machine.put(base / "source", "work")
        machine.get("work", base / "back")
        assert contents(base / "back") == contents(base / "source")
