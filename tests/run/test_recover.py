"""Whose fault it was decides whether there is another attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.run.recover import AttemptEnd, Outcome, after


@pytest.mark.parametrize(
    ("outcome", "again", "state"),
    [
        ("completed", False, "succeeded"),
        ("failed", False, "failed"),
        ("capped", False, "failed"),
        ("cancelled", False, "cancelled"),
        ("interrupted", True, "recovering"),
        ("lost", True, "recovering"),
    ],
)
def test_after_a_first_attempt(outcome: Outcome, again: bool, state: str) -> None:
    verdict = after(AttemptEnd(outcome, "why"), recoveries=0, max_recoveries=5)
    assert (verdict.again, verdict.state) == (again, state)


def test_max_recoveries_ends_it() -> None:
    verdict = after(AttemptEnd("interrupted", "taken"), recoveries=2, max_recoveries=2)
    assert not verdict.again
    assert "max_recoveries (2)" in str(verdict.reason)


@given(recoveries=st.integers(0, 50), most=st.integers(0, 50))
def test_an_unfit_machine_is_no_recovery(recoveries: int, most: int) -> None:
    end = AttemptEnd("failed", "found 8 GB, needed 24", unfit=True)
    assert after(end, recoveries=recoveries, max_recoveries=most).again
