"""The `hetzner` provider against the emulated Hetzner Cloud: the API alone, no machines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpuctl.remote.keys import public_key
from providers.base import (
    ABSENT,
    Ambiguous,
    AuthFailed,
    InvalidRequest,
    Leftover,
    Machine,
    Mark,
    NoCapacity,
    NotFound,
    Order,
    PriceChanged,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    SshAccess,
    State,
    Unsupported,
    Want,
)
from providers.hetzner import HetznerProvider
from providers.hetzner_servers import STATES, state_of
from tests.clouds.hetzner_cloud import HetznerCloud, faults, main_settings
from tests.clouds.hetzner_cloud.errors import ApiError
from tests.clouds.http_cloud import Fault, Reply
from tests.clouds.memory_cloud import HandClock
from tests.conformance.provider_suite import OWNER, Bench, ProviderSuite

SECRETS = re.compile(r"[0-9a-f]{64}|PRIVATE KEY")


@pytest.fixture(scope="module")
def ssh_key(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A public key, made once."""
    return public_key(tmp_path_factory.mktemp("home"))


@pytest.fixture
def clock() -> HandClock:
    """Real time at first, so that the clocks of both sides agree."""
    return HandClock(datetime.now(UTC))


@pytest.fixture
def cloud(clock: HandClock) -> Iterator[HetznerCloud]:
    """An account of its own."""
    with HetznerCloud(clock=clock) as made:
        yield made


@pytest.fixture
def provider(cloud: HetznerCloud, clock: HandClock) -> HetznerProvider:
    """The one under test; it gives up early."""
    return HetznerProvider(main_settings(cloud), clock, timeouts=(2, 2))


class HetznerBench(Bench):
    """Orders with a key: no server is made without one."""

    ssh_key = ""

    def order(self, *arguments: object, **more: object) -> Order:
        made = super().order(*arguments, **more)  # type: ignore[arg-type]
        return replace(made, ssh_public_key=self.ssh_key)


class TestHetzner(ProviderSuite):
    """The shared suite."""

    @pytest.fixture
    def bench(
        self, cloud: HetznerCloud, provider: HetznerProvider, clock: HandClock, ssh_key: str
    ) -> Bench:
        made = HetznerBench(
            provider,
            books=lambda: cloud.bills("server"),
            pass_time=clock.pass_time,
            unknown_id="999999999",
            break_reads=lambda: cloud.faults.append(faults.html_502(method="GET", times=None)),
            add_unmarked=cloud.add_foreign,
            status_map=(STATES, state_of),
            ready_seconds=60,
        )
        made.ssh_key = ssh_key
        return made


@pytest.fixture
def order(ssh_key: str) -> Order:
    """Two CPUs in Falkenstein."""
    from providers.base import Offer

    offer = Offer("hetzner", "hetzner:cx23:fsn1", None, 0, None, False, Decimal(1), "eu-central")
    mark = Mark(OWNER, datetime.now(UTC) + timedelta(hours=3), "demo-1a2b3c")
    return Order(f"gpuctl-demo-{OWNER[:6]}-0badcafe", offer, mark, ssh_public_key=ssh_key)


def booted(provider: HetznerProvider, machine: Machine, clock: HandClock) -> Machine:
    """The machine when it runs."""
    clock.pass_time(30)
    return provider.get(machine.provider_id)


# ---------------------------------------------------------------------- offers


def test_offers_are_priced_from_the_accounts_own_list(
    provider: HetznerProvider, cloud: HetznerCloud
) -> None:
    offers = {o.id: o for o in provider.offers(Want(cpus=4, disk_gb=40))}
    small = offers["hetzner:cx33:fsn1"]
    # 8.49 a month / 624, and the IPv4 address; in the rate that comes with the offer
    assert small.fx_rate is not None
    euros = Decimal("0.0136") + Decimal("0.0008")
    assert small.price_hour == (euros * small.fx_rate).quantize(Decimal("0.000001"))
    assert (small.vcpus, small.ram_gb, small.disk_gb) == (4, 8, 80)
    assert small.bill_step_seconds == 3600
    assert small.gpu is None
    assert "19 % VAT not included" in small.note
    assert "arm64" in offers["hetzner:cax21:hel1"].note
    assert offers["hetzner:ccx23:ash"].region == "us-east ash US"
    assert not any(o.startswith("hetzner:cx22") for o in offers)  # withdrawn
    assert len(cloud.log) == 3


def test_prices_of_an_account_in_dollars_are_not_converted(
    provider: HetznerProvider, cloud: HetznerCloud
) -> None:
    cloud.project.catalog.currency = "USD"
    [offer] = [o for o in provider.offers(Want()) if o.id == "hetzner:cx23:fsn1"]
    assert offer.price_hour == Decimal("0.0096")
    assert offer.fx_rate is None
    cloud.project.catalog.currency = "CHF"
    with pytest.raises(Unsupported, match="CHF"):
        provider.offers(Want())


def test_regions_are_asked_for_by_zone_place_or_country(provider: HetznerProvider) -> None:
    for wanted, places in (
        ("eu", {"fsn1", "nbg1", "hel1"}),
        ("fsn1", {"fsn1"}),
        ("US", {"ash", "hil"}),
        ("fi", {"hel1"}),
    ):
        found = provider.offers(Want(regions=(wanted,)))
        assert {offer.id.rpartition(":")[2] for offer in found} == places


def test_what_is_sold_out_is_shown_as_such(provider: HetznerProvider, cloud: HetznerCloud) -> None:
    cloud.project.catalog.sold_out.add(("cx23", "fsn1"))
    available = {o.id: o.available for o in provider.offers(Want())}
    assert available["hetzner:cx23:fsn1"] is False
    assert available["hetzner:cx23:nbg1"] is True


@pytest.mark.parametrize("gpus", [("A100-40GB",), ("24GB+",)])
def test_a_gpu_is_refused_with_what_hetzner_does_sell(
    provider: HetznerProvider, cloud: HetznerCloud, gpus: tuple[str, ...]
) -> None:
    with pytest.raises(Unsupported, match=r"CPU machines.*dedicated servers.*setup fee"):
        provider.offers(Want(gpus=gpus))
    assert cloud.log == []


def test_a_hundred_prices_that_are_none_are_no_offers(
    provider: HetznerProvider, cloud: HetznerCloud
) -> None:
    broken = {"pricing": {"currency": "EUR", "server_types": [{"name": "x", "prices": [{}]}]}}
    from tests.clouds.http_cloud import Reply

    cloud.faults.append(Fault("/pricing", how="answer", reply=Reply(200, broken), times=None))
    with pytest.raises(Ambiguous, match="price list"):
        provider.offers(Want())


# ---------------------------------------------------------------------- creation


def test_what_is_sent_and_what_is_not(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    machine = provider.create(order)
    [post] = cloud.requests("POST", "/servers$")
    body = post.body.decode()
    assert cloud.token not in "".join(x.body.decode() for x in cloud.log)
    assert '"datacenter"' not in body
    assert machine.price_hour is not None
    assert machine.status == "initializing"
    assert machine.state is State.BOOTING
    [server] = cloud.project.servers.values()
    assert server.keys == [order.ssh_public_key]
    assert server.facts["labels"]["gpuctl/end"] == str(int(order.mark.end.timestamp()))
    ready = booted(provider, machine, clock)
    assert isinstance(ready.access, SshAccess)
    [key] = ready.access.host_keys
    assert key.startswith("ssh-ed25519 ")
    assert key.split()[1] in server.user_data
    # Switched off at its hard end, when all else fails.
    assert str(int(order.mark.end.timestamp())) in server.user_data


def test_no_default_user_agent(cloud: HetznerCloud, provider: HetznerProvider) -> None:
    seen: list[str] = []
    gate = cloud.gate

    def watch(request: object) -> object:
        seen.append(request.headers["user-agent"])  # type: ignore[attr-defined]
        return gate(request)  # type: ignore[arg-type]

    cloud.gate = watch  # type: ignore[method-assign, assignment]
    provider.list()
    provider.check()
    assert len(set(seen)) >= 1
    assert all(agent.startswith("gpuctl/") for agent in seen), seen


def test_a_lost_reply_is_ambiguous_and_the_machine_is_found_by_name(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    cloud.faults.append(faults.commit_then_drop())
    with pytest.raises(Ambiguous):
        provider.create(order)
    assert len(cloud.requests("POST", "/servers$")) == 1  # never repeated, nor by the library
    [found] = [m for m in provider.list() if m.name == order.name]
    assert found.mark is not None
    clock.pass_time(30)
    access = provider.get(found.provider_id).access
    assert isinstance(access, SshAccess)
    assert access.host_keys  # known all the same: it is on the cloud's side


def test_a_failure_in_words_that_are_not_hetzners_is_ambiguous(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    """Found by the crash matrix: the library falls over it, and the server is there."""
    strange = Reply(500, {"error": "internal error"})
    cloud.faults.append(Fault("/servers$", "POST", "after", "answer", strange))
    with pytest.raises(Ambiguous):
        provider.create(order)
    assert len(cloud.bills("server")) == 1
    cloud.faults.append(Fault("/servers$", "GET", how="answer", reply=strange))
    assert len(provider.list()) == 1  # a read is repeated


def test_a_reply_that_hangs_after_the_commit(
    cloud: HetznerCloud, clock: HandClock, order: Order
) -> None:
    hasty = HetznerProvider(main_settings(cloud), clock, timeouts=(1, 0.3))
    cloud.faults.append(faults.commit_then_timeout(1.0))
    with pytest.raises(Ambiguous, match="Timeout"):
        hasty.create(order)
    assert len(cloud.bills("server")) == 1


def test_a_repeated_create_adopts_what_the_first_one_made(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    first = provider.create(order)
    again = provider.create(order)
    assert again.provider_id == first.provider_id
    assert len(cloud.bills("server")) == 1


def test_a_name_that_somebody_else_has_is_not_adopted(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    cloud.add_foreign(order.name)
    with pytest.raises(InvalidRequest, match="Another server"):
        provider.create(order)


def test_the_librarys_own_repeat_would_be_harmless(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider.list()
    client = provider._api._client._client
    monkeypatch.setattr(client, "_retry_max_retries", 1)
    monkeypatch.setattr(client, "_retry_interval_func", lambda _: 0)
    cloud.faults.append(faults.answers_after_commit(faults.TIMEOUT))
    machine = provider.create(order)
    assert len(cloud.requests("POST", "/servers$")) == 2
    assert cloud.bills("server") == {machine.provider_id: order.name}


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ApiError(412, "resource_unavailable", "error during placement"), NoCapacity),
        (faults.PLACEMENT, NoCapacity),
        (faults.CONFLICT, NoCapacity),
        (ApiError(423, "locked", "locked"), NoCapacity),
        (ApiError(403, "maintenance", "maintenance"), NoCapacity),
        (ApiError(403, "resource_limit_exceeded", "no more"), QuotaExceeded),
        (ApiError(403, "forbidden", "no"), AuthFailed),
        (ApiError(401, "unauthorized", "no"), AuthFailed),
        (ApiError(401, "token_readonly", "no"), AuthFailed),
        (ApiError(422, "invalid_input", "no"), InvalidRequest),
        (ApiError(422, "unsupported_error", "no"), InvalidRequest),
        (ApiError(404, "not_found", "no"), InvalidRequest),
        (ApiError(429, "rate_limit_exceeded", "no"), RateLimited),
        (faults.SERVER_ERROR, Ambiguous),
        (faults.UNAVAILABLE, Ambiguous),
        (faults.TIMEOUT, Ambiguous),
        (faults.BAD_GATEWAY, Ambiguous),
        (faults.SERVICE_ERROR, Ambiguous),
        (ApiError(418, "never_seen_before", "?"), Ambiguous),
    ],
    ids=lambda value: getattr(value, "code", getattr(value, "__name__", "")),
)
def test_every_refusal_of_a_create(
    provider: HetznerProvider,
    cloud: HetznerCloud,
    order: Order,
    error: ApiError,
    kind: type[ProviderError],
) -> None:
    cloud.faults.append(faults.answers(error, "/servers$", "POST"))
    with pytest.raises(ProviderError) as caught:
        provider.create(order)
    assert type(caught.value) is kind
    assert error.code in str(caught.value)
    assert not SECRETS.search(str(caught.value))
    assert len(cloud.requests("POST", "/servers$")) == 1
    assert cloud.bills() == {}


def test_a_proxys_page_after_a_create_leaves_it_open(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    cloud.faults.append(faults.html_502("/servers$", "POST"))
    with pytest.raises(Ambiguous, match="502"):
        provider.create(order)


def test_capacity_that_is_out_where_it_was_announced(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    cloud.switches.capacity_out.add(("cx23", "fsn1"))
    with pytest.raises(NoCapacity, match="error during placement"):
        provider.create(order)
    elsewhere = replace(order, offer=replace(order.offer, id="hetzner:cx23:nbg1"))
    assert provider.create(elsewhere).region == "eu-central nbg1 DE"
    nowhere = replace(order, offer=replace(order.offer, id="hetzner:cx23:ash"))
    with pytest.raises(InvalidRequest, match="no price"):
        provider.create(nowhere)


def test_limits_of_the_project_are_named(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    cloud.switches.servers_limit = 0
    with pytest.raises(QuotaExceeded, match="server_limit"):
        provider.create(order)


def test_invalid_input_with_and_without_details(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    bad = replace(order, image="999")
    with pytest.raises(InvalidRequest, match="image not found"):
        provider.create(bad)
    cloud.switches.details_null = True
    with pytest.raises(InvalidRequest, match="image"):
        provider.create(bad)


@pytest.mark.parametrize("image", ["docker:nginx", "pytorch/pytorch:2.8", "ubuntu-99"])
def test_images_that_are_none(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, image: str
) -> None:
    with pytest.raises(InvalidRequest, match=r"ubuntu-24\.04"):
        provider.create(replace(order, image=image))
    assert cloud.requests("POST", "/servers$") == []


def test_the_image_fits_the_processor(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    arm = replace(order, offer=replace(order.offer, id="hetzner:cax11:fsn1"))
    provider.create(arm)
    [server] = cloud.project.servers.values()
    assert cloud.project.images[server.facts["image"]]["architecture"] == "arm"


def test_a_price_that_rose_since_the_quote(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    [offer] = [o for o in provider.offers(Want()) if o.id == order.offer.id]
    cloud.project.catalog.factor = Decimal(2)
    with pytest.raises(PriceChanged, match="above the cap"):
        provider.create(replace(order, offer=offer, max_price_hour=offer.price_hour))
    assert cloud.bills() == {}


def test_a_price_that_is_another_on_the_reply_is_told(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    [offer] = [o for o in provider.offers(Want()) if o.id == order.offer.id]
    cloud.switches.created_price_factor = "2"
    machine = provider.create(replace(order, offer=offer, max_price_hour=offer.price_hour))
    assert machine.price_hour is not None
    assert machine.price_hour > offer.price_hour  # the caller ends it


def test_the_key_is_put_there_once_and_found_by_its_fingerprint(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    provider.create(order)
    provider.create(replace(order, name=order.name.replace("0badcafe", "0badf00d")))
    assert len(cloud.project.ssh_keys) == 1
    [key] = cloud.project.ssh_keys.values()
    key["name"] = "somebody renamed it"
    provider.create(replace(order, name=order.name.replace("0badcafe", "0badbeef")))
    assert len(cloud.project.ssh_keys) == 1


def test_two_at_once_share_one_key(cloud: HetznerCloud, clock: HandClock, order: Order) -> None:
    both = [HetznerProvider(main_settings(cloud), clock) for _ in range(2)]
    orders = [order, replace(order, name=order.name.replace("0badcafe", "0badf00d"))]
    with ThreadPoolExecutor(2) as pool:
        machines = list(
            pool.map(lambda pair: pair[0].create(pair[1]), zip(both, orders, strict=True))
        )
    assert len({m.provider_id for m in machines}) == 2
    assert len(cloud.project.ssh_keys) == 1


def test_no_root_password_is_ever_made(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    with pytest.raises(InvalidRequest, match="SSH key"):
        provider.create(replace(order, ssh_public_key=None))
    assert cloud.requests("POST", "/servers$") == []


def test_a_mark_that_labels_cannot_carry_is_refused_before_anything_is_asked_for(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    bad = replace(order, mark=replace(order.mark, run="2026-11-21T10:00:00+00:00"))
    with pytest.raises(InvalidRequest, match="label"):
        provider.create(bad)
    assert cloud.requests("POST", "") == []


# ---------------------------------------------------------------------- reading


def test_an_action_that_failed_is_seen_before_the_time_to_boot_is_over(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    cloud.switches.create_action_fails = True
    cloud.switches.status_instead = "initializing"
    machine = provider.create(order)
    clock.pass_time(20)
    said = provider.get(machine.provider_id)
    assert said.state is State.LOST
    assert "error during placement" in said.status


def test_errors_on_actions_that_did_not_fail_mean_nothing(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    cloud.switches.error_on_success_action = True
    machine = provider.create(order)
    assert provider.get(machine.provider_id).state is State.BOOTING
    assert booted(provider, machine, clock).state is State.READY
    assert "delete_server" in provider.destroy(machine.provider_id)


def test_nulls_where_lists_are_expected(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    cloud.switches.null_arrays = True
    machine = provider.create(order)
    assert booted(provider, machine, clock).access is not None
    assert len(provider.list()) == 1


def test_a_status_that_nobody_has_seen(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, caplog: pytest.LogCaptureFixture
) -> None:
    machine = provider.create(order)
    cloud.switches.status_instead = "hibernating"
    [listed] = provider.list()
    assert (listed.state, listed.status) == (State.UNKNOWN, "hibernating")
    assert provider.get(machine.provider_id).state is State.UNKNOWN
    assert "hibernating" in caplog.text


def test_a_listing_that_lags(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    cloud.switches.list_lag_s = 4
    machine = provider.create(order)
    assert provider.list() == []
    assert provider.get(machine.provider_id).name == order.name
    clock.pass_time(provider.capabilities.settle_seconds)
    assert [m.provider_id for m in provider.list()] == [machine.provider_id]


def test_a_list_that_withholds_something_is_no_list(
    provider: HetznerProvider, cloud: HetznerCloud
) -> None:
    for number in range(3):
        cloud.add_foreign(f"web-{number}")
    cloud.switches.partial_list = True
    with pytest.raises(Ambiguous, match="not whole"):
        provider.list()


def test_what_goes_away_while_pages_are_read_hides_nothing(
    provider: HetznerProvider, cloud: HetznerCloud
) -> None:
    ids = [cloud.add_foreign(f"web-{number}") for number in range(60)]
    serve, asked = cloud.serve, []

    def between(request: object) -> object:
        asked.append(request.path)  # type: ignore[attr-defined]
        if len([path for path in asked if path == "/v1/servers"]) == 2:
            cloud.project.servers.pop(int(ids[0]), None)  # all others move one place forward
        return serve(request)  # type: ignore[arg-type]

    cloud.serve = between  # type: ignore[method-assign, assignment]
    listed = {machine.provider_id for machine in provider.list()}
    assert set(ids[1:]) <= listed


def test_a_server_that_is_off_is_not_gone(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    machine = booted(provider, provider.create(order), clock)
    cloud.project.power_off(cloud.project.servers[int(machine.provider_id)])
    clock.pass_time(10)
    said = provider.get(machine.provider_id)
    assert (said.state, said.status, said.access) == (State.STOPPED, "off", None)
    assert cloud.bills("server")
    before = cloud.project.charged()
    clock.pass_time(7200)
    assert cloud.project.charged() > before


@pytest.mark.parametrize(
    ("labels", "marked"),
    [
        ({}, False),
        ({"gpuctl/owner": OWNER}, False),
        ({"gpuctl/owner": OWNER, "gpuctl/end": "soon"}, False),
        ({"gpuctl/owner": OWNER, "gpuctl/end": "9" * 40}, False),
        ({"gpuctl/owner": OWNER, "gpuctl/end": "1800000000"}, True),
    ],
)
def test_half_a_mark_is_none(
    provider: HetznerProvider, cloud: HetznerCloud, labels: dict[str, str], marked: bool
) -> None:
    number = cloud.add_foreign()
    cloud.project.servers[int(number)].facts["labels"] = labels
    assert (provider.get(number).mark is not None) is marked


def test_what_terraform_made_is_marked_as_its(
    provider: HetznerProvider, cloud: HetznerCloud
) -> None:
    number = cloud.add_foreign()
    cloud.project.servers[int(number)].facts["labels"] = {
        "gpuctl/owner": OWNER,
        "gpuctl/end": "1800000000",
        "gpuctl/managed-by": "terraform",
    }
    mark = provider.get(number).mark
    assert mark is not None
    assert mark.managed_by == "terraform"


# ---------------------------------------------------------------------- no answer


@pytest.mark.parametrize("code", [401, 429, 500, 502, 503, 504])
def test_a_read_that_fails_for_good(
    provider: HetznerProvider, cloud: HetznerCloud, code: int
) -> None:
    errors = {
        401: (ApiError(401, "unauthorized", "no"), AuthFailed),
        429: (ApiError(429, "rate_limit_exceeded", "no"), RateLimited),
        500: (faults.SERVER_ERROR, Ambiguous),
        502: (faults.BAD_GATEWAY, Ambiguous),
        503: (faults.UNAVAILABLE, Ambiguous),
        504: (faults.TIMEOUT, Ambiguous),
    }
    error, kind = errors[code]
    cloud.faults.append(faults.answers(error, times=None))
    for read in (provider.list, provider.leftovers, lambda: provider.get("1"), provider.check):
        with pytest.raises(kind):
            read()
    with pytest.raises(kind):
        provider.offers(Want())
    with pytest.raises(kind):
        provider.destroy("1")


def test_a_read_is_repeated_a_few_times(provider: HetznerProvider, cloud: HetznerCloud) -> None:
    cloud.faults.append(faults.html_502(times=1))
    cloud.faults.append(Fault(times=1))  # dropped
    assert provider.list() == []


def test_a_drained_bucket_is_waited_for_a_second_a_token(clock: HandClock, ssh_key: str) -> None:
    with HetznerCloud(clock=clock, rate_limit=3) as cloud:
        provider = HetznerProvider(main_settings(cloud), clock)
        for _ in range(5):
            provider.list()
        assert sum(clock.slept) < 10
        assert all(line.status in (200, 429) for line in cloud.log)


def test_a_hang_has_an_end(cloud: HetznerCloud, clock: HandClock) -> None:
    hasty = HetznerProvider(main_settings(cloud), clock, timeouts=(1, 0.2))
    cloud.faults.append(Fault(how="hang", seconds=1, times=3))
    with pytest.raises(Ambiguous, match="Timeout"):
        hasty.list()


def test_no_credentials_and_wrong_ones(cloud: HetznerCloud, clock: HandClock) -> None:
    settings = main_settings(cloud) | {"HCLOUD_TOKEN": ""}
    none = HetznerProvider(settings, clock)
    assert none.configured() is False
    with pytest.raises(AuthFailed, match="HCLOUD_TOKEN"):
        none.list()
    wrong = HetznerProvider(settings | {"HCLOUD_TOKEN": "f" * 64}, clock)
    with pytest.raises(AuthFailed, match="does not accept") as caught:
        wrong.list()
    assert "ffff" not in str(caught.value)
    with pytest.raises(AuthFailed, match="characters") as caught:
        HetznerProvider(settings | {"HCLOUD_TOKEN": "with\nnewline"}, clock).list()
    assert "newline" not in str(caught.value)


def test_the_token_of_the_hcloud_command(
    cloud: HetznerCloud, clock: HandClock, tmp_path: Path
) -> None:
    settings = main_settings(cloud) | {"HCLOUD_TOKEN": "", "HOME": str(tmp_path)}
    file = tmp_path / ".config/hcloud/cli.toml"
    file.parent.mkdir(parents=True)
    file.write_text(
        'active_context = "other"\n'
        '[[contexts]]\nname = "other"\ntoken = "no"\n'
        f'[[contexts]]\nname = "mine"\ntoken = "{cloud.token}"\n'
    )
    provider = HetznerProvider(settings | {"HCLOUD_CONTEXT": "mine"}, clock)
    assert provider.configured() is True
    assert provider.list() == []
    with pytest.raises(AuthFailed, match="does not accept"):
        HetznerProvider(settings, clock).list()
    with pytest.raises(AuthFailed, match="no context"):
        HetznerProvider(settings | {"HCLOUD_CONTEXT": "nobody"}, clock).list()
    file.write_text('token = "secret-thing')
    with pytest.raises(AuthFailed, match="cannot be read") as caught:
        HetznerProvider(settings, clock).list()
    assert "secret-thing" not in str(caught.value)


# ---------------------------------------------------------------------- the end


def test_a_protected_server_of_ours_is_freed_and_deleted(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    machine = booted(provider, provider.create(order), clock)
    server = cloud.project.servers[int(machine.provider_id)]
    server.facts["protection"]["delete"] = True
    provider.destroy(machine.provider_id)
    clock.pass_time(10)
    assert cloud.bills() == {}


def test_a_protected_server_of_somebody_elses_stays(
    provider: HetznerProvider, cloud: HetznerCloud, clock: HandClock
) -> None:
    number = cloud.add_foreign()
    cloud.project.servers[int(number)].facts["protection"]["delete"] = True
    with pytest.raises(InvalidRequest, match="protected"):
        provider.destroy(number)
    clock.pass_time(10)
    assert number in cloud.bills("server")


def test_a_locked_server_is_to_be_asked_again(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    cloud.switches.locked_for_s = 20
    machine = provider.create(order)
    with pytest.raises(Ambiguous, match="try again later"):
        provider.destroy(machine.provider_id)
    clock.pass_time(30)
    assert provider.destroy(machine.provider_id)
    clock.pass_time(10)
    assert cloud.bills() == {}


def test_nothing_is_looked_up_before_a_destroy(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    machine = provider.create(order)
    before = len(cloud.log)
    cloud.faults.append(faults.html_502(method="GET", times=None))
    provider.destroy(machine.provider_id)
    assert [(x.method, x.status) for x in cloud.log[before:]] == [("DELETE", 200)]


def test_a_lost_reply_to_a_destroy(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    machine = provider.create(order)
    cloud.faults.append(faults.commit_then_drop(r"/servers/\d+$", "DELETE"))
    with pytest.raises(Ambiguous):
        provider.destroy(machine.provider_id)
    assert provider.destroy(machine.provider_id)
    clock.pass_time(10)
    assert provider.destroy(machine.provider_id) == ABSENT


def test_a_read_only_token_is_told_apart(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    machine = provider.create(order)
    cloud.switches.read_only = True
    with pytest.raises(AuthFailed, match="Read & Write"):
        provider.destroy(machine.provider_id)
    findings = {finding.name: finding for finding in provider.check()}
    assert findings["key"].ok is True
    assert findings["rights"].ok is False
    assert "Read & Write" in findings["rights"].detail


def test_a_clock_that_is_off(cloud: HetznerCloud) -> None:
    fast = HandClock(datetime.now(UTC) + timedelta(minutes=10))
    provider = HetznerProvider(main_settings(cloud), fast)
    findings = {finding.name: finding for finding in provider.check()}
    assert findings["clock"].ok is False
    assert "ahead" in findings["clock"].detail


def test_check_rents_nothing(provider: HetznerProvider, cloud: HetznerCloud) -> None:
    provider.check()
    assert cloud.bills() == {}
    assert cloud.project.ssh_keys == {}


# ---------------------------------------------------------------------- what is left


def test_an_address_that_stayed_behind_is_found_and_removed(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    cloud.switches.auto_delete_false = True
    cloud.faults.append(faults.commit_then_drop("/primary_ips/", "PUT"))
    machine = provider.create(order)
    [address] = [x for x in cloud.project.primary_ips.values() if x["type"] == "ipv4"]
    assert address["auto_delete"] is True  # and goes with the server
    address["auto_delete"] = False
    provider.destroy(machine.provider_id)
    clock.pass_time(10)
    assert list(cloud.bills()) == [str(address["id"])]
    [left] = provider.leftovers()
    assert (left.kind, left.name) == ("address", order.name)
    assert left.mark is not None
    assert left.price_month is not None
    assert left.price_month > 0
    provider.remove(left)
    provider.remove(left)
    assert cloud.bills() == {}
    assert provider.leftovers() == []


def test_an_address_that_cannot_be_marked_does_not_cost_the_machine(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order
) -> None:
    cloud.faults.append(faults.html_502("/primary_ips/", "PUT"))
    assert provider.create(order).provider_id in cloud.bills("server")


def test_volumes_and_snapshots_of_ours_are_found_and_others_left_alone(
    provider: HetznerProvider, cloud: HetznerCloud, order: Order, clock: HandClock
) -> None:
    machine = booted(provider, provider.create(order), clock)
    ours = cloud.project.servers[int(machine.provider_id)].facts["labels"]
    client = provider._api
    path = f"/servers/{machine.provider_id}/actions/create_image"
    for labels, name in ((ours, order.name), ({}, "family-photos")):
        client.write("POST", path, {"description": name, "labels": labels})
        volume = {"name": name, "size": 10, "location": "fsn1", "labels": labels}
        client.write("POST", "/volumes", volume)
        address = {"name": f"{name}-ip", "type": "ipv4", "location": "fsn1", "labels": labels}
        client.write("POST", "/primary_ips", address)
    provider.destroy(machine.provider_id)
    clock.pass_time(10)
    left = provider.leftovers()
    assert sorted(one.kind for one in left) == ["address", "snapshot", "volume"]
    for one in left:
        provider.remove(one)
    assert provider.leftovers() == []
    assert sorted(cloud.bills().values()) == ["family-photos", "family-photos", "family-photos-ip"]


def test_leftovers_of_other_kinds_are_not_removed(provider: HetznerProvider) -> None:
    for kind, number in (("server", "1"), ("volume", "../servers/1")):
        with pytest.raises(InvalidRequest):
            provider.remove(Leftover("hetzner", kind, number, "x", None))


@pytest.mark.parametrize("identity", ["", "..", "1/../2", "gpuctl-a", "१"])
def test_ids_that_are_none(provider: HetznerProvider, cloud: HetznerCloud, identity: str) -> None:
    with pytest.raises(NotFound):
        provider.get(identity)
    assert provider.destroy(identity) == ABSENT
    assert cloud.log == []


# ---------------------------------------------------------------------- many


def test_five_hundred_machines_are_listed_in_ten_requests(
    provider: HetznerProvider, cloud: HetznerCloud
) -> None:
    for number in range(500):
        cloud.add_foreign(f"web-{number}")
    assert len({machine.provider_id for machine in provider.list()}) == 500
    assert len(cloud.requests("GET", "/servers$")) == 10
    before = len(cloud.log)
    with ThreadPoolExecutor(8) as pool:
        lists = list(pool.map(lambda _: len(provider.list()), range(8)))
    assert lists == [500] * 8
    assert len(cloud.log) - before < 80  # who asks at the same time shares an answer
