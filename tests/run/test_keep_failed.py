"""--keep-failed: a failed job's machine stays for a look, and not a moment longer than asked."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import nothing_bills, run
from tests.waiting import until

FAILING = "name: broken\nrun: 'echo clue > clue.txt; exit 3'\n"


def test_it_stays_can_be_looked_at_and_ends_by_itself(rehearsal: Rehearsal) -> None:
    rehearsal.settings["GPUCTL_LOCAL_PRICE_HOUR"] = "3.60"
    ended = run(rehearsal, FAILING, "--keep-failed", "6s", "--lease", "5s")
    told = datetime.now(UTC)
    assert (ended.code, ended.run["state"], ended.outcomes) == (1, "failed", ["failed"]), ended.err
    assert ended.document["receipts"] == []
    name = ended.run["attempts"][0]["machine"]["name"]
    # It bills, and the error says so and how to end it.
    assert ended.error["may_bill"] is True
    assert ended.error["machine"] == name
    assert f"gpuctl terminate {name}" in ended.error["next"]
    assert f"gpuctl ssh {name}" in ended.error["next"]

    _, listed, _ = rehearsal.gpuctl("list")
    (machine,) = listed["machines"]
    assert (machine["name"], machine["run"]) == (name, ended.run["id"])
    until_then = datetime.fromisoformat(machine["lease_expires_at"])
    assert timedelta(seconds=2) < until_then - told <= timedelta(seconds=6)

    code, audit, err = rehearsal.gpuctl("audit")
    assert (code, audit["unaccounted"]) == (0, []), err
    assert [one["name"] for one in audit["billing"]] == [name]

    process = rehearsal.start("exec", name, "--", "cat", "work/clue.txt")
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (0, "clue\n"), err

    code, reaped, err = rehearsal.gpuctl("reap")
    assert (code, reaped["reaped"]) == (0, []), err
    assert [one["name"] for one in reaped["kept"]] == [name]

    assert until(lambda: "gone" in rehearsal.kinds(), 30, every=0.1), rehearsal.kinds()
    assert datetime.now(UTC) >= until_then
    nothing_bills(rehearsal)
    _, listed, _ = rehearsal.gpuctl("list")
    assert listed["machines"] == []
    _, cost, _ = rehearsal.gpuctl("cost", ended.run["id"])
    # 0.001 USD a second: also the time in which it was only looked at.
    assert cost["cost_usd"] == pytest.approx(sum(one["cost_usd"] for one in cost["machines"]))
    assert cost["cost_usd"] >= 0.006
    _, status, _ = rehearsal.gpuctl("status", ended.run["id"])
    assert status["run"]["cost_usd"] == pytest.approx(cost["cost_usd"])


def test_it_can_be_ended_before(rehearsal: Rehearsal) -> None:
    ended = run(rehearsal, FAILING, "--keep-failed", "1h")
    name = ended.run["attempts"][0]["machine"]["name"]
    code, document, err = rehearsal.gpuctl("terminate", name, "--yes")
    assert code == 0, err
    assert [(one["name"], one["confirmed"]) for one in document["receipts"]] == [(name, True)]
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_the_watchdog_ends_it_when_its_own_timer_does_not(rehearsal: Rehearsal) -> None:
    ended = run(rehearsal, FAILING, "--keep-failed", "2s", "--lease", "5s")
    name = ended.run["attempts"][0]["machine"]["name"]
    # The guard dies: on the machine nobody counts any more.
    script = "pkill -9 -f 'machine_agent.py' || kill -9 $(pgrep -f machine_agent)"
    rehearsal.start("exec", name, "--", "sh", "-c", script).communicate(timeout=10)
    assert until(lambda: "gone" in rehearsal.kinds(), 30, every=0.1), rehearsal.kinds()
    nothing_bills(rehearsal)


def test_a_job_that_succeeds_leaves_nothing(rehearsal: Rehearsal) -> None:
    ended = run(rehearsal, "run: echo fine\n", "--keep-failed", "1h")
    assert (ended.code, ended.outcomes) == (0, ["completed"]), ended.err
    nothing_bills(rehearsal)


@pytest.mark.slow
def test_a_hold_does_not_outlast_the_caps(rehearsal: Rehearsal) -> None:
    ended = run(rehearsal, f"{FAILING}budget: {{max_duration: 5s}}\n", "--keep-failed", "1h")
    assert (ended.code, ended.outcomes) == (1, ["failed"]), ended.err
    (attempt,) = ended.run["attempts"]
    machine = attempt["machine"]
    assert machine["lease_expires_at"] == machine["hard_end"]
    assert until(lambda: "gone" in rehearsal.kinds(), 20, every=0.1), rehearsal.kinds()
    nothing_bills(rehearsal)
