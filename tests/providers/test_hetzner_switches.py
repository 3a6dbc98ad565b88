"""The `hetzner` provider where ending goes wrong, and beside what others keep in the project."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from gpuctl.fleet.context import Fleet
from gpuctl.fleet.reap import reap
from gpuctl.home import Home
from gpuctl.ledger import Ledger
from providers.base import Ambiguous, InvalidRequest, Order, RateLimited, State
from providers.hetzner import HetznerProvider
from tests.clouds.hetzner_cloud import HetznerCloud, faults, main_settings
from tests.clouds.hetzner_cloud.errors import ApiError
from tests.clouds.http_cloud import Fault
from tests.clouds.memory_cloud import HandClock
from tests.conformance.provider_suite import OWNER
from tests.providers.test_hetzner import booted, clock, cloud, order, provider, ssh_key

__all__ = ["clock", "cloud", "order", "provider", "ssh_key"]

SERVER = r"/servers/\d+$"
MAINTENANCE = ApiError(403, "maintenance", "cannot perform operation due to maintenance")
LOCKED = ApiError(423, "locked", "server is locked")


def ask(cloud: HetznerCloud, method: str, path: str, body: Any = None) -> Any:
    """Do what somebody else does in the same project."""
    headers = {"Authorization": f"Bearer {cloud.token}"}
    answer = requests.request(
        method, f"{cloud.endpoint}{path}", json=body, headers=headers, timeout=5
    )
    assert answer.ok, answer.text
    return answer.json() if answer.content else None


@pytest.fixture
def fleet(
    tmp_path: Path, cloud: HetznerCloud, clock: HandClock, provider: HetznerProvider
) -> Iterator[Fleet]:
    """A home whose owner made the orders, without a ledger row of theirs."""
    home = Home(tmp_path, OWNER)
    with Ledger.open(home.ledger, clock=clock) as ledger:
        made = Fleet(home, ledger, clock, main_settings(cloud))
        made.use(provider)
        yield made


# ------------------------------------------------------------------ an end that is none


def test_a_deletion_that_fails_afterwards_is_asked_for_again(
    provider: HetznerProvider,
    cloud: HetznerCloud,
    order: Order,
    clock: HandClock,
    fleet: Fleet,
) -> None:
    machine = booted(provider, provider.create(order), clock)
    cloud.switches.delete_action_fails = 1
    assert "delete_server" in provider.destroy(machine.provider_id)
    clock.pass_time(30)
    assert provider.get(machine.provider_id).state is State.READY  # and costs on
    cloud.switches.delete_action_fails = 2
    reaped = reap(fleet)
    assert reaped.errors == ()
    assert [receipt.confirmed for receipt in reaped.receipts] == [True]
    assert cloud.bills() == {}
    assert len(cloud.requests("DELETE", SERVER)) >= 4


@pytest.mark.parametrize(
    "fault",
    [
        faults.answers(faults.CONFLICT, SERVER, "DELETE", times=1),
        faults.answers(LOCKED, SERVER, "DELETE", times=1),
        faults.answers(MAINTENANCE, SERVER, "DELETE", times=1),
        faults.answers(faults.SERVER_ERROR, SERVER, "DELETE", times=1),
        faults.answers(faults.UNAVAILABLE, SERVER, "DELETE", times=1),
        faults.answers(faults.TIMEOUT, SERVER, "DELETE", times=1),
        faults.answers(faults.BAD_GATEWAY, SERVER, "DELETE", times=1),
        faults.rate_limited(SERVER, "DELETE", times=1),
        faults.html_502(SERVER, "DELETE", times=1),
        Fault(SERVER, "DELETE", times=1),
        faults.commit_then_drop(SERVER, "DELETE"),
        faults.answers_after_commit(faults.TIMEOUT, SERVER, "DELETE"),
    ],
    ids=[
        *("conflict", "locked", "maintenance", "500", "503", "504", "bad-gateway", "429", "html"),
        *("dropped", "lost", "504-after"),
    ],
)
def test_whatever_the_answer_the_machine_ends_and_is_proven_gone(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, fleet: Fleet, fault: Fault
) -> None:
    provider.create(order)
    foreign = cloud.add_foreign()
    cloud.faults.append(replace(fault))  # it counts
    reaped = reap(fleet)
    assert reaped.errors == ()
    assert [receipt.confirmed for receipt in reaped.receipts] == [True]
    assert list(cloud.bills("server")) == [foreign]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (faults.CONFLICT, Ambiguous),
        (MAINTENANCE, Ambiguous),
        (faults.SERVER_ERROR, Ambiguous),
        (faults.SERVICE_ERROR, Ambiguous),
        (ApiError(429, "rate_limit_exceeded", "no"), RateLimited),
        (ApiError(422, "unsupported_error", "no"), InvalidRequest),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
def test_an_end_that_is_refused_is_no_end(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, error: ApiError, kind: type
) -> None:
    machine = provider.create(order)
    cloud.faults.append(faults.answers(error, SERVER, "DELETE"))
    with pytest.raises(kind):
        provider.destroy(machine.provider_id)
    assert machine.provider_id in cloud.bills("server")


# ------------------------------------------------------------------ what others keep there


def test_what_others_hang_on_a_machine_stays_when_it_goes(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    """A volume and a firewall on our server, and things beside it: nobody's, as far as we know."""
    machine = booted(provider, provider.create(order), clock)
    number = int(machine.provider_id)
    place = {"name": "data", "size": 50, "location": "fsn1"}
    volume = ask(cloud, "POST", "/volumes", place)["volume"]["id"]
    ask(cloud, "POST", f"/volumes/{volume}/actions/attach", {"server": number})
    wall = ask(cloud, "POST", "/firewalls", {"name": "wall"})["firewall"]["id"]
    applied = {"apply_to": [{"type": "server", "server": {"id": number}}]}
    ask(cloud, "POST", f"/firewalls/{wall}/actions/apply_to_resources", applied)
    ask(cloud, "POST", "/floating_ips", {"type": "ipv4", "home_location": "fsn1", "name": "f"})
    assert provider.get(machine.provider_id).state is State.READY
    provider.destroy(machine.provider_id)
    clock.pass_time(10)
    assert provider.leftovers() == []
    assert sorted(cloud.bills().values()) == ["data", "f"]
    assert cloud.project.volumes[volume]["server"] is None
    assert cloud.project.firewalls[wall]["applied_to"] == []


def test_a_leftover_of_ours_that_somebody_protected_is_told_and_stays(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    machine = booted(provider, provider.create(order), clock)
    labels = cloud.project.servers[int(machine.provider_id)].facts["labels"]
    body = {"name": "ours", "size": 10, "location": "fsn1", "labels": labels}
    volume = ask(cloud, "POST", "/volumes", body)["volume"]["id"]
    path = f"/volumes/{volume}/actions/change_protection"
    ask(cloud, "POST", path, {"delete": True})
    provider.destroy(machine.provider_id)
    clock.pass_time(10)
    [left] = provider.leftovers()
    with pytest.raises(InvalidRequest, match="protected"):
        provider.remove(left)
    assert list(cloud.bills()) == [str(volume)]
    ask(cloud, "POST", path, {"delete": False})
    provider.remove(left)
    assert cloud.bills() == {}


def test_a_key_whose_name_somebody_has_is_refused_before_anything_is_rented(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    provider.create(order)
    [key] = cloud.project.ssh_keys.values()
    key["fingerprint"] = "00:" * 15 + "00"  # another key, under our name
    with pytest.raises(InvalidRequest, match="SSH key"):
        provider.create(replace(order, name=order.name.replace("0badcafe", "0badf00d")))
    assert len(cloud.bills("server")) == 1


def test_an_address_whose_name_somebody_has_does_not_cost_the_machine(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    body = {"name": order.name, "type": "ipv4", "location": "fsn1"}
    theirs = ask(cloud, "POST", "/primary_ips", body)["primary_ip"]["id"]
    machine = provider.create(order)
    assert machine.provider_id in cloud.bills("server")
    assert provider.leftovers() == []
    assert cloud.project.primary_ips[theirs]["labels"] == {}
