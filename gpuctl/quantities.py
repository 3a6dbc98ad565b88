"""Sizes, durations, money and counts: read the way people write them, and written back for them.

Every ``parse_*`` takes what a command line (text) or a YAML file (text or a number) holds and
raises ValueError with one sentence that says what was expected. Nothing negative, infinite or
absurdly large gets through. Sizes are GB (10^9 bytes) and what is given in GiB is converted.
"""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal, InvalidOperation

LARGEST_GB = Decimal(1_000_000)  # a petabyte
LONGEST = timedelta(days=366)
MOST_USD = Decimal(1_000_000)

_NUMBER = r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_SIZE = re.compile(rf"{_NUMBER}\s*(?P<unit>[A-Za-z]*)")
_BYTES = {
    "b": Decimal(1),
    "kb": Decimal(10) ** 3,
    "mb": Decimal(10) ** 6,
    "gb": Decimal(10) ** 9,
    "tb": Decimal(10) ** 12,
    "kib": Decimal(2) ** 10,
    "mib": Decimal(2) ** 20,
    "gib": Decimal(2) ** 30,
    "tib": Decimal(2) ** 40,
}
_GB = Decimal(10) ** 9

_PART = re.compile(rf"\s*{_NUMBER}\s*(?P<unit>[A-Za-z]+)\s*")
_MICROSECOND = timedelta(microseconds=1)
_UNITS = (  # largest first
    ("d", 86400, ("d", "day", "days")),
    ("h", 3600, ("h", "hr", "hrs", "hour", "hours")),
    ("m", 60, ("m", "min", "mins", "minute", "minutes")),
    ("s", 1, ("s", "sec", "secs", "second", "seconds")),
)
_RANK = {word: rank for rank, (_, _, words) in enumerate(_UNITS) for word in words}
_MONEY = re.compile(rf"(?:\$|USD\s*)?\s*{_NUMBER}\s*(?:\$|USD)?", re.IGNORECASE)
_OTHER_CURRENCY = re.compile(r"[€£¥₹]|\b(?:eur|gbp|chf|jpy|cny|inr)\b", re.IGNORECASE)
_LONGEST_TEXT = 64

SIZE_EXPECTED = "expected a size in GB, such as 50, 50GB, 0.5TB or 50GiB"
DURATION_EXPECTED = "expected a duration, such as 90s, 45m, 4h30m or 2d"
MONEY_EXPECTED = "expected an amount in USD, such as 10, $10 or 10.50 USD"
COUNT_EXPECTED = "expected a whole number"


def shown(value: object) -> str:
    """Return a value as an error message quotes it: on one line and never long."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST_TEXT else value[:40] + "…")
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a number of more than 30 digits"
    return str(value)


def parse_gb(value: object) -> float:
    """Return a size in GB (10^9 bytes). A bare number is GB.

    Raises:
        ValueError: it is not a size, or above a petabyte.
    """
    text = _text_of(value, SIZE_EXPECTED)
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError(f"{SIZE_EXPECTED}; got {shown(value)}{_sign_hint(text)}")
    unit = found["unit"].lower()
    if unit and unit not in _BYTES:
        raise ValueError(f"{SIZE_EXPECTED}; got {shown(value)} (unknown unit {found['unit']!r})")
    size = Decimal(found["number"]) * _BYTES[unit or "gb"] / _GB
    if size > LARGEST_GB:
        raise ValueError(f"{SIZE_EXPECTED}; {shown(value)} is more than 1,000 TB")
    return float(size)


def parse_duration(value: object) -> timedelta:
    """Return a duration. Units are d, h, m and s, largest first, each at most once.

    A bare number is refused, because nobody can tell whether it means seconds, minutes or
    hours; only 0 is clear.

    Raises:
        ValueError: it is not a duration, or longer than 366 days.
    """
    if isinstance(value, timedelta):
        return _in_range(value, value)
    text = _text_of(value, DURATION_EXPECTED)
    if re.fullmatch(_NUMBER, text):
        if Decimal(text) == 0:
            return timedelta()
        units = f": {text}s, {text}m, {text}h?" if len(text) < 10 else ""
        raise ValueError(f"{DURATION_EXPECTED}; {shown(value)} has no unit{units}")
    seconds, place, rank = Decimal(0), 0, -1
    while place < len(text):
        part = _PART.match(text, place)
        here = _RANK.get(part["unit"].lower()) if part else None
        if part is None or here is None:
            raise ValueError(f"{DURATION_EXPECTED}; got {shown(value)}{_sign_hint(text)}")
        if here <= rank:
            raise ValueError(f"{DURATION_EXPECTED}, largest unit first; got {shown(value)}")
        seconds += Decimal(part["number"]) * _UNITS[here][1]
        place, rank = part.end(), here
    if not text:
        raise ValueError(f"{DURATION_EXPECTED}; got nothing")
    if seconds > int(LONGEST.total_seconds()):
        raise ValueError(f"{DURATION_EXPECTED}; {shown(value)} is more than 366 days")
    return timedelta(microseconds=int(seconds * 10**6))


def parse_money(value: object) -> Decimal:
    """Return an amount in USD, exactly as it was written. A bare number is USD.

    Raises:
        ValueError: it is not an amount, or above a million.
    """
    text = _text_of(value, MONEY_EXPECTED)
    found = _MONEY.fullmatch(text)
    if not found:
        hint = " (only USD; convert it first)" if _OTHER_CURRENCY.search(text) else ""
        if re.search(r"[0-9],[0-9]", text):
            hint = " (no commas in numbers; the decimal sign is a point)"
        raise ValueError(f"{MONEY_EXPECTED}; got {shown(value)}{hint or _sign_hint(text)}")
    amount = Decimal(found["number"])
    if amount > MOST_USD:
        raise ValueError(f"{MONEY_EXPECTED}; {shown(value)} is more than a million")
    return amount


def parse_count(value: object, *, least: int = 0, most: int = 1_000_000) -> int:
    """Return a whole number from ``least`` to ``most``.

    Raises:
        ValueError: it is not one.
    """
    expected = f"{COUNT_EXPECTED}, at least {least}" if least else COUNT_EXPECTED
    text = _text_of(value, expected)
    if not re.fullmatch(r"0|[1-9][0-9]*", text):
        raise ValueError(f"{expected}; got {shown(value)}{_sign_hint(text)}")
    number = int(text)
    if number < least:
        raise ValueError(f"{expected}; got {shown(value)}")
    if number > most:
        raise ValueError(f"{COUNT_EXPECTED}, at most {most}; got {shown(value)}")
    return number


def format_gb(size: float) -> str:
    """Return a size in GB for people: ``512 MB``, ``50 GB``, ``1.5 TB``."""
    return format_bytes(round(size * 10**9))


def format_bytes(count: int) -> str:
    """Return a number of bytes for people, in units of 1000: ``999 B``, ``1.5 GB``."""
    if count < 0:
        return "-" + format_bytes(-count)
    if count < 1000:
        return f"{count} B"
    units = ("kB", "MB", "GB", "TB", "PB", "EB")
    size = float(count)
    for unit in units:
        size /= 1000
        if float(f"{size:.3g}") < 1000 or unit == units[-1]:
            break
    return f"{float(f'{size:.3g}'):g} {unit}"


def format_duration(duration: timedelta, *, parts: int = 2) -> str:
    """Return a duration for people: its ``parts`` largest units, the rest cut off: ``4h 30m``.

    Below a minute tenths of a second are shown, so that nothing short looks like nothing.
    """
    if duration < timedelta():
        return "-" + format_duration(-duration, parts=parts)
    if duration < timedelta(minutes=1):
        tenths = duration // timedelta(milliseconds=100)
        return f"{tenths / 10:g}s"
    left = duration // timedelta(seconds=1)
    words: list[str] = []
    for letter, seconds, _ in _UNITS:
        count, left = divmod(left, seconds)
        if count or words:
            words.append(f"{count}{letter}")
    kept = words[:parts]
    return " ".join(word for word in kept if not word.startswith("0"))


def format_money(amount: Decimal) -> str:
    """Return USD for people: ``$1,234.50``; amounts below a dollar with up to four decimals."""
    if amount < 0:
        return "-" + format_money(-amount)
    if amount >= 1:
        return f"${amount:,.2f}"
    if 0 < amount < Decimal("0.00005"):
        return "<$0.0001"
    cents = f"{amount:.4f}"
    while cents.endswith("0") and len(cents) > len("0.00"):
        cents = cents[:-1]
    return f"${cents}"


def exact_duration(duration: timedelta) -> str:
    """Return a duration so that `parse_duration` gives the very same back: ``14400s``."""
    return f"{exact_decimal(Decimal(duration // _MICROSECOND) / 10**6)}s"


def exact_decimal(amount: Decimal) -> str:
    """Return a number without an exponent, so that it reads back the very same: ``0.0000001``."""
    return f"{amount:f}"


def _text_of(value: object, expected: str) -> str:
    """Text or a number as text. A float goes through its shortest spelling, never its bits."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError(f"{expected}; got {shown(value)}")
    if isinstance(value, str):
        if len(value) > _LONGEST_TEXT:
            raise ValueError(f"{expected}; got {shown(value)}")
        return value.strip()
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
    try:
        number = Decimal(repr(value)) if isinstance(value, float) else value
        if not number.is_finite() or abs(number.adjusted()) > 30:
            raise ValueError(f"{expected}; got {shown(value)}")
        return exact_decimal(number)
    except InvalidOperation as error:
        raise ValueError(f"{expected}; got {shown(value)}") from error


def _sign_hint(text: str) -> str:
    return " (it cannot be negative)" if re.match(r"\$?\s*[-−]", text) else ""


def _in_range(duration: timedelta, value: object) -> timedelta:
    if not timedelta() <= duration <= LONGEST:
        raise ValueError(f"{DURATION_EXPECTED}, at most 366 days; got {shown(value)}")
    return duration
