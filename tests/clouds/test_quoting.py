"""One question to all four clouds: asked at once, and for no more than it takes."""

from __future__ import annotations

import contextlib
import importlib
import re
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from gpuctl.market import Quote, ask
from providers.base import SystemClock, Want
from providers.registry import create_provider
from tests.clouds.http_cloud import Fault, Reply

NAMES = ("runpod", "vastai", "hetzner", "aws")
CPUS = Want(cpus=4)
GPUS = Want(gpus=("24GB+",))


class Clouds:
    """All four, without machines behind them, and one home."""

    def __init__(self, clouds: dict[str, Any], environ: dict[str, str], home: Path) -> None:
        self.clouds = clouds
        self._environ = environ
        self._home = home

    def quote(self, want: Want, home: str = "home") -> Quote:
        """Ask as a new process would, with what a home remembers."""
        clock = SystemClock()
        path = self._home / home
        providers = [create_provider(name, self._environ, home=path, clock=clock) for name in NAMES]
        return ask(providers, want, clock=clock, environ={}, deadline_seconds=60)

    def calls(self) -> dict[str, int]:
        """Requests to each since the last look."""
        counted = {name: len(cloud.log) for name, cloud in self.clouds.items()}
        for cloud in self.clouds.values():
            cloud.log.clear()
        return counted


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clouds]:
    """They run for the whole module: none of the tests rents anything."""
    folder = tmp_path_factory.mktemp("clouds")
    environ = {"HOME": "/nonexistent"}
    made = {}
    with contextlib.ExitStack() as running:
        for name in NAMES:
            module = importlib.import_module(f"tests.clouds.{name}_cloud")
            made[name] = running.enter_context(module.by_hand(folder / name, machines=False))
            environ |= module.main_settings(made[name])
        made["vastai"].switches.pacing = 0
        yield Clouds(made, environ, folder)


def test_all_are_asked_at_the_same_time(clouds: Clouds, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first request to each cloud is answered when all four have one."""
    everybody = threading.Barrier(len(NAMES), timeout=60)
    for cloud in clouds.clouds.values():
        came = threading.Event()
        lock = threading.Lock()

        def serve(
            request: Any, answer: Any = cloud.serve, came: Any = came, lock: Any = lock
        ) -> Any:
            with lock:
                first = not came.is_set()
                came.set()
            if first:
                everybody.wait()
            return answer(request)

        monkeypatch.setattr(cloud, "serve", serve)
    found = clouds.quote(CPUS, home="fresh")
    assert found.errors == ()
    assert {offer.provider for offer in found.offers} == set(NAMES)


def test_a_quote_asks_for_what_it_needs(clouds: Clouds) -> None:
    clouds.calls()
    assert clouds.quote(GPUS).offers
    first = clouds.calls()
    assert first["runpod"] == 2  # secure and community
    assert first["vastai"] == 1
    assert first["hetzner"] == 0  # it has no GPUs: that is known without a call
    assert first["aws"] <= 6  # the types, three kinds of prices, the scores
    clouds.quote(GPUS)
    again = clouds.calls()
    assert again["aws"] <= 1  # spot prices; the rest is remembered
    assert (again["runpod"], again["vastai"]) == (2, 1)


def test_machines_without_a_gpu_take_few_calls_too(clouds: Clouds) -> None:
    clouds.calls()
    clouds.quote(CPUS)
    counted = clouds.calls()
    assert counted["runpod"] == 3
    assert counted["hetzner"] == 3
    assert counted["vastai"] <= 2
    assert counted["aws"] <= 8


def rows(quote: Quote) -> dict[str, Decimal]:
    """Every row by its name: what it costs."""
    return {f"{one.provider}:{one.id}": one.price_hour for one in quote.offers}


@pytest.mark.parametrize(
    "name", ["runpod", "vastai", "hetzner", pytest.param("aws", marks=pytest.mark.slow)]
)
def test_a_request_that_fails_costs_rows_and_shifts_none(clouds: Clouds, name: str) -> None:
    """Whichever it is: what is left is what it was, at the price that it had."""
    clouds.calls()
    whole = rows(clouds.quote(CPUS, home=f"{name}-whole"))
    cloud = clouds.clouds[name]
    paths = {one.path for one in cloud.log}
    assert paths
    for number, path in enumerate(sorted(paths)):
        refusal = Reply(418, {"error": "a teapot"})
        fault = Fault(f"^{re.escape(path)}$", how="answer", reply=refusal)
        cloud.faults.append(fault)
        found = clouds.quote(CPUS, home=f"{name}-{number}")
        assert fault.times == 0
        left = rows(found)
        assert left.items() <= whole.items()
        lost = {row.partition(":")[0] for row in whole.keys() - left.keys()}
        assert lost <= {name}
        assert {error.provider for error in found.errors} <= {name}
