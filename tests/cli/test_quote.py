"""`quote`: everybody is asked, and who says nothing costs nobody else."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from gpuctl.fleet.asking import why_empty
from gpuctl.market import QuoteError
from providers.base import Ambiguous, AuthFailed, Offer, ProviderError, Want
from providers.matching import satisfies
from tests.cli.conftest import Gpuctl
from tests.clouds.memory_cloud import MemoryCloud


def answers(monkeypatch: pytest.MonkeyPatch, cloud: MemoryCloud, given: object) -> None:
    def offers(_want: Want) -> list[Offer]:
        if isinstance(given, ProviderError):
            raise given
        return list(given)  # type: ignore[call-overload]

    monkeypatch.setattr(cloud, "offers", offers)


def test_live_offers_come_with_every_filter_on_one_command(
    gpuctl: Gpuctl, cloud: MemoryCloud
) -> None:
    answer = gpuctl(
        "quote", "--gpu", "RTX-4090", "--gpu", "24GB+", "--count", 1, "--disk", "40GB",
        "--provider", "memory", "--region", "here", "--min-vram", 20, "--max-price", "$2",
        "--hours", 4, "--budget", 10, "--limit", 5, "--json",
    )  # fmt: skip
    assert answer.code == 0
    (offer,) = answer.json["offers"]
    assert (offer["provider"], offer["source"], offer["price_hour"]) == ("memory", "live", 1.0)
    assert offer["run_cost"] == pytest.approx(1 * (4 + 10 / 60), rel=0.01)
    assert offer["runs_in_budget"] == 2
    assert answer.json["errors"] == []


def test_offline_rows_say_that_they_are_reference_and_how_old(gpuctl: Gpuctl) -> None:
    answer = gpuctl("quote", "--gpu", "A100-80GB", "--offline", "--json")
    assert answer.code == 0
    assert {offer["source"] for offer in answer.json["offers"]} == {"reference"}
    assert all(offer["as_of"] and offer["note"] for offer in answer.json["offers"])
    assert "reference of 20" in gpuctl("quote", "--gpu", "A100-80GB", "--offline").out


def test_the_limit_cuts_and_says_so(gpuctl: Gpuctl) -> None:
    answer = gpuctl("quote", "--gpu", "24GB+", "--offline", "--limit", 2)
    assert "more; --limit shows them" in answer.out
    assert len(gpuctl("quote", "--gpu", "24GB+", "--offline", "--limit", 2, "--json").json[
        "offers"]) == 2  # fmt: skip


def test_an_unknown_gpu_is_wrong_usage_with_a_suggestion(gpuctl: Gpuctl) -> None:
    answer = gpuctl("quote", "--gpu", "RTX-4091", "--json")
    assert answer.code == 2
    assert "RTX-4090" in answer.json["error"]["message"]


def test_none_cannot_be_combined(gpuctl: Gpuctl) -> None:
    assert gpuctl("quote", "--gpu", "none", "--gpu", "A100", "--offline").code == 2


@pytest.mark.parametrize("price", ["-1", "nan", "1e99", "€5", "lots"])
def test_money_that_is_none_is_wrong_usage(gpuctl: Gpuctl, price: str) -> None:
    answer = gpuctl("quote", "--max-price", price, "--offline", "--json")
    assert answer.code == 2
    assert "--max-price" in answer.json["error"]["message"]


def test_a_budget_needs_hours(gpuctl: Gpuctl) -> None:
    assert "--hours" in gpuctl("quote", "--budget", 5, "--json").json["error"]["message"]


def test_local_takes_part_only_when_named(gpuctl: Gpuctl) -> None:
    everybody = gpuctl("quote", "--gpu", "none", "--offline", "--json").json
    assert "local" not in {offer["provider"] for offer in everybody["offers"]}
    named = gpuctl("quote", "--provider", "local", "--json").json
    assert {offer["provider"] for offer in named["offers"]} == {"local"}


def test_nothing_matches_is_3_with_the_nearest(gpuctl: Gpuctl, cloud: MemoryCloud) -> None:
    answer = gpuctl(
        "quote", "--provider", "memory", "--gpu", "RTX-4090", "--max-price", "0.5", "--json"
    )
    assert answer.code == 3
    assert answer.json["offers"] == []
    assert answer.json["error"]["kind"] == "NothingRentable"
    assert "just above the price cap" in answer.json["error"]["next"]
    near = answer.json["nearest"][0]
    assert (near["provider"], near["gpu"], near["price_hour"]) == ("memory", "RTX-4090", 1.0)
    assert (near["kind"], near["difference"]) == ("same", "just above the price cap")


def test_the_nearest_are_a_line_each_for_people(gpuctl: Gpuctl, cloud: MemoryCloud) -> None:
    answer = gpuctl("quote", "--provider", "memory", "--gpu", "RTX-4090", "--max-price", "0.5")
    assert answer.code == 3
    lines = answer.err.splitlines()
    first = lines.index("  next: Nearest:") + 1
    assert lines[first].startswith("        just above the price cap: 1x RTX-4090 at memory")
    assert len(lines) > first + 1  # other cards, and other providers


def test_a_card_that_is_sold_by_eight_only_is_near(
    gpuctl: Gpuctl, cloud: MemoryCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    eight = replace(cloud.offer(), gpu_count=8)
    monkeypatch.setattr(cloud, "offers", lambda want: [eight] if satisfies(eight, want) else [])
    answer = gpuctl("quote", "--provider", "memory", "--gpu", "RTX-4090", "--json")
    assert answer.code == 3
    near = answer.json["nearest"][0]
    assert (near["provider"], near["difference"]) == ("memory", "the same, with 8 GPUs")


def test_traffic_belongs_to_a_run(
    gpuctl: Gpuctl, cloud: MemoryCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert gpuctl("quote", "--upload", "5GB").code == 2
    assert "--hours" in gpuctl("quote", "--download", 5, "--json").json["error"]["message"]
    dear = replace(cloud.offer(), gb_in_price=Decimal("0.1"), gb_out_price=Decimal("0.5"))
    answers(monkeypatch, cloud, [dear])
    words = ("quote", "--provider", "memory", "--hours", 1, "--fresh", "--json")
    costs = [
        gpuctl(*words, *more).json["offers"][0]["run_cost"]
        for more in ((), ("--upload", "100GB"), ("--download", 0))
    ]
    hours = 1 + 10 / 60
    assert costs == pytest.approx([hours + 1.5 + 1, hours + 11 + 1, hours + 1.5], rel=0.001)
    (offer,) = gpuctl(*words).json["offers"]
    assert (offer["gb_in_price"], offer["gb_out_price"]) == (0.1, 0.5)


def test_machines_with_several_gpus_tell_the_price_of_one(
    gpuctl: Gpuctl, cloud: MemoryCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, cloud, [replace(cloud.offer(), gpu_count=8, price_hour=Decimal("9.60"))])
    words = ("quote", "--provider", "memory", "--gpu", "RTX-4090", "--count", 8)
    assert gpuctl(*words, "--json").json["offers"][0]["price_gpu_hour"] == 1.2
    assert "1.2000" in gpuctl(*words).out


def test_one_that_fails_costs_only_its_own_rows(
    gpuctl: Gpuctl, cloud: MemoryCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, cloud, AuthFailed("the key was revoked"))
    answer = gpuctl("quote", "--provider", "memory", "--provider", "local", "--json")
    assert answer.code == 0
    assert {offer["provider"] for offer in answer.json["offers"]} == {"local"}
    assert answer.json["errors"] == [
        {"provider": "memory", "kind": "AuthFailed", "message": "the key was revoked"}
    ]


def test_refused_keys_and_nothing_else_is_4(
    gpuctl: Gpuctl, cloud: MemoryCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, cloud, AuthFailed("the key was revoked"))
    answer = gpuctl("quote", "--provider", "memory", "--json")
    assert answer.code == 4
    assert answer.json["error"]["kind"] == "Credentials"


def test_silence_proves_nothing(
    gpuctl: Gpuctl, cloud: MemoryCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, cloud, Ambiguous("no answer"))
    assert gpuctl("quote", "--provider", "memory", "--json").code == 1


@pytest.mark.parametrize(
    ("kinds", "asked", "code"),
    [
        ([], 1, 3),
        (["Unsupported"], 1, 3),
        (["AuthFailed"], 1, 4),
        (["AuthFailed", "Timeout"], 2, 4),
        (["Timeout"], 1, 1),
        (["Timeout"], 2, 3),
        (["AuthFailed", "Unsupported"], 2, 3),
        (["InvalidRequest"], 1, 2),
        (["InvalidRequest", "Timeout"], 2, 1),
    ],
)
def test_what_an_empty_quote_means(kinds: list[str], asked: int, code: int) -> None:
    errors = [QuoteError("p", kind, "why") for kind in kinds]
    assert why_empty(errors, asked).exit_code == code


def test_a_broken_adapter_of_a_third_party_costs_only_itself(
    gpuctl: Gpuctl, cloud: MemoryCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpuctl.fleet import asking

    monkeypatch.setattr(asking, "names", lambda: ("memory", "strange"))
    answer = gpuctl("quote", "--gpu", "RTX-4090", "--json")
    assert answer.code == 0
    assert "strange" in {error["provider"] for error in answer.json["errors"]}
    assert "memory" in {offer["provider"] for offer in answer.json["offers"]}
