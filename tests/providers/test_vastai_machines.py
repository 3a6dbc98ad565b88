"""What the fields of an instance of Vast.ai mean, taken together; and how to reach it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from providers.base import SelfEnd, SshAccess, State
from providers.vastai_machines import machine
from tests.providers.vastai_bench import VastBench, vast_bench

NOW = datetime(2026, 11, 21, tzinfo=UTC)
PORTS = {"22/tcp": [{"HostIp": "0.0.0.0", "HostPort": "20001"}]}  # noqa: S104


@pytest.fixture
def vast(tmp_path: Path) -> Iterator[VastBench]:
    """An account with nothing rented."""
    with vast_bench(tmp_path / "home") as made:
        yield made


def state(
    actual: str | None, intended: str, cur: str, next: str, **more: Any
) -> tuple[State, str | None]:
    """The state of an instance, and why it ended."""
    row = {
        **{"id": 1, "num_gpus": 1, "gpu_name": "RTX 4090", "gpu_ram": 24564, "is_bid": True},
        **{"ssh_host": "ssh4.vast.ai", "ssh_port": 10600, "ports": PORTS},
        **{"public_ipaddr": "203.0.113.9", "start_date": NOW.timestamp() - 600},
        **{"actual_status": actual, "intended_status": intended},
        **{"cur_state": cur, "next_state": next},
        **more,
    }
    made = machine(row, provider="vastai", now=NOW, port=22, self_end=SelfEnd())
    return made.state, made.reason


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ((None, "running", "running", "running"), State.BOOTING),
        (("created", "running", "running", "running"), State.BOOTING),
        (("loading", "running", "running", "running"), State.BOOTING),
        (("running", "running", "running", "running"), State.READY),
        (("rebooting", "running", "running", "running"), State.BOOTING),
        (("recycling", "running", "running", "running"), State.BOOTING),
        (("exited", "stopped", "stopped", "stopped"), State.STOPPED),
        (("stopped", "stopped", "stopped", "stopped"), State.STOPPED),
        (("frozen", "frozen", "running", "frozen"), State.STOPPED),
        (("exited", "running", "running", "running"), State.STOPPED),  # it never runs again
        (("running", "stopped", "stopped", "stopped"), State.STOPPED),  # its GPUs are gone
        (("exited", "running", "stopped", "running"), State.STOPPED),  # waits for its GPUs
        ((None, "running", "stopped", "running"), State.STOPPED),  # taken at its creation
        (("created", "stopped", "stopped", "stopped"), State.STOPPED),  # bid below the floor
        (("offline", "running", "running", "running"), State.LOST),
        (("unknown", "running", "running", "running"), State.LOST),
        (("exited", "stopped", "unloaded", "stopped"), State.GONE),
        (("melting", "running", "running", "running"), State.UNKNOWN),
        (("melting", "stopped", "stopped", "stopped"), State.UNKNOWN),
    ],
)
def test_states(columns: tuple[str | None, str, str, str], expected: State) -> None:
    found, reason = state(*columns)
    assert found is expected
    assert reason == ("interrupted" if expected is State.STOPPED else None)


@pytest.mark.parametrize(
    "message",
    [
        "Error: OCI runtime create failed: unable to start",
        "manifest unknown",
        "pull access denied for x/y",
        "unauthorized: authentication required",
    ],
)
def test_a_container_that_cannot_start_is_not_waited_for(message: str) -> None:
    assert state("created", "running", "running", "running", status_msg=message)[0] is State.LOST


def test_an_on_demand_machine_that_stopped_was_not_outbid() -> None:
    assert state("exited", "stopped", "stopped", "stopped", is_bid=False) == (State.STOPPED, None)


def test_running_without_ports_is_not_ready_at_first() -> None:
    young = {"start_date": NOW.timestamp() - 10, "ports": None}
    assert state("running", "running", "running", "running", **young)[0] is State.BOOTING
    old = {"ports": None}  # there will be none, but the proxy is there
    assert state("running", "running", "running", "running", **old)[0] is State.READY
    nothing = {"ports": None, "ssh_host": None}
    assert state("running", "running", "running", "running", **nothing)[0] is State.BOOTING


def access(port: int = 22, **more: Any) -> SshAccess | None:
    """The ways into an instance."""
    row = {
        **{"id": 1, "ssh_host": "ssh4.vast.ai", "ssh_port": 10600, "ports": PORTS},
        **{"public_ipaddr": "203.0.113.9 \n", "image_runtype": "ssh ssh_direc ssh_proxy"},
        **more,
    }
    made = machine(row, provider="vastai", now=NOW, port=port, self_end=SelfEnd()).access
    assert made is None or isinstance(made, SshAccess)
    return made


def test_directly_first_and_the_proxy_besides() -> None:
    found = access()
    assert found is not None
    assert (found.host, found.port, found.user) == ("203.0.113.9", 20001, "root")
    assert [(way.host, way.port) for way in found.alternatives] == [("ssh4.vast.ai", 10600)]


@pytest.mark.parametrize("ports", [None, {}, {"22/tcp": None}, {"22/tcp": []}, [22], {"22/tcp": 5}])
def test_the_proxy_alone(ports: object) -> None:
    found = access(ports=ports)
    assert found is not None
    assert (found.host, found.port, found.alternatives) == ("ssh4.vast.ai", 10600, ())


def test_jupyter_moves_the_proxys_port() -> None:
    found = access(ports=None, image_runtype="jupyter_proxy ssh_proxy")
    assert found is not None
    assert found.port == 10601


def test_an_sshd_that_listens_elsewhere_is_reached_directly_only(vast: VastBench) -> None:
    ports = {"10022/tcp": [{"HostPort": "20007"}], **PORTS}
    found = access(10022, ports=ports)
    assert found is not None
    assert (found.port, found.alternatives) == (20007, ())
    vast.again(GPUCTL_VASTAI_SSH_PORT="10022").create(vast.order())
    assert vast.created()["env"] == {"-p 10022:10022": "1"}


def test_outbid_stopped_and_back_again(vast: VastBench) -> None:
    """It comes back by itself, and bills: nobody may forget it."""
    machine = vast.provider.create(vast.order(spot=True))
    vast.clock.pass_time(200)
    vast.cloud.contracts.outbid(int(machine.provider_id))
    for intended in ("stopped", "running"):
        vast.cloud.contracts.all[int(machine.provider_id)].intended = intended
        found = vast.provider.get(machine.provider_id)
        assert (found.state, found.reason) == (State.STOPPED, "interrupted")
    books = vast.cloud.contracts.books
    stopped = books.things[machine.provider_id].spans[-1].price_hour
    vast.cloud.contracts.strangers_leave()
    vast.clock.pass_time(200)
    assert vast.provider.get(machine.provider_id).state is State.READY
    assert books.things[machine.provider_id].spans[-1].price_hour > stopped > 0


def test_a_host_that_went_down_is_lost_and_not_gone(vast: VastBench) -> None:
    machine = vast.provider.create(vast.order())
    vast.clock.pass_time(200)
    vast.cloud.contracts.host_down(int(machine.provider_id))
    assert vast.provider.get(machine.provider_id).state is State.LOST
    assert [one.state for one in vast.provider.list()] == [State.LOST]


def test_a_status_that_nobody_documented_is_unknown(vast: VastBench) -> None:
    vast.cloud.switches.stuck_in = "defragmenting"
    machine = vast.provider.create(vast.order())
    vast.clock.pass_time(200)
    found = vast.provider.get(machine.provider_id)
    assert (found.state, found.status) == (State.UNKNOWN, "defragmenting")


def test_without_credit_everything_stops_and_still_bills(vast: VastBench) -> None:
    machine = vast.provider.create(vast.order())
    vast.clock.pass_time(200)
    vast.cloud.contracts.credit = vast.cloud.contracts.books.total(vast.clock.now())
    vast.clock.pass_time(60)
    found = vast.provider.get(machine.provider_id)
    assert (found.state, found.reason) == (State.STOPPED, None)
    assert machine.provider_id in vast.books()
