"""A job that fails by its own fault: told as it is, never tried again, its result fetched."""

from __future__ import annotations

import pytest

from tests.faults.rehearsal import Rehearsal
from tests.run.whole_run import all_released, run

OUTPUTS = "outputs: [{from: out, to: ./artifacts}]\n"
LEFT = "mkdir -p out && echo partial > out/part.txt"


@pytest.mark.parametrize(
    ("spec", "exit_code", "reason"),
    [
        pytest.param(f"run: |\n  {LEFT}\n  exit 3\n", 3, "exit code 3", id="run"),
        pytest.param(f"setup: {LEFT} && exit 3\nrun: echo never\n", 3, "setup: ", id="setup"),
        pytest.param(
            f"preflight: {{run: '{LEFT} && exit 4'}}\nrun: echo never\n",
            4,
            "preflight: ",
            id="preflight",
        ),
        pytest.param(f"run: |\n  set -e\n  {LEFT}\n  false\n  echo never\n", 1, "code 1", id="e"),
        pytest.param(f"run: |\n  {LEFT}\n  no-such-command\n", 127, "127", id="not found"),
        pytest.param(f"run: |\n  {LEFT}\n  kill -9 $$\n", None, "SIGKILL", id="killed"),
        pytest.param(f"run: |\n  {LEFT}\n  kill -SEGV $$\n", None, "SIGSEGV", id="crashed"),
    ],
)
def test_its_own_fault(rehearsal: Rehearsal, spec: str, exit_code: int, reason: str) -> None:
    ended = run(rehearsal, f"name: bad\n{spec}{OUTPUTS}")
    assert (ended.code, ended.run["state"], ended.outcomes) == (1, "failed", ["failed"]), ended.err
    assert ended.run["exit_code"] == exit_code
    assert reason in ended.run["reason"]
    assert reason in ended.error["message"]
    assert ended.error["may_bill"] is False
    assert ended.run["id"] in ended.error["next"]
    assert "never" not in ended.err
    assert "Traceback" not in ended.err
    assert (rehearsal.folder / "job/artifacts/part.txt").read_text() == "partial\n"
    assert [one["from"] for one in ended.run["outputs"]] == ["out"]
    all_released(rehearsal, ended)
