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
