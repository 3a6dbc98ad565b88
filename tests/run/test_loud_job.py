"""A job that writes much: the controller stays small, nothing of it is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import nothing_bills
from tests.waiting import until

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="asks /proc how much memory is used"
)

MOST_MEMORY_MB = 150
LINE = "{number:09d} " + "x" * 89
LOUD = """
name: loud
run: |
  python3 - <<'END'
  import sys
  for number in range({lines}):
      sys.stdout.write(f"{{number:09d}} " + "x" * 89 + "\\n")
  END
"""


def memory_mb(pid: int) -> float:
    """The most that a process has ever used."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) / 1024 if found else 0


@pytest.mark.parametrize(
    "lines",
    [pytest.param(100_000, id="10MB"), pytest.param(1_000_000, id="100MB", marks=pytest.mark.slow)],
)
def test_its_output_is_complete_and_the_controller_small(rehearsal: Rehearsal, lines: int) -> None:
    spec = rehearsal.write_spec(LOUD.format(lines=lines))
    code, document, err = rehearsal.gpuctl("run", spec, "--provider", "local", "--yes", "--detach")
    assert code == 0, err
    run_id = document["run"]["id"]
    controller = next(
        int(e.facts["keeper"]["pid"]) for e in rehearsal.events() if e.kind == "run_kept"
    )
    peak = 0.0

    def over() -> bool:
        nonlocal peak
        peak = max(peak, memory_mb(controller))
        return "run_state:succeeded" in rehearsal.kinds()

    assert until(over, 100, every=0.1)
    assert 0 < peak < MOST_MEMORY_MB
    written = 0
    with (rehearsal.home / "runs" / run_id / "log.jsonl").open() as journal:
        rest = ""
        for entry in map(json.loads, journal):
            if entry["stream"] != "out":
                continue
            *whole, rest = (rest + entry["text"]).split("\n")
            for line in whole:
                assert line == LINE.format(number=written)
                written += 1
    assert (written, rest) == (lines, "")
    tail = rehearsal.start("logs", run_id, "--tail", "3")
    out, err = tail.communicate(timeout=30)
    last = [LINE.format(number=number) for number in range(lines - 2, lines)]
    assert out.splitlines()[-3:-1] == last or out.splitlines()[-2:] == last, out
    nothing_bills(rehearsal)


def test_while_nobody_reads_its_terminal_a_run_ends_and_releases(rehearsal: Rehearsal) -> None:
    spec = rehearsal.write_spec(LOUD.format(lines=100_000))
    # Its stderr is a pipe of which nobody takes anything: Ctrl-S, a pager.
    process = rehearsal.start("run", spec, "--provider", "local", "--yes", "--json")
    assert until(lambda: "run_state:succeeded" in rehearsal.kinds(), 40), rehearsal.kinds()
    assert rehearsal.nothing_is_left()
    assert memory_mb(process.pid) < MOST_MEMORY_MB
    out, err = process.communicate(timeout=40)
    assert process.returncode == 0, err[-500:]
    assert json.loads(out)["run"]["state"] == "succeeded"
    said = [line for line in err.splitlines() if line.endswith("x" * 89)]
    assert said == [LINE.format(number=number) for number in range(100_000)]
    nothing_bills(rehearsal)


def test_while_nobody_reads_its_terminal_a_run_can_be_cancelled(rehearsal: Rehearsal) -> None:
    spec = rehearsal.write_spec("name: loud\nrun: 'while true; do echo %s; done'\n" % ("x" * 99))
    process = rehearsal.start("run", spec, "--provider", "local", "--yes", "--json")
    (journal,) = journals(rehearsal)
    assert until(lambda: journal.stat().st_size > 1_000_000, 30)  # more than a pipe holds
    code, document, err = rehearsal.gpuctl("cancel", "loud", "--yes")
    assert code == 0, err
    assert document["run"]["state"] == "cancelled"
    assert [one["confirmed"] for one in document["receipts"]] == [True]
    process.communicate(timeout=40)
    assert process.returncode == 143
    nothing_bills(rehearsal)


def journals(rehearsal: Rehearsal) -> list[Path]:
    assert until(lambda: list(rehearsal.home.glob("runs/*/log.jsonl")), 30)
    return list(rehearsal.home.glob("runs/*/log.jsonl"))
