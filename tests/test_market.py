"""Asking everybody at once: the slowest bounds the time, and a fault costs its own rows only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, cast

import pytest

from gpuctl.market import Participants, ask, participants, rank
from gpuctl.market_nearest import in_any_number, nearest, relaxed
from gpuctl.policy import Traffic
from providers.base import (
    AuthFailed,
    Capabilities,
    Offer,
    Provider,
    SystemClock,
    Unsupported,
    Want,
)
from providers.gpus import UnknownGpu
from providers.matching import satisfies
from providers.registry import UnknownProvider

AT = datetime(2026, 11, 21, tzinfo=UTC)


class NoonClock(SystemClock):
    def now(self) -> datetime:
        return AT


CLOCK = NoonClock()


def offer(id: str, price: str, *, provider: str = "one", **changes: Any) -> Offer:
    facts: dict[str, Any] = {
        "gpu": "L4",
        "gpu_count": 1,
        "vram_gb": 24,
        "spot": False,
        "region": "us-east-1",
        "vcpus": 8,
        "ram_gb": 32,
        "as_of": AT,
    }
    return Offer(provider=provider, id=id, price_hour=Decimal(price), **(facts | changes))


class Cloud:
    """A provider of which only the question matters."""

    def __init__(
        self,
        name: str,
        answer: Callable[[Want], Sequence[Offer]],
        *,
        spot: bool = True,
        configured: bool = True,
    ) -> None:
        self.name = name
        self.asked = 0
        self._answer = answer
        self._configured = configured
        self.capabilities = Capabilities(
            spot=spot, stop=False, ttl=False, labels=True, kind="vm", gpus=True
        )

    def configured(self) -> bool:
        return self._configured

    def offers(self, want: Want) -> Sequence[Offer]:
        self.asked += 1
        return self._answer(want)


def cloud(name: str, *offers: Offer, **options: Any) -> Provider:
    return cast(Provider, Cloud(name, lambda _: offers, **options))


def failing(name: str, error: BaseException) -> Provider:
    def answer(_: Want) -> Sequence[Offer]:
        raise error

    return cast(Provider, Cloud(name, answer))


@pytest.fixture
def hanging() -> Iterator[Provider]:
    release = threading.Event()

    def answer(_: Want) -> Sequence[Offer]:
        release.wait(60)
        return [offer("late", "0.01", provider="slow")]

    yield cast(Provider, Cloud("slow", answer))
    release.set()


def quote(providers: Sequence[Provider], want: Want | None = None, **options: Any) -> Any:
    return ask(
        providers, want or Want(), clock=CLOCK, environ=options.pop("environ", {}), **options
    )


def ids(found: Any) -> list[str]:
    return [made.id for made in found.offers]


# ---------------------------------------------------------------------------------- faults


def test_a_provider_that_fails_or_hangs_costs_its_own_rows(hanging: Provider) -> None:
    started = time.monotonic()
    found = quote(
        [
            cloud("one", offer("a", "2"), offer("b", "1")),
            hanging,
            failing("locked", AuthFailed("The key of locked was revoked.")),
            failing("buggy", KeyError("token=hunter2")),
            cloud("two", offer("c", "1.5", provider="two")),
        ],
        deadline_seconds=1,
    )
    assert ids(found) == ["b", "c", "a"]
    assert [(error.provider, error.kind) for error in found.errors] == [
        ("slow", "Timeout"),
        ("locked", "AuthFailed"),
        ("buggy", "Failed"),
    ]
    assert "within 1 s" in found.errors[0].message
    assert found.errors[1].message == "The key of locked was revoked."
    assert "KeyError" in found.errors[2].message
    assert "hunter2" not in found.errors[2].message
    assert time.monotonic() - started < 10  # the event is held for 60


def test_they_are_asked_at_the_same_time() -> None:
    everybody = threading.Barrier(8, timeout=30)

    def answer(_: Want) -> Sequence[Offer]:
        everybody.wait()  # broken unless all eight are in here together
        return [offer("a", "1")]

    found = quote([cast(Provider, Cloud(f"c{n}", answer)) for n in range(8)])
    assert (len(found.offers), found.errors) == (8, ())


def test_all_hanging_ends_at_the_deadline(hanging: Provider) -> None:
    found = quote([hanging, hanging], deadline_seconds=0.05)
    assert [error.kind for error in found.errors] == ["Timeout", "Timeout"]
    assert found.offers == ()


def test_no_provider_at_all() -> None:
    assert quote([]).offers == ()


def test_a_misspelt_gpu_is_the_askers_mistake() -> None:
    asked = cast(Any, cloud("one", offer("a", "1")))
    with pytest.raises(UnknownGpu, match="RTX-4091"):
        quote([asked], Want(gpus=("RTX-4091",)))
    assert asked.asked == 0


# ---------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("want", "stays"),
    [
        (Want(), ["cheap", "spot", "big", "eight"]),
        (Want(spot=True), ["spot"]),
        (Want(spot=False), ["cheap", "big", "eight"]),
        (Want(gpus=("L4",)), ["cheap", "spot"]),
        (Want(gpus=("A100-40GB",)), ["big"]),
        (Want(gpus=("40GB+",), gpu_count=8), ["eight"]),
        (Want(max_price_hour=Decimal("0.8")), ["cheap", "spot"]),
        (Want(max_price_hour=Decimal("0.799")), ["cheap"]),
        (Want(min_vram_gb=40), ["big", "eight"]),
        (Want(min_reliability=0.99), ["spot", "big", "eight"]),
        (Want(regions=("eu",)), ["big"]),
        (Want(regions=("US-EAST-1", "eu")), ["cheap", "spot", "big"]),
        (Want(regions=("US",)), ["cheap", "spot", "eight"]),
        (Want(cpus=16), ["big"]),
        (Want(memory_gb=100), ["big"]),
        (Want(disk_gb=500), ["cheap", "spot", "eight"]),
    ],
)
def test_filters(want: Want, stays: list[str]) -> None:
    market = cloud(
        "one",
        offer("cheap", "0.5", reliability=0.9),
        offer("spot", "0.8", spot=True, reliability=0.995),
        offer(
            "big", "1.5", gpu="A100-40GB-SXM", vram_gb=40, region="eu-central-1", vcpus=32,
            ram_gb=200, disk_gb=100,
        ),
        offer(
            "eight", "9", gpu="A100-80GB-SXM", vram_gb=80, gpu_count=8, vcpus=None, ram_gb=None,
            region="Texas, US",
        ),
    )  # fmt: skip
    assert ids(quote([market], want)) == stays


def test_ties_keep_the_order_of_the_providers() -> None:
    first = cloud("z", offer("z1", "1", provider="z"), offer("z2", "1", provider="z"))
    second = cloud("a", offer("a1", "1", provider="a"))
    for _ in range(20):
        assert ids(quote([first, second])) == ["z1", "z2", "a1"]


def test_what_cannot_be_had_comes_last_and_live_before_reference() -> None:
    ranked = rank(
        [
            offer("none left", "0.1", available=False),
            offer("paper", "1", source="reference"),
            offer("live", "1"),
        ]
    )
    assert [made.id for made in ranked] == ["live", "paper", "none left"]


def test_five_thousand_offers_are_ranked_in_under_a_second() -> None:
    many = [
        offer(str(n), f"{(n * 7919) % 5000 + 1}", gpu="RTX-4090", region=f"r{n % 50}")
        for n in range(5000)
    ]
    want = Want(gpus=("RTX-4090", "A100-40GB", "24GB+"), cpus=4, regions=("r1",))
    started = time.process_time()
    found = quote([cloud("one", *many)], want, hours=8, budget=Decimal(100))
    assert time.process_time() - started < 1
    prices = [made.price_hour for made in found.offers]
    assert prices == sorted(prices)
    assert len(prices) == 1100  # r1 and r10 to r19


# ------------------------------------------------------------------------- spot, references


def test_spot_asked_of_a_provider_without_spot() -> None:
    plain = cast(Any, cloud("plain", offer("a", "1", provider="plain"), spot=False))
    found = quote([plain, cloud("one", offer("b", "1", spot=True))], Want(spot=True))
    assert ids(found) == ["b"]
    (error,) = found.errors
    assert (error.provider, error.kind) == ("plain", Unsupported.kind)
    assert "on-demand" in error.message
    assert plain.asked == 0


def test_without_credentials_there_are_reference_rows() -> None:
    aws = cast(Any, cloud("aws", offer("live", "0.01", provider="aws"), configured=False))
    found = quote([aws], Want(gpus=("T4",)))
    assert aws.asked == 0
    assert {made.source for made in found.offers} == {"reference"}
    assert "ref:aws:g4dn.xlarge:us-east-1:spot" in ids(found)
    assert found.notes == ("aws: no credentials here; reference prices",)
    assert found.errors == ()


def test_without_credentials_and_without_reference_rows_there_is_a_word() -> None:
    found = quote([cloud("thirdcloud", configured=False)])
    assert (found.offers, found.errors) == ((), ())
    assert "skipped" in found.notes[0]


def test_offline_asks_nobody() -> None:
    asked = cast(Any, cloud("aws", offer("live", "0.01", provider="aws")))
    found = quote([asked], Want(gpus=("T4",)), offline=True)
    assert asked.asked == 0
    assert all(made.source == "reference" for made in found.offers)
    assert found.offers


def test_systems_without_an_adapter_say_so() -> None:
    names = ["runpod", "vastai", "hetzner", "lambda", "azure"]
    found = quote([], Want(gpus=("A100-80GB",)), reference_only=names)
    assert {made.provider for made in found.offers} == {"runpod", "lambda", "azure"}
    assert [(error.provider, error.kind) for error in found.errors] == [("hetzner", "Unsupported")]
    assert "CPU machines" in found.errors[0].message
    assert "vastai: no adapter yet; no reference price matches" in found.notes
    spot = quote([], Want(spot=True), reference_only=names)
    assert [error.provider for error in spot.errors] == ["runpod", "hetzner", "lambda"]
    assert all(error.kind == "Unsupported" for error in spot.errors)


def test_a_malformed_rate_is_one_error_a_system() -> None:
    found = quote([], Want(), reference_only=["aws"], environ={"GPUCTL_EUR_USD": "much"})
    assert [(error.provider, error.kind) for error in found.errors] == [("aws", "InvalidRequest")]


# ------------------------------------------------------------------------------- run costs


def test_with_hours_the_cheapest_to_finish_comes_first() -> None:
    market = cloud("one", offer("firm", "1"), offer("spot", "0.99", spot=True))
    assert ids(quote([market])) == ["spot", "firm"]
    found = quote([market], hours=8, budget=Decimal(20), setup_minutes=30)
    assert ids(found) == ["firm", "spot"]
    cost = found.run_cost(found.offers[0])
    assert (cost.run_cost, cost.runs_in_budget) == (Decimal("8.5"), 2)
    spot_cost = found.run_cost(found.offers[1])
    assert spot_cost.run_cost > Decimal("8.5")
    assert quote([market]).run_cost(found.offers[0]) is None


def test_traffic_is_part_of_a_runs_cost_where_it_is_billed() -> None:
    free = offer("free", "1.10")
    billed = offer("billed", "1", gb_in_price=Decimal("0.01"), gb_out_price=Decimal("0.09"))
    found = quote([cloud("one", free, billed)], hours=4, setup_minutes=0)
    cost = found.run_cost(billed)
    assert cost.run_cost == 4 + 15 * Decimal("0.01") + 2 * Decimal("0.09")
    assert ids(found) == ["billed", "free"]
    much = Traffic(in_gb=210, out_gb=0)
    found = quote([cloud("one", free, billed)], hours=4, setup_minutes=0, traffic=much)
    assert ids(found) == ["free", "billed"]
    assert found.run_cost(billed).run_cost == Decimal("6.1")
    assert ids(quote([cloud("one", free, billed)])) == ["billed", "free"]  # an hour has none


def test_a_free_run_has_no_number_of_runs_and_an_endless_one_none() -> None:
    market = cloud("one", offer("free", "0"), offer("endless", "1", spot=True))
    found = quote([market], hours=1e6, budget=Decimal(5), checkpoint_minutes=1e9)
    free, endless = (found.run_cost(made) for made in found.offers)
    assert (free.run_cost, free.runs_in_budget) == (0, None)
    assert (endless.run_cost, endless.runs_in_budget) == (None, 0)


# ----------------------------------------------------------------------------- participants


def test_local_and_ssh_wait_to_be_named() -> None:
    alone = {"local": True, "aws": False, "vastai": False}
    assert participants([], alone, ["azure"]) == Participants(("aws", "vastai"), ("azure",))
    assert participants(["local"], alone, ["azure"]) == Participants(("local",), ())
    assert participants(["azure", "aws", "aws"], alone, ["azure"]) == Participants(
        ("aws",), ("azure",)
    )
    with pytest.raises(UnknownProvider, match="vastia"):
        participants(["vastia"], alone, ["azure"])


# -------------------------------------------------------------------------------- nearest


def told(want: Want, market: Sequence[Offer], **options: Any) -> list[str]:
    return [near.line() for near in nearest(want, market, **options)]


def test_nearest_names_what_differs() -> None:
    market = [
        offer("dear", "1.10", spot=True),
        offer("dearer", "1.20", spot=True),
        offer("firm", "0.90"),
        offer("far", "0.80", spot=True, region="eu-west-1"),
        offer("huge", "0.95", gpu="H100-80GB-SXM", vram_gb=80, spot=True),
        offer("bigger", "0.99", gpu="L40S", vram_gb=48, spot=True),
        offer("smaller", "0.10", gpu="T4", vram_gb=16, spot=True),
        offer("gone", "0.10", spot=False, available=False),
    ]
    want = Want(gpus=("L4",), spot=True, regions=("us",), max_price_hour=Decimal(1))
    assert quote([cloud("one", *market)], want).offers == ()
    lines = told(want, market)
    assert [line.partition(":")[0] for line in lines] == [
        "just above the price cap",
        "the same, but on-demand",
        "the same, elsewhere",
        "24 GB or more",
    ]
    assert "1.1000 USD/h" in lines[0]
    assert "0.9000" in lines[1]
    assert "eu-west-1" in lines[2]
    assert "H100" in lines[3]


A100 = {"gpu": "A100-40GB-SXM", "vram_gb": 40, "spot": True}


def test_the_same_card_comes_first_then_its_family_then_the_cheapest_that_is_as_big() -> None:
    market = [
        offer("l40s", "0.60", gpu="L40S", vram_gb=48, spot=True),
        offer("a6000", "0.40", gpu="RTX-A6000", vram_gb=48, spot=True),
        offer("h100", "1.00", gpu="H100-80GB-SXM", vram_gb=80, spot=True),
        offer("a100-80", "1.20", gpu="A100-80GB-PCIe", vram_gb=80, spot=True),
        offer("eight", "9.00", **A100 | {"gpu_count": 8}),
        offer("theirs", "1.10", provider="two", **A100),
        offer("3090", "0.10", gpu="RTX-3090", vram_gb=24, spot=True),
    ]
    want = Want(gpus=("A100-40GB",), spot=True)
    found = nearest(want, market, providers=["one"])
    assert [(near.kind, near.offer.id) for near in found] == [
        ("same", "theirs"),
        ("same", "eight"),
        ("family", "a100-80"),
        ("bigger", "a6000"),
    ]
    assert [near.difference for near in found] == [
        "the same, at another provider",
        "the same, with 8 GPUs",
        "the next size up",
        "40 GB or more",
    ]


def test_what_differs_in_more_is_only_told_when_it_is_cheaper() -> None:
    here = offer("here", "1.00")
    far_and_dear = offer("far", "1.50", region="eu-west-1")
    far_and_cheap = offer("farther", "0.50", region="eu-west-1")
    want = Want(gpus=("L4",), spot=True, regions=("us",))
    assert [near.offer.id for near in nearest(want, [here, far_and_dear])] == ["here"]
    found = nearest(want, [here, far_and_dear, far_and_cheap])
    assert [near.offer.id for near in found] == ["here", "farther"]
    assert found[1].difference == "the same, on-demand, elsewhere"


def test_a_price_that_is_live_comes_before_a_lower_one_of_last_year() -> None:
    want = Want(gpus=("L4",), spot=True)
    old = offer("old", "0.10", source="reference")
    assert [near.offer.id for near in nearest(want, [old, offer("live", "1")])] == ["live"]


def test_cards_that_were_not_named_have_no_family() -> None:
    want = Want(gpus=("24GB+",), spot=True)
    assert [near.kind for near in nearest(want, [offer("a", "1")])] == ["same"]
    assert relaxed(want).gpus == ("24GB+",)


def test_nearest_never_fails_to_say_something_when_there_is_something() -> None:
    want = Want(gpus=("L4",), spot=True, cpus=64, memory_gb=999)
    (line,) = told(want, [offer("a", "1")])
    assert line.startswith("the same, on-demand, with 8 CPUs, with 32 GB of memory: 1x L4 at one")
    assert nearest(want, []) == ()
    assert nearest(Want(), [offer("fits", "1")]) == ()


def test_any_number_of_the_same_card_can_be_asked_for() -> None:
    eight = offer("eight", "9.00", **A100 | {"gpu_count": 8})
    want = Want(gpus=("A100-40GB",), gpu_count=2, spot=True)
    assert not satisfies(eight, want)
    assert satisfies(eight, in_any_number(want))
    assert not satisfies(offer("l4", "1"), in_any_number(want))
    assert told(want, [eight])[0].startswith("the same, with 8 GPUs: 8x A100-40GB-SXM")


def test_relaxed_lets_everything_in_that_nearest_can_name() -> None:
    want = Want(gpus=("A100-40GB",), spot=True, regions=("eu",), max_price_hour=Decimal(1), cpus=4)
    wider = relaxed(want)
    assert wider.gpus == (
        *("A100-40GB", "A100-80GB", "A100-80GB-PCIe", "A100-80GB-SXM"),
        "40GB+",
    )
    assert (wider.spot, wider.regions, wider.max_price_hour) == (None, (), None)
    assert wider.cpus is None
    found = quote([], wider, reference_only=["runpod", "aws", "lambda"])
    lines = told(want, found.offers)
    assert lines
    assert all("reference price of 202" in line for line in lines)
