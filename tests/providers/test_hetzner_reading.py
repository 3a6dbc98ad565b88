"""Reading what Hetzner says: whatever comes, it is either understood or told apart."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.base import Ambiguous, InvalidRequest, Mark, ProviderError, State, Want
from providers.hetzner_boot import host_key_of, new_host_key, user_data
from providers.hetzner_credentials import token
from providers.hetzner_errors import Refusal
from providers.hetzner_offers import (
    net_hour,
    offer_id,
    offers,
    read_offer_id,
    read_prices,
    region_of,
)
from providers.hetzner_order import fingerprint_of
from providers.hetzner_servers import access_of, labels_of, machine_of, mark_of, state_of
from providers.reference.exchange import BUILT_IN
from tests.clouds.hetzner_cloud.catalog import Catalog, locations
from tests.clouds.hetzner_cloud.rules import check_labels

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)
SLUGS = st.from_regex(r"[a-z0-9-]{1,40}", fullmatch=True)


@given(SLUGS, SLUGS)
def test_offer_ids_come_back(kind: str, location: str) -> None:
    assert read_offer_id(offer_id(kind, location)) == (kind, location)


@given(st.text(max_size=60))
def test_what_is_no_offer_id_is_refused(text: str) -> None:
    try:
        kind, location = read_offer_id(text)
    except InvalidRequest:
        return
    assert offer_id(kind, location) == text


@given(st.dictionaries(st.sampled_from(["currency", "server_types", "primary_ips"]), ANYTHING))
def test_a_price_list_is_read_or_refused(pricing: dict[str, Any]) -> None:
    with suppress(Ambiguous):  # nothing else, whatever it is
        read_prices(pricing)


@given(st.sampled_from(["0", "0.0096", "1e3", "NaN", "-1", "Infinity", "", "0,5", None]))
def test_a_price_is_a_number_of_zero_or_more(text: str | None) -> None:
    price = {"location": "fsn1", "price_hourly": {"net": text, "gross": "1"}}
    net = net_hour({"prices": [price]}, "fsn1")
    assert net is None or (net.is_finite() and net >= 0)


def test_every_offer_can_be_ordered_and_is_sold() -> None:
    catalog = Catalog()
    prices = read_prices(catalog.pricing())
    made = offers(catalog.server_types(), locations(), prices, Want(), BUILT_IN, NOW)
    assert len(made) > 60
    for offer in made:
        kind, location = read_offer_id(offer.id)
        sold = catalog.server_type(kind)
        assert sold is not None
        assert location in [place["name"] for place in sold["locations"]]
        assert offer.price_hour > 0
    assert [offer.price_hour for offer in made] == sorted(offer.price_hour for offer in made)


def test_a_want_is_kept_to() -> None:
    catalog = Catalog()
    prices = read_prices(catalog.pricing())
    want = Want(cpus=8, memory_gb=32, disk_gb=300, max_price_hour=Decimal("0.3"))
    for offer in offers(catalog.server_types(), locations(), prices, want, BUILT_IN, NOW):
        assert offer.vcpus is not None
        assert offer.vcpus >= 8
        assert (offer.ram_gb or 0) >= 32
        assert (offer.disk_gb or 0) >= 300
        assert offer.price_hour <= Decimal("0.3")


@given(
    owner=st.from_regex(r"[0-9a-f]{6,32}", fullmatch=True),
    run=st.none()
    | st.from_regex(r"[a-z0-9]([a-z0-9-]{0,28}[a-z0-9])?-[0-9a-f]{6}", fullmatch=True),
    seconds=st.integers(0, 10**9),
    manager=st.sampled_from(["gpuctl", "terraform"]),
)
def test_marks_come_back_and_labels_are_legal(
    owner: str, run: str | None, seconds: int, manager: str
) -> None:
    mark = Mark(owner, NOW + timedelta(seconds=seconds), run, manager)
    labels = labels_of(mark, new_host_key().label)
    assert check_labels(labels) == labels  # by Hetzner's rules, written down for the emulation
    assert mark_of(labels) == mark


@given(ANYTHING)
def test_anything_as_labels_is_a_mark_or_none(labels: object) -> None:
    assert mark_of(labels) is None


@given(st.text(max_size=70))
def test_what_labels_cannot_hold_is_refused(run: str) -> None:
    try:
        labels = labels_of(Mark("c0ffee123456", NOW, run))
    except ValueError:
        return
    assert check_labels(labels) == labels


@given(
    st.fixed_dictionaries(
        {"id": st.integers(1, 2**53 - 1)},
        optional={
            "name": st.text(max_size=20),
            "status": st.text(max_size=20),
            "labels": st.none() | st.dictionaries(st.text(max_size=12), st.text(max_size=12)),
            "created": st.none() | st.text(max_size=25),
            "public_net": st.none()
            | st.fixed_dictionaries(
                {},
                optional={
                    "ipv4": st.none() | st.just({"ip": "192.0.2.1"}),
                    "ipv6": st.none() | st.fixed_dictionaries({"ip": st.text(max_size=20)}),
                },
            ),
        },
    )
)
def test_servers_with_half_of_their_facts_are_machines(server: dict[str, Any]) -> None:
    machine = machine_of(server, 22, None)
    assert machine.provider_id == str(server["id"])
    assert isinstance(machine.state, State)
    assert machine.status


@given(st.text(max_size=100))
def test_states_are_total(status: str) -> None:
    assert isinstance(state_of(status), State)


def test_without_ipv4_it_is_reached_by_the_first_address_of_its_network() -> None:
    server = {"public_net": {"ipv4": None, "ipv6": {"ip": "2001:db8:7::/64"}}}
    access = access_of(server, 22)
    assert access is not None
    assert access.host == "2001:db8:7::1"


def test_regions_name_zone_place_and_country() -> None:
    assert region_of({"name": "hel1", "country": "FI", "network_zone": "eu-central"}) == (
        "eu-central hel1 FI"
    )
    assert region_of({}) == ""


def test_a_host_key_fits_a_label_and_comes_back() -> None:
    key = new_host_key()
    assert len(key.label) <= 63
    assert check_labels({"gpuctl/host-key": key.label})
    assert host_key_of(key.label) == key.public


@given(st.text(max_size=80))
def test_other_labels_are_no_host_key(text: str) -> None:
    found = host_key_of(text)
    assert found is None or found.startswith("ssh-ed25519 ")


def test_user_data_is_small_and_carries_no_credential() -> None:
    key = new_host_key()
    end = NOW + timedelta(hours=24, seconds=1)
    text = user_data(key, end)
    config = json.loads(text.removeprefix("#cloud-config\n"))
    assert len(text) < 4096  # of 32 KiB
    assert config["ssh_keys"]["ed25519_public"] == key.public
    # An absolute moment, at every boot: a reboot does not put it off.
    assert str(int(end.timestamp())) in config["bootcmd"][0][2]
    assert "token" not in text.lower()


@given(
    code=st.text(max_size=30) | st.integers(100, 599),
    message=st.text(max_size=500),
    details=ANYTHING,
    creating=st.booleans(),
)
def test_every_refusal_has_a_sentence(
    code: str | int, message: str, details: object, creating: bool
) -> None:
    error = Refusal(code, message, details).error("to do that", creating=creating)
    assert isinstance(error, ProviderError)
    assert 20 < len(str(error)) < 1500 + len(str(details))


@pytest.mark.parametrize("text", ["", "ssh-ed25519", "ssh-ed25519 not-base64!", "\0"])
def test_keys_that_are_none(text: str) -> None:
    with pytest.raises(InvalidRequest, match="authorized_keys"):
        fingerprint_of(text)


def test_fingerprints_are_as_openssl_and_hetzner_have_them() -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJvZ3cXqG5n4cM0ZJ0tFq0e6bW4O3Z2c5mB8n7dJ1l1p x"
    assert re.fullmatch(r"([0-9a-f]{2}:){15}[0-9a-f]{2}", fingerprint_of(key))


def test_the_environment_comes_before_the_hcloud_command() -> None:
    assert token({"HCLOUD_TOKEN": " a "}) == "a"
    assert token({}) is None
    assert token({"HOME": "/nowhere"}) is None
