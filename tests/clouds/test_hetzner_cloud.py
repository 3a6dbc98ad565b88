"""The emulated Hetzner Cloud follows the contract where the adapter does not look."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.clouds.hetzner_cloud import HetznerCloud
from tests.clouds.hetzner_cloud.errors import ApiError
from tests.clouds.hetzner_cloud.meter import Meter
from tests.clouds.hetzner_cloud.rules import check_labels, selected
from tests.clouds.memory_cloud import HandClock
from tests.clouds.rented import needs_machines
from tests.waiting import until

SERVER = {"name": "web", "server_type": "cx23", "image": "ubuntu-24.04", "location": "hel1"}


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 11, 21, 12, tzinfo=UTC))


@pytest.fixture
def cloud(clock: HandClock) -> Iterator[HetznerCloud]:
    with HetznerCloud(clock=clock) as made:
        yield made


def ask(
    cloud: HetznerCloud, method: str, path: str, body: Any = None, **more: Any
) -> requests.Response:
    headers = {"Authorization": f"Bearer {cloud.token}", **more.pop("headers", {})}
    return requests.request(
        method, f"{cloud.endpoint}{path}", json=body, headers=headers, timeout=5, **more
    )


def error_of(answer: requests.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def test_every_answer_has_the_headers(cloud: HetznerCloud) -> None:
    for path in ("/servers", "/pricing", "/nowhere"):
        headers = ask(cloud, "GET", path).headers
        assert headers["RateLimit-Limit"] == "3600"
        assert int(headers["RateLimit-Remaining"]) < 3600
        assert int(headers["RateLimit-Reset"]) > 0
        assert len(headers["X-Correlation-Id"]) in (15, 16)
    assert "RateLimit-Limit" in requests.get(f"{cloud.endpoint}/servers", timeout=5).headers


def test_pages_have_exactly_six_keys_and_links(cloud: HetznerCloud) -> None:
    for number in range(30):
        cloud.add_foreign(f"web-{number}")
    answer = ask(cloud, "GET", "/servers?page=1")
    assert answer.json()["meta"]["pagination"] == {
        "page": 1,
        "per_page": 25,
        "previous_page": None,
        "next_page": 2,
        "last_page": 2,
        "total_entries": 30,
    }
    assert 'rel="next"' in answer.headers["Link"]
    assert len(ask(cloud, "GET", "/servers?page=2").json()["servers"]) == 5
    assert error_of(ask(cloud, "GET", "/servers?per_page=51")) == (422, "invalid_input")


def test_the_bucket_refills_a_token_a_second(clock: HandClock) -> None:
    with HetznerCloud(clock=clock, rate_limit=3) as cloud:
        codes = [ask(cloud, "GET", "/locations").status_code for _ in range(4)]
        assert codes == [200, 200, 200, 429]
        answer = ask(cloud, "GET", "/locations")
        assert error_of(answer) == (429, "rate_limit_exceeded")
        assert "Retry-After" not in answer.headers
        clock.pass_time(1)
        assert ask(cloud, "GET", "/locations").status_code == 200


def test_gone_endpoints_and_keys(cloud: HetznerCloud) -> None:
    for path in ("/datacenters", "/datacenters/1"):
        assert error_of(ask(cloud, "GET", path)) == (410, "deprecated_api_endpoint")
    made = ask(cloud, "POST", "/servers", SERVER)
    assert made.status_code == 201
    assert "datacenter" not in made.json()["server"]
    with_it = ask(cloud, "POST", "/servers", {**SERVER, "name": "b", "datacenter": "fsn1-dc14"})
    assert error_of(with_it) == (422, "invalid_input")
    assert error_of(ask(cloud, "GET", "/actions")) == (422, "invalid_input")
    assert error_of(ask(cloud, "POST", "/servers", data=b"{")) == (400, "json_error")


def test_a_life(cloud: HetznerCloud, clock: HandClock) -> None:
    made = ask(cloud, "POST", "/servers", SERVER).json()
    path = f"/servers/{made['server']['id']}"
    assert isinstance(made["root_password"], str)  # no key was given
    assert made["action"]["command"] == "create_server"
    statuses = []
    for _ in range(4):
        statuses.append(ask(cloud, "GET", path).json()["server"]["status"])
        clock.pass_time(5)
    assert statuses == ["initializing", "initializing", "starting", "running"]
    [start] = made["next_actions"]
    action = ask(cloud, "GET", f"/actions/{start['id']}").json()["action"]
    assert (action["status"], action["progress"], action["error"]) == ("success", 100, None)
    assert error_of(ask(cloud, "POST", "/servers", SERVER)) == (409, "uniqueness_error")
    deleted = ask(cloud, "DELETE", path)
    assert (deleted.status_code, deleted.json()["action"]["command"]) == (200, "delete_server")
    assert error_of(ask(cloud, "DELETE", path)) == (423, "locked")
    clock.pass_time(5)
    assert error_of(ask(cloud, "GET", path)) == (404, "not_found")
    assert cloud.bills() == {}
    assert ask(cloud, "POST", "/servers", SERVER).status_code == 201  # the name is free again


def test_a_shutdown_only_asks(cloud: HetznerCloud, clock: HandClock) -> None:
    number = cloud.add_foreign()
    clock.pass_time(20)
    cloud.switches.shutdown_ignored = True
    sent = ask(cloud, "POST", f"/servers/{number}/actions/shutdown").json()["action"]
    clock.pass_time(20)
    assert ask(cloud, "GET", f"/actions/{sent['id']}").json()["action"]["status"] == "success"
    assert ask(cloud, "GET", f"/servers/{number}").json()["server"]["status"] == "running"
    ask(cloud, "POST", f"/servers/{number}/actions/poweroff")
    clock.pass_time(20)
    assert ask(cloud, "GET", f"/servers/{number}").json()["server"]["status"] == "off"
    assert number in cloud.bills("server")


@needs_machines
def test_a_machine_that_switches_itself_off_still_costs_and_boots_again(tmp_path: Path) -> None:
    with HetznerCloud(machines=tmp_path / "servers") as cloud:
        number = cloud.add_foreign()
        server = cloud.project.servers[int(number)]
        assert until(lambda: server.machine and server.machine.rented.alive, 10)
        assert server.machine is not None
        rented = server.machine.rented
        assert until((rented.folder / "run/cloud-init/result.json").exists, 10)
        rented.start("shutdown -P now")
        assert until(lambda: server.status == "off" and not rented.alive, 10)
        assert number in cloud.bills("server")
        with cloud.lock:
            cloud.project.power_on(server)
        assert until(lambda: server.status == "running" and rented.alive, 10)
        with cloud.lock:
            cloud.project.delete_server(server)
        assert until(lambda: cloud.bills() == {}, 10)
        assert not rented.alive
        assert not rented.folder.exists()


def test_backups_go_with_a_server_and_snapshots_stay(cloud: HetznerCloud, clock: HandClock) -> None:
    number = cloud.add_foreign()
    clock.pass_time(20)
    path = f"/servers/{number}/actions/create_image"
    for kind in ("snapshot", "backup"):
        assert ask(cloud, "POST", path, {"type": kind, "description": kind}).status_code == 201
    assert error_of(ask(cloud, "DELETE", "/images/161547269")) == (422, "invalid_input")
    ask(cloud, "DELETE", f"/servers/{number}")
    clock.pass_time(5)
    images = ask(cloud, "GET", "/images?type=snapshot&type=backup").json()["images"]
    assert [image["type"] for image in images] == ["snapshot"]
    assert list(cloud.bills().values()) == ["snapshot"]


def test_an_assigned_address_is_not_deleted(cloud: HetznerCloud, clock: HandClock) -> None:
    number = cloud.add_foreign()
    [address] = [x for x in cloud.project.primary_ips.values() if x["type"] == "ipv4"]
    path = f"/primary_ips/{address['id']}"
    assert error_of(ask(cloud, "DELETE", path)) == (422, "must_be_unassigned")
    clock.pass_time(20)
    unassign = ask(cloud, "POST", f"{path}/actions/unassign")
    assert error_of(unassign) == (422, "server_not_stopped")
    ask(cloud, "POST", f"/servers/{number}/actions/poweroff")
    clock.pass_time(5)
    assert ask(cloud, "POST", f"{path}/actions/unassign").status_code == 201
    assert ask(cloud, "GET", path).json()["primary_ip"]["assignee_type"] == "unassigned"
    assert ask(cloud, "DELETE", path).status_code == 204


def test_started_hours_are_charged_up_to_the_months_price() -> None:
    begin = datetime(2026, 11, 1, tzinfo=UTC)
    meter = Meter(begin, Decimal("0.01"), Decimal("6.24"))
    assert meter.charged(begin + timedelta(seconds=1)) == Decimal("0.01")
    assert meter.charged(begin + timedelta(hours=2, seconds=1)) == Decimal("0.03")
    assert meter.charged(begin + timedelta(days=29)) == Decimal("6.24")
    assert meter.charged(datetime(2026, 12, 1, 1, tzinfo=UTC)) == Decimal("6.25")
    meter.surcharge = Decimal("0.2")
    assert meter.charged(begin + timedelta(minutes=1)) == Decimal("0.012")


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("a", True),
        ("!a", False),
        ("b", False),
        ("!b", True),
        ("a=1", True),
        ("a==1", True),
        ("a!=1", False),
        ("a in (1,2)", True),
        ("a notin (1,2)", False),
        ("a=1,c/d=x", True),
        ("a=1,c/d=y", False),
        ("a in (1, 2),!b", True),
    ],
)
def test_label_selectors(selector: str, matches: bool) -> None:
    assert selected({"a": "1", "c/d": "x"}, selector) is matches


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [
        ("a", "", True),
        ("gpuctl/end", "1800000000", True),
        ("gpuctl/end", "2026-11-21T10:00:00Z", False),
        ("a", "x+y", False),
        ("a", "x" * 64, False),
        ("-a", "x", False),
        ("hetzner.cloud/a", "x", False),
        ("a" * 64, "x", False),
    ],
)
def test_label_rules(key: str, value: str, legal: bool) -> None:
    if legal:
        assert check_labels({key: value}) == {key: value}
    else:
        with pytest.raises(ApiError):
            check_labels({key: value})


def test_tokens_of_another_length_and_none(cloud: HetznerCloud) -> None:
    other = {"Authorization": "Bearer short"}
    answer = requests.get(f"{cloud.endpoint}/servers", headers=other, timeout=5)
    assert error_of(answer) == (401, "unauthorized")
    cloud.switches.read_only = True
    assert error_of(ask(cloud, "POST", "/servers", SERVER)) == (401, "token_readonly")
    assert ask(cloud, "GET", "/servers").status_code == 200


def test_methods_that_a_path_does_not_have(cloud: HetznerCloud) -> None:
    assert error_of(ask(cloud, "DELETE", "/pricing")) == (405, "method_not_allowed")
    assert error_of(ask(cloud, "GET", "/nowhere")) == (404, "not_found")


def test_names_are_taken_when_something_is_renamed_too(cloud: HetznerCloud) -> None:
    cloud.add_foreign("one")
    two = cloud.add_foreign("two")
    renamed = ask(cloud, "PUT", f"/servers/{two}", {"name": "one"})
    assert error_of(renamed) == (409, "uniqueness_error")
    assert ask(cloud, "PUT", f"/servers/{two}", {"name": "two"}).status_code == 200
    place = {"type": "ipv4", "location": "hel1"}
    ask(cloud, "POST", "/primary_ips", {"name": "a", **place})
    other = ask(cloud, "POST", "/primary_ips", {"name": "b", **place}).json()["primary_ip"]["id"]
    renamed = ask(cloud, "PUT", f"/primary_ips/{other}", {"name": "a"})
    assert error_of(renamed) == (409, "uniqueness_error")


def address(cloud: HetznerCloud, place: str = "hel1", kind: str = "ipv4") -> int:
    body = {"name": f"{kind}-{place}", "type": kind, "location": place}
    made = ask(cloud, "POST", "/primary_ips", body).json()
    return int(made["primary_ip"]["id"])


def test_a_server_gets_only_what_is_free_and_near(cloud: HetznerCloud, clock: HandClock) -> None:
    near, far, six = address(cloud), address(cloud, "fsn1"), address(cloud, "hel1", "ipv6")

    def made(name: str, **net: int) -> requests.Response:
        return ask(cloud, "POST", "/servers", {**SERVER, "name": name, "public_net": net})

    assert error_of(made("a", ipv4=far)) == (422, "primary_ip_datacenter_mismatch")
    assert error_of(made("a", ipv4=six)) == (422, "primary_ip_version_mismatch")
    assert error_of(made("a", ipv4=1)) == (404, "not_found")
    assert cloud.bills("server") == {}
    server = made("a", ipv4=near).json()["server"]
    assert error_of(made("b", ipv4=near)) == (422, "primary_ip_assigned")
    assert server["public_net"]["ipv4"]["id"] == near
    clock.pass_time(20)
    ask(cloud, "DELETE", f"/servers/{server['id']}")
    clock.pass_time(5)
    assert str(near) in cloud.bills("primary_ip")  # made by hand: it stays and costs


def test_addresses_are_given_to_servers_that_are_off(cloud: HetznerCloud, clock: HandClock) -> None:
    number, spare = int(cloud.add_foreign()), address(cloud, "nbg1")
    [own] = [x["id"] for x in cloud.project.addresses_of(number) if x["type"] == "ipv4"]
    clock.pass_time(20)
    body = {"assignee_id": number, "assignee_type": "server"}
    assign = f"/primary_ips/{spare}/actions/assign"
    assert error_of(ask(cloud, "POST", assign, body)) == (422, "server_not_stopped")
    ask(cloud, "POST", f"/servers/{number}/actions/poweroff")
    clock.pass_time(5)
    assert error_of(ask(cloud, "POST", assign, body)) == (422, "server_has_ipv4")
    ask(cloud, "POST", f"/primary_ips/{own}/actions/unassign")
    assert ask(cloud, "POST", assign, body).status_code == 201
    assert error_of(ask(cloud, "POST", assign, body)) == (422, "primary_ip_already_assigned")


def test_volumes_are_attached_where_they_are_and_once(cloud: HetznerCloud) -> None:
    number = int(cloud.add_foreign())  # in nbg1
    made = {}
    for place in ("nbg1", "fsn1"):
        body = {"name": place, "size": 10, "location": place}
        made[place] = ask(cloud, "POST", "/volumes", body).json()["volume"]["id"]
    attach = "/volumes/{}/actions/attach"
    assert error_of(ask(cloud, "POST", attach.format(made["fsn1"]), {"server": number}))[0] == 422
    path = attach.format(made["nbg1"])
    assert ask(cloud, "POST", path, {"server": number}).status_code == 201
    again = ask(cloud, "POST", path, {"server": number})
    assert error_of(again) == (422, "volume_already_attached")
    assert error_of(ask(cloud, "DELETE", f"/volumes/{made['nbg1']}")) == (423, "locked")
    assert ask(cloud, "GET", f"/servers/{number}").json()["server"]["volumes"] == [made["nbg1"]]


def test_what_is_protected_stays(cloud: HetznerCloud) -> None:
    body = {"name": "data", "size": 10, "location": "fsn1"}
    volume = ask(cloud, "POST", "/volumes", body).json()["volume"]["id"]
    for path in (f"/volumes/{volume}", f"/primary_ips/{address(cloud)}"):
        ask(cloud, "POST", f"{path}/actions/change_protection", {"delete": True})
        assert error_of(ask(cloud, "DELETE", path)) == (423, "protected")
        ask(cloud, "POST", f"{path}/actions/change_protection", {"delete": False})
        assert ask(cloud, "DELETE", path).status_code == 204
    assert cloud.bills() == {}


def test_firewalls_are_applied_and_let_go_with_a_server(
    cloud: HetznerCloud, clock: HandClock
) -> None:
    wall = ask(cloud, "POST", "/firewalls", {"name": "w"}).json()["firewall"]["id"]
    made = ask(cloud, "POST", "/servers", {**SERVER, "firewalls": [{"firewall": wall}]}).json()
    [shown] = made["server"]["public_net"]["firewalls"]
    assert shown == {"id": wall, "status": "applied"}
    assert error_of(ask(cloud, "DELETE", f"/firewalls/{wall}")) == (422, "resource_in_use")
    to = [{"type": "server", "server": {"id": made["server"]["id"]}}]
    path = f"/firewalls/{wall}/actions/"
    twice = ask(cloud, "POST", path + "apply_to_resources", {"apply_to": to})
    assert error_of(twice) == (422, "firewall_already_applied")
    assert ask(cloud, "POST", path + "set_rules", {"rules": []}).status_code == 201
    ask(cloud, "DELETE", f"/servers/{made['server']['id']}")
    clock.pass_time(5)
    gone = ask(cloud, "POST", path + "remove_from_resources", {"remove_from": to})
    assert error_of(gone) == (404, "firewall_resource_not_found")
    assert ask(cloud, "DELETE", f"/firewalls/{wall}").status_code == 204


def test_a_floating_address_costs_until_it_is_deleted(cloud: HetznerCloud) -> None:
    body = {"type": "ipv4", "home_location": "fsn1", "name": "f"}
    number = ask(cloud, "POST", "/floating_ips", body).json()["floating_ip"]["id"]
    assert cloud.bills() == {str(number): "f"}
    assert ask(cloud, "DELETE", f"/floating_ips/{number}").status_code == 204
    assert cloud.bills() == {}


def test_a_deletion_can_fail_after_it_was_accepted(cloud: HetznerCloud, clock: HandClock) -> None:
    number = cloud.add_foreign()
    clock.pass_time(20)
    cloud.switches.delete_action_fails = 1
    action = ask(cloud, "DELETE", f"/servers/{number}").json()["action"]
    clock.pass_time(5)
    told = ask(cloud, "GET", f"/actions/{action['id']}").json()["action"]
    assert (told["status"], told["error"]["code"]) == ("error", "server_error")
    assert ask(cloud, "GET", f"/servers/{number}").json()["server"]["status"] == "running"
    assert number in cloud.bills("server")


@needs_machines
def test_a_server_learns_who_it_is_without_a_key(tmp_path: Path) -> None:
    secret = "#cloud-config\n{}"
    with HetznerCloud(machines=tmp_path / "servers") as cloud:
        body = {**SERVER, "user_data": secret}
        made = ask(cloud, "POST", "/servers", body).json()["server"]
        server = cloud.project.servers[made["id"]]
        assert until(lambda: server.machine and server.machine.rented.alive, 10)
        assert server.machine is not None
        told = server.machine.rented.environment["HETZNER_METADATA"]
        ip = made["public_net"]["ipv4"]["ip"]
        for name, value in (
            ("metadata/instance-id", str(made["id"])),
            ("metadata/hostname", "web"),
            ("metadata/public-ipv4", ip),
            ("metadata/availability-zone", "hel1-dc1"),
            ("userdata", secret),  # whoever is on the machine can read it
        ):
            assert requests.get(f"{told}/{name}", timeout=5).text == value
        assert requests.get(f"{told}/metadata/none", timeout=5).status_code == 404
        assert cloud.token not in requests.get(f"{told}/metadata", timeout=5).text
