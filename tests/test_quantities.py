"""Sizes, durations, money and counts, read and written back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.quantities import (
    LONGEST,
    exact_decimal,
    exact_duration,
    format_bytes,
    format_duration,
    format_gb,
    format_money,
    parse_count,
    parse_duration,
    parse_gb,
    parse_money,
    shown,
)

NO_QUANTITY = [
    *(None, True, False, [], {}, [1], object(), b"5"),
    *(float("nan"), float("inf"), float("-inf"), -1, -0.5, 10**40, 1e300),
    *("", " ", "x", "-1", "−5", "nan", "inf", "1e5", "1_000", "0x10", "1,5", "١٠", "5 5", "5\n6"),
    *("9" * 5000, "1" * 60, "1..5", ".", "5 parsecs"),
]


@pytest.mark.parametrize(
    ("text", "gb"),
    [
        ("50", 50.0),
        (50, 50.0),
        (0.5, 0.5),
        ("50GB", 50.0),
        ("50 GB", 50.0),
        (" 50gb ", 50.0),
        ("0.5TB", 500.0),
        ("512MB", 0.512),
        ("50GiB", 53.687_091_2),
        ("1TiB", 1099.511_627_776),
        ("512 MiB", 0.536_870_912),
        ("1000000KB", 1.0),
        ("1000000000B", 1.0),
        (".5GB", 0.5),
        (0, 0.0),
        (Decimal("1.5"), 1.5),
        ("1000TB", 1e6),
    ],
)
def test_sizes(text: object, gb: float) -> None:
    assert parse_gb(text) == gb


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("45m", 2700),
        ("4h30m", 16200),
        ("1h 30m", 5400),
        ("2d", 172_800),
        ("1d 2h 3m 4s", 93_784),
        ("1.5h", 5400),
        ("0.5s", 0.5),
        ("90 min", 5400),
        ("2 hours", 7200),
        ("1 day", 86400),
        ("4H", 14400),
        (0, 0),
        ("0", 0),
        ("0s", 0),
        (0.0, 0),
        (timedelta(minutes=3), 180),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("text", "usd"),
    [
        ("10", "10"),
        (10, "10"),
        ("$10", "10"),
        ("$ 10", "10"),
        ("10$", "10"),
        ("10.50 USD", "10.50"),
        ("usd 3", "3"),
        (0.1, "0.1"),
        (2.675, "2.675"),
        (1e-07, "0.0000001"),
        (Decimal("1E+2"), "100"),
        (0, "0"),
    ],
)
def test_money(text: object, usd: str) -> None:
    assert parse_money(text) == Decimal(usd)


def test_money_from_a_float_has_no_float_error() -> None:
    assert sum(parse_money(value) for value in (0.1, 0.1, 0.1)) == Decimal("0.3")


@pytest.mark.parametrize(("text", "count"), [("3", 3), (3, 3), (" 7 ", 7), (0, 0), ("0", 0)])
def test_counts(text: object, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("parse", [parse_gb, parse_duration, parse_money, parse_count])
@pytest.mark.parametrize("value", NO_QUANTITY, ids=lambda value: shown(value)[:20])
def test_what_is_no_quantity_is_refused_with_what_was_expected(
    parse: Callable[[object], Any], value: object
) -> None:
    with pytest.raises(ValueError, match=r"^expected ") as caught:
        parse(value)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250


@pytest.mark.parametrize(
    ("parse", "value", "words"),
    [
        (parse_gb, "-5GB", "it cannot be negative"),
        (parse_gb, "50G", "unknown unit 'G'"),
        (parse_gb, "2000TB", "more than 1,000 TB"),
        (parse_duration, 30, "30s, 30m, 30h?"),
        (parse_duration, "30", "30s, 30m, 30h?"),
        (parse_duration, "30m4h", "largest unit first"),
        (parse_duration, "1h1h", "largest unit first"),
        (parse_duration, "4 fortnights", "such as 90s"),
        (parse_duration, "4h30", "such as 90s"),
        (parse_duration, "400d", "366 days"),
        (parse_duration, timedelta(seconds=-1), "366 days"),
        (parse_money, "€10", "only USD"),
        (parse_money, "10 EUR", "only USD"),
        (parse_money, "1,000", "no commas"),
        (parse_money, 2_000_000, "more than a million"),
        (parse_money, "-$5", "such as 10"),
        (parse_count, 2.0, "whole number"),
        (parse_count, "007", "whole number"),
        (parse_count, 2_000_000, "at most 1000000"),
    ],
)
def test_hints(parse: Callable[[object], Any], value: object, words: str) -> None:
    with pytest.raises(ValueError, match=r"^expected ") as caught:
        parse(value)
    assert words in str(caught.value)


def test_counts_have_limits() -> None:
    assert parse_count(1, least=1, most=4) == 1
    assert parse_count(4, least=1, most=4) == 4
    for wrong in (0, 5):
        with pytest.raises(ValueError, match=r"at (least 1|most 4)"):
            parse_count(wrong, least=1, most=4)


def outcome(parse: Callable[[object], Any], value: object) -> tuple[str, Any]:
    """Return (why it was refused, None), or ("", what it is)."""
    try:
        return "", parse(value)
    except ValueError as error:
        return str(error), None


@given(st.text(max_size=40) | st.from_regex(r"[-$]?[0-9.]{0,6} ?[a-zA-Z]{0,3}", fullmatch=True))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse in (parse_gb, parse_duration, parse_money, parse_count):
        refused, value = outcome(parse, text)
        assert refused.startswith("expected ") if refused else value >= type(value)(0)


@given(st.floats())
def test_any_float_is_a_quantity_or_a_value_error(number: float) -> None:
    for parse in (parse_gb, parse_money):
        refused, value = outcome(parse, number)
        assert refused.startswith("expected ") if refused else float(value) == number


@given(st.timedeltas(min_value=timedelta(), max_value=LONGEST))
def test_exact_durations_read_back(duration: timedelta) -> None:
    assert parse_duration(exact_duration(duration)) == duration


@given(st.timedeltas(min_value=timedelta(minutes=1), max_value=LONGEST))
def test_a_duration_written_in_full_is_the_same_to_the_second(duration: timedelta) -> None:
    whole = timedelta(seconds=duration // timedelta(seconds=1))
    assert parse_duration(format_duration(duration, parts=4)) == whole


@given(st.decimals(min_value=0, max_value=1_000_000, allow_nan=False, places=6))
def test_exact_amounts_read_back(amount: Decimal) -> None:
    assert parse_money(exact_decimal(amount)) == amount


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.04, "0s"),
        (0.45, "0.4s"),
        (59.99, "59.9s"),
        (60, "1m"),
        (90, "1m 30s"),
        (16200, "4h 30m"),
        (14400, "4h"),
        (3605, "1h"),  # cut off after two units, also where one of them is nothing
        (93_784, "1d 2h"),
        (-90, "-1m 30s"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "$0.00"),
        ("10", "$10.00"),
        ("10.505", "$10.50"),  # half to even
        ("1234.5", "$1,234.50"),
        ("0.2345", "$0.2345"),
        ("0.2", "$0.20"),
        ("0.0034", "$0.0034"),
        ("0.00001", "<$0.0001"),
        ("-3", "-$3.00"),
    ],
)
def test_money_for_people(amount: str, text: str) -> None:
    assert format_money(Decimal(amount)) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_500_000_000, "1.5 GB"),
        (999_999, "1 MB"),
        (123_456, "123 kB"),
        (5 * 10**21, "5000 EB"),
        (-2048, "-2.05 kB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_gb_for_people() -> None:
    assert [format_gb(size) for size in (0.512, 50, 1500)] == ["512 MB", "50 GB", "1.5 TB"]
