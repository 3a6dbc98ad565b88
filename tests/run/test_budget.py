"""A cap is a cap: the job is ended early enough that its result and its end fit under it too."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import Ended, all_released, nothing_bills, run

DOLLAR_A_SECOND = "3600"
SAVING = """
run: |
  mkdir -p out
  trap 'echo saved > "$GPUCTL_CHECKPOINT_DIR/.l"
        mv "$GPUCTL_CHECKPOINT_DIR/.l" "$GPUCTL_CHECKPOINT_DIR/last-999"; exit 143' TERM
  start=1
  if [ -n "$GPUCTL_RESUME_FROM" ]; then start=$(( $(cat "$GPUCTL_RESUME_FROM") + 1 )); fi
  for i in $(seq $start 1000); do
    echo "step $i"
    echo $i | tee out/steps > "$GPUCTL_CHECKPOINT_DIR/.s"
    mv "$GPUCTL_CHECKPOINT_DIR/.s" "$GPUCTL_CHECKPOINT_DIR/step-$i"
    sleep 0.1
  done
outputs: [{from: out, to: ./artifacts}]
checkpoints: {keep: 2}
"""


def spent(ended: Ended) -> float:
    """What it cost; the receipts and the run say the same."""
    receipts = sum(receipt["cost_usd"] for receipt in ended.document["receipts"])
    attempts = sum(attempt["cost_usd"] for attempt in ended.run["attempts"])
    assert receipts == pytest.approx(attempts) == pytest.approx(ended.run["cost_usd"])
    return float(ended.run["cost_usd"])


def seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def rented_seconds(ended: Ended) -> float:
    machines: list[Any] = [attempt["machine"] for attempt in ended.run["attempts"]]
    return sum(seconds_between(one["created_at"], one["ended_at"]) for one in machines)


def capped(ended: Ended, cap: str) -> None:
    assert (ended.code, ended.run["state"]) == (5, "failed"), ended.err
    assert ended.outcomes[-1] == "capped"
    assert ended.run["reason"] == f"budget.{cap} is used up"
    assert ended.error["kind"] == "Cap"
    assert ended.error["may_bill"] is False
    assert ended.run["id"] in ended.error["next"]


@pytest.mark.parametrize("cap", ["max_duration: 4s", "max_cost: 4", "deadline: 5s"])
def test_ended_cleanly(rehearsal: Rehearsal, cap: str) -> None:
    rehearsal.settings["GPUCTL_LOCAL_PRICE_HOUR"] = DOLLAR_A_SECOND
    ended = run(rehearsal, f"budget: {{{cap}}}\n{SAVING}")
    capped(ended, cap.partition(":")[0])
    assert ended.outcomes == ["capped"]
    by_the_run = "deadline" in cap  # the other caps count what is rented
    limit = 5 if by_the_run else 4
    assert 0 < spent(ended) <= limit
    assert rented_seconds(ended) <= limit
    # Its last words were kept, and its result fetched.
    assert ended.run["checkpoints"][-1]["name"] == "last-999"
    assert int((rehearsal.folder / "job/artifacts/steps").read_text()) > 1
    # Whoever finds the machine later can tell from its mark when it must end.
    (attempt,) = ended.run["attempts"]
    machine = attempt["machine"]
    began = ended.run["created_at"] if by_the_run else machine["created_at"]
    assert seconds_between(began, machine["hard_end"]) <= limit
    all_released(rehearsal, ended)


def test_a_job_that_will_not_end_is_killed_under_the_cap(rehearsal: Rehearsal) -> None:
    rehearsal.settings["GPUCTL_LOCAL_PRICE_HOUR"] = DOLLAR_A_SECOND
    spec = "run: |\n  trap '' TERM\n  while true; do sleep 0.1; done\nbudget: {max_cost: 6}\n"
    ended = run(rehearsal, spec)
    capped(ended, "max_cost")
    assert spent(ended) <= 6
    all_released(rehearsal, ended)


def test_setup_counts(rehearsal: Rehearsal) -> None:
    ended = run(rehearsal, "setup: sleep 60\nrun: echo never\nbudget: {max_duration: 3s}\n")
    capped(ended, "max_duration")
    assert "never" not in ended.err
    assert rented_seconds(ended) <= 3
    all_released(rehearsal, ended)


def test_the_cap_is_for_all_attempts(rehearsal: Rehearsal) -> None:
    rehearsal.settings["GPUCTL_LOCAL_PRICE_HOUR"] = DOLLAR_A_SECOND
    ended = run(rehearsal, f"budget: {{max_cost: 6}}\n{SAVING}", "--rehearse-interruption", "1s")
    capped(ended, "max_cost")
    assert ended.outcomes == ["interrupted", "capped"]
    assert spent(ended) <= 6
    all_released(rehearsal, ended)


def test_a_cap_below_anything_rents_nothing(rehearsal: Rehearsal) -> None:
    rehearsal.settings["GPUCTL_LOCAL_PRICE_HOUR"] = DOLLAR_A_SECOND
    ended = run(rehearsal, "run: echo never\nbudget: {max_cost: 0.5}\n")
    assert (ended.code, ended.run["state"], ended.outcomes) == (5, "failed", []), ended.err
    assert ended.error["kind"] == "Cap"
    assert "intended" not in rehearsal.kinds()
    nothing_bills(rehearsal)


def test_what_is_free_is_not_capped_by_money(rehearsal: Rehearsal) -> None:
    ended = run(rehearsal, "run: sleep 1\nbudget: {max_cost: 0.01}\n")
    assert (ended.code, ended.outcomes, ended.run["cost_usd"]) == (0, ["completed"], 0)


def test_above_the_price_cap_is_not_rented(rehearsal: Rehearsal) -> None:
    rehearsal.settings["GPUCTL_LOCAL_PRICE_HOUR"] = "0.50"
    ended = run(rehearsal, "run: echo never\nresources: {max_price: 0.49}\n")
    assert (ended.code, ended.run["state"], ended.outcomes) == (3, "failed", []), ended.err
    assert "just above the price cap" in ended.error["next"]
    assert "0.5" in ended.error["next"]
    assert "intended" not in rehearsal.kinds()
