"""The emulated Vast.ai by itself: what our adapter never asks for, and what things cost."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import requests

from tests.clouds.memory_cloud import HandClock
from tests.clouds.vastai_cloud import Contract, VastCloud, usual_hosts
from tests.clouds.vastai_cloud.switches import THRESHOLDS

BODY = {"image": "x", "disk": 40, "label": "l"}


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 11, 21, tzinfo=UTC))


@pytest.fixture
def cloud(clock: HandClock) -> Iterator[VastCloud]:
    with VastCloud(clock=clock) as made:
        made.contracts.hosts = usual_hosts()
        yield made


def call(
    cloud: VastCloud, method: str, path: str, body: Any = None, *, key: str | None = None
) -> requests.Response:
    """Ask as a client does."""
    headers = {"Authorization": f"Bearer {cloud.key if key is None else key}"} if key != "" else {}
    url = f"{cloud.url}/api/{path}"
    return requests.request(
        method, url, json=body, headers=headers, timeout=5, allow_redirects=False
    )


def rented(cloud: VastCloud, clock: HandClock, ask: int = 10100, **more: Any) -> Contract:
    """One that runs."""
    made = call(cloud, "PUT", f"v0/asks/{ask}/", {**BODY, **more}).json()
    clock.pass_time(100)
    call(cloud, "GET", "v1/instances/")
    return cloud.contracts.all[made["new_contract"]]


def test_the_key_of_an_instance_reaches_that_instance_only(
    cloud: VastCloud, clock: HandClock
) -> None:
    own, other = rented(cloud, clock), rented(cloud, clock, 10200)
    key = own.key
    for method, path, body in (
        ("GET", "v1/instances/", None),
        ("GET", f"v0/instances/{other.id}/", None),
        ("DELETE", f"v0/instances/{other.id}/", {}),
        ("PUT", f"v0/instances/{own.id}/", {"label": "x"}),
        ("PUT", "v0/asks/10300/", BODY),
        ("GET", "v0/users/current/", None),
    ):
        assert call(cloud, method, path, body, key=key).status_code == 403, path
    assert call(cloud, "GET", f"v0/instances/{own.id}/", key=key).json()["instances"]["id"]
    stop = {"state": "stopped"}
    assert call(cloud, "PUT", f"v0/instances/{own.id}/", stop, key=key).json()["success"]
    assert call(cloud, "DELETE", f"v0/instances/{own.id}/", {}, key=key).json()["success"]
    assert list(cloud.contracts.all) == [other.id]


def test_gpus_are_metered_while_they_run_and_storage_always(
    cloud: VastCloud, clock: HandClock
) -> None:
    contract = rented(cloud, clock)  # 5 s and 30 s until it runs, 65 s of running
    base, storage = Decimal("0.40"), Decimal("0.15") * 40 / 720
    billed = cloud.contracts.books.billed(str(contract.id), clock.now())
    assert billed == pytest.approx(storage * 100 / 3600 + base * 65 / 3600)
    call(cloud, "PUT", f"v0/instances/{contract.id}/", {"state": "stopped"})
    clock.pass_time(3600)
    later = cloud.contracts.books.billed(str(contract.id), clock.now())
    assert later - billed == pytest.approx(storage)
    cloud.contracts.host_down(contract.id)
    clock.pass_time(3600)
    assert cloud.contracts.books.billed(str(contract.id), clock.now()) == later


def test_without_cancelling_a_taken_offer_leaves_a_stopped_instance(
    cloud: VastCloud, clock: HandClock
) -> None:
    cloud.switches.taken_at_create = 2
    assert call(cloud, "PUT", "v0/asks/10100/", {**BODY, "cancel_unavail": True}).status_code == 410
    made = call(cloud, "PUT", "v0/asks/10100/", {**BODY, "cancel_unavail": False}).json()
    row = call(cloud, "GET", f"v0/instances/{made['new_contract']}/").json()["instances"]
    states = (row["actual_status"], row["intended_status"], row["cur_state"], row["next_state"])
    assert states == (None, "running", "stopped", "running")
    assert len(cloud.contracts.books.open()) == 1


def test_a_restart_may_be_queued(cloud: VastCloud, clock: HandClock) -> None:
    contract = rented(cloud, clock)
    call(cloud, "PUT", f"v0/instances/{contract.id}/", {"state": "stopped"})
    cloud.switches.restart_queued = True
    said = call(cloud, "PUT", f"v0/instances/{contract.id}/", {"state": "running"}).json()
    assert said["success"]
    assert "state change queued" in said["msg"]
    assert contract.cur == "stopped"


def test_on_demand_moves_bids_and_higher_bids_lower_ones(
    cloud: VastCloud, clock: HandClock
) -> None:
    low = rented(cloud, clock, price=0.25)
    high = rented(cloud, clock, price=0.3)
    assert (low.cur, high.cur) == ("stopped", "running")
    rented(cloud, clock)
    assert high.cur == "stopped"
    said = call(cloud, "PUT", "v0/asks/10100/", {**BODY, "price": 0.35, "cancel_unavail": True})
    assert said.status_code == 410  # on-demand is not outbid


@pytest.mark.parametrize(("how", "status"), [("410", 410), ("200", 200)])
def test_the_old_list_is_retired(cloud: VastCloud, how: str, status: int) -> None:
    cloud.switches.v0_list = how  # type: ignore[assignment]
    said = call(cloud, "GET", "v0/instances/")
    assert (said.status_code, said.json()["error"]) == (status, "deprecated_endpoint")
    cloud.switches.v0_list = "ok"
    assert call(cloud, "GET", "v0/instances/").json() == {"instances": []}


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ({"select_filters": '{"dph_total": {"gt": 1}}'}, "not a valid search key"),
        ({"select_filters": "{"}, "query parameters"),
        ({"after_token": "nonsense"}, "pagination token"),
    ],
)
def test_lists_that_are_asked_for_wrongly(
    cloud: VastCloud, query: dict[str, str], error: str
) -> None:
    headers = {"Authorization": f"Bearer {cloud.key}"}
    said = requests.get(f"{cloud.url}/api/v1/instances/", params=query, headers=headers, timeout=5)
    assert said.status_code == 400
    assert error in said.json()["msg"]


def test_a_path_without_its_slash_may_be_redirected(cloud: VastCloud) -> None:
    cloud.switches.slash_308 = True
    said = call(cloud, "GET", "v0/users/current")
    assert (said.status_code, said.headers["Location"]) == (308, "/api/v0/users/current/")


def test_creating_too_often_is_punished(cloud: VastCloud, clock: HandClock) -> None:
    cloud.switches.pacing = 1
    assert call(cloud, "PUT", "v0/asks/10100/", BODY).status_code == 200
    clock.pass_time(4)
    assert call(cloud, "PUT", "v0/asks/10200/", BODY).status_code == 429
    clock.pass_time(5)
    assert call(cloud, "PUT", "v0/asks/10200/", BODY).status_code == 429
    clock.pass_time(12)
    assert call(cloud, "PUT", "v0/asks/10200/", BODY).status_code == 200


def test_searching_needs_no_key_but_no_wrong_one_either(cloud: VastCloud) -> None:
    assert call(cloud, "POST", "v0/bundles/", {}, key="").json()["offers"]
    assert call(cloud, "POST", "v0/bundles/", {}, key="wrong").status_code == 404
    said = requests.post(f"{cloud.url}/api/v0/bundles/", data="{", timeout=5)
    assert (said.status_code, said.json()["msg"]) == (400, "Invalid json body")


def test_numbers_may_come_as_texts_and_ids_match_nothing(cloud: VastCloud) -> None:
    def ids(query: dict[str, Any]) -> set[int]:
        offers = call(cloud, "POST", "v0/bundles/", query).json()["offers"]
        return {row["id"] for row in offers}

    assert ids({"num_gpus": {"eq": "4"}, "gpu_name": {"eq": "RTX 4090"}}) == {10306}
    assert ids({"id": {"eq": 10306}}) == set()
    assert ids({"ask_contract_id": {"eq": 10306}}) == {10306}
    assert ids({"geolocation": {"in": ["US"]}}) == {10200}
    assert len(json.dumps(sorted(ids({"limit": 3})))) > 2


def test_who_has_no_credit_loses_everything_in_the_end(cloud: VastCloud, clock: HandClock) -> None:
    contract = rented(cloud, clock)
    cloud.contracts.credit = Decimal(0)
    call(cloud, "GET", "v1/instances/")
    assert (contract.cur, len(cloud.contracts.books.open())) == ("stopped", 1)
    said = call(cloud, "PUT", f"v0/instances/{contract.id}/", {"state": "running"})
    assert (said.status_code, said.json()["error"]) == (400, "missing_billing")
    clock.pass_time(48 * 3600)
    assert call(cloud, "GET", "v1/instances/").json()["instances"] == []
    assert cloud.contracts.books.open() == {}


def test_the_end_of_a_hosts_offer_stops_what_runs_there(cloud: VastCloud, clock: HandClock) -> None:
    cloud.contracts.hosts[0].days_left = 0.5
    contract = rented(cloud, clock)
    clock.pass_time(12 * 3600)
    call(cloud, "GET", "v1/instances/")
    assert (contract.cur, contract.actual) == ("stopped", "exited")


# ---------------------------------------------------------------------------- what others ask


def test_volumes_bill_until_they_are_deleted_and_not_while_they_are_used(
    cloud: VastCloud, clock: HandClock
) -> None:
    assert call(cloud, "GET", "v0/volumes/", key="").status_code == 401
    offer = call(cloud, "POST", "v0/volumes/search/", {}).json()["offers"][0]
    made = call(cloud, "PUT", "v0/volumes/", {"id": offer["id"], "size": 100, "name": "v"}).json()
    [volume] = call(cloud, "GET", "v0/volumes/").json()["volumes"]
    assert made["volume_name"] == volume["name"] == f"V.{volume['id']}"
    info = {"create_new": False, "volume_id": volume["id"], "mount_path": "/data"}
    contract = rented(cloud, clock, volume_info=info)
    path = f"v0/volumes/?id={volume['id']}"
    assert call(cloud, "DELETE", path, {}).status_code == 400
    call(cloud, "PUT", f"v0/instances/{contract.id}/", {"state": "stopped"})
    assert call(cloud, "DELETE", path, {}).status_code == 400
    call(cloud, "DELETE", f"v0/instances/{contract.id}/", {})
    assert call(cloud, "DELETE", path, {}).status_code == 400  # for half a minute more
    clock.pass_time(31)
    assert list(cloud.contracts.books.open()) == [volume["name"]]
    assert call(cloud, "DELETE", path, {}).json()["success"]
    assert call(cloud, "DELETE", path, {}).json()["error"] == "no_such_volume"
    cost = cloud.contracts.books.billed(volume["name"], clock.now())
    assert cost == pytest.approx(Decimal("0.15") * 100 / 720 * 131 / 3600)


def test_webhooks_are_told_afterwards_and_signed(cloud: VastCloud, clock: HandClock) -> None:
    hook = {"name": "w", "webhook_url": "https://x.test/w", "event_types": ["client:outbid"]}
    assert call(cloud, "POST", "v0/webhooks/", {**hook, "webhook_url": "http://x"}).ok is False
    made = call(cloud, "POST", "v0/webhooks/", hook).json()["webhook"]
    for _ in range(3):
        assert call(cloud, "POST", "v0/webhooks/", hook).ok
    assert call(cloud, "POST", "v0/webhooks/", hook).status_code == 400  # four at most
    [shown, *_] = call(cloud, "GET", "v0/webhooks/").json()["webhooks"]
    assert "secret" not in shown
    contract = rented(cloud, clock, price=0.3)
    cloud.outbid(contract.id)
    [told, *_] = cloud.delivered
    signed = hmac.new(made["secret"].encode(), told["body"].encode(), hashlib.sha256).hexdigest()
    assert told["headers"] == {"X-Vast-Signature-256": f"sha256={signed}"}
    assert json.loads(told["body"])["instance_id"] == contract.id
    for _ in range(2):
        gone = call(cloud, "DELETE", f"v0/webhooks/{made['id']}/", {})
    assert gone.status_code == 404
    assert call(cloud, "POST", f"v0/webhooks/{shown['id'] + 1}/test/", {}).ok


def test_a_job_for_one_instance_once(cloud: VastCloud) -> None:
    job = {"instance_id": 7, "api_endpoint": "/api/v0/instances/reboot/7/", "frequency": "DAILY"}
    first = call(cloud, "POST", "v0/commands/schedule_job/", job).json()
    again = call(cloud, "POST", "v0/commands/schedule_job/", job)
    assert (again.status_code, again.json()["scheduled_job_id"]) == (422, first["scheduled_job_id"])
    assert len(call(cloud, "GET", "v0/commands/schedule_job/").json()) == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "v0/instances/command/{id}/", {"command": "ls -l"}, 200),
        ("PUT", "v0/instances/command/{id}/", {"command": "curl x"}, 400),
        ("PUT", "v0/instances/command/{id}/", {"command": "ls " + "x" * 512}, 400),
        ("PUT", "v0/instances/command/{id}/", [], 483),
        ("PUT", "v0/instances/prepay/{id}/", {"amount": 10.0}, 200),
        ("PUT", "v0/instances/prepay/{id}/", {"amount": 500.0}, 411),
        ("PUT", "v0/instances/prepay/5/", {"amount": 10.0}, 400),
        ("PUT", "v0/instances/reboot/5/", {}, 400),
        ("PUT", "v0/instances/request_logs/5/", {}, 404),
        ("PUT", "v0/instances/{id}/", {"label": "x" * 1025}, 400),
        ("GET", "v0/instances/balance/{id}/", None, 200),
        ("GET", "v0/instances/balance/5/", None, 404),
        ("GET", "v0/instances/pending-price-increases/", None, 200),
        ("POST", "v0/instances/take_snapshot/{id}/", {}, 200),
        ("PUT", "v0/instances/update_template/{id}/", {"image": "foo"}, 200),
        ("PUT", "v0/commands/copy_direct/", {"src_id": "1", "src_path": "/a"}, 200),
        ("PUT", "v0/commands/copy_direct/", {"src_id": "1"}, 400),
        ("DELETE", "v0/commands/copy_direct/", {}, 200),
        ("GET", "v0/gpu_types/", None, 200),
        ("GET", 'v0/bundles/?q={{"num_gpus": {{"eq": "1"}}}}', None, 200),
        ("GET", "v0/bundles/?q=", None, 400),
        ("PUT", "v0/asks/10200/", {**BODY, "runtype": "ssh_direc telnet"}, 400),
        ("PUT", "v0/asks/10200/", {**BODY, "args": ["x" * 4097]}, 400),
        ("PUT", "v0/asks/10200/", {**BODY, "env": {"x" * 257: "1"}}, 400),
        ("PUT", "v0/asks/10200/", {**BODY, "disk": 7}, 400),
        ("PUT", "v0/ssh/9/", {"ssh_key": "x"}, 404),
    ],
)
def test_what_is_answered(
    cloud: VastCloud, clock: HandClock, method: str, path: str, body: Any, status: int
) -> None:
    contract = rented(cloud, clock)
    assert call(cloud, method, path.format(id=contract.id), body).status_code == status


LIMITS = [  # as contracts/vastai.md has them: seconds between two calls, or for ten of them
    ("PUT", "v0/asks/5/", 4.5),
    ("POST", "v0/asks/bulk/", 4.5),
    ("PUT", "v0/launch_instance/", 5),
    ("PUT", "v0/instances/bid_price/5/", 5.5),
    ("GET", "v1/instances/", 1),
    ("GET", "v0/instances/5/", 2),
    ("GET", "v0/instances/balance/5/", 3),
    ("PUT", "v0/instances/5/", 1),
    ("DELETE", "v0/instances/5/", 3),
    ("PUT", "v0/instances/reboot/5/", 1),
    ("PUT", "v0/instances/recycle/5/", 1),
    ("POST", "v0/instances/start/", 2),
    ("PUT", "v0/instances/prepay/5/", 2),
    ("PUT", "v0/instances/command/5/", 1.5),
    ("DELETE", "v0/instances/5/ssh/6/", 2),
    ("POST", "v0/ssh/", 1),
    ("PUT", "v0/ssh/5/", 1),
    ("GET", "v0/charges/", 1),
    ("GET", "v1/invoices/", 3),
    ("GET", "v0/volumes/", 5.5),
    ("PUT", "v0/volumes/", 5.5),
    ("POST", "v0/volumes/search/", 5.5),
    ("GET", "v0/secrets/", 5),
    ("POST", "v0/secrets/", 3),
    ("PUT", "v0/secrets/", 3),
    ("DELETE", "v0/secrets/", 3),
    ("GET", "v0/auth/apikeys/", 1),
    ("GET", "v0/template/", 3),
    ("GET", "v0/subaccounts/", 2.1),
    ("GET", "v0/users/me/ipaddrs/", 2.9),
    ("GET", "v0/users/cloud_integrations/", 2.9),
    ("GET", "v0/endptjobs/", 3),
    ("GET", "v0/workergroups/", 2),
    ("PUT", "v0/commands/copy_direct/", 3.5),
    ("DELETE", "v0/commands/copy_direct/", 3.5),
    ("POST", "v0/bundles/", 60),
]


@pytest.mark.parametrize(("method", "path", "seconds"), LIMITS)
def test_every_limit_is_kept(
    cloud: VastCloud, clock: HandClock, method: str, path: str, seconds: float
) -> None:
    cloud.switches.pacing = 1
    body = {"key": "A", "value": "b"} if method != "GET" else None

    def limited() -> bool:
        return call(cloud, method, path, body).status_code == 429

    assert not any(limited() for _ in range(10 if "bundles" in path else 1))
    clock.pass_time(seconds - 0.1)
    assert limited()
    clock.pass_time(12 if "/asks/" in path else 0.11)  # asking again too early is punished there
    assert not limited()


def test_every_limit_has_an_example() -> None:
    for method, pattern, *_ in THRESHOLDS:
        assert any(m == method and re.search(pattern, f"/api/{path}") for m, path, _ in LIMITS), (
            method,
            pattern,
        )
