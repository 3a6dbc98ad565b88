"""The `ssh` provider against real sshd hosts on this computer."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpuctl.remote.ssh import SshConnection
from providers.base import (
    ABSENT,
    Ambiguous,
    AuthFailed,
    InvalidRequest,
    Machine,
    Mark,
    NoCapacity,
    NotFound,
    Order,
    SshAccess,
    State,
    SystemClock,
    Unsupported,
    Want,
)
from providers.processes import carriers
from providers.ssh import SshProvider
from providers.ssh_host import MARKER
from providers.ssh_hosts import read_hosts
from tests.clouds.ssh_hosts import Hosts
from tests.conformance.provider_suite import OWNER, Bench, ProviderSuite
from tests.remote.sshd import needs_sshd
from tests.waiting import until

pytestmark = needs_sshd


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    """Two hosts."""
    made = Hosts(tmp_path)
    made.add("one")
    made.add("two", price_hour=0.5)
    yield made
    for server in made.servers.values():
        server.stop()


def order(offer_id: str = "ssh:one:cpu", **changes: object) -> Order:
    """An order for a host."""
    return replace(_template(), offer=replace(_template().offer, id=offer_id), **changes)


def _template() -> Order:
    from secrets import token_hex

    from providers.base import Offer

    offer = Offer("ssh", "ssh:one:cpu", None, 0, None, False, Decimal(0), "one")
    mark = Mark(OWNER, datetime.now(UTC) + timedelta(hours=1), "demo-1a2b3c")
    return Order(f"gpuctl-test-{OWNER[:6]}-{token_hex(4)}", offer, mark)


class TestSsh(ProviderSuite):
    @pytest.fixture
    def bench(self, hosts: Hosts) -> Bench:
        provider = hosts.provider()

        def break_reads() -> None:
            for server in hosts.servers.values():
                server.stop()

        def add_unmarked() -> str:
            hosts.claim("two").write_text('{"name": "somebody"}')
            return "two/somebody"

        return Bench(
            provider,
            books=hosts.books,
            add_unmarked=add_unmarked,
            unknown_id="one/gpuctl-absent-c0ffee-00000000",
            break_reads=break_reads,
        )


# --------------------------------------------------------------------------- the claim


def test_of_many_who_want_a_host_one_gets_it(hosts: Hosts) -> None:
    """Each from a home of its own, as on laptops of their own."""
    outcomes: list[Machine | NoCapacity] = []

    def try_it(number: int) -> None:
        try:
            outcomes.append(hosts.provider(f"laptop{number}").create(order()))
        except NoCapacity as no:
            outcomes.append(no)

    threads = [threading.Thread(target=try_it, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    [machine] = [one for one in outcomes if isinstance(one, Machine)]
    refusals = [str(one) for one in outcomes if isinstance(one, NoCapacity)]
    assert len(refusals) == 4
    assert all(f"'{machine.name}' has it" in text for text in refusals)
    assert hosts.books() == {machine.provider_id: machine.name}
    hosts.provider().destroy(machine.provider_id)


def test_a_taken_host_is_offered_as_not_available(hosts: Hosts) -> None:
    provider = hosts.provider()
    machine = provider.create(order())
    by_host = {offer.region: offer for offer in provider.offers(Want(disk_gb=1))}
    assert (by_host["one"].available, by_host["two"].available) == (False, True)
    assert machine.name in by_host["one"].note
    assert by_host["two"].price_hour == Decimal("0.5")
    provider.destroy(machine.provider_id)
    assert all(offer.available for offer in provider.offers(Want(disk_gb=1)))


def test_a_claim_of_another_login_is_seen_and_left_alone(hosts: Hosts) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file to another user")
    provider = hosts.provider()
    machine = provider.create(order())
    os.chown(hosts.claim("one"), 12345, 12345)
    [seen] = provider.list()
    assert seen.mark is None
    with pytest.raises(Ambiguous, match="12345"):
        provider.destroy(machine.provider_id)
    assert hosts.books()
    os.chown(hosts.claim("one"), 0, 0)
    provider.destroy(machine.provider_id)


def test_a_claim_that_cannot_be_read_is_not_no_claim(hosts: Hosts) -> None:
    provider = hosts.provider()
    hosts.claim("one").write_text("half of a cl")
    with pytest.raises(NoCapacity, match="not a claim"):
        provider.create(order())
    hosts.claim("one").unlink()
    machine = provider.create(order())
    whole = hosts.claim("one").read_text()
    hosts.claim("one").write_text(whole[:40])
    with pytest.raises(Ambiguous, match="not a claim"):
        provider.get(machine.provider_id)
    with pytest.raises(Ambiguous, match="not a claim"):
        provider.list()
    hosts.claim("one").write_text(whole)
    provider.destroy(machine.provider_id)


def test_a_claim_whose_maker_died_is_seen_and_cleared(hosts: Hosts) -> None:
    provider = hosts.provider()
    machine = provider.create(order())
    record = json.loads(hosts.claim("one").read_text())
    hosts.claim("one").write_text(json.dumps({**record, "made": False}))
    assert provider.get(machine.provider_id).state is State.BOOTING
    old = {**record, "made": False, "created_at": record["created_at"] - 3600}
    hosts.claim("one").write_text(json.dumps(old))
    assert provider.get(machine.provider_id).state is State.LOST
    provider.destroy(machine.provider_id)
    assert hosts.books() == {}
    assert list(hosts.base("one").iterdir()) == []


def test_a_host_that_was_restarted_has_lost_its_machine(hosts: Hosts) -> None:
    provider = hosts.provider()
    machine = provider.create(order())
    record = json.loads(hosts.claim("one").read_text())
    hosts.claim("one").write_text(json.dumps({**record, "boot": "another"}))
    seen = provider.get(machine.provider_id)
    assert (seen.state, seen.status) == (State.LOST, "its host was restarted")
    provider.destroy(machine.provider_id)


# --------------------------------------------------------------------------- the end


def run_there(machine: Machine, home: Path, script: str) -> str:
    """Run something on a machine the way a run does."""
    assert isinstance(machine.access, SshAccess)
    connection = SshConnection(machine.access, home=home, machine=machine.name, environ={})
    try:
        done = connection.run(["sh", "-c", script], timeout=20)
    finally:
        connection.close()
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode()


def test_the_end_takes_all_of_the_machine_and_nothing_else(hosts: Hosts) -> None:
    provider = hosts.provider()
    machine = provider.create(order())
    bystander = subprocess.Popen(["sleep", "300"])
    keepsake = hosts.base("one") / "notes.txt"
    keepsake.write_text("mine")
    outside = hosts.folder / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    run_there(
        machine,
        hosts.home(),
        f"""
        (setsid sleep 301 >/dev/null 2>&1 &)
        nohup sh -c 'sleep 302 & wait' >/dev/null 2>&1 &
        mkdir -p deep/er && touch deep/er/file && chmod 500 deep/er && chmod 0 deep
        ln -s {outside} link
        """,
    )
    assert len(carriers({MARKER: machine.name})) >= 2
    provider.destroy(machine.provider_id)
    assert carriers({MARKER: machine.name}) == set()
    assert [entry.name for entry in hosts.base("one").iterdir()] == ["notes.txt"]
    assert (outside / "precious").read_text() == "mine"
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait(10)


def test_a_machine_has_its_own_python_home_and_temporary_files(hosts: Hosts) -> None:
    machine = hosts.provider().create(order())
    assert isinstance(machine.access, SshAccess)
    folder = str(hosts.base("one") / machine.name)
    script = "pwd; command -v python; command -v pip; python -c 'import tempfile as t; print(t.gettempdir())'"  # noqa: E501
    where, python, pip, tmp = run_there(machine, hosts.home(), script).split()
    assert where == f"{folder}/root"
    assert (python, pip) == (f"{folder}/venv/bin/python", f"{folder}/venv/bin/pip")
    assert Path(tmp).resolve() == Path(folder, "tmp")
    hosts.provider().destroy(machine.provider_id)
    assert not Path(tmp).exists()
    assert not Path(tmp).is_symlink()


def test_a_machine_ends_itself_from_inside(hosts: Hosts) -> None:
    provider = hosts.provider()
    machine = provider.create(order())
    assert machine.self_end is not None
    run_there(machine, hosts.home(), "(setsid sleep 303 >/dev/null 2>&1 &)")
    guard = subprocess.run(machine.self_end.argv, env={MARKER: machine.name}, timeout=30)
    assert guard.returncode == 0
    assert hosts.books() == {}
    assert carriers({MARKER: machine.name}) == set()
    assert not (hosts.base("one") / machine.name).exists()
    with pytest.raises(NotFound):
        provider.get(machine.provider_id)
    assert provider.destroy(machine.provider_id) == ABSENT


def test_what_a_crash_left_is_a_leftover(hosts: Hosts) -> None:
    provider = hosts.provider()
    machine = provider.create(order())
    run_there(machine, hosts.home(), "(setsid sleep 304 >/dev/null 2>&1 &)")
    hosts.claim("one").unlink()
    [left] = provider.leftovers()
    assert (left.name, left.kind, left.mark) == (machine.name, "folder", machine.mark)
    provider.remove(left)
    assert provider.leftovers() == []
    assert carriers({MARKER: machine.name}) == set()


# --------------------------------------------------------------------------- hosts that fail


def test_a_host_that_is_off_is_passed_over_unless_we_have_it(hosts: Hosts) -> None:
    provider = hosts.provider()
    machine = provider.create(order())
    hosts.servers["two"].stop()
    assert [one.name for one in provider.list()] == [machine.name]
    assert [offer.region for offer in provider.offers(Want(disk_gb=1))] == ["one"]
    findings = {finding.name: finding for finding in provider.check()}
    assert findings["one"].ok
    assert not findings["two"].ok
    assert "Connection refused" in findings["two"].detail
    hosts.servers["one"].stop()
    for ask in (provider.list, provider.leftovers, lambda: provider.get(machine.provider_id)):
        with pytest.raises(Ambiguous, match="one does not answer"):
            ask()
    with pytest.raises(Ambiguous, match="one does not answer"):
        provider.destroy(machine.provider_id)
    with pytest.raises(NoCapacity, match="two does not answer"):
        provider.create(order("ssh:two:cpu"))
    hosts.servers["one"].start()
    provider.destroy(machine.provider_id)
    assert hosts.books() == {}


def test_a_host_that_is_not_named_any_more_may_still_hold_a_machine(hosts: Hosts) -> None:
    machine = hosts.provider().create(order())
    server = hosts.servers.pop("one")
    hosts.write()
    provider = hosts.provider()
    assert provider.configured()
    for ask in (provider.list, lambda: provider.get(machine.provider_id)):
        with pytest.raises(Ambiguous, match="Put it back"):
            ask()
    hosts.servers["one"] = server
    hosts.write()
    provider.destroy(machine.provider_id)


def test_a_changed_host_key_is_an_error_that_says_so(hosts: Hosts) -> None:
    provider = hosts.provider()
    assert provider.list() == []
    server = hosts.servers["one"]
    server.stop()
    server.new_host_key()
    server.start()
    with pytest.raises(AuthFailed, match="host key has changed"):
        hosts.provider().get("one/gpuctl-absent-c0ffee-00000000")


def test_a_host_that_refuses_our_key(hosts: Hosts) -> None:
    server = hosts.servers["one"]
    server.stop()
    server.authorized = []
    server.start()
    with pytest.raises(AuthFailed, match="does not let us in"):
        hosts.provider().create(order())


def test_a_host_without_python(hosts: Hosts) -> None:
    hosts.options["one"] = {"python": "python-that-is-not-there"}
    hosts.write()
    with pytest.raises(NoCapacity, match=r"has no python-that-is-not-there.*3\.8"):
        hosts.provider().create(order())


# --------------------------------------------------------------------------- graphics cards


@pytest.fixture
def gpu_host(tmp_path: Path) -> Iterator[Hosts]:
    """A host with three cards, one of them in use."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(
        "#!/bin/sh\n"
        "echo 'GPU-a, NVIDIA GeForce RTX 4090, 24564, 21000'\n"
        "echo 'GPU-b, NVIDIA GeForce RTX 4090, 24564, 20'\n"
        "echo 'GPU-c, NVIDIA A100-SXM4-40GB, 40960, 5'\n"
    )
    (tools / "nvidia-smi").chmod(0o755)
    made = Hosts(tmp_path)
    made.add("gpubox", config=(f"SetEnv PATH={tools}:{os.environ['PATH']}",), price_hour="0.35")
    yield made
    made.servers["gpubox"].stop()


def test_cards_are_offered_as_they_are(gpu_host: Hosts) -> None:
    provider = gpu_host.provider()
    offers = provider.offers(Want(gpus=("RTX-4090", "A100-40GB"), disk_gb=1))
    assert {(one.gpu, one.gpu_count, one.vram_gb, one.available) for one in offers} == {
        ("RTX-4090", 1, 24, True),
        ("A100-40GB-SXM", 1, 40, True),
    }
    [both] = provider.offers(Want(gpus=("RTX-4090",), gpu_count=2, disk_gb=1))
    assert not both.available
    assert "1 of its RTX-4090 idle" in both.note
    assert "load" in both.note
    assert both.price_hour == Decimal("0.35")
    with pytest.raises(NoCapacity, match=r"gpubox has RTX-4090, RTX-4090, A100-40GB-SXM, \d"):
        provider.offers(Want(gpus=("RTX-4090",), gpu_count=3, disk_gb=1))


def test_a_machine_sees_the_idle_card(gpu_host: Hosts) -> None:
    provider = gpu_host.provider()
    machine = provider.create(order("ssh:gpubox:1xRTX-4090"))
    assert (machine.gpu, machine.gpu_count) == ("RTX-4090", 1)
    said = run_there(machine, gpu_host.home(), "echo $CUDA_VISIBLE_DEVICES")
    assert said.strip() == "GPU-b"
    provider.destroy(machine.provider_id)
    with pytest.raises(NoCapacity, match="1 x RTX-4090 idle, not 2"):
        provider.create(order("ssh:gpubox:2xRTX-4090"))


# --------------------------------------------------------------------------- settings


def test_names_of_the_ssh_configuration(hosts: Hosts) -> None:
    """Also through a jump host."""
    one, two = hosts.servers["one"], hosts.servers["two"]
    config = hosts.folder / "ssh_config"
    known = hosts.folder / "known"
    environ = {**hosts.environ(), "GPUCTL_SSH_HOSTS": "near, far"}
    config.write_text(
        f"Host near far\n  HostName 127.0.0.1\n  User {one.access.user}\n"
        f"  IdentityFile {hosts.home()}/ssh/id_ed25519\n  UserKnownHostsFile {known}\n"
        f"Host near\n  Port {one.port}\nHost far\n  Port {two.port}\n"
        f"  ProxyCommand ssh -F {config} -o StrictHostKeyChecking=no -W %h:%p near\n"
    )
    provider = SshProvider.from_environment(environ, home=hosts.home(), clock=SystemClock())
    found = {offer.region for offer in provider.offers(Want(disk_gb=1))}
    assert found == {"near", "far"}
    [shell] = [provider._shell(host) for host in provider._hosts() if host.name == "far"]
    access = shell.access()
    assert (access.host, access.port) == ("127.0.0.1", two.port)
    assert "near" in access.proxy[-1]
    assert access.host_keys
    assert access.host_keys[0] in two.host_key
    through = SshConnection(access, home=hosts.home(), machine="far", environ={})
    assert through.run(["echo", "hello"], timeout=20).stdout == b"hello\n"
    through.close()
    assert "hello" not in one.log
    # The jump host saw somebody who passes through.
    assert until(
        lambda: f"127.0.0.1 port {two.port}" in one.log or "direct-tcpip" in one.log, 1
    ) or (one.log.count("Accepted publickey") >= 2)


def test_the_configuration_below_home_counts(hosts: Hosts) -> None:
    one = hosts.servers["one"]
    folder = hosts.folder / ".ssh"
    folder.mkdir()
    (folder / "config").write_text(
        f"Host near\n  HostName 127.0.0.1\n  Port {one.port}\n  User {one.access.user}\n"
        f"  IdentityFile {hosts.home()}/ssh/id_ed25519\n"
    )
    environ = {**hosts.environ(), "GPUCTL_SSH_HOSTS": "near"}
    del environ["GPUCTL_SSH_CONFIG"]
    provider = SshProvider.from_environment(environ, home=hosts.home(), clock=SystemClock())
    assert [offer.region for offer in provider.offers(Want(disk_gb=1))] == ["near"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hosts:\n  - name: a\n    prize: 3\n", "line 3: hosts.0.prize"),
        ("hosts:\n  - a\n  - name: b\n    port: 70000\n", "line 4: hosts.1.port"),
        ("hosts:\n  - a\n  - a\n", "'a' is there twice"),
        ("hosts: [-oProxyCommand=x]\n", "line 1: hosts.0.name"),
        ("hosts:\n  - name: a\n    host: -oProxyCommand=x\n", "line 3: hosts.0.host"),
        ("hosts:\n  - name: a\n    price_hour: -1\n", "line 3: hosts.0.price_hour"),
        ("hosts: [\n", "line 2"),
        ("- name: a\n  prize: 3\n", "line 2: 0.prize"),
        ("box\n", "hosts: write a list of hosts below it"),
        ("", "hosts: write a list of hosts below it"),
    ],
)
def test_a_broken_hosts_file(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "hosts.yaml"
    file.write_text(text)
    environ = {"GPUCTL_SSH_HOSTS": str(file), "PATH": os.environ["PATH"]}
    provider = SshProvider.from_environment(environ, home=tmp_path, clock=SystemClock())
    assert provider.configured()
    with pytest.raises(InvalidRequest) as caught:
        provider.offers(Want())
    assert said in str(caught.value)
    assert str(file) in str(caught.value)
    with pytest.raises(Ambiguous):  # what cannot be read is not an empty account
        provider.list()


def test_a_list_of_hosts_alone(tmp_path: Path) -> None:
    (tmp_path / "hosts.yaml").write_text("- a\n- name: b\n  price_hour: 0.5\n")
    assert [(host.name, host.price_hour) for host in read_hosts({}, tmp_path)] == [
        ("a", Decimal(0)),
        ("b", Decimal("0.5")),
    ]


def test_without_settings_there_are_no_hosts(tmp_path: Path) -> None:
    provider = SshProvider.from_environment({}, home=tmp_path, clock=SystemClock())
    assert not provider.configured()
    assert provider.list() == []
    with pytest.raises(InvalidRequest, match=r"hosts\.yaml"):
        provider.offers(Want())


def test_spot_is_refused_in_words(hosts: Hosts) -> None:
    with pytest.raises(Unsupported, match="one, two"):
        hosts.provider().offers(Want(spot=True))
