"""Local machines: their life, their end, and what is left of them, with and without namespaces."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.remote.local import LocalConnection
from providers import local_hardware, local_namespaces, local_python, processes
from providers.base import (
    ABSENT,
    Ambiguous,
    InvalidRequest,
    LocalAccess,
    Machine,
    Mark,
    NoCapacity,
    NotFound,
    Order,
    PriceChanged,
    Provider,
    Rehearsal,
    State,
    SystemClock,
    Unsupported,
    Want,
)
from providers.local import LocalProvider, describe
from providers.local_account import (
    Account,
    Host,
    Record,
    marker,
    record_from_json,
    record_to_json,
    remove_tree,
)
from providers.local_offers import offer_id, read_offer_id
from providers.local_start import why_no_namespaces
from providers.nvidia_smi import Gpu, NotReadable, read_cards
from providers.processes import ProcessId, carriers, descendants, identify, is_alive
from tests.conformance.provider_suite import Bench, ProviderSuite
from tests.waiting import until

REPOSITORY = Path(__file__).parents[2]
ANYBODYS_PYTHON = "/usr/bin/python3"  # what sits below /root is not for other users
Make = Callable[..., Machine]


@pytest.fixture(params=["namespaces", "plain"])
def mode(request: pytest.FixtureRequest) -> str:
    """Every machine's story is told in both modes, where this computer has both."""
    if request.param == "namespaces" and (why := why_no_namespaces(os.environ)):
        pytest.skip(f"no namespaces here: {why}")
    return str(request.param)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def provider(home: Path, mode: str) -> Iterator[LocalProvider]:
    made = provider_at(home, GPUCTL_LOCAL_NAMESPACES="0" if mode == "plain" else "1")
    yield made
    if home.is_dir():
        home.chmod(0o700)
    for machine_id in Account(home / "local").ids():
        made.destroy(machine_id)


@pytest.fixture
def make(provider: LocalProvider) -> Make:
    def make(name: str = "gpuctl-demo-aaaaaa-00000001", **changes: object) -> Machine:
        return provider.create(order(provider, name, **changes))

    return make


def provider_at(home: Path, **settings: str) -> LocalProvider:
    environ = {**os.environ, **settings}
    return LocalProvider.from_environment(environ, home=home, clock=SystemClock())


def order(provider: Provider, name: str, **changes: Any) -> Order:
    mark = Mark("aaaaaaaaaaaa", datetime.now(UTC) + timedelta(hours=1), "demo-1a2b3c")
    return replace(Order(name, provider.offers(Want(disk_gb=0))[0], mark), **changes)


def access(machine: Machine) -> LocalAccess:
    assert isinstance(machine.access, LocalAccess)
    return machine.access


def inside(machine: Machine) -> LocalConnection:
    return LocalConnection(access(machine))


def running(machine: Machine) -> set[int]:
    """Everything that carries the machine's marker, as this computer sees it."""
    folder = Path(access(machine).root).parent
    return carriers({"GPUCTL_MACHINE_FOLDER": str(folder)})


def host_of(home: Path, machine: Machine) -> Host:
    host = Account(home / "local").host(machine.provider_id)
    assert host is not None
    return host


def books(home: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (home / "local/history.jsonl").read_text().splitlines()]


# --------------------------------------------------------------------------- conformance


class TestLocalConformance(ProviderSuite):
    @pytest.fixture
    def bench(self, provider: LocalProvider, home: Path) -> Bench:
        machines = home / "local" / "machines"

        def rented() -> dict[str, str]:
            return {file.parent.name: file.parent.name for file in machines.glob("*/machine.json")}

        def add_unmarked() -> str:
            (machines / "foreign").mkdir(parents=True)
            (machines / "foreign/machine.json").write_text('{"name": "somebody else\'s"}')
            return "foreign"

        def break_reads() -> None:
            home.rename(home.with_name("elsewhere"))  # a disk that is not mounted (any more)

        return Bench(provider, rented, break_reads=break_reads, add_unmarked=add_unmarked)

    @pytest.fixture(autouse=True)
    def _back(self, home: Path, provider: LocalProvider) -> Iterator[None]:
        yield
        if home.with_name("elsewhere").exists():
            home.with_name("elsewhere").rename(home)
        for machine in provider.list():
            provider.destroy(machine.provider_id)


# --------------------------------------------------------------------------- a machine


def test_a_machine_is_ready_within_half_a_second(make: Make) -> None:
    times = []
    for number in range(3):  # the best of three: others use these cores too
        began = time.monotonic()
        machine = make(f"gpuctl-demo-aaaaaa-0000000{number}")
        times.append(time.monotonic() - began)
        assert machine.state is State.READY
    assert min(times) <= 0.5, times


def test_it_has_processes_of_its_own(make: Make, mode: str) -> None:
    machine = make()
    seen = inside(machine).run("echo $$; ls /proc", timeout=10).stdout.decode().split()
    if mode == "namespaces":
        assert int(seen[0]) < 50
        assert str(os.getpid()) not in seen
        mounts = inside(machine).run(["cat", "/proc/self/mountinfo"], timeout=10).stdout
        assert mounts != Path("/proc/self/mountinfo").read_bytes()
    else:
        assert access(machine).enter == ()
    assert inside(machine).run("pwd", timeout=10).stdout.decode().strip() == access(machine).root


def test_its_environment_is_clean(
    home: Path, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caller = {
        "PATH": "/opt/gpuctl/bin:/opt/active/bin:/opt/cuda/bin:relative:/usr/bin:/bin",
        "VIRTUAL_ENV": "/opt/active",
        "HOME": str(tmp_path),
        "USER": "somebody",
        "AWS_SECRET_ACCESS_KEY": "canary",
        "HF_TOKEN": "canary",
        "UV_PUBLISH_TOKEN": "canary",
        "PYTHONPATH": "canary",
        "GPUCTL_HOME": "canary",
        "PIP_TARGET": "canary",
        "PIP_INDEX_URL": "https://index.example/simple",
        "https_proxy": "http://proxy.example:3128",
        "LD_LIBRARY_PATH": "/opt/cuda/lib64",
        "SSL_CERT_FILE": "/etc/ca.pem",
    }
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text("[global]\n")
    made = make()
    monkeypatch.setattr(sys, "prefix", "/opt/gpuctl")
    asking = LocalProvider.from_environment(caller, home=home, clock=SystemClock())
    machine = asking.get(made.provider_id)
    said = inside(machine).run(["env", "-0"], timeout=10).stdout.decode().split("\0")
    env = dict(line.split("=", 1) for line in said if line)
    root = access(machine).root
    venv = str(Path(root).parent / "venv")
    assert "canary" not in str(env)
    assert env["PATH"] == f"{venv}/bin:/opt/cuda/bin:/usr/bin:/bin:/usr/local/bin"
    assert env["HOME"] == root
    assert env["USER"] == "somebody"
    assert env["VIRTUAL_ENV"] == venv
    assert env["LANG"]
    assert Path(env["TMPDIR"]).resolve() == Path(root, "tmp").resolve()
    assert env["GPUCTL_MACHINE"] == machine.name
    assert env["PIP_CACHE_DIR"] == str(tmp_path / ".cache/pip")
    assert env["PIP_CONFIG_FILE"] == str(tmp_path / ".config/pip/pip.conf")
    assert env["PIP_INDEX_URL"] == "https://index.example/simple"
    assert env["https_proxy"] == "http://proxy.example:3128"
    assert env["LD_LIBRARY_PATH"] == "/opt/cuda/lib64"
    assert env["SSL_CERT_FILE"] == "/etc/ca.pem"


def test_no_secret_of_the_caller_lands_on_disk_or_in_a_process(
    home: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {"PIP_INDEX_URL": "https://user:canary@index", "RUNPOD_API_KEY": "canary"}
    provider = provider_at(home, GPUCTL_LOCAL_NAMESPACES="0" if mode == "plain" else "1", **secrets)
    machine = provider.create(order(provider, "gpuctl-demo-aaaaaa-00000001"))
    try:
        folder = home / "local"
        for file in folder.rglob("*"):
            if file.is_file() and "venv" not in file.parts:
                assert b"canary" not in file.read_bytes(), file
        if Path("/proc/self/environ").exists():
            for pid in running(machine):
                assert b"canary" not in Path(f"/proc/{pid}/environ").read_bytes()
                assert b"canary" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert "canary" not in repr(provider)
    finally:
        provider.destroy(machine.provider_id)


def test_sockets_fit_below_its_folder_for_temporary_files(home: Path, make: Make) -> None:
    """multiprocessing makes them there, and a socket's path has 108 bytes."""
    machine = make("gpuctl-a-rather-long-name-for-a-run-aaaaaa-00000001")
    code = (
        "from multiprocessing.connection import Listener\n"
        "listener = Listener(family='AF_UNIX'); print(len(listener.address)); listener.close()"
    )
    done = inside(machine).run(["python3", "-c", code], timeout=20)
    assert done.exit_code == 0, done.stderr.decode()
    assert 0 < int(done.stdout) < 104


def test_the_short_way_to_temporary_files_goes_with_the_machine(
    provider: LocalProvider, make: Make
) -> None:
    machine = make("gpuctl-a-rather-long-name-for-a-run-aaaaaa-00000001")
    link = Path(access(machine).env["TMPDIR"])
    assert link.is_symlink()
    provider.destroy(machine.provider_id)
    assert not link.is_symlink()


# --------------------------------------------------------------------------- its Python


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The smallest wheel there is, with a command."""
    info = "tinything-1.0.dist-info"
    files = {
        "tinything.py": "def main():\n    print('tiny')\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinything\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntinything = tinything:main\n",
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest())
        record += f"{name},sha256={digest.rstrip(b'=').decode()},{len(content)}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    made = tmp_path / "tinything-1.0-py3-none-any.whl"
    with zipfile.ZipFile(made, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made


@pytest.mark.parametrize("pip", ["pip", "pip3", "python -m pip", "python3 -m pip"])
def test_pip_installs_into_the_machine_and_nowhere_else(
    provider: LocalProvider, mode: str, make: Make, wheel: Path, pip: str
) -> None:
    if mode == "plain" and pip != "pip":
        pytest.skip("the same Python in both modes")
    machine = make()
    command = f"{pip} install --no-index --no-deps {wheel} && tinything && which tinything"
    done = inside(machine).run(command, timeout=60)
    assert done.exit_code == 0, done.stderr.decode()
    *_, said, where = done.stdout.decode().splitlines()
    assert said == "tiny"
    assert where.startswith(str(Path(access(machine).root).parent / "venv"))
    assert subprocess.run([sys.executable, "-c", "import tinything"], check=False).returncode


@pytest.mark.parametrize("command", [["bin/pip"], ["bin/python", "-m", "pip"]])
@pytest.mark.parametrize("own_pip", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_pip_works_where_the_base_python_has_none(
    tmp_path: Path, wheel: Path, command: list[str], own_pip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a bare Debian: gpuctl's own pip then works for the machine's Python, or ensurepip."""
    if own_pip and not local_python.has_pip(Path(sys.executable)):
        pytest.skip("this Python has no pip")
    if not own_pip:
        pytest.importorskip("ensurepip")
        without = tmp_path / "without-pip"
        without.write_text("#!/bin/sh\nexit 1\n")
        without.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(without))
    monkeypatch.setattr(local_python, "has_pip", lambda _: False)
    venv = tmp_path / "venv"
    local_python.build(venv)
    config = venv / "pyvenv.cfg"
    config.write_text(config.read_text().replace("packages = true", "packages = false"))
    program, *rest = command
    done = subprocess.run(
        [str(venv / program), *rest, "install", "--no-index", "--no-deps", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    said = subprocess.run([str(venv / "bin/tinything")], capture_output=True, check=True).stdout
    assert said == b"tiny\n"


# --------------------------------------------------------------------------- the end

DAEMON = """
import os, sys, time
for _ in range(2):
    if os.fork(): os._exit(0)
    os.setsid()
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""


def start_daemons(machine: Machine) -> None:
    """Things that do not want to end: a daemon, a session of its own, one that ignores SIGTERM."""
    connection = inside(machine)
    root = access(machine).root
    connection.run(["python3", "-c", DAEMON, f"{root}/daemon.pid"], timeout=20)
    connection.run(
        "nohup setsid sh -c 'trap \"\" TERM HUP; echo > deaf; sleep 600; sleep 600' "
        ">/dev/null 2>&1 </dev/null &",
        timeout=10,
    )
    assert until(lambda: Path(root, "daemon.pid").exists() and Path(root, "deaf").exists(), 10)


def test_destroy_ends_everything_it_ever_started(
    provider: LocalProvider, make: Make, home: Path
) -> None:
    machine = make()
    start_daemons(machine)
    before = running(machine)
    assert len(before) >= 4
    provider.destroy(machine.provider_id)
    assert running(machine) == set()
    assert not any(identify(pid) for pid in before)
    assert list((home / "local/machines").iterdir()) == []
    with pytest.raises(NotFound):
        provider.get(machine.provider_id)


def test_destroy_removes_what_the_job_made_read_only_and_nothing_else(
    provider: LocalProvider, make: Make, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    (precious / "file").chmod(0o400)
    precious.chmod(0o500)
    machine = make()
    root = Path(access(machine).root)
    (root / "link").symlink_to(precious)
    (root / "file-link").symlink_to(precious / "file")
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "c").write_text("x")
    (root / "a" / "b" / "link").symlink_to(precious)
    (root / "a" / "b").chmod(0)
    (root / "a").chmod(0o500)
    try:
        assert provider.destroy(machine.provider_id) == "ended and removed"
        assert not root.exists()
        assert (precious / "file").read_text() == "mine"
        assert precious.stat().st_mode & 0o777 == 0o500
        assert (precious / "file").stat().st_mode & 0o777 == 0o400
    finally:
        precious.chmod(0o700)


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting takes root")
def test_destroy_takes_mounts_off_and_leaves_their_contents(
    provider: LocalProvider, make: Make, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("mine")
    machine = make()
    point = Path(access(machine).root, "a mount")
    point.mkdir()
    try:
        subprocess.run(["mount", "--bind", precious, point], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this container may not mount")
    assert (point / "file").exists()
    assert provider.destroy(machine.provider_id) == "ended and removed"
    assert (precious / "file").read_text() == "mine"


def test_the_books_tell_what_it_cost(home: Path, mode: str) -> None:
    provider = provider_at(
        home,
        GPUCTL_LOCAL_PRICE_HOUR="3600.00",
        GPUCTL_LOCAL_NAMESPACES="0" if mode == "plain" else "1",
    )
    began = time.monotonic()
    machine = provider.create(order(provider, "gpuctl-demo-aaaaaa-00000001"))
    assert machine.price_hour == Decimal("3600.00")
    assert until(lambda: time.monotonic() - began > 0.3, 5)
    so_far = provider.billed(machine.provider_id)
    assert so_far is not None
    provider.destroy(machine.provider_id)
    took = time.monotonic() - began
    billed = provider.billed(machine.provider_id)
    assert billed is not None
    assert billed.source == "local books"
    assert so_far.amount < billed.amount
    assert 0.3 <= float(billed.amount) <= took + 0.1  # a dollar a second
    provider.destroy(machine.provider_id)
    created, ended = books(home)
    assert (created["event"], ended["event"]) == ("created", "ended")
    assert ended["reason"] == "destroyed"
    assert Decimal(str(ended["cost_usd"])) == billed.amount


def test_a_machine_can_end_itself(provider: LocalProvider, make: Make, mode: str) -> None:
    machine = make()
    start_daemons(machine)
    assert machine.self_end is not None
    pid = machine.self_end.signal_pid
    assert pid == 1 or mode == "plain"
    inside(machine).run(f"nohup sh -c 'kill -TERM {pid}' >/dev/null 2>&1 &", timeout=10)
    assert until(lambda: provider.list() == [], 10)
    assert until(lambda: provider.get(machine.provider_id).state is State.GONE, 5)
    assert provider.get(machine.provider_id).reason == "self-ended"
    assert provider.get(machine.provider_id).mark == machine.mark
    assert until(lambda: running(machine) == set(), 5)
    assert not Path(access(machine).root).exists()
    assert provider.destroy(machine.provider_id) == ABSENT


def test_a_signal_from_outside_is_not_the_machine_ending_itself(
    provider: LocalProvider, make: Make, home: Path, mode: str
) -> None:
    """As when this computer shuts down: what the job has written must still be there after it."""
    if mode == "plain":
        pytest.skip("without namespaces nobody can tell")
    machine = make()
    host = host_of(home, machine)
    assert host.init is not None
    for process in (host.process, host.init):
        os.kill(process.pid, signal.SIGTERM)
    assert provider.get(machine.provider_id).state is State.READY
    os.kill(host.init.pid, signal.SIGKILL)
    assert until(lambda: provider.get(machine.provider_id).state is State.LOST, 10)
    assert Path(access(machine).root).is_dir()


def test_rehearsed_interruption_with_notice(provider: LocalProvider, make: Make) -> None:
    machine = make(rehearsal=Rehearsal(after_seconds=0.3, notice_seconds=0.7, armed_by="go"))
    assert machine.spot
    start_daemons(machine)
    notice = Path(access(machine).root, ".interruption")
    assert not until(notice.exists, 0.6)  # not armed yet
    Path(access(machine).root, "go").touch()
    armed = time.time()
    assert until(notice.exists, 5)
    said = json.loads(notice.read_text())
    assert 0.2 < said["at"] - armed < 3
    assert said["deadline"] == pytest.approx(said["at"] + 0.7)
    assert provider.get(machine.provider_id).state is State.READY
    assert until(lambda: provider.get(machine.provider_id).state is State.GONE, 10)
    assert time.time() >= said["deadline"]
    assert provider.get(machine.provider_id).reason == "interrupted"
    assert until(lambda: running(machine) == set(), 5)
    assert not Path(access(machine).root).exists()


def test_rehearsed_interruption_without_notice(provider: LocalProvider, make: Make) -> None:
    machine = make(rehearsal=Rehearsal(after_seconds=0.2))
    began = time.monotonic()
    assert until(lambda: provider.get(machine.provider_id).state is State.GONE, 10)
    assert time.monotonic() - began < 5
    assert provider.get(machine.provider_id).reason == "interrupted"
    assert provider.list() == []
    assert provider.leftovers() == []


def test_a_destroyed_machine_is_not_interrupted_later(
    provider: LocalProvider, make: Make, home: Path
) -> None:
    machine = make(rehearsal=Rehearsal(after_seconds=0.3))
    provider.destroy(machine.provider_id)
    assert not until(lambda: len(books(home)) > 2, 0.8)
    with pytest.raises(NotFound):
        provider.get(machine.provider_id)


def test_a_folder_removed_by_hand_ends_its_processes(
    provider: LocalProvider, make: Make, home: Path
) -> None:
    machine = make()
    start_daemons(machine)
    shutil.rmtree(Path(access(machine).root).parent, ignore_errors=True)
    assert until(lambda: running(machine) == set(), 10)
    assert books(home)[-1]["reason"] == "removed by hand"
    assert provider.get(machine.provider_id).reason == "removed by hand"
    assert provider.get(machine.provider_id).name == machine.name
    assert not Path(access(machine).env["TMPDIR"]).is_symlink()


# --------------------------------------------------------------------------- crashes


def test_a_dead_host_process_is_a_lost_machine_that_can_be_destroyed(
    provider: LocalProvider, make: Make, home: Path, mode: str
) -> None:
    machine = make()
    start_daemons(machine)
    os.kill(host_of(home, machine).process.pid, signal.SIGKILL)
    assert until(lambda: provider.get(machine.provider_id).state is State.LOST, 5)
    assert [found.state for found in provider.list()] == [State.LOST]
    if mode == "namespaces":
        assert until(lambda: running(machine) == set(), 5), "they die with pid 1"
    provider.destroy(machine.provider_id)
    assert running(machine) == set()
    assert provider.list() == []


def test_after_a_reboot_another_process_under_that_pid_is_not_taken_for_the_host(
    provider: LocalProvider, make: Make, home: Path
) -> None:
    machine = make()
    host = host_of(home, machine)
    bystander = subprocess.Popen(["sleep", "600"])
    try:
        file = home / "local/machines" / machine.provider_id / "host.json"
        written = json.loads(file.read_text())
        written["process"] = [bystander.pid, host.process.started]
        if written["init"]:
            written["init"] = [bystander.pid, host.process.started]
        file.write_text(json.dumps(written))
        assert provider.get(machine.provider_id).state is State.LOST
        assert provider.get(machine.provider_id).access is None
        provider.destroy(machine.provider_id)
        assert bystander.poll() is None
        assert not is_alive(host.process)
    finally:
        bystander.kill()
        bystander.wait()


CREATE = """
import os, sys
from pathlib import Path
from tests.providers.test_local import provider_at, order
provider = provider_at(Path(sys.argv[1]), GPUCTL_LOCAL_NAMESPACES=sys.argv[2])
made = order(provider, sys.argv[3])
print("now", flush=True)
provider.create(made)
print("made", flush=True)
"""


@pytest.mark.parametrize(
    "after_ms", [0, 8, 30, *(pytest.param(ms, marks=pytest.mark.slow) for ms in (3, 15, 60))]
)
def test_kill_9_in_the_middle_of_create_leaves_nothing_or_something_listed(
    home: Path, provider: LocalProvider, mode: str, after_ms: int
) -> None:
    name = "gpuctl-demo-aaaaaa-0000000f"
    process = subprocess.Popen(
        [sys.executable, "-c", CREATE, str(home), "0" if mode == "plain" else "1", name],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"now\n"
        moment = time.monotonic() + after_ms / 1000
        until(lambda: time.monotonic() >= moment, 1, every=0.0005)
        process.kill()
    listed = provider.list()
    if listed:
        assert [machine.name for machine in listed] == [name]
        assert listed[0].mark is not None
        assert listed[0].state in (State.BOOTING, State.READY)
    assert provider.destroy(name)
    assert provider.list() == []
    # A starter that was under way must not bring it back.
    folder = Account(home / "local").folder(name)
    assert not until(lambda: carriers(marker(folder)) or folder.exists(), 0.3)


def test_a_create_that_was_never_started_becomes_lost(home: Path, provider: LocalProvider) -> None:
    account = Account(home / "local")
    old = datetime.now(UTC) - timedelta(minutes=5)
    mark = Mark("aaaaaaaaaaaa", old + timedelta(hours=1))
    account.add(Record("gpuctl-old", mark, Decimal(0), False, old))
    account.add(Record("gpuctl-new", mark, Decimal(0), False, datetime.now(UTC)))
    states = {machine.name: machine.state for machine in provider.list()}
    assert states == {"gpuctl-old": State.LOST, "gpuctl-new": State.BOOTING}
    assert {machine.mark for machine in provider.list()} == {mark}


def test_leftovers_are_told_after_a_minute_and_removed(
    home: Path, provider: LocalProvider, make: Make
) -> None:
    machine = make()
    machines = home / "local/machines"
    (machines / ".new-gpuctl-x-1").mkdir()
    (machines / ".new-gpuctl-x-1/machine.json").write_text("{}")
    (machines / "half").mkdir()
    assert provider.leftovers() == []
    for folder in machines.iterdir():
        os.utime(folder, (time.time() - 61, time.time() - 61))
    found = provider.leftovers()
    assert {leftover.id for leftover in found} == {".new-gpuctl-x-1", "half"}
    provider.remove(replace(found[0], id=machine.provider_id))  # a machine is no leftover
    provider.remove(replace(found[0], id="../../../etc"))
    for leftover in found:
        provider.remove(leftover)
        provider.remove(leftover)
    assert [folder.name for folder in machines.iterdir()] == [machine.provider_id]
    assert provider.get(machine.provider_id).state is State.READY


def test_a_torn_line_in_the_books_costs_only_itself(home: Path, provider: LocalProvider) -> None:
    account = Account(home / "local")
    now = datetime.now(UTC)
    account.add(Record("gpuctl-a", Mark("aaaaaaaaaaaa", now), Decimal(1), False, now))
    with account.books.open("a") as file:
        file.write('{"event": "ended", "id": "gpuctl-a", "rea')
    assert account.ended("gpuctl-a") is None
    account.end("gpuctl-a", "destroyed")
    ended = account.ended("gpuctl-a")
    assert ended is not None
    assert ended.reason == "destroyed"


def test_a_full_disk_does_not_keep_a_machine_alive(
    home: Path, provider: LocalProvider, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line in the books needs room, which is what the job's files take."""
    machine = make()
    root = Path(access(machine).root)
    (root / "checkpoint").write_bytes(b"x" * 1000)
    close = Account._close

    def no_room(self: Account, *arguments: object) -> None:
        if root.exists():
            raise OSError(28, "No space left on device")
        close(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Account, "_close", no_room)
    assert provider.destroy(machine.provider_id) == "ended and removed"
    assert books(home)[-1]["reason"] == "destroyed"


def test_processes_that_will_not_end_are_not_called_gone(
    provider: LocalProvider, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = make()
    with monkeypatch.context() as patched:
        patched.setattr(processes, "_kill", lambda _: None)
        patched.setattr(processes.end_process, "__kwdefaults__", {"seconds": 0.2})
        with pytest.raises(Ambiguous, match=r"is not gone: still running: \d+"):
            provider.destroy(machine.provider_id)
    assert [found.name for found in provider.list()] == [machine.name]


def test_a_name_is_never_used_twice(provider: LocalProvider, make: Make) -> None:
    machine = make()
    with pytest.raises(InvalidRequest, match="There is or was"):
        make()
    assert provider.get(machine.provider_id).state is State.READY
    provider.destroy(machine.provider_id)
    with pytest.raises(InvalidRequest, match="There is or was"):
        make()
    assert provider.list() == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "UPPER", "-a", "a b", "x" * 64, ".hidden"])
def test_names_that_are_no_names_are_refused(
    provider: LocalProvider, make: Make, name: str, home: Path
) -> None:
    with pytest.raises(InvalidRequest):
        make(name)
    assert provider.destroy(name) == ABSENT
    with pytest.raises(NotFound):
        provider.get(name)
    assert home.is_dir()


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are a thing of Linux")
def test_an_ordinary_user_gets_the_same_machines() -> None:
    """Run as root this tries another user, for root needs no user namespace."""
    if os.geteuid() == 0 and not Path(ANYBODYS_PYTHON).exists():
        pytest.skip("no Python that another user may run")
    folder = Path(tempfile.mkdtemp(prefix="gpuctl-test-", dir="/tmp"))
    other = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    if other:
        os.chown(folder, 65534, 65534)
    code = """
import os, sys, subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from providers.base import Mark, NotFound, Order, SystemClock, Want
from providers.local import LocalProvider
from providers.local_start import why_no_namespaces
home = Path(sys.argv[1])
if why := why_no_namespaces({"PATH": os.environ["PATH"]}):
    sys.exit("no namespaces: " + why)
provider = LocalProvider.from_environment(dict(os.environ), home=home, clock=SystemClock())
mark = Mark("aaaaaaaaaaaa", datetime.now(UTC) + timedelta(hours=1))
machine = provider.create(Order("gpuctl-user", provider.offers(Want(disk_gb=0))[0], mark))
access = machine.access
assert "--user" in access.enter, access.enter
run = lambda *argv: subprocess.run([*access.enter, *argv], env=access.env, check=True,
    capture_output=True, text=True).stdout.strip()
assert run("id", "-u") == str(os.getuid())
assert run("pwd") == access.root
assert len(run("sh", "-c", "ls -d /proc/[0-9]*").split()) < 10
run("sh", "-c", "mkdir -p a/b; touch a/b/c; chmod 0 a/b; chmod 500 a; (sleep 600 &) >&- 2>&-")
assert provider.destroy("gpuctl-user") == "ended and removed"
assert list((home / "local/machines").iterdir()) == []
print("fine")
"""
    try:
        done = subprocess.run(
            [ANYBODYS_PYTHON if other else sys.executable, "-c", code, str(folder)],
            cwd=REPOSITORY,
            env={"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            **other,  # type: ignore[call-overload]
        )
    finally:
        remove_tree(folder)
    if "no namespaces: " in done.stderr or "Permission denied" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.stdout.strip() == "fine", done.stderr


# --------------------------------------------------------------------------- offers


def test_the_computer_is_offered_as_it_is(home: Path) -> None:
    [offer] = provider_at(home).offers(Want(disk_gb=0))
    assert (offer.id, offer.gpu, offer.spot, offer.region) == ("local:cpu", None, False, "here")
    assert offer.vcpus == len(os.sched_getaffinity(0)) or sys.platform == "darwin"
    assert offer.ram_gb is not None
    assert offer.ram_gb > 0.5
    [spot] = provider_at(home).offers(Want(disk_gb=0, spot=True))
    assert (spot.id, spot.spot, spot.price_hour) == ("local:cpu:spot", True, offer.price_hour)


@pytest.mark.parametrize(
    "want",
    [
        Want(disk_gb=1e9),
        Want(disk_gb=0, cpus=10_000),
        Want(disk_gb=0, memory_gb=1e6),
        Want(disk_gb=0, regions=("us-east-1",)),
        Want(disk_gb=0, max_price_hour=Decimal("0.10")),
    ],
)
def test_what_it_does_not_have_it_does_not_offer(home: Path, want: Want) -> None:
    assert provider_at(home, GPUCTL_LOCAL_PRICE_HOUR="0.11").offers(want) == []


@pytest.mark.parametrize("text", ["free", "-1", "nan", "inf", "1,50", "$"])
def test_a_bad_price_is_a_sentence(home: Path, text: str) -> None:
    provider = provider_at(home, GPUCTL_LOCAL_PRICE_HOUR=text)
    with pytest.raises(InvalidRequest, match=r"GPUCTL_LOCAL_PRICE_HOUR is .* USD an hour"):
        provider.offers(Want())
    assert provider.destroy("gpuctl-x") == ABSENT
    assert [finding.ok for finding in provider.check() if finding.name == "price"] == [False]


def test_a_price_that_rose_is_refused(home: Path) -> None:
    cheap = provider_at(home, GPUCTL_LOCAL_PRICE_HOUR="0.10")
    dear = provider_at(home, GPUCTL_LOCAL_PRICE_HOUR="0.20")
    wanted = order(cheap, "gpuctl-demo", max_price_hour=Decimal("0.15"))
    with pytest.raises(PriceChanged, match=r"\$0\.20/h .* above the cap of \$0\.15/h"):
        dear.create(wanted)
    assert dear.list() == []


GPUS = (
    Gpu("GPU-a", "RTX-4090", 24),
    Gpu("GPU-b", "RTX-4090", 24),
    Gpu("GPU-c", "T4", 16),
)


@pytest.mark.parametrize(
    ("want", "expected"),
    [
        (Want(gpus=("RTX-4090",), disk_gb=0), ["local:1xRTX-4090"]),
        (Want(gpus=("RTX-4090",), gpu_count=2, disk_gb=0), ["local:2xRTX-4090"]),
        (Want(gpus=("RTX-4090",), gpu_count=3, disk_gb=0), []),
        (Want(gpus=("16GB+",), disk_gb=0), ["local:1xRTX-4090", "local:1xT4"]),
        (Want(gpus=("16GB+",), min_vram_gb=20, disk_gb=0), ["local:1xRTX-4090"]),
        (Want(gpus=("H100-80GB-SXM",), disk_gb=0), []),
        (Want(disk_gb=0), ["local:cpu"]),
    ],
)
def test_gpus_are_offered_by_kind_and_count(
    home: Path, monkeypatch: pytest.MonkeyPatch, want: Want, expected: list[str]
) -> None:
    monkeypatch.setattr(local_hardware, "local_gpus", lambda: GPUS)
    assert [offer.id for offer in provider_at(home).offers(want)] == expected


def test_a_machine_sees_only_the_gpus_it_ordered(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_hardware, "local_gpus", lambda: GPUS)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    provider = provider_at(home)
    [offer] = provider.offers(Want(gpus=("RTX-4090",), gpu_count=2, disk_gb=0))
    machine = provider.create(order(provider, "gpuctl-demo", offer=offer))
    try:
        assert (machine.gpu, machine.gpu_count) == ("RTX-4090", 2)
        assert access(machine).env["CUDA_VISIBLE_DEVICES"] == "GPU-a,GPU-b"
    finally:
        provider.destroy(machine.provider_id)
    monkeypatch.setattr(local_hardware, "local_gpus", lambda: GPUS[:1])
    with pytest.raises(NoCapacity, match="has 1 × RTX-4090, not 2"):
        provider.create(order(provider, "gpuctl-demo-2", offer=offer))


def test_no_gpu_here_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_hardware, "local_gpus", lambda: ())
    with pytest.raises(Unsupported, match=r"no NVIDIA GPU; the local provider offers its .* cores"):
        provider_at(home).offers(Want(gpus=("T4",)))


def test_a_broken_driver_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVML: Driver/library version mismatch'; exit 18\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Unsupported, match="version mismatch"):
        provider_at(home).offers(Want(gpus=("T4",)))
    findings = {finding.name: finding for finding in provider_at(home).check()}
    assert not findings["gpus"].ok
    assert "version mismatch" in findings["gpus"].detail


def test_nvidia_smi_is_read() -> None:
    said = (
        "GPU-1, NVIDIA GeForce RTX 4090, 24564, 300\n"
        "GPU-2, NVIDIA A100-SXM4-40GB, 40960, [N/A]\n"
        "GPU-3, NVIDIA Prototype 9, 12288, 9000\n\n"
    )
    cards = read_cards(said)
    assert [(card.name, card.vram_gb, card.busy) for card in cards] == [
        ("RTX-4090", 24, False),
        ("A100-40GB-SXM", 40, False),
        ("Prototype-9", 12, True),
    ]
    assert read_cards("") == ()


@given(st.text())
def test_whatever_nvidia_smi_says_is_read_or_refused(said: str) -> None:
    try:
        cards = read_cards(said)
    except NotReadable:
        return
    assert len(cards) <= len(said.splitlines())


# --------------------------------------------------------------------------- pure decisions


@given(st.integers(1, 16), st.sampled_from([None, "RTX-4090", "A100-80GB-SXM"]), st.booleans())
def test_offer_ids_are_read_back(count: int, gpu: str | None, spot: bool) -> None:
    text = offer_id(gpu, count, spot=spot)
    assert read_offer_id(text) == ((count, gpu) if gpu else (0, None))


@given(st.text())
def test_other_offer_ids_are_refused_with_a_sentence(text: str) -> None:
    if text.startswith("local:"):
        return
    with pytest.raises(InvalidRequest, match="is no offer of the local provider"):
        read_offer_id(text)


some_processes = st.builds(ProcessId, st.integers(1, 99), st.text(max_size=3))
hosts = st.none() | st.builds(Host, some_processes, st.none() | some_processes)


@given(host=hosts, alive=st.booleans(), age=st.none() | st.floats(0, 1e6))
def test_the_state_is_total(host: Host | None, alive: bool, age: float | None) -> None:
    state, word = describe(host, alive=alive, age_seconds=age)
    assert word
    assert (state is State.READY) == (host is not None and alive)
    assert state in (State.READY, State.BOOTING, State.LOST)
    assert state is not State.BOOTING or host is None


moments = st.integers(0, 4_000_000_000).map(lambda epoch: datetime.fromtimestamp(epoch, UTC))


@given(
    st.builds(
        Record,
        name=st.text(),
        mark=st.builds(Mark, st.text(), moments, st.none() | st.text(), st.text()),
        price_hour=st.decimals(0, 1000, allow_nan=False, allow_infinity=False),
        spot=st.booleans(),
        created_at=moments,
        gpu=st.none() | st.text(),
        gpu_count=st.integers(0, 16),
        gpu_uuids=st.lists(st.text()).map(tuple),
        rehearsal=st.none() | st.builds(Rehearsal, st.floats(0, 1e6), st.floats(0, 1e3)),
        short_tmp=st.none() | st.text(),
    )
)
def test_records_are_read_back(record: Record) -> None:
    back = record_from_json(json.loads(json.dumps(record_to_json(record))))
    assert abs(back.mark.end - record.mark.end) < timedelta(milliseconds=1)
    assert replace(back, mark=replace(back.mark, end=record.mark.end)) == record


@given(st.dictionaries(st.integers(1, 30), st.integers(1, 30)), st.sets(st.integers(1, 30)))
def test_descendants_are_closed(parents: dict[int, int], roots: set[int]) -> None:
    found = descendants(parents, roots)
    assert roots <= found
    for pid, parent in parents.items():
        assert pid in found or parent not in found


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["sleep", "600"])
    process = identify(child.pid)
    assert process is not None
    assert is_alive(process)
    assert not is_alive(replace(process, started="another boot:1"))
    child.kill()
    assert until(lambda: not is_alive(process), 5)  # and nobody has reaped it
    child.wait()
    assert identify(child.pid) is None


def test_namespaces_that_are_refused_are_explained(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_namespaces, "nsenter_path", lambda: None)
    with pytest.raises(local_namespaces.NotPossible, match="no nsenter"):
        local_namespaces.entering(1, own_users=False)


def test_without_nsenter_machines_are_plain(home: Path, tmp_path: Path) -> None:
    """PATH decides what the process behind the machine finds."""
    (tmp_path / "bin").mkdir()
    for tool in ("sh", "env", "ps"):
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)
    provider = provider_at(home, PATH=str(tmp_path / "bin"))
    machine = provider.create(order(provider, "gpuctl-demo-aaaaaa-00000001"))
    try:
        assert access(machine).enter == ()
        assert "nsenter" in host_of(home, machine).without or sys.platform == "darwin"
        [finding] = [found for found in provider.check() if found.name == "namespaces"]
        assert "told apart by a marker" in finding.detail
    finally:
        provider.destroy(machine.provider_id)


def test_a_socket_in_the_folder_does_not_stop_its_removal(
    provider: LocalProvider, make: Make
) -> None:
    machine = make()
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(access(machine).root)
        try:
            listening.bind("s")
        finally:
            os.chdir(here)
        os.mkfifo(Path(access(machine).root, "pipe"))
        assert provider.destroy(machine.provider_id) == "ended and removed"
