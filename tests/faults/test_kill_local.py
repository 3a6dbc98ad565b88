"""kill -9 of gpuctl at every fact that it writes, each of three endings alone, and `gpuctl resume`.

That nothing is left billing is shown by the crash matrix (`make faults`); here, that the job is
finished from its last whole checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.rehearsal import STEPS, Rehearsal
from tests.waiting import until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="asks /proc what is left"),
]

LEASE = "6s"
MOMENTS = [
    "run_opened",
    "run_kept",
    "intended",
    "created",
    "attempt_started",
    "ready",
    "run_state:preparing",
    "run_state:running",
    "checkpoint",
    "run_state:finishing",
    "output",
    "destroy_asked",
    "destroy_accepted",
    "gone",
]


def ended_by_reap(rehearsal: Rehearsal) -> None:
    code, document, err = rehearsal.gpuctl("reap")
    assert code == 0, (document, err)
    assert rehearsal.nothing_is_left(), (document, err)


def ended_by_the_watchdog(rehearsal: Rehearsal) -> None:
    assert until(rehearsal.nothing_is_left, 60), rehearsal.machine_processes()


def ended_by_the_machine(rehearsal: Rehearsal) -> None:
    rehearsal.kill_watchdog()
    if "ready" not in rehearsal.kinds():
        # No agent can be armed before a machine answers; from then on reap is what is left.
        ended_by_reap(rehearsal)
        return
    ended = until(lambda: not rehearsal.machine_processes(), 30)
    # Between its first answer and the arming of its guard only reap can end it.
    assert ended or "run_state:preparing" not in rehearsal.kinds(), rehearsal.machine_processes()
    ended_by_reap(rehearsal)  # and what a teardown that was cut short has left lying about


@pytest.mark.timeout(180)
@pytest.mark.parametrize("ending", [ended_by_reap, ended_by_the_watchdog, ended_by_the_machine])
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed(moment: str, ending: Callable[[Rehearsal], None], tmp_path: Path) -> None:
    killed_and_resumed(Rehearsal(tmp_path), moment, ending)


def killed_and_resumed(
    rehearsal: Rehearsal, moment: str, ending: Callable[[Rehearsal], None]
) -> None:
    """Kill a run at a fact, let one ending do its work, and finish the run by `resume`."""
    spec = rehearsal.write_spec()
    process = rehearsal.start(
        "run", spec, "--provider", rehearsal.provider, "--yes", "--lease", LEASE
    )
    try:
        reached = until(lambda: moment in rehearsal.kinds(), 30, every=0.005)
        assert reached, rehearsal.kinds()
    finally:
        process.kill()
        process.communicate(timeout=10)
    ending(rehearsal)
    code, document, err = rehearsal.gpuctl("resume", rehearsal.run_id())
    assert code == 0, (document, err)
    assert document["run"]["state"] == "succeeded"
    result = (spec.parent / "artifacts" / "result.txt").read_text()
    assert result.startswith(f"{STEPS} from attempt")
    assert until(rehearsal.nothing_is_left, 20), (
        rehearsal.machine_processes(),
        rehearsal.machine_folders(),
    )
    code, document, err = rehearsal.gpuctl("audit")
    assert (code, document["billing"]) == (0, []), err
    rehearsal.kill_watchdog()
