"""Every offer of every emulated catalogue: rented, it is the machine that was offered.

A name that `create` cannot translate back, or that comes back as another card, would be a wrong
machine at that price. RunPod's catalogue: `test_runpod.py`.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from gpuctl.remote.keys import public_key
from providers.aws_machines import read_machine
from providers.aws_types import card_of
from providers.base import Mark, Offer, Order, Want
from providers.gpus import all_gpus, find, identify, parse_selector
from providers.hetzner import HetznerProvider
from providers.vastai_names import API_NAMES
from providers.vastai_offers import api_names
from tests.clouds import hetzner_cloud
from tests.clouds.memory_cloud import HandClock
from tests.clouds.vastai_cloud import Host
from tests.providers.aws_bench import OWNER, Account, account
from tests.providers.vastai_bench import vast_bench

__all__ = ["account"]


def ordered(offer: Offer, number: int, key: str | None = None) -> Order:
    """An order for an offer, under a name of its own."""
    mark = Mark(OWNER, datetime.now(UTC) + timedelta(hours=3), "demo-1a2b3c")
    return Order(f"gpuctl-trip-{OWNER[:6]}-{number:08x}", offer, mark, 8, ssh_public_key=key)


def vast_hosts() -> list[Host]:
    """One host for each card that Vast.ai has a name for, in each of its sizes."""
    cards = [(gpu, name) for gpu in all_gpus() for name in api_names(gpu)]
    return [
        Host(1000 + number, name, f"NVIDIA {name}", round(gpu.vram_gb * 1024 * 0.99), gpus=2)
        for number, (gpu, name) in enumerate(cards)
    ]


@pytest.mark.slow
def test_vastais_cards_come_back(tmp_path: Path) -> None:
    hosts = vast_hosts()
    assert {host.gpu_name for host in hosts} >= {"A100 SXM4", "RTX 4090D", "RTX 4070S Ti"}
    with vast_bench(tmp_path) as vast:
        vast.cloud.switches.pacing = 0
        vast.cloud.contracts.credit = Decimal(10**6)
        seen: Counter[str] = Counter()
        for number, host in enumerate(hosts):
            vast.cloud.contracts.hosts = [host]
            card = identify(host.gpu_name, host.gpu_ram / 1024)
            assert card is not None
            offers = vast.provider.offers(Want(gpus=(card.name,), gpu_count=2, disk_gb=8))
            assert {(one.gpu, one.spot) for one in offers} == {
                (card.name, False),
                (card.name, True),
            }, host.gpu_name
            offer = offers[number % 2]
            machine = vast.provider.create(ordered(offer, number))
            told = (machine.gpu, machine.gpu_count, machine.spot)
            assert told == (offer.gpu, offer.gpu_count, offer.spot)
            assert vast.provider.get(machine.provider_id).gpu == offer.gpu
            vast.provider.destroy(machine.provider_id)
            vast.clock.pass_time(60)
            seen[card.name] += 1
        assert len(seen) > 100
        assert vast.books() == {}
    assert len(API_NAMES) >= len({host.gpu_name for host in hosts})


def test_awss_types_come_back(account: Account) -> None:
    """What a type is called when it is offered, and when it runs: read from different answers."""
    offers = [
        offer
        for count in (1, 2, 4, 8)
        for offer in account.provider.offers(Want(gpus=("1GB+",), gpu_count=count, disk_gb=1))
    ]
    assert len({offer.id.split(":")[2] for offer in offers}) > 50
    for offer in offers:
        type_name = offer.id.split(":")[2]
        row = {"InstanceId": "i-1", "InstanceType": type_name, "State": {"Name": "running"}}
        machine = read_machine(row, "us-east-1", 22)
        assert (machine.gpu, machine.gpu_count) == (offer.gpu, offer.gpu_count)
        assert card_of(type_name) == (offer.gpu, offer.gpu_count)
        assert find(offer.gpu or "").vram_gb == offer.vram_gb
        assert parse_selector(offer.gpu or "").matches(offer.gpu, offer.vram_gb)


@pytest.mark.slow
@pytest.mark.parametrize("spot", [True, False])
def test_one_of_each_of_awss_cards_is_really_rented(account: Account, spot: bool) -> None:
    cards: dict[str, Offer] = {}
    for count in (1, 4, 8):
        want = Want(gpus=("1GB+",), gpu_count=count, disk_gb=1, spot=spot)
        for offer in account.provider.offers(want):
            cards.setdefault(offer.gpu or "", offer)
    assert len(cards) > 8
    account.cloud.market.quotas.update(
        {("us-east-1", code): 10**6 for code in ("L-3819A6DF", "L-DB2E81BA", "L-417A185B")}
        | {("us-east-1", code): 10**6 for code in ("L-7212CCBC", "L-C4BD4855")}
    )
    for number, (gpu, offer) in enumerate(cards.items()):
        made = account.provider.create(ordered(offer, number))
        assert (made.gpu, made.gpu_count, made.spot) == (gpu, offer.gpu_count, spot)


def test_hetzners_types_come_back(tmp_path: Path) -> None:
    clock = HandClock(datetime.now(UTC))
    key = public_key(tmp_path)
    with hetzner_cloud.HetznerCloud(clock=clock) as cloud:
        provider = HetznerProvider(hetzner_cloud.main_settings(cloud), clock)
        offers = [offer for offer in provider.offers(Want(disk_gb=1)) if offer.available]
        one_of_each = {offer.id.split(":")[1]: offer for offer in offers}
        assert len(one_of_each) > 15
        for number, (kind, offer) in enumerate(one_of_each.items()):
            machine = provider.create(ordered(offer, number, key))
            server = cloud.project.servers[int(machine.provider_id)].facts
            told = cloud.project.catalog.server_type(server["server_type"])
            assert told is not None
            assert (told["name"], told["cores"]) == (kind, offer.vcpus)
            assert machine.gpu is None
            assert machine.price_hour == offer.price_hour
            assert machine.region == offer.region
            provider.destroy(machine.provider_id)
            clock.pass_time(10)
