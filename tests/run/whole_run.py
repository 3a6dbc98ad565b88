"""A run from the command line to its end, and what has to be true whatever the end was."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.faults.rehearsal import Rehearsal
from tests.waiting import until


@dataclass(frozen=True)
class Ended:
    """How `gpuctl run` ended."""

    code: int
    document: Any
    err: str

    @property
    def run(self) -> Any:
        return self.document["run"]

    @property
    def outcomes(self) -> list[str]:
        return [attempt["outcome"] for attempt in self.run["attempts"]]

    @property
    def error(self) -> Any:
        return self.document["error"]


def run(rehearsal: Rehearsal, spec: str | None = None, *more: str, seconds: float = 90) -> Ended:
    """Carry a spec, or the job that counts, to its end where the rehearsal is."""
    arguments = ("run", rehearsal.write_spec(spec), "--provider", rehearsal.provider, "--yes")
    return Ended(*rehearsal.gpuctl(*arguments, *more, seconds=seconds))


def result(rehearsal: Rehearsal) -> str:
    """What the job that counts delivered."""
    return (rehearsal.folder / "job/artifacts/result.txt").read_text().strip()


def all_released(rehearsal: Rehearsal, ended: Ended) -> None:
    """Check that each attempt's machine is gone, proven, and nothing of it is left."""
    machines = [attempt["machine"]["name"] for attempt in ended.run["attempts"]]
    receipts = ended.document["receipts"]
    assert sorted(receipt["name"] for receipt in receipts) == sorted(machines), ended.err
    for receipt in receipts:
        assert receipt["confirmed"] is True
        assert len(receipt["confirmed_by"]) == 2
    nothing_bills(rehearsal)


def nothing_bills(rehearsal: Rehearsal) -> None:
    """Check that no process, no folder and no open row is left."""
    assert until(rehearsal.nothing_is_left, 5), rehearsal.machine_processes()
    code, document, err = rehearsal.gpuctl("audit")
    assert (code, document["billing"], document["unaccounted"]) == (0, [], []), err
