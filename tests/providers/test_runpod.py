"""The `runpod` provider against the emulated RunPod: the contract, and every trap of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpuctl.fleet.presence import prove_absent
from providers import http_client, runpod_client
from providers.base import (
    ABSENT,
    Ambiguous,
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    Machine,
    NoCapacity,
    NotFound,
    Offer,
    PriceChanged,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    SshAccess,
    State,
    SystemClock,
    Unsupported,
    Want,
)
from providers.gpus import parse_selector
from providers.registry import create_provider
from providers.runpod import RunpodProvider
from providers.runpod_pods import IMAGE, STATES, state_of
from tests.clouds.http_cloud import Fault, Reply
from tests.clouds.memory_cloud import HandClock
from tests.clouds.runpod_cloud import RunpodCloud, Times, main_settings
from tests.clouds.runpod_cloud.catalog import GPUS
from tests.conformance.provider_suite import OWNER, Bench, ProviderSuite
from tests.providers.runpod_bench import (
    RTX_4090,
    clock,
    cloud,
    findings,
    foreign_pod,
    order,
    provider_of,
    runpod,
)

__all__ = ["clock", "cloud", "runpod"]


KEY_LINE = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIexample somebody@here"


@pytest.fixture
def rented(runpod: RunpodProvider) -> Machine:
    return runpod.create(order(runpod))


class TestRunpod(ProviderSuite):
    @pytest.fixture
    def bench(self, cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock) -> Bench:
        def break_reads() -> None:
            cloud.faults.append(Fault(how="answer", times=None))

        def add_unmarked() -> str:
            return foreign_pod(cloud)

        return Bench(
            runpod,
            books=lambda: cloud.books.open("pod"),
            want=RTX_4090,
            pass_time=clock.pass_time,
            break_reads=break_reads,
            add_unmarked=add_unmarked,
            status_map=(STATES, state_of),
            ready_seconds=120,
        )


# ---------------------------------------------------------------------------- offers


def test_every_card_comes_back_as_it_was_offered(
    cloud: RunpodCloud, runpod: RunpodProvider
) -> None:
    """A card that `create` cannot name again, or that is shown as another, would be a wrong one."""
    offers = [offer for offer in runpod.offers(Want(disk_gb=1)) if offer.gpu]
    cards = {offer.gpu: offer for offer in offers}
    nvidia = [row for row in GPUS.values() if row.manufacturer == "NVIDIA"]
    assert len(cards) == len(nvidia)
    for offer in cards.values():
        assert any(parse_selector(offer.gpu or "").matches(offer.gpu, offer.vram_gb) for _ in "x")
    cloud.account.spend_limit = cloud.account.balance = Decimal(10000)
    cloud.rate_limit(10000)
    for gpu, offer in cards.items():
        machine = runpod.create(order(runpod, offer=offer))
        assert machine.gpu == gpu
        pod = cloud.account.pods[machine.provider_id]
        assert GPUS[pod.body["gpu"]["id"]].price(pod.body["cloud"]) == pod.price
        assert offer.region in (pod.data_center, "community")


def test_what_an_offer_costs(cloud: RunpodCloud, runpod: RunpodProvider) -> None:
    want = Want(gpus=("A100-80GB-PCIe",), gpu_count=2, disk_gb=73)
    offers = runpod.offers(want)
    secure = [offer for offer in offers if "secure" in offer.note]
    assert {offer.price_hour for offer in secure} == {Decimal("2.79")}  # 2 x 1.39 + 73 GB
    assert {offer.region for offer in secure} == set(cloud.account.stock or _placed("A100"))
    assert [offer.region for offer in offers if "community" in offer.note] == ["community"]
    assert len(cloud.requests("GET", "/v2/catalog")) == 2


def _placed(name: str) -> dict[str, str]:
    from tests.clouds.runpod_cloud.catalog import data_centers_of

    return data_centers_of(next(row.id for row in GPUS.values() if row.name == f"{name} PCIe"))


def test_an_a100_with_40_gb_is_not_sold_and_one_with_80_is_never_shown_for_it(
    runpod: RunpodProvider,
) -> None:
    assert runpod.offers(Want(gpus=("A100-40GB",))) == []
    assert {offer.vram_gb for offer in runpod.offers(Want(gpus=("A100",)))} == {80}


def test_spot_is_refused_with_the_reason(runpod: RunpodProvider, cloud: RunpodCloud) -> None:
    with pytest.raises(Unsupported, match=r"no spot machines any more.*on-demand"):
        runpod.offers(replace(RTX_4090, spot=True))
    assert cloud.log == []


def test_machines_without_a_gpu(runpod: RunpodProvider, cloud: RunpodCloud) -> None:
    want = Want(cpus=5, memory_gb=20, disk_gb=20)
    [cheapest, *_] = runpod.offers(want)
    assert (cheapest.gpu, cheapest.vcpus, cheapest.ram_gb) == (None, 8, 32)
    machine = runpod.create(order(runpod, want, offer=cheapest, disk_gb=20))
    pod = cloud.account.pods[machine.provider_id]
    assert pod.body["cpu"] == {"id": "cpu3g", "vcpuCount": 8}
    assert (machine.gpu, machine.gpu_count) == (None, 0)
    assert machine.price_hour == cheapest.price_hour


def test_a_gpu_machine_does_not_claim_cpus_that_nobody_told(runpod: RunpodProvider) -> None:
    assert runpod.offers(replace(RTX_4090, cpus=8)) == []


def test_regions_and_stock(cloud: RunpodCloud, runpod: RunpodProvider) -> None:
    cloud.account.stock["NVIDIA GeForce RTX 4090"] = {"EU-RO-1": "LOW", "US-KS-2": "HIGH"}
    offers = runpod.offers(RTX_4090)
    assert [offer.region for offer in offers] == ["community", "US-KS-2", "EU-RO-1"]
    assert [o.region for o in runpod.offers(replace(RTX_4090, regions=("eu",)))] == ["EU-RO-1"]
    cloud.switches.no_capacity = {("NVIDIA GeForce RTX 4090", "*")}
    offers = runpod.offers(RTX_4090)
    assert [offer.available for offer in offers] == [False, False]


def test_more_gpus_than_a_machine_has_are_not_offered(runpod: RunpodProvider) -> None:
    assert runpod.offers(replace(RTX_4090, gpu_count=9)) == []


def test_all_questions_are_asked_at_once() -> None:
    with RunpodCloud() as far:
        made = provider_of(far, SystemClock())
        made.list()  # loads what the first question needs
        far.switches.latency = 0.5
        began = time.monotonic()
        assert made.offers(Want())
        assert time.monotonic() - began < 1.2  # three questions, not one after the other
        assert len(far.log) == 1 + 3


# ---------------------------------------------------------------------------- the create


def test_what_is_sent(cloud: RunpodCloud, runpod: RunpodProvider) -> None:
    asked = order(runpod, disk_gb=20.5, ssh_public_key=KEY_LINE)
    runpod.create(asked)
    [sent] = cloud.requests("POST", "/v2/pods")
    body = json.loads(sent.body)
    cuda = {"minCudaVersion": "12.8"}  # the image's
    assert body["gpu"] == {"id": "NVIDIA GeForce RTX 4090", "count": 1, **cuda}
    assert (body["name"], body["image"], body["disk"]) == (asked.name, IMAGE, 21)
    assert body["ports"] == ["22/tcp"]
    assert body["env"]["PUBLIC_KEY"] == body["env"]["SSH_PUBLIC_KEY"] == KEY_LINE
    assert "mounts" not in body  # a stopped pod without a volume costs nothing
    assert "args" not in body  # they would take the place of what starts sshd


def test_an_image_of_somebody_elses_is_given_an_sshd(
    cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock
) -> None:
    runpod.create(order(runpod, image="pytorch/pytorch:2.8.0"))
    own = provider_of(cloud, clock, GPUCTL_RUNPOD_SSH_PORT="2222")
    machine = own.create(order(own, image="mine:1"))
    first, second = (json.loads(sent.body) for sent in cloud.requests("POST", "/v2/pods"))
    assert first["args"].startswith("bash -c '")
    assert "openssh-server" in first["args"]
    assert "minCudaVersion" not in first["gpu"]
    assert "args" not in second
    assert second["ports"] == ["2222/tcp"]
    clock.pass_time(60)
    access = own.get(machine.provider_id).access
    assert isinstance(access, SshAccess)
    assert access.port == cloud.account.pods[machine.provider_id].port


REFUSALS: list[tuple[str, object, type[ProviderError], str]] = [
    ("no_capacity", {("*", "*")}, NoCapacity, "none left"),
    ("stock_lies", True, NoCapacity, "none left"),
    ("insufficient_balance", True, InsufficientFunds, "too little money"),
    ("create_rule_400", 1, InvalidRequest, "could not be processed"),
    ("key_revoked", True, AuthFailed, "does not accept the key"),
    ("read_only", True, AuthFailed, "may not do that"),
    ("spend_cap_as_capacity", True, NoCapacity, "none left"),
]


@pytest.mark.parametrize(("switch", "value", "kind", "word"), REFUSALS)
def test_refused_creates_rent_nothing(
    cloud: RunpodCloud,
    runpod: RunpodProvider,
    switch: str,
    value: object,
    kind: type[ProviderError],
    word: str,
) -> None:
    asked = order(runpod)
    if switch == "stock_lies":
        cloud.switches.no_capacity = {("*", "*")}
        assert runpod_sees_stock(cloud, runpod) is False
    setattr(cloud.switches, switch, value)
    if switch == "stock_lies":
        assert runpod_sees_stock(cloud, runpod) is True
    with pytest.raises(kind, match=word) as caught:
        runpod.create(asked)
    assert type(caught.value) is kind
    assert cloud.books.open() == {}
    assert len(cloud.requests("POST", "/v2/pods$")) == 1


def runpod_sees_stock(cloud: RunpodCloud, runpod: RunpodProvider) -> bool:
    return any(offer.available for offer in runpod.offers(RTX_4090))


def test_a_spend_cap_that_looks_like_no_capacity_is_found_out(
    cloud: RunpodCloud, runpod: RunpodProvider
) -> None:
    cloud.account.spend_limit = Decimal("0.10")
    foreign = {"name": "x", "image": "x", "gpu": {"id": "NVIDIA A40", "count": 1}}
    cloud.account.spend_limit = Decimal("0.45")
    cloud.account.create(foreign)
    asked = order(runpod)
    with pytest.raises(NoCapacity):
        runpod.create(asked)
    with pytest.raises(QuotaExceeded, match=r"spends \$0\.45/h and may spend \$0\.45/h"):
        runpod.create(asked)


DOUBTS: list[tuple[str, Callable[[RunpodCloud], object], bool]] = [
    ("lost reply", lambda c: setattr(c.switches, "drop_response", 1), True),
    ("5xx after", lambda c: setattr(c.switches, "create_5xx_after_commit", 1), True),
    ("5xx before", lambda c: setattr(c.switches, "create_5xx_before_commit", 1), False),
    ("the edge's page", lambda c: setattr(c.switches, "html_502", 1), False),
    ("cut before", lambda c: c.faults.append(Fault("/v2/pods", "POST")), False),
]


@pytest.mark.parametrize(("name", "break_it", "made"), DOUBTS, ids=[d[0] for d in DOUBTS])
def test_a_create_that_nobody_heard_back_from(
    cloud: RunpodCloud,
    runpod: RunpodProvider,
    clock: HandClock,
    name: str,
    break_it: Callable[[RunpodCloud], object],
    made: bool,
) -> None:
    """It is never repeated, and found by its name or proven absent, even where lists are late."""
    asked = order(runpod)
    cloud.switches.list_lag_s = 9
    cloud.switches.get_404_for_s = 9
    break_it(cloud)
    with pytest.raises(Ambiguous):
        runpod.create(asked)
    assert len(cloud.requests("POST", "/v2/pods$")) == 1
    proof = prove_absent(
        runpod, asked.name, None, clock, deadline=clock.monotonic() + 120, until_seen=True
    )
    assert (proof.machine is not None) is made
    assert proof.absent is not made
    assert list(cloud.books.open().values()) == ([asked.name] if made else [])
    if proof.machine is not None:
        assert proof.machine.mark is not None
        assert proof.machine.mark.owner == OWNER


def test_a_hang_ends(
    cloud: RunpodCloud, runpod: RunpodProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = order(runpod)
    monkeypatch.setattr(http_client, "READ_SECONDS", 0.2)
    cloud.faults.append(Fault("/v2/pods", "POST", "after", "hang", seconds=0.6))
    with pytest.raises(Ambiguous, match="did not answer"):
        runpod.create(asked)
    assert list(cloud.books.open().values()) == [asked.name]


def test_a_price_that_jumped_is_on_the_reply(cloud: RunpodCloud, runpod: RunpodProvider) -> None:
    cloud.switches.price_jump = Decimal(3)
    asked = order(runpod)
    machine = runpod.create(asked)
    assert machine.price_hour is not None
    assert machine.price_hour > asked.offer.price_hour * 2


def test_the_price_of_the_reply_is_the_price_of_the_offer(runpod: RunpodProvider) -> None:
    [offer, *_] = runpod.offers(replace(RTX_4090, disk_gb=20.5))
    machine = runpod.create(
        order(runpod, offer=offer, disk_gb=20.5, max_price_hour=offer.price_hour)
    )
    assert machine.price_hour == offer.price_hour  # to the last digit: a cap may be just that


def test_a_price_above_the_cap_asks_nobody(cloud: RunpodCloud, runpod: RunpodProvider) -> None:
    with pytest.raises(PriceChanged, match="above the cap"):
        runpod.create(order(runpod, max_price_hour=Decimal("0.1")))
    assert cloud.requests("POST", "/v2/pods") == []


# ---------------------------------------------------------------------------- what it shows


def test_running_is_not_ready(runpod: RunpodProvider, rented: Machine, clock: HandClock) -> None:
    early = runpod.get(rented.provider_id)
    assert (early.state, early.access) == (State.BOOTING, None)
    assert early.status == "RUNNING (no SSH port yet)"
    clock.pass_time(31)
    late = runpod.get(rented.provider_id)
    assert (late.state, late.status) == (State.READY, "RUNNING")
    assert isinstance(late.access, SshAccess)
    assert late.access.host == "213.173.104.74"  # never the proxy


@pytest.mark.parametrize("switch", ["never_ready", "image_pull_stuck"])
def test_a_pod_that_never_gets_ready_stays_booting(
    cloud: RunpodCloud,
    runpod: RunpodProvider,
    clock: HandClock,
    monkeypatch: pytest.MonkeyPatch,
    switch: str,
) -> None:
    monkeypatch.setattr(runpod_client, "_QUIET_SECONDS", 0.2)
    setattr(cloud.switches, switch, 1)
    machine = runpod.create(order(runpod))
    clock.pass_time(3600)
    assert runpod.get(machine.provider_id).state is State.BOOTING


def test_the_states_in_their_order(
    cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock
) -> None:
    cloud.switches.eager_running = False
    machine = runpod.create(order(runpod))
    said = [machine.status]
    for _ in range(4):
        clock.pass_time(3)
        said.append(runpod.get(machine.provider_id).status)
    assert list(dict.fromkeys(said)) == ["PROVISIONING", "STARTING", "RUNNING (no SSH port yet)"]


def test_a_word_that_nobody_knows(
    cloud: RunpodCloud, runpod: RunpodProvider, rented: Machine
) -> None:
    cloud.switches.status_word = "MIGRATING"
    [seen] = runpod.list()
    assert (seen.state, seen.status) == (State.UNKNOWN, "MIGRATING")


def test_a_stopped_pod_is_not_gone_and_its_shown_cost_is_not_believed(
    cloud: RunpodCloud, runpod: RunpodProvider, rented: Machine, clock: HandClock
) -> None:
    pod = cloud.account.pods[rented.provider_id]
    cloud.account.stop(pod)
    stopped = runpod.get(rented.provider_id)
    assert (stopped.state, stopped.price_hour) == (State.STOPPED, Decimal(0))
    assert stopped.access is None
    assert cloud.books.things[pod.id].spans[-1].price_hour == 0
    volume = {"name": "x", "image": "x", "mounts": {"persistent": {"size": 73, "path": "/w"}}}
    other = cloud.account.create({**volume, "gpu": {"id": "NVIDIA A40", "count": 1}})
    cloud.account.stop(other)
    assert runpod.get(other.id).price_hour == Decimal("0.02")  # 73 GB at 0.20 a month
    assert cloud.books.things[other.id].spans[-1].price_hour == Decimal("0.02")


def test_started_again_it_has_another_port_and_perhaps_no_gpu(
    cloud: RunpodCloud, runpod: RunpodProvider, rented: Machine, clock: HandClock
) -> None:
    clock.pass_time(31)
    before = runpod.get(rented.provider_id).access
    pod = cloud.account.pods[rented.provider_id]
    cloud.account.stop(pod)
    cloud.switches.zero_gpu_on_start = True
    cloud.account.start(pod)
    clock.pass_time(31)
    after = runpod.get(rented.provider_id).access
    assert isinstance(before, SshAccess)
    assert isinstance(after, SshAccess)
    assert before.port != after.port
    assert pod.gpus == 0


def test_a_lost_host_goes_on_saying_running(
    cloud: RunpodCloud, runpod: RunpodProvider, rented: Machine, clock: HandClock
) -> None:
    clock.pass_time(31)
    cloud.host_lost(rented.provider_id)
    assert runpod.get(rented.provider_id).status == "RUNNING"
    assert rented.provider_id in cloud.books.open()


def test_terminated_by_somebody_else_is_absent(
    cloud: RunpodCloud, runpod: RunpodProvider, rented: Machine
) -> None:
    runpod.get(rented.provider_id)
    cloud.externally_terminated(rented.provider_id)
    with pytest.raises(NotFound):
        runpod.get(rented.provider_id)
    assert runpod.list() == []
    assert runpod.destroy(rented.provider_id) == ABSENT


# ---------------------------------------------------------------------------- lists


def test_pages_are_followed_to_the_end(cloud: RunpodCloud, runpod: RunpodProvider) -> None:
    ids = {foreign_pod(cloud) for _ in range(7)}
    cloud.switches.paged_list = 3
    assert {machine.provider_id for machine in runpod.list()} == ids
    assert len(cloud.requests("GET", "/v2/pods$")) == 3


def test_a_list_that_misses_some_does_not_prove_them_gone(
    cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock
) -> None:
    foreign_pod(cloud)
    machine = runpod.create(order(runpod))
    cloud.switches.partial_list = 1
    proof = prove_absent(
        runpod, machine.name, machine.provider_id, clock, deadline=clock.monotonic() + 60,
        until_seen=True,
    )  # fmt: skip
    assert proof.machine is not None


def test_500_machines_are_one_question(cloud: RunpodCloud, runpod: RunpodProvider) -> None:
    cloud.account.balance = cloud.account.spend_limit = Decimal(10000)
    for _ in range(500):
        foreign_pod(cloud)
    assert len(runpod.list()) == 500
    assert len(cloud.log) == 1


# ---------------------------------------------------------------------------- the end


def test_a_404_that_lies_is_asked_again_until_it_is_gone(
    cloud: RunpodCloud, runpod: RunpodProvider, rented: Machine, clock: HandClock
) -> None:
    runpod.get(rented.provider_id)
    cloud.switches.delete_404_but_alive = 2
    assert runpod.destroy(rented.provider_id) == ABSENT
    proof = prove_absent(
        runpod,
        rented.name,
        rented.provider_id,
        clock,
        deadline=clock.monotonic() + 300,
        again=lambda: runpod.destroy(rented.provider_id) and None,
    )
    assert proof.absent
    first, second = proof.confirmed_by
    assert (second.at - first.at).total_seconds() >= 10
    assert cloud.books.open() == {}


def test_the_end_looks_nothing_up(
    cloud: RunpodCloud, runpod: RunpodProvider, rented: Machine
) -> None:
    cloud.faults.append(Fault(method="GET", how="answer", times=None))
    assert runpod.destroy(rented.provider_id) == "204 deleted"
    assert cloud.books.open() == {}


def test_an_odd_id_cannot_reach_another_path(cloud: RunpodCloud, runpod: RunpodProvider) -> None:
    for odd in ("", "..", "a/b", "x?y=1", "../network-volumes/1"):
        assert runpod.destroy(odd)
        with pytest.raises(NotFound):
            runpod.get(odd)
    assert cloud.log == []


def test_410_is_not_an_end(cloud: RunpodCloud, runpod: RunpodProvider, rented: Machine) -> None:
    from tests.clouds.runpod_cloud.answers import problem

    cloud.faults.append(Fault(how="answer", reply=problem(410, "gone"), times=None))
    with pytest.raises(InvalidRequest, match="switched off"):
        runpod.destroy(rented.provider_id)
    with pytest.raises(Ambiguous, match="switched off"):
        runpod.get(rented.provider_id)
    with pytest.raises(Ambiguous, match="switched off"):
        runpod.list()


def test_volumes_of_ours_are_left_over_and_others_are_not_ours(
    cloud: RunpodCloud, runpod: RunpodProvider
) -> None:
    cloud.account.create_volume("training-data", 100, "EU-RO-1")
    ours = cloud.account.create_volume("gpuctl-old-c0ffee-0a1b2c3d", 20, "EU-RO-1")
    [left] = runpod.leftovers()
    assert (left.id, left.kind, left.price_month) == (ours.id, "volume", Decimal("1.40"))
    runpod.remove(left)
    runpod.remove(left)
    assert runpod.leftovers() == []
    assert list(cloud.books.open().values()) == ["training-data"]


# ---------------------------------------------------------------------------- keys and quotas


def test_the_edge_turns_away_pythons_own_name_and_never_ours(
    cloud: RunpodCloud, runpod: RunpodProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    runpod.list()
    assert all(agent.startswith("gpuctl/") for agent in cloud.agents)
    monkeypatch.setattr(http_client, "user_agent", lambda: "Python-urllib/3.11")
    with pytest.raises(Ambiguous, match="says nothing of the key"):
        RunpodProvider(
            {**main_settings(cloud), "HOME": "/nonexistent"}, HandClock(datetime.now(UTC))
        ).list()


def test_a_429_is_waited_for_and_quotas_are_kept(
    cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock
) -> None:
    for _ in range(150):
        runpod.list()
    assert {line.status for line in cloud.log} == {200}  # it never came to a 429
    assert 60 <= sum(clock.slept) <= 180
    other = provider_of(cloud, clock)  # knows nothing of what is used up
    cloud.rate_limit(1)
    cloud.limits.take(clock.monotonic())
    assert len(other.list()) == 0
    assert 429 in {line.status for line in cloud.log}


def test_a_429_at_the_create_is_told_and_rents_nothing(
    cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock
) -> None:
    asked = order(runpod)
    cloud.rate_limit(0)
    fresh = provider_of(cloud, clock)
    with pytest.raises(RateLimited) as caught:
        fresh.create(asked)
    assert 0 < caught.value.retry_after <= 60
    assert cloud.books.open() == {}


def test_a_quota_that_is_used_up_for_long_is_told(
    cloud: RunpodCloud, runpod: RunpodProvider
) -> None:
    cloud.limits.quota["day"] = 1
    runpod.list()
    with pytest.raises(RateLimited, match="quota"):
        runpod.list()


def test_eight_at_once_share_one_pace(
    cloud: RunpodCloud, runpod: RunpodProvider, rented: Machine
) -> None:
    def work() -> None:
        for _ in range(12):
            runpod.get(rented.provider_id)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    looks = cloud.requests("GET", f"{rented.provider_id}$")
    assert [line.status for line in looks].count(200) == 96


def test_no_key_is_shown_by_any_error(cloud: RunpodCloud, runpod: RunpodProvider) -> None:
    cloud.switches.key_revoked = True
    with pytest.raises(AuthFailed) as caught:
        runpod.list()
    assert cloud.key not in str(caught.value)


def test_no_account_key_is_ever_sent_to_a_pod(cloud: RunpodCloud, rented: Machine) -> None:
    assert all(cloud.key.encode() not in line.body for line in cloud.log)
    pod = cloud.account.pods[rented.provider_id]
    assert cloud.key not in json.dumps(cloud.account.environment(pod))
    assert rented.self_end is not None
    assert cloud.key not in "".join(rented.self_end.argv)


def test_where_the_key_is_found(tmp_path: Path, clock: HandClock, cloud: RunpodCloud) -> None:
    environ = {"HOME": str(tmp_path), "RUNPOD_API_URL": cloud.url}

    def made() -> RunpodProvider:
        found = create_provider("runpod", environ, home=tmp_path, clock=clock)
        assert isinstance(found, RunpodProvider)
        return found

    assert made().configured() is False
    with pytest.raises(AuthFailed, match="RUNPOD_API_KEY"):
        made().list()
    saved = tmp_path / ".runpod/config.toml"
    saved.parent.mkdir()
    for text in (
        f"apikey = '{cloud.key}'\napiurl = 'https://api.runpod.io/graphql'\n",  # runpodctl
        f'[default]\napi_key = "{cloud.key}"\n',  # the SDK
    ):
        saved.write_text(text)
        assert made().configured() is True
        assert made().list() == []
    saved.write_text("apikey = 'broken\n")
    assert made().configured() is True
    with pytest.raises(AuthFailed, match=r"config\.toml cannot be read"):
        made().list()
    environ["RUNPOD_API_KEY"] = "two words"
    with pytest.raises(AuthFailed, match="no key"):
        made().list()


@pytest.mark.parametrize(
    "url",
    [
        "https://rest.runpod.io/v1",
        "https://api.runpod.io/v1",
        "http://api.runpod.io",
        "api.runpod.io",
        "https://api.runpod.io/graphql",
    ],
)
def test_addresses_that_cannot_be_meant(url: str, clock: HandClock) -> None:
    with pytest.raises(InvalidRequest, match="RUNPOD_API_URL"):
        RunpodProvider({"RUNPOD_API_URL": url}, clock)


def test_ssh_ports_that_are_none(clock: HandClock) -> None:
    with pytest.raises(InvalidRequest, match="GPUCTL_RUNPOD_SSH_PORT"):
        RunpodProvider({"GPUCTL_RUNPOD_SSH_PORT": "70000"}, clock)


# ---------------------------------------------------------------------------- health and money


def test_doctor(cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock) -> None:
    said = findings(runpod)
    assert set(said) == {"key", "rights", "balance", "clock"}
    assert "$25.00, spending $0.00/h of at most $80.00/h" in said["balance"][1]
    cloud.account.balance = Decimal("0.20")
    cloud.switches.read_only = True
    said = findings(runpod)
    assert (said["rights"][0], said["balance"][0], said["key"][0]) == (False, False, True)
    cloud.switches.graphql_gone = True
    assert findings(runpod)["balance"][0] is True
    ahead = provider_of(cloud, HandClock(clock.now() + timedelta(minutes=10)))
    assert findings(ahead)["clock"] == (False, "600 s from RunPod's")
    assert cloud.books.things == {}


def test_doctor_with_a_bad_key(cloud: RunpodCloud, runpod: RunpodProvider) -> None:
    cloud.switches.key_revoked = True
    with pytest.raises(AuthFailed):
        runpod.check()


def test_what_was_billed_is_told_when_it_is_final(
    cloud: RunpodCloud, runpod: RunpodProvider, rented: Machine, clock: HandClock
) -> None:
    clock.pass_time(1800)
    runpod.destroy(rented.provider_id)
    assert runpod.billed(rented.provider_id) is None  # its hour is not over
    clock.pass_time(3600)
    billed = runpod.billed(rented.provider_id)
    assert billed is not None
    theirs = cloud.books.billed(rented.provider_id, clock.now())
    assert abs(billed.amount - theirs) < Decimal("0.000001")
    assert abs(billed.amount - (rented.price_hour or 0) / 2) < Decimal("0.000001")


def test_the_bills_of_many_pods_are_two_requests(
    cloud: RunpodCloud, runpod: RunpodProvider, clock: HandClock
) -> None:
    cloud.account.balance = cloud.account.spend_limit = Decimal(10000)
    ids = [foreign_pod(cloud) for _ in range(40)]
    clock.pass_time(5400)
    for id in ids:
        runpod.destroy(id)
    clock.pass_time(3600)
    billed = {id: runpod.billed(id) for id in ids}
    assert len(cloud.requests("GET", "/v2/billing/pods")) == 2
    for id, bill in billed.items():
        assert bill is not None
        assert abs(bill.amount - cloud.books.billed(id, clock.now())) < Decimal("0.000001")


def test_a_bill_that_is_cut_short_is_none(
    cloud: RunpodCloud, runpod: RunpodProvider, rented: Machine, clock: HandClock
) -> None:
    runpod.destroy(rented.provider_id)
    clock.pass_time(7200)
    cut = {"records": [], "metadata": {"recordCount": 2}}
    cloud.faults.append(Fault("/billing/", "GET", how="answer", reply=Reply(200, cut)))
    with pytest.raises(Ambiguous, match="0 of 2"):
        runpod.billed(rented.provider_id)


def test_offers_of_other_times_are_refused(runpod: RunpodProvider, cloud: RunpodCloud) -> None:
    offer = runpod.offers(RTX_4090)[0]
    for odd in ("runpod:SECURE:US-KS-2:0x:A", "runpod:FREE:any:1x:A", "local:cpu", ""):
        wrong: Offer = replace(offer, id=odd)
        with pytest.raises(InvalidRequest, match="no offer of RunPod"):
            runpod.create(order(runpod, offer=wrong))
    unknown = replace(offer, id="runpod:SECURE:any:1x:NVIDIA+RTX+9090")
    with pytest.raises(InvalidRequest, match="could not be processed"):
        runpod.create(order(runpod, offer=unknown))


def test_times_can_be_set(clock: HandClock) -> None:
    with RunpodCloud(clock=clock, times=Times(0, 0, 0)) as quick:
        made = provider_of(quick, clock)
        machine = made.create(order(made))
        assert made.get(machine.provider_id).state is State.READY
