"""The part of the crash matrix that fits into `make test`, and how its cases are chosen."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.clouds.rented import needs_machines
from tests.faults.guarantee import write
from tests.faults.plan import Recording, product_of, sample, share
from tests.faults.play import Case, play
from tests.faults.sites import at_once
from tests.remote.sshd import needs_sshd

_CASES = [
    Case("local", "run", "ledger:intended#1", "after", "reap"),
    Case("local", "run", "ledger:run_state running#1", "after", "machine"),
    Case("local", "run", "api:destroy#1", "before", "watchdog"),
    Case("ssh", "provision", "ledger:ready#1", "before", "watchdog"),
    Case("vastai", "provision", "api:PUT api/v0/asks/*#1", "after", "machine"),
    Case("vastai", "terminate", "api:DELETE api/v0/instances/*#1", "before", "watchdog"),
    Case("aws", "provision", "api:RunInstances#1", "after", "machine"),
    Case("aws", "terminate", "api:TerminateInstances#1", "after", "reap"),
    Case("hetzner", "provision", "api:POST v1/servers#1", "after", "reap"),
    Case("runpod", "provision", "api:POST v2/pods#1", "after", "watchdog"),
    Case("vastai", "run", "ledger:attempt_started#1", "after", "reap", action="loss"),
]


@needs_machines
@needs_sshd
@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.key)
def test_killed(case: Case, tmp_path: Path) -> None:
    """Where most is lost elsewhere, each with one ending; `make faults` has all the points."""
    verdict = play(case, tmp_path)
    assert verdict.reached, verdict
    assert verdict.good, verdict
    assert verdict.rented <= 1


# ------------------------------------------------------------------------- how cases are chosen

POINTS = ("ledger:intended#1", "api:create#1", "ssh:run renew#1", "ledger:renewed#1")
RECORDING = Recording("runpod", "provision", POINTS, ("list 5xx", "never ready"))


def test_a_sample_visits_every_point_and_every_strike() -> None:
    cases = sample([RECORDING], 7)
    assert {case.point for case in cases} >= set(POINTS)
    assert {case.strike for case in cases} >= set(RECORDING.strikes)
    assert {case.action for case in cases} >= {"kill", "stop", "loss"}
    assert cases == sample([RECORDING], 7)
    assert cases != sample([RECORDING], 8)


def test_the_product_has_every_pair_and_all_of_any_sample() -> None:
    cases = product_of([RECORDING], 0)
    assert {(case.point, case.side, case.ending) for case in cases if not case.strike} >= set(
        product(POINTS, ("before", "after"), ("watchdog", "reap"))
    )
    assert len(cases) == len({case.key for case in cases})


def test_a_machine_is_owed_an_end_by_its_own_timer_once_that_is_armed() -> None:
    assert RECORDING.endings("api:create#1") == ("watchdog", "reap")
    assert RECORDING.endings("ssh:run renew#1") == ("watchdog", "reap")
    assert "machine" in RECORDING.endings("ledger:renewed#1")
    at_hetzner = Recording("hetzner", "terminate", POINTS, ())
    assert at_hetzner.endings("ledger:renewed#1") == ("watchdog", "reap")
    at_aws = Recording("aws", "provision", POINTS, ())
    assert "machine" in at_aws.endings("api:create#1")


def test_shares_are_all_and_none_twice() -> None:
    cases = product_of([RECORDING], 0)
    shares = [case for n in (1, 2, 3) for case in share(cases, n, 3)]
    assert sorted(shares) == sorted(cases)


def test_machines_at_once() -> None:
    assert at_once([]) == 0
    assert at_once([(0, 5), (5, 9)]) == 1
    assert at_once([(0, 5), (4, float("inf"))]) == 2


def test_the_document_tells_what_leaked(tmp_path: Path) -> None:
    def row(ending: str, leaked: list[str], seconds: float | None) -> dict[str, Any]:
        case = {
            "provider": "aws",
            "command": "run",
            "point": "api:RunInstances#1",
            "side": "after",
            "ending": ending,
            "strike": "",
            "action": "kill",
            "clock": 0,
        }
        verdict = {"reached": True, "leaked": leaked, "doubled": False}
        verdict |= {"stopped": [], "problems": []}
        return {"case": case, "verdict": {**verdict, "seconds": seconds}}

    rows = [row("reap", [], 3.0), row("machine", ["instance i-1"], None)]
    write(tmp_path / "g.md", rows, seed=7, planned=5)
    text = (tmp_path / "g.md").read_text()
    assert "| aws | only `gpuctl reap` runs later | 1 | 0 | 0 | 0 | 3, 3 |" in text
    assert "| aws | only the machine's own timer is left | 1 | 1 | 0 | 0 | – |" in text
    assert "| run | after api:RunInstances | – | 1, 0, – | 0, 0, 3 s |" in text
    assert "seed 7; 2 of its 5 cases" in text
