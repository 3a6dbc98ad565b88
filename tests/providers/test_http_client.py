"""Telling answers apart, against a real server that misbehaves."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from providers.base import Ambiguous, AuthFailed, RateLimited
from providers.http_client import HttpClient, retry_after
from tests.clouds.http_cloud import Fault, HttpCloud, Reply, Request, route
from tests.clouds.memory_cloud import HandClock

KEY = "canary-key-1234"


class Things(HttpCloud):
    """Has things, and takes new ones."""

    def __init__(self) -> None:
        super().__init__()
        self.things = ["a"]
        self.agents: list[str] = []

    @route("GET", "/things")
    def all_things(self, request: Request) -> Reply:
        self.agents.append(request.headers["user-agent"])
        return Reply(200, {"things": self.things, "query": dict(request.query)})

    @route("POST", "/things/{name}")
    def add(self, request: Request, name: str) -> Reply:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return Reply(401, {"error": "bad key"})
        self.things.append(name)
        return Reply(201, request.json())


@pytest.fixture
def cloud() -> Iterator[Things]:
    with Things() as made:
        yield made


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 11, 21, tzinfo=UTC))


@pytest.fixture
def client(cloud: Things, clock: HandClock) -> HttpClient:
    return HttpClient("acme", cloud.url, {"Authorization": f"Bearer {KEY}"}, clock=clock)


def test_reads_and_writes(cloud: Things, client: HttpClient) -> None:
    assert client.read("/things", query={"q": "x y"}).body["query"] == {"q": "x y"}
    assert client.write("POST", "/things/b", {"size": 1}).status == 201
    assert cloud.things == ["a", "b"]
    assert cloud.agents[0].startswith("gpuctl/")
    assert client.read("/nowhere").status == 404


def test_a_read_is_repeated(cloud: Things, client: HttpClient, clock: HandClock) -> None:
    cloud.faults += [Fault(how="drop"), Fault(how="answer", reply=Reply(503, {"e": 1}))]
    assert client.read("/things").body["things"] == ["a"]
    assert clock.slept == [0.5, 1.0]
    cloud.faults.append(Fault(how="drop", times=None))
    with pytest.raises(Ambiguous, match="acme did not answer GET /things"):
        client.read("/things")


@pytest.mark.parametrize(
    "fault",
    [
        Fault(when="after", how="drop"),
        Fault(when="after", how="answer", reply=Reply(502, b"<html>bad gateway</html>")),
        Fault(when="after", how="answer", reply=Reply(200, b"not json")),
    ],
)
def test_a_write_is_never_repeated(cloud: Things, client: HttpClient, fault: Fault) -> None:
    cloud.faults.append(fault)
    with pytest.raises(Ambiguous) as caught:
        client.write("POST", "/things/b", {})
    assert cloud.things == ["a", "b"]
    assert len(cloud.requests("POST", "/things")) == 1
    assert KEY not in str(caught.value)


def test_a_key_that_is_refused(cloud: Things, clock: HandClock) -> None:
    client = HttpClient("acme", cloud.url, {"Authorization": "Bearer wrong"}, clock=clock)
    with pytest.raises(AuthFailed, match="bad key"):
        client.write("POST", "/things/b", {})


def test_too_many_requests(cloud: Things, client: HttpClient) -> None:
    busy = Reply(429, {"error": "slow down"}, {"Retry-After": "7"})
    cloud.faults.append(Fault(how="answer", reply=busy))
    with pytest.raises(RateLimited, match="slow down") as caught:
        client.read("/things")
    assert caught.value.retry_after == 7


def test_a_redirect_is_not_followed(cloud: Things, client: HttpClient) -> None:
    cloud.faults.append(
        Fault(how="answer", reply=Reply(302, None, {"Location": "http://127.0.0.1:1/"}))
    )
    assert client.read("/things").status == 302


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("3", 3),
        ("2.5", 2.5),
        ("Sat, 21 Nov 2026 00:00:30 GMT", 30),
        ("Fri, 20 Nov 2026 00:00:30 GMT", 0),
        ("99999", 600),
        ("soon", 5),
        ("", 5),
    ],
)
def test_how_long_to_wait(said: str, seconds: float, clock: HandClock) -> None:
    assert retry_after({"retry-after": said}, clock) == seconds
