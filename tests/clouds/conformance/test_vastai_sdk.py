"""The emulated Vast.ai accepted by Vast.ai's own package and command, and gpuctl beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from providers import vastai
from providers.base import Mark, Order, SshAccess, State, SystemClock, Want
from providers.vastai import VastProvider
from tests.clouds.conformance.vastai_clients import cli, sdk
from tests.clouds.vastai_cloud import Times, VastCloud, main_settings, usual_hosts

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(700)]

RENT = """
offer = v.search_offers(query='gpu_name=RTX_4090 num_gpus=1', order='dph_total')[0]
made = v.create_instance(offer['id'], image='pytorch/pytorch', disk=20, label='job1',
    env='-p 8080:8080 -e FOO=bar', onstart_cmd='echo hi', ssh=True, direct=True)
id = made['new_contract']
"""


@pytest.fixture
def cloud() -> Iterator[VastCloud]:
    """One whose instances are there at once."""
    with VastCloud() as made:
        made.contracts.hosts = usual_hosts()
        made.contracts.credit = Decimal(1000)
        made.switches.times = Times(provision=0, load=0, sshd=0)
        yield made


def provider(cloud: VastCloud, folder: Path, monkeypatch: pytest.MonkeyPatch) -> VastProvider:
    """Our own adapter on the same account."""
    monkeypatch.setattr(vastai, "PACE_FACTOR", 0.0)
    return VastProvider.from_environment(main_settings(cloud), home=folder, clock=SystemClock())


# ---------------------------------------------------------------------------- the package


def test_searches(cloud: VastCloud, tmp_path: Path) -> None:
    queries = {
        "gpu_name=RTX_4090 num_gpus=1": 6,
        "gpu_name=A100_SXM4 gpu_ram>=80": 1,
        "gpu_name=A100_SXM4 num_gpus=1": 3,
        "gpu_name=H100_SXM gpu_ram>=80": 7,
        "gpu_name in [RTX_4090,RTX_3090] num_gpus=1 geolocation in [US,CA]": 1,
        "reliability>0.99 cpu_ram>64 duration>3 num_gpus=4": 2,
        "verified=any num_gpus=1 gpu_name=RTX_4090": 6,
        "gpu_ram>=999": 0,
    }
    found = sdk(
        cloud,
        tmp_path,
        f"say({{q: len(v.search_offers(query=q, limit=64)) for q in {list(queries)!r}}})",
    )
    assert found == queries
    cheap = sdk(cloud, tmp_path, "say(v.search_offers(query={}, order='dph_total', limit=3))")
    prices = [row["dph_total"] for row in cheap]
    assert prices == sorted(prices)
    assert len(prices) == 3


def test_a_whole_life(cloud: VastCloud, tmp_path: Path) -> None:
    said = sdk(
        cloud,
        tmp_path,
        RENT
        + """
life = [made['success'], v.show_instance(id)['actual_status'], v.show_instance(id)['extra_env']]
life.append([row['id'] == id for row in v.show_instances()])
for act in (v.stop_instance, v.start_instance, v.reboot_instance, v.recycle_instance):
    life.append(act(id)['success'])
life.append(v.label_instance(id, 'other')['success'])
life.append(v.execute(id, 'ls -l'))
life.append(v.logs(id, tail='10'))
life.append(v.destroy_instance(id)['success'])
life.append(v.show_instance(id))
life.append(v.show_instances())
say(life)
""",
    )
    env = {"-p 8080:8080": "1", "FOO": "bar"}  # pairs on the wire; the package makes this of them
    assert said[:4] == [True, "running", env, [True]]
    assert said[4:9] == [True] * 5
    assert all(isinstance(text, str) and text for text in said[9:11])
    assert said[11:] == [True, None, []]
    assert cloud.contracts.books.open() == {}
    assert [thing.name for thing in cloud.contracts.books.things.values()] == ["job1"]


def test_bids_and_launching_and_many_at_once(cloud: VastCloud, tmp_path: Path) -> None:
    said = sdk(
        cloud,
        tmp_path,
        """
offer = v.search_offers(query='gpu_name=RTX_3090', type='bid')[0]
bid = v.create_instance(offer['id'], image='x', disk=10, bid_price=offer['min_bid'])
row = v.show_instance(bid['new_contract'])
raised = v.change_bid(bid['new_contract'], price=offer['min_bid'] * 2)
again = v.show_instance(bid['new_contract'])
launched = v.launch_instance(gpu_name='RTX_4090', num_gpus='1', image='img', disk=32)
ids = [one['id'] for one in v.show_instances()]
say([row['is_bid'], row['dph_base'], raised['success'], again['dph_base'], len(ids),
     launched['success'], v.destroy_instances(ids) is not None, v.show_instances()])
""",
    )
    assert said == [True, 0.08, True, 0.16, 2, True, True, []]
    assert cloud.contracts.books.open() == {}


def test_every_page_is_followed(cloud: VastCloud, tmp_path: Path) -> None:
    for _ in range(60):
        ask = cloud.contracts.asks()[0]
        cloud.contracts.rent(ask, {"image": "x"}, None, ())
        cloud.contracts.all.update(dict(cloud.contracts.all))
        for contract in cloud.contracts.all.values():
            contract.cur = "stopped"  # their GPUs are free again
    assert sdk(cloud, tmp_path, "say(len({row['id'] for row in v.show_instances()}))") == 60


def test_keys_and_money(cloud: VastCloud, tmp_path: Path) -> None:
    said = sdk(
        cloud,
        tmp_path,
        RENT
        + """
key = v.create_ssh_key('ssh-ed25519 AAAA me')['key']['id']
listed = [one['id'] for one in v.show_ssh_keys()]
attached = v.attach_ssh(id, 'ssh-ed25519 BBBB me')['success']
deleted = v.delete_ssh_key(key)['success']
charges = v.show_invoices_v1(charges=True)['results']
user = v.show_user()
say([listed == [key], attached, deleted, [one['source'] == f'instance-{id}' for one in charges],
     'api_key' in user, user['credit'] > 0])
""",
    )
    assert said == [True, True, True, [True], False, True]


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("v.create_instance(999, image='x', disk=10, cancel_unavail=True)", 410),
        ("v.create_instance(10300, image='x', disk=4)", 400),
        ("v.create_instance(10300, image='x', disk=10, bid_price=0.0001)", 400),
        ("v.change_bid(5, price=1)", 404),
        ("v.label_instance(5, 'x')", 404),
        ("v.destroy_instance(5)", 404),
    ],
)
def test_refusals_are_errors_to_it(
    cloud: VastCloud, tmp_path: Path, program: str, status: int
) -> None:
    said = sdk(
        cloud,
        tmp_path,
        f"try: {program}\nexcept Exception as e: say([e.response.status_code, e.response.json()])",
    )
    assert said[0] == status
    assert said[1]["success"] is False
    assert said[1]["msg"]


@pytest.mark.parametrize("status", [401, 404])
def test_a_bad_key_is_an_error_to_it(cloud: VastCloud, tmp_path: Path, status: int) -> None:
    cloud.switches.bad_key_status = status  # type: ignore[assignment]
    program = "try: v.show_instances()\nexcept Exception as e: say(e.response.status_code)"
    assert sdk(cloud, tmp_path, program, VAST_API_KEY="wrong") == status


# ---------------------------------------------------------------------------- the command


def test_the_command(cloud: VastCloud, tmp_path: Path) -> None:
    found = cli(cloud, tmp_path, "search", "offers", "gpu_name=RTX_4090 num_gpus=1", "--raw")
    offers = json.loads(found.stdout)
    assert {row["gpu_name"] for row in offers} == {"RTX 4090"}
    words = ("--image", "x", "--disk", "20", "--ssh", "--direct", "--label", "job1", "--raw")
    made = json.loads(
        cli(cloud, tmp_path, "create", "instance", str(offers[0]["id"]), *words).stdout
    )
    id = str(made["new_contract"])
    [row] = json.loads(cli(cloud, tmp_path, "show", "instances", "--raw").stdout)
    assert (row["label"], row["actual_status"]) == ("job1", "running")
    [contract] = cloud.contracts.all.values()
    port = row["ports"]["22/tcp"][0]["HostPort"]
    assert contract.ports
    assert cli(cloud, tmp_path, "ssh-url", id).stdout.strip() == f"ssh://root@203.0.113.7:{port}"
    table = cli(cloud, tmp_path, "show", "instances")
    assert table.returncode == 0, table.stderr
    assert "4090" in table.stdout
    user = json.loads(cli(cloud, tmp_path, "show", "user", "--raw").stdout)
    assert user["email"] == "somebody@example.com"
    ended = cli(cloud, tmp_path, "destroy", "instance", id, "-y")
    assert "destroying" in ended.stdout.lower(), ended
    assert cloud.contracts.books.open() == {}


def test_what_the_command_sends_is_what_the_contract_recorded(
    cloud: VastCloud, tmp_path: Path
) -> None:
    """The golden transcript, so that the emulation is asked what the real one is asked."""
    words = (
        *("create", "instance", "10300", "--image", "pytorch/pytorch", "--disk", "40", "--ssh"),
        *("--direct", "--label", "job1", "--env", "-p 8080:8080 -e FOO=bar -h box"),
        *("--onstart-cmd", "echo hi", "--bid_price", "0.2"),
    )
    cli(cloud, tmp_path, *words)
    [create] = cloud.requests("PUT", "/api/v0/asks/10300/")
    assert json.loads(create.body) == {
        **{"client_id": "me", "image": "pytorch/pytorch", "price": 0.2, "disk": 40.0},
        **{"env": {"-p 8080:8080": "1", "FOO": "bar", "-h": "box"}, "label": "job1"},
        **{"extra": None, "onstart": "echo hi", "image_login": None, "python_utf8": False},
        **{"lang_utf8": False, "use_jupyter_lab": False, "jupyter_dir": None, "force": False},
        **{"cancel_unavail": False, "template_hash_id": None, "user": None},
        "runtype": "ssh_direc ssh_proxy",
    }
    [contract] = cloud.contracts.all.values()
    assert contract.bid == Decimal("0.2")
    assert contract.env == {"FOO": "bar"}


def test_volumes_jobs_and_copies(cloud: VastCloud, tmp_path: Path) -> None:
    """The rest of what it can ask for: all of it is answered as it expects."""
    found = json.loads(cli(cloud, tmp_path, "search", "volumes", "--raw").stdout)
    assert {row["id"] for row in found} == {host.id for host in cloud.contracts.hosts}
    made = cli(cloud, tmp_path, "create", "volume", "101", "-s", "20", "-n", "v")
    assert "V." in made.stdout, made
    [volume] = json.loads(cli(cloud, tmp_path, "show", "volumes", "--raw").stdout)
    assert (volume["label"], volume["disk_space"]) == ("v", 20)
    assert list(cloud.contracts.books.open("volume")) == [volume["name"]]
    cli(cloud, tmp_path, "delete", "volume", str(volume["id"]))
    assert cloud.contracts.books.open() == {}
    id = sdk(cloud, tmp_path, RENT + "say(id)")
    words = ("--schedule", "DAILY", "--day", "*", "--hour", "3")
    cli(cloud, tmp_path, "reboot", "instance", str(id), *words)
    [job] = cloud.jobs.values()
    assert (job["api_endpoint"], job["request_method"]) == (
        f"/api/v0/instances/reboot/{id}/",
        "PUT",
    )
    cli(cloud, tmp_path, "copy", f"{id}:/a", f"{id}:/b")
    [copied] = cloud.requests("PUT", "/commands/copy_direct/")
    assert copied.status == 200
    assert {line.status for line in cloud.log} == {200}


# ---------------------------------------------------------------------------- beside gpuctl


def test_a_machine_of_gpuctls_as_the_package_sees_it(
    cloud: VastCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = provider(cloud, tmp_path, monkeypatch)
    offer = ours.offers(Want(gpus=("A100-40GB",), spot=True))[0]
    mark = Mark("c0ffee123456", datetime.now(UTC) + timedelta(hours=1))
    machine = ours.create(Order("gpuctl-x-c0ffee-0badcafe", offer, mark))
    program = f"say([v.show_instance({machine.provider_id}), v.ssh_url({machine.provider_id})])"
    row, url = sdk(cloud, tmp_path, program)
    assert row["label"].startswith("gpuctl-x-c0ffee-0badcafe end=")
    assert (row["is_bid"], row["gpu_name"], row["num_gpus"]) == (True, "A100 SXM4", 1)
    assert Decimal(str(row["dph_total"])) == pytest.approx(offer.price_hour)
    seen = ours.get(machine.provider_id)
    assert isinstance(seen.access, SshAccess)
    [proxy] = seen.access.alternatives
    assert url == f"ssh://root@{proxy.host}:{proxy.port}"
    sdk(cloud, tmp_path, f"say(v.destroy_instance({machine.provider_id}))")
    assert ours.list() == []


def test_a_machine_of_the_packages_as_gpuctl_sees_it(
    cloud: VastCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = sdk(cloud, tmp_path, RENT + "say(id)")
    [machine] = provider(cloud, tmp_path, monkeypatch).list()
    assert (machine.provider_id, machine.name, machine.mark) == (str(id), "job1", None)
    assert (machine.state, machine.gpu, machine.spot) == (State.READY, "RTX-4090", False)
