"""Where a person ends a machine by hand: the exact link and id, for every provider."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuctl.fleet.acquire import Need, acquire
from gpuctl.fleet.consoles import by_hand, console_link
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.keeper import Keeper
from providers.base import Provider, SystemClock
from providers.registry import create_provider
from tests.clouds.memory_cloud import MemoryCloud

LINKS = {
    "runpod": ("7h9k2m4n6p", "https://console.runpod.io/pods?id=7h9k2m4n6p"),
    "vastai": ("12345678", "https://cloud.vast.ai/instances/"),
    "hetzner": ("4711", "https://console.hetzner.com/projects"),
    "aws": (
        "eu-west-1/i-0123456789abcdef0",
        "https://eu-west-1.console.aws.amazon.com/ec2/home?region=eu-west-1"
        "#InstanceDetails:instanceId=i-0123456789abcdef0",
    ),
}
LISTS = {
    "runpod": "https://console.runpod.io/pods",
    "vastai": "https://cloud.vast.ai/instances/",
    "hetzner": "https://console.hetzner.com/projects",
    "aws": "https://console.aws.amazon.com/ec2/home",
}


def made(name: str, tmp_path: Path) -> Provider:
    return create_provider(name, {}, home=tmp_path, clock=SystemClock())


@pytest.mark.parametrize("name", LINKS)
def test_the_link_leads_to_the_machine(name: str, tmp_path: Path) -> None:
    capabilities = made(name, tmp_path).capabilities
    provider_id, link = LINKS[name]
    assert console_link(capabilities, provider_id) == link
    assert console_link(capabilities, None) == LISTS[name]


@pytest.mark.parametrize("name", LINKS)
def test_the_words_name_the_id_and_what_to_mind(
    name: str, tmp_path: Path, fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    row, _ = acquire(fleet, cloud.offer(), Need("demo", 600, "run"), keeper, guard=lambda: None)
    provider_id, link = LINKS[name]
    words = by_hand(made(name, tmp_path), row, provider_id)
    assert provider_id in words
    assert link in words
    assert ("does not name" in words) is (name == "hetzner"), "its project is not known"
    unknown = by_hand(made(name, tmp_path), row, None)
    assert row.name in unknown
    assert LISTS[name] in unknown


@pytest.mark.parametrize("name", ["local", "ssh"])
def test_a_computer_has_no_console(
    name: str, tmp_path: Path, fleet: Fleet, cloud: MemoryCloud, keeper: Keeper
) -> None:
    row, _ = acquire(fleet, cloud.offer(), Need("demo", 600, "run"), keeper, guard=lambda: None)
    assert "computer" in by_hand(made(name, tmp_path), row, "x")


def test_an_odd_id_stays_in_its_place(tmp_path: Path) -> None:
    link = console_link(made("runpod", tmp_path).capabilities, "a&b=c#d")
    assert link == "https://console.runpod.io/pods?id=a%26b%3Dc%23d"
