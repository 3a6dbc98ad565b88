"""Reference prices: dated, labelled, the newest counts, and false claims never come back."""

from __future__ import annotations

import json
import os
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from providers.base import InvalidRequest, Want
from providers.gpus import find
from providers.reference import current_entries, entries, eur_usd, plans, reference_offers

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def offers(want: Want, provider: str | None = None, **environ: str) -> dict[str, Decimal]:
    found = reference_offers(want, provider=provider, now=NOW, environ=environ)
    return {offer.id: offer.price_hour for offer in found}


def test_every_offer_says_that_it_is_a_reference_its_source_and_age() -> None:
    found = reference_offers(Want(disk_gb=0), now=NOW, environ={})
    assert len(found) == len(current_entries())
    for offer in found:
        assert offer.source == "reference"
        assert offer.as_of < NOW
        assert "reference price" in offer.note
        assert f"{(NOW - offer.as_of).days} days old" in offer.note
        assert offer.price_hour > 0
        assert offer.gpu is None or find(offer.gpu).vram_gb == offer.vram_gb
    included = [offer for offer in found if "disk not included" not in offer.note]
    assert {offer.provider for offer in included} <= {"hetzner", "lambda"}


def test_ids_are_unique_and_stable() -> None:
    ids = [entry.id for entry in current_entries()]
    assert len(set(ids)) == len(ids)
    assert "ref:aws:g4dn.xlarge:us-east-1:spot" in ids
    assert "ref:aws:p4d.24xlarge:us-east-1:on-demand" in ids
    assert not any(" " in name for name in ids)


def test_every_entry_has_a_source_a_date_and_a_gpu_that_exists() -> None:
    for entry in entries():
        assert entry.source
        assert date(2025, 1, 1) <= entry.as_of <= NOW.date()
        if entry.gpu is not None:
            assert find(entry.gpu).name == entry.gpu


def test_the_newer_price_counts_and_the_older_stays_on_record() -> None:
    p4d = [entry for entry in entries() if entry.name == "p4d.24xlarge"]
    assert {entry.price for entry in p4d} == {Decimal("32.77"), Decimal("21.957642")}
    old = next(entry for entry in p4d if entry.price == Decimal("32.77"))
    assert old.superseded_by is not None
    assert "21.957642" in old.superseded_by
    eight = offers(Want(gpus=("A100-40GB",), gpu_count=8))
    assert eight["ref:aws:p4d.24xlarge:us-east-1:on-demand"] == Decimal("21.957642")
    single = offers(Want(gpus=("A100-40GB",)), "lambda")
    assert single == {"ref:lambda:gpu_1x_a100_sxm4:any:on-demand": Decimal("1.99")}


@pytest.mark.parametrize(
    ("system", "gpu", "spot"),
    [
        ("runpod", "A100-40GB", None),
        ("runpod", "RTX-4090", True),
        ("lambda", "RTX-4090", None),
        ("hetzner", "A10", None),
    ],
)
def test_false_claims_are_recorded_with_a_reason_and_never_offered(
    system: str, gpu: str, spot: bool | None
) -> None:
    claims = [entry for entry in entries() if entry.system == system and entry.gpu == gpu]
    assert any(entry.retracted for entry in claims)
    assert offers(Want(gpus=(gpu,), spot=spot), system) == {}


def test_runpod_and_hetzner_never_offer_what_they_do_not_sell() -> None:
    assert offers(Want(spot=True), "runpod") == {}
    assert offers(Want(gpus=("1GB+",)), "hetzner") == {}


@pytest.mark.parametrize(
    ("system", "gpu", "count", "price"),
    [
        ("azure", "V100-16GB", 1, "3.06"),
        ("azure", "A100-80GB", 1, "3.67"),
        ("azure", "A100-40GB", 8, "27.20"),
        ("huggingface", "T4", 1, "0.60"),
        ("huggingface", "A10G", 1, "1.05"),
        ("huggingface", "A100-40GB", 1, "3.50"),
        ("sagemaker", "A10G", 1, "1.41"),
        ("lambda", "RTX-A6000", 1, "0.80"),
        ("lambda", "A100-80GB", 1, "1.50"),
        ("aws", "V100-16GB", 1, "3.06"),
        ("runpod", "A100-80GB-PCIe", 1, "1.39"),
    ],
)
def test_founding_and_newer_figures(system: str, gpu: str, count: int, price: str) -> None:
    found = offers(Want(gpus=(gpu,), gpu_count=count), system)
    assert list(found.values()) == [Decimal(price)]


def test_a_range_counts_at_its_upper_end_and_shows_both() -> None:
    (offer,) = reference_offers(Want(gpus=("RTX-3090",)), provider="vastai", now=NOW, environ={})
    assert offer.price_hour == Decimal("0.40")
    assert "range 0.20 to 0.40" in offer.note


def test_a_price_per_gpu_grows_with_the_count() -> None:
    one = offers(Want(gpus=("RTX-4090",)), "runpod")
    four = offers(Want(gpus=("RTX-4090",), gpu_count=4), "runpod")
    assert list(four.values()) == [4 * price for price in one.values()]
    assert offers(Want(gpus=("RTX-4090",), gpu_count=16), "runpod") == {}


def test_plans_are_listed_and_never_offered() -> None:
    assert {(plan.name, plan.price) for plan in plans()} == {
        ("Colab Pro", Decimal("9.99")),
        ("Colab Pro+", Decimal("49.99")),
    }
    assert offers(Want(), "colab") == {}
    assert offers(Want(), "hetzner-robot") == {}  # a set-up fee is no hourly price


def test_euros_are_converted_at_a_dated_rate_or_the_users() -> None:
    (built_in, *_) = reference_offers(
        Want(cpus=4, memory_gb=16), provider="hetzner", now=NOW, environ={}
    )
    assert built_in.fx_rate == eur_usd({}).usd
    assert built_in.fx_date == eur_usd({}).day is not None
    doubled = {"GPUCTL_EUR_USD": "2"}
    (own, *_) = reference_offers(
        Want(cpus=4, memory_gb=16), provider="hetzner", now=NOW, environ=doubled
    )
    assert (own.fx_rate, own.fx_date) == (Decimal(2), None)
    # cx43: 15.99 EUR a month / 624 + 0.0008 for IPv4
    assert own.id == "ref:hetzner:cx43:eu:on-demand"
    assert own.price_hour == 2 * (Decimal("0.0256") + Decimal("0.0008"))


@pytest.mark.parametrize("rate", ["abc", "-1", "0", "NaN", "Infinity"])
def test_a_malformed_rate_is_named(rate: str) -> None:
    with pytest.raises(InvalidRequest, match="GPUCTL_EUR_USD"):
        reference_offers(Want(), now=NOW, environ={"GPUCTL_EUR_USD": rate})


def test_filters() -> None:
    cheap = offers(Want(gpus=("24GB+",), max_price_hour=Decimal(1)))
    assert cheap
    assert max(cheap.values()) <= 1
    assert all(":us-east-1:" in name for name in offers(Want(regions=("us-east-1",))))
    assert all(":spot" in name for name in offers(Want(spot=True)))
    # An eighth of an L4 is not an L4.
    assert not any("g6f" in name for name in offers(Want(gpus=("L4",))))
    assert any("g6f.large" in name for name in offers(Want(gpus=("3GB+",))))
    # RAM is in GB: 32 GiB are 34.4.
    assert "ref:aws:g4dn.2xlarge:us-east-1:on-demand" in offers(
        Want(gpus=("T4",), memory_gb=34), "aws"
    )


def test_a_clock_that_is_behind_makes_no_negative_age() -> None:
    early = datetime(2020, 1, 1, tzinfo=UTC)
    assert "0 days old" in reference_offers(Want(), now=early, environ={})[0].note


def test_the_facts_of_ec2() -> None:
    folder = os.environ.get("GPUCTL_CONTRACTS")
    if not folder or not (Path(folder) / "aws_gpu_types.json").exists():
        pytest.skip("GPUCTL_CONTRACTS names no folder with aws_gpu_types.json")
    rows = json.loads((Path(folder) / "aws_gpu_types.json").read_text())["rows"]
    ours = {
        entry.name: entry
        for entry in entries()
        if entry.system == "aws" and entry.as_of == date(2026, 7, 20)
    }
    for row in rows:
        entry = ours.pop(row["type"])
        price = row["od_us_east_1"]
        assert entry.price == (None if price is None else Decimal(str(price)))
        assert entry.gpu_count == (row["count"] or 1)
        assert entry.vcpus == row["vcpu"]
        assert entry.ram_gb == pytest.approx(row["ram_gib"] * 1.073741824, abs=0.06)
        assert entry.gpu is not None
        nominal = find(entry.gpu).vram_gb
        assert nominal == pytest.approx(row["gpu_mem_mib"] / 1024, rel=0.08)
    assert list(ours) == ["p3.2xlarge"]
