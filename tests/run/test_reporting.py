"""A terminal that stands still keeps nobody waiting; what was told arrives in order."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

import gpuctl.run.reporting as reporting
from gpuctl.run.reporting import Unhurried
from tests.waiting import until

CALLS = st.lists(st.tuples(st.sampled_from(["step", "warn", "output"]), st.text(max_size=5)))


class Remembers:
    """Keeps what it is told; stands still while told to."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []
        self.go_on = threading.Event()
        self.go_on.set()

    def _take(self, kind: str, text: str) -> None:
        self.go_on.wait(30)
        self.told.append((kind, text))

    def step(self, text: str) -> None:
        self._take("step", text)

    def warn(self, text: str) -> None:
        self._take("warn", text)

    def output(self, stream: str, text: str) -> None:
        self._take("output", text)

    def progress(self, what: str, done: int, total: int) -> None:
        self._take("progress", f"{what} {done}/{total}")


@given(CALLS)
def test_all_arrives_in_order(calls: list[tuple[str, str]]) -> None:
    to = Remembers()
    with Unhurried(to, at_end=lambda: to.step("last")) as report:
        for kind, text in calls:
            if kind == "output":
                report.output("out", text)
            else:
                getattr(report, kind)(text)
    assert to.told == [*calls, ("step", "last")]


def test_what_is_too_much_to_wait_is_left_out_with_a_word() -> None:
    to = Remembers()
    to.go_on.clear()
    most = reporting._MOST_WAITING_CHARACTERS
    with Unhurried(to) as report:
        report.step("first")
        for _ in range(4):
            report.output("out", "x" * (most // 2))  # two fit
        report.step("second")
        to.go_on.set()
        report.flush()
    kinds = [kind for kind, _ in to.told]
    assert kinds == ["step", "output", "output", "step", "warn"]
    assert "16 MB" in to.told[-1][1]
    assert "gpuctl logs" in to.told[-1][1]


def test_output_goes_on_once_somebody_reads_again() -> None:
    to = Remembers()
    to.go_on.clear()
    with Unhurried(to) as report:
        report.output("out", "x" * reporting._MOST_WAITING_CHARACTERS)
        report.output("out", "lost")
        to.go_on.set()
        assert until(lambda: len(to.told) == 1, 10)
        report.output("out", "again")
    assert [kind for kind, _ in to.told] == ["output", "warn", "output"]
    assert to.told[-1] == ("output", "again")


def test_progress_is_told_as_it_is_by_then() -> None:
    to = Remembers()
    to.go_on.clear()
    with Unhurried(to) as report:
        report.step("begin")
        for done in range(100):
            report.progress("data", done, 99)
        to.go_on.set()
    assert to.told == [("step", "begin"), ("progress", "data 99/99")]


def test_nobody_waits_for_a_terminal_that_stands_still() -> None:
    to = Remembers()
    to.go_on.clear()
    report = Unhurried(to)
    with report:
        report.step("never shown in time")
        report.flush(standstill_seconds=0.05)
        assert to.told == []
        to.go_on.set()
    assert to.told == [("step", "never shown in time")]
