"""A cap is a cap."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from gpuctl.run.caps import Caps, Used, allowance

NOW = datetime(2026, 11, 21, tzinfo=UTC)
NONE = Used(Decimal(0), timedelta())


def test_no_cap_is_no_limit() -> None:
    left = allowance(Caps(None, None, None), NONE, Decimal(1), NOW)
    assert left.seconds is None
    assert left.job_seconds is None
    assert not left.spent


def test_the_tightest_cap_is_named() -> None:
    caps = Caps(Decimal(2), timedelta(hours=4), NOW + timedelta(hours=3))
    left = allowance(caps, NONE, Decimal(1), NOW)
    assert (left.seconds, left.cap) == (7200, "max_cost")


def test_a_free_machine_is_not_capped_by_money() -> None:
    assert allowance(Caps(Decimal(1), None, None), NONE, Decimal(0), NOW).cap is None


def test_earlier_attempts_count() -> None:
    caps = Caps(None, timedelta(hours=1), None)
    left = allowance(caps, Used(Decimal(0), timedelta(minutes=59)), Decimal(1), NOW)
    assert left.seconds == 60
    assert allowance(caps, Used(Decimal(0), timedelta(hours=2)), Decimal(1), NOW).spent


@given(st.floats(1, 1e6))
def test_the_end_of_a_capped_job_fits_into_its_wind_down(seconds: float) -> None:
    left = allowance(Caps(None, timedelta(seconds=seconds), None), NONE, Decimal(1), NOW)
    assert left.seconds is not None
    assert left.job_seconds is not None
    kept = left.seconds - left.job_seconds
    assert left.seconds / 2 + 1e-6 >= kept
    assert kept <= 60 + 1e-6
    # A SIGTERM that is ignored, a store that is dead, and time for the download and the release.
    assert left.term_grace_seconds * 3 <= kept + 1e-6
    assert left.spent is (left.job_seconds < 1)


money = st.decimals(min_value=Decimal("0.01"), max_value=Decimal(500), places=2)


@given(cap=money, used=money, price=money)
def test_the_job_and_its_end_fit_under_the_money(
    cap: Decimal, used: Decimal, price: Decimal
) -> None:
    left = allowance(Caps(cap, None, None), Used(used, timedelta()), price, NOW)
    assert left.seconds is not None
    assert left.job_seconds is not None
    assert 0 <= left.job_seconds <= left.seconds
    spent = used + price * Decimal(left.seconds) / 3600
    assert spent <= max(cap, used) + Decimal("0.0001")
