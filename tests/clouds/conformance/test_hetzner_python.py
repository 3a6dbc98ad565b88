"""Hetzner's own Python library against the emulation: whole objects, actions, pages, errors.

It runs in an environment of its own below .make/; what it did and got is told as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuctl.remote.keys import public_key
from tests.clouds.conformance.environments import python_with
from tests.clouds.hetzner_cloud import HetznerCloud, Pace

pytestmark = [pytest.mark.conformance, pytest.mark.timeout(900)]

SESSION = """
import json, sys, warnings
from hcloud import APIException, Client
from hcloud.images import Image
from hcloud.locations import Location
from hcloud.server_types import ServerType

warnings.simplefilter("ignore")
token, root, key = sys.argv[1:]
client = Client(token, api_endpoint=root, poll_interval=0.02, timeout=10)
said = {}

def tell(name, work):
    try:
        said[name] = work()
    except APIException as error:
        said[name] = [str(error.code), error.message, bool(error.correlation_id)]
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"

tell("types", lambda: len(client.server_types.get_all()))
tell("type", lambda: client.server_types.get_by_name("ccx23").cores)
tell("places", lambda: [one.available for one in client.server_types.get_by_name("cx23").locations])
tell("locations", lambda: [one.name for one in client.locations.get_all()])
find_image = client.images.get_by_name_and_architecture
tell("image", lambda: find_image("ubuntu-24.04", "arm").architecture)
tell("pricing", lambda: client.request("GET", "/pricing")["pricing"]["currency"])
tell("key", lambda: client.ssh_keys.create("mine", key).fingerprint.count(":"))
tell("key twice", lambda: client.ssh_keys.create("other", key))
mine = client.ssh_keys.get_by_name("mine")

def make(name, **more):
    return client.servers.create(
        name=name, server_type=ServerType("cx23"), image=Image(name="ubuntu-24.04"),
        location=Location("hel1"), labels={"gpuctl/owner": "x"}, **more)

made = make("box", ssh_keys=[mine], user_data="#cloud-config\\n{}")
said["made"] = [made.server.status, made.action.command, [a.command for a in made.next_actions],
                made.root_password, made.server.public_net.ipv4.ip.count(".")]
made.action.wait_until_finished()
for one in made.next_actions:
    one.wait_until_finished()
made.server.reload()
said["running"] = made.server.status
bare = make("bare")
said["password"] = isinstance(bare.root_password, str)
tell("name twice", lambda: make("box"))
ubuntu = Image(name="ubuntu-24.04")
tell("no such type", lambda: client.servers.create("a", ServerType("cx99"), ubuntu))
tell("bad label", lambda: made.server.update(labels={"end": "2026-11-21T10:00:00Z"}))
tell("label", lambda: made.server.update(labels={"end": "1"}).labels)
tell("selected", lambda: [s.name for s in client.servers.get_all(label_selector="end in (1,2)")])
tell("by name", lambda: client.servers.get_by_name("box").name)
for one in [bare.action, *bare.next_actions]:
    one.wait_until_finished()
tell("by status", lambda: len(client.servers.get_all(status=["running", "off"])))
tell("off", lambda: (made.server.power_off().wait_until_finished(), made.server.reload(),
                     made.server.status)[-1])
tell("on", lambda: made.server.power_on().wait_until_finished())
tell("snapshot", lambda: made.server.create_image(description="s", type="snapshot").image.type)
tell("protect", lambda: made.server.change_protection(delete=True).wait_until_finished())
tell("protected", lambda: made.server.delete())
tell("unprotect", lambda: made.server.change_protection(delete=False).wait_until_finished())
tell("ips", lambda: sorted(ip.type for ip in client.primary_ips.get_all()))
tell("ip update", lambda: client.primary_ips.get_all()[0].update(auto_delete=True).auto_delete)
tell("ip delete", lambda: client.primary_ips.get_all()[0].delete())
volume = client.volumes.create(size=10, name="data", location=Location("hel1"))
said["volume"] = [volume.volume.status, volume.action.command]
tell("volumes", lambda: [v.size for v in client.volumes.get_all()])
tell("volume delete", lambda: volume.volume.delete())
tell("group", lambda: client.placement_groups.create("spread", "spread").placement_group.type)
tell("wall", lambda: client.firewalls.create("wall").firewall.name)
tell("wall delete", lambda: client.firewalls.get_by_name("wall").delete())
tell("actions", lambda: client.actions.get_by_id(made.action.id).status)
tell("delete", lambda: made.server.delete().command)
tell("gone", lambda: client.servers.get_by_id(9))
tell("datacenters", lambda: client.datacenters.get_all())
json.dump(said, sys.stdout)
"""

EXPECTED: dict[str, Any] = {
    "types": 21,
    "type": 4,
    "places": [True, True, True],
    "locations": ["fsn1", "nbg1", "hel1", "ash", "hil", "sin"],
    "image": "arm",
    "pricing": "EUR",
    "key": 15,
    "key twice": ["uniqueness_error", "SSH key with the same fingerprint already exists", True],
    "made": ["initializing", "create_server", ["start_server"], None, 3],
    "running": "running",
    "password": True,
    "name twice": ["uniqueness_error", "server name is already used", True],
    "no such type": ["invalid_input", "invalid input in field 'server_type'", True],
    "bad label": ["invalid_input", "invalid input in field 'labels'", True],
    "label": {"end": "1"},
    "selected": ["box"],
    "by name": "box",
    "by status": 2,
    "off": "off",
    "on": None,
    "snapshot": "snapshot",
    "protect": None,
    "protected": ["protected", "server is protected", True],
    "unprotect": None,
    "ips": ["ipv4", "ipv4", "ipv6", "ipv6"],
    "ip update": True,
    "ip delete": ["must_be_unassigned", "primary ip must be unassigned", True],
    "volume": ["available", "create_volume"],
    "volumes": [10],
    "volume delete": True,
    "group": "spread",
    "wall": "wall",
    "wall delete": True,
    "actions": "success",
    "delete": "delete_server",
    "gone": ["not_found", "server with ID '9' not found", True],
    "datacenters": [
        "deprecated_api_endpoint",
        "this API endpoint is deprecated and was removed",
        True,
    ],
}


@pytest.fixture(scope="module")
def cloud() -> Iterator[HetznerCloud]:
    quick = Pace(create=0.2, start=0.2, stop=0.1, shutdown=0.1, delete=0.1, other=0.1)
    with HetznerCloud(pace=quick) as made:
        yield made


@pytest.fixture(scope="module")
def said(cloud: HetznerCloud, tmp_path_factory: pytest.TempPathFactory) -> Any:
    python = python_with("hcloud", "hcloud==2.27.0")
    key = public_key(tmp_path_factory.mktemp("home"))
    done = subprocess.run(
        [python, "-I", "-c", SESSION, cloud.token, cloud.endpoint, key],
        capture_output=True,
        timeout=120,
        env={k: v for k, v in os.environ.items() if not k.startswith("HCLOUD")},
        cwd=Path("/"),
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.parametrize("what", EXPECTED, ids=lambda what: what.replace(" ", "-"))
def test_the_library_understands(said: Any, what: str) -> None:
    assert said[what] == EXPECTED[what]
