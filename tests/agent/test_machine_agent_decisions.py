"""The agent's pure decisions: what is whole, what is torn, when a lease is over."""

from __future__ import annotations

import posixpath
import signal
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.agent.machine_agent import (
    Corrupt,
    JobEnd,
    Worker,
    end_in_words,
    grace_of_notice,
    guard_decision,
    is_entry_name,
    outcome_of,
    parse_aws_notice,
    plain_path,
    seconds_left,
    step_of,
    torn,
)
from gpuctl.store.manifest import step_in_name

SETTLE = 2.0
moments = st.floats(min_value=0, max_value=2000, allow_nan=False)


def ended(
    *,
    at: float = 1000,
    exit_code: int | None = 0,
    number: int | None = None,
    term_at: float | None = None,
    kill_at: float | None = None,
) -> JobEnd:
    return JobEnd(at, exit_code, number, term_at, kill_at)


class TestTorn:
    @pytest.mark.parametrize("code", [0, 1, 2, 77])
    def test_an_exit_of_its_own_leaves_only_whole_entries(self, code: int) -> None:
        assert torn(999.99, False, SETTLE, ended(exit_code=code)) is None

    @pytest.mark.parametrize("code", [134, 135, 137, 139])
    def test_exit_codes_that_mean_a_signal(self, code: int) -> None:
        assert torn(999, False, SETTLE, ended(exit_code=code)) is not None
        assert torn(997, False, SETTLE, ended(exit_code=code)) is None

    def test_killed_by_a_signal(self) -> None:
        end = ended(exit_code=None, number=signal.SIGSEGV)
        assert torn(999, False, SETTLE, end) is not None
        assert torn(997.9, False, SETTLE, end) is None

    def test_a_sigterm_that_we_did_not_send_is_a_kill(self) -> None:
        assert torn(999, False, SETTLE, ended(exit_code=None, number=15)) is not None

    @pytest.mark.parametrize(("code", "number"), [(143, None), (None, 15), (1, None)])
    def test_after_our_sigterm(self, code: int | None, number: int | None) -> None:
        end = ended(exit_code=code, number=number, term_at=990)
        assert torn(991, False, SETTLE, end) is None, "written by the job's own handler"
        assert torn(990, False, SETTLE, end) is None
        assert torn(989, False, SETTLE, end) is not None, "cut off by the SIGTERM"
        assert torn(987, False, SETTLE, end) is None

    def test_a_job_that_completes_after_our_sigterm_finished_what_it_wrote(self) -> None:
        assert torn(989, False, SETTLE, ended(exit_code=0, term_at=990)) is None

    def test_after_our_sigkill_at_the_end_of_a_grace(self) -> None:
        end = ended(exit_code=None, number=9, term_at=990, kill_at=1000)
        assert torn(999, False, SETTLE, end) is not None
        assert torn(995, False, SETTLE, end) is None

    @given(moments, moments, moments, st.sampled_from([0, 1, 137, 143]))
    def test_what_was_renamed_into_place_is_whole(
        self, changed: float, term: float, kill: float, code: int
    ) -> None:
        end = ended(exit_code=code, term_at=term, kill_at=kill)
        assert torn(changed, True, SETTLE, end) is None

    @given(moments, st.sampled_from([134, 135, 137, 139, None]), st.floats(0, 60))
    def test_nothing_that_changed_within_the_settle_time_of_a_kill_is_trusted(
        self, changed: float, code: int | None, settle: float
    ) -> None:
        number = None if code is not None else 9
        why = torn(changed, False, settle, ended(exit_code=code, number=number))
        assert (why is None) == (changed < 1000 - settle)


class TestNames:
    @pytest.mark.parametrize(
        ("name", "step"),
        [
            ("epoch-5", 5),
            ("model_v2_step1000.safetensors", 1000),
            ("checkpoint-000120", 120),
            ("last", None),
            ("", None),
            ("5-of-7", 7),
            ("٣", None),
        ],
    )
    def test_step(self, name: str, step: int | None) -> None:
        assert step_of(name) == step

    @given(st.text())
    def test_the_controller_reads_the_same_step(self, name: str) -> None:
        assert step_of(name) == step_in_name(name)

    @given(st.text(min_size=1))
    def test_hidden_and_temporary_names_are_never_entries(self, name: str) -> None:
        assert not is_entry_name("." + name)
        assert not is_entry_name("tmp" + name)
        assert is_entry_name(name) == (name[0] != "." and name[:3] != "tmp")


class TestPaths:
    parts = st.sampled_from(["a", "..", ".", "", "x y", "\0", "é"])

    @given(st.lists(parts, max_size=5).map("/".join))
    def test_what_is_accepted_stays_inside(self, path: str) -> None:
        try:
            accepted = plain_path(path)
        except Corrupt:
            return
        assert accepted == path
        root = PurePosixPath("/entry")
        assert posixpath.normpath(root / accepted).startswith("/entry")
        assert path == "" or posixpath.normpath(path) == path

    @pytest.mark.parametrize("path", [None, 5, [], "x" * 5000])
    def test_what_is_no_path(self, path: object) -> None:
        with pytest.raises(Corrupt):
            plain_path(path)


def test_a_thread_that_crashes_says_where_and_keeps_values_to_itself() -> None:
    class Broken(Worker):
        def work(self) -> None:
            raise KeyError("canary")

    worker = Broken("broken")
    worker.start()
    worker.join(10)
    assert worker.crash is not None
    assert worker.crash.startswith("broken: KeyError at line ")
    assert "canary" not in worker.crash


class TestLease:
    @given(moments, moments, moments, moments)
    def test_a_wall_clock_that_is_set_neither_extends_nor_cuts_a_lease(
        self, epoch_end: float, boot_end: float, now: float, boot: float
    ) -> None:
        assert seconds_left(epoch_end, boot_end, now, boot) == boot_end - boot

    def test_a_clock_that_was_set_back_does_not_extend_it(self) -> None:
        # An hour was leased; two have passed since boot; the wall clock was set back by three.
        assert seconds_left(3600, 3600, -3600, 7200) == -3600

    def test_without_a_boot_clock_the_wall_clock_counts(self) -> None:
        assert seconds_left(100, None, 40, None) == 60
        assert seconds_left(100, 50, 40, None) == 60

    @given(st.booleans(), st.booleans(), moments)
    def test_the_hard_end_ends_everything(self, finish: bool, lives: bool, left: float) -> None:
        assert guard_decision(left, 0, finish, lives) == "end"

    @pytest.mark.parametrize(
        ("left", "finish", "lives", "decision"),
        [
            (1, False, False, "wait"),
            (0, False, True, "end"),
            (0, True, True, "wait"),
            (0, True, False, "end"),
            (-5, False, False, "end"),
        ],
    )
    def test_decision(self, left: float, finish: bool, lives: bool, decision: str) -> None:
        assert guard_decision(left, 100, finish, lives) == decision


class TestEnds:
    @pytest.mark.parametrize(
        ("phase", "code", "cause", "outcome"),
        [
            ("run", 0, None, "completed"),
            ("run", 0, "interrupted", "interrupted"),  # saved its work and left; not done
            ("run", 1, None, "failed"),
            ("run", 143, "interrupted", "interrupted"),
            ("run", None, "capped", "capped"),
            ("setup", 0, "cancelled", "cancelled"),
            ("setup", 0, None, "failed"),
            ("preflight", 1, None, "failed"),
        ],
    )
    def test_outcome(self, phase: str, code: int | None, cause: str | None, outcome: str) -> None:
        assert outcome_of(phase, code, cause) == outcome

    @given(st.one_of(st.none(), st.floats(0, 1e6)), st.floats(0, 1e6), st.floats(0, 600))
    def test_a_notice_leaves_time_to_ship(
        self, deadline: float | None, now: float, grace: float
    ) -> None:
        given_grace = grace_of_notice(deadline, now, grace)
        if deadline is None:
            assert given_grace == grace
        else:
            left = max(deadline - now, 0)
            assert 0 <= given_grace <= left
            assert left == 0 or left - given_grace >= min(15, left / 4) - 1e-6

    @pytest.mark.parametrize(
        ("code", "number", "words"),
        [
            (1, None, "exit code 1"),
            (137, None, "exit code 137 (SIGKILL)"),
            (None, 9, "killed by signal 9 (SIGKILL)"),
            (None, 50, "killed by signal 50 (unknown)"),
            (255, None, "exit code 255"),
        ],
    )
    def test_words(self, code: int | None, number: int | None, words: str) -> None:
        assert end_in_words(code, number) == words

    def test_the_notice_of_aws(self) -> None:
        said = parse_aws_notice(b'{"action":"terminate","time":"2017-09-18T08:22:00Z"}')
        assert (said.source, said.deadline) == ("aws", 1505722920.0)

    @given(st.binary(max_size=200))
    def test_a_notice_that_cannot_be_read_is_one_all_the_same(self, content: bytes) -> None:
        assert parse_aws_notice(content).source == "aws"
