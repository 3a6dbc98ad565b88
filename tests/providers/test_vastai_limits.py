"""Keys that Vast.ai refuses in odd ways, and how often it may be asked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from providers import vastai
from providers.base import (
    AuthFailed,
    RateLimited,
)
from tests.clouds.http_cloud import Fault, Reply, Request
from tests.providers.vastai_bench import RTX, VastBench, ready, vast_bench


@pytest.fixture
def vast(tmp_path: Path) -> Iterator[VastBench]:
    """An account with nothing rented."""
    with vast_bench(tmp_path / "home") as made:
        yield made


@pytest.mark.parametrize("status", [401, 404])
def test_a_bad_key_is_never_taken_for_an_absence(vast: VastBench, status: int) -> None:
    id, order = ready(vast), vast.order()
    vast.cloud.switches.bad_key_status = status  # type: ignore[assignment]
    stranger = vast.again(VAST_API_KEY="wrong")
    verbs = (
        stranger.list,
        lambda: stranger.get(id),
        lambda: stranger.destroy(id),
        lambda: stranger.offers(RTX),
        lambda: stranger.create(order),
        stranger.check,
        stranger.leftovers,
    )
    for verb in verbs:
        with pytest.raises(AuthFailed) as caught:
            verb()
        assert "wrong" not in str(caught.value)
    assert list(vast.books()) == [id]


def test_a_session_that_expired_is_a_bad_key(vast: VastBench) -> None:
    told = {"success": False, "msg": "Session expired. Please log in again."}
    fault = Fault("/v1/instances", how="answer", reply=Reply(404, told))
    vast.cloud.faults.append(fault)
    with pytest.raises(AuthFailed, match="expired"):
        vast.provider.list()


def test_a_key_that_may_only_read(vast: VastBench) -> None:
    id = ready(vast)
    vast.cloud.scopes["reader"] = {"instance_read"}
    reader = vast.again(VAST_API_KEY="reader")
    assert len(reader.list()) == 1
    with pytest.raises(AuthFailed, match="right"):
        reader.destroy(id)
    assert list(vast.books()) == [id]


def test_keys_are_found_where_the_official_tool_keeps_them(tmp_path: Path) -> None:
    home = tmp_path / "h"
    old, new = home / ".vast_api_key", home / ".config/vastai/vast_api_key"
    new.parent.mkdir(parents=True)

    def key(**more: str) -> str | None:
        return vastai.read_settings({"HOME": str(home), **more}).key

    assert key() is None
    old.write_text("old\n")
    assert key() == "old"
    new.write_text("new\n")
    assert key() == "new"
    assert key(VAST_API_KEY="mine") == "mine"
    assert key(XDG_CONFIG_HOME=str(tmp_path / "elsewhere")) == "old"


# ---------------------------------------------------------------------------- limits


@pytest.mark.parametrize("form", ["text", "detail", "error"])
@pytest.mark.parametrize("header", [None, "7"])
def test_reads_wait_out_a_429(vast: VastBench, form: str, header: str | None) -> None:
    vast.cloud.switches.too_many = form  # type: ignore[assignment]
    vast.cloud.switches.retry_after = header
    vast.cloud.gate(_list_of(vast))  # somebody else with this key has just asked
    assert vast.provider.list() == []
    assert len(vast.cloud.refused) == 1
    assert max(vast.clock.slept) >= (7 if header else 1)


def _list_of(vast: VastBench):  # type: ignore[no-untyped-def]

    headers = {"authorization": f"Bearer {vast.cloud.key}"}
    return Request("GET", "/api/v1/instances/", {}, headers, b"")


def test_a_429_that_asks_for_ten_minutes_is_told_at_once(vast: VastBench) -> None:
    vast.cloud.switches.retry_after = "600"
    vast.cloud.gate(_list_of(vast))
    with pytest.raises(RateLimited) as caught:
        vast.provider.list()
    assert caught.value.retry_after == 600
    assert len(vast.cloud.refused) == 1


def test_a_429_on_destroy_makes_the_next_one_wait(vast: VastBench) -> None:
    id = ready(vast)
    reply = Reply(429, {"detail": "API requests too frequent endpoint threshold=3.0"})
    vast.cloud.faults.append(Fault("/instances/", "DELETE", how="answer", reply=reply))
    with pytest.raises(RateLimited):
        vast.provider.destroy(id)
    before = vast.clock.now()
    assert vast.provider.destroy(id) == "200 destroyed"
    assert (vast.clock.now() - before).total_seconds() >= 3
    assert vast.books() == {}


def test_searches_that_are_used_up_are_told_with_the_time_to_wait(vast: VastBench) -> None:
    for _ in range(10):
        vast.provider.offers(RTX)
    with pytest.raises(RateLimited, match="10 such calls") as caught:
        vast.provider.offers(RTX)
    assert 12 < caught.value.retry_after <= 61
    vast.clock.pass_time(caught.value.retry_after)
    assert vast.provider.offers(RTX)
    assert vast.cloud.refused == []


def test_the_days_searches_are_used_up(vast: VastBench) -> None:
    vast.cloud.switches.search_quota = True
    with pytest.raises(RateLimited, match="search_quota_exceeded"):
        vast.provider.offers(RTX)
    assert len(vast.cloud.requests("POST", "/bundles/")) == 1


def test_two_processes_keep_the_pace_together(vast: VastBench) -> None:
    other = vast.again()
    for _ in range(3):
        vast.provider.list()
        other.list()
    assert vast.cloud.refused == []


def test_a_home_that_cannot_be_written_keeps_nobody_from_ending(vast: VastBench) -> None:
    id = ready(vast)
    pace = vast.home / "vastai"
    for file in pace.iterdir():
        file.unlink()
    pace.rmdir()
    pace.write_text("a file where a folder should be")
    vast.provider.list()
    vast.provider.list()
    assert vast.provider.destroy(id) == "200 destroyed"
    assert vast.cloud.refused == []
