"""How values look in the ledger's file: JSON, RFC 3339 moments in UTC, money as decimal text."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any

_MONEY_END = Decimal(10) ** 12


def moment_text(moment: datetime) -> str:
    """Return a moment as RFC 3339 in UTC with microseconds; such texts sort by time.

    Raises:
        ValueError: the moment has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"{moment!r} has no time zone")
    text = moment.astimezone(UTC).isoformat(timespec="microseconds")
    return text.removesuffix("+00:00") + "Z"


def money_text(amount: Decimal) -> str:
    """Return an amount without an exponent.

    Raises:
        ValueError: it is not a number, below zero, or a million million and more.
    """
    if not amount.is_finite() or not 0 <= amount < _MONEY_END:
        raise ValueError(f"{amount} is not an amount of money")
    return format(amount.copy_abs(), "f")  # copy_abs: no rounding; -0 becomes 0


def plain_text(text: str) -> str:
    """Return text that UTF-8 can carry; bytes that were never text become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def to_json(value: object) -> Any:
    """Turn a value into what JSON can carry.

    Moments, decimals, enums, paths, dataclasses, mappings and sequences are taken apart.

    Raises:
        ValueError: something in it has no place in JSON.
    """
    if isinstance(value, Enum):
        return to_json(value.value)
    if isinstance(value, str):
        return plain_text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be kept in JSON")
        return value
    if isinstance(value, datetime):
        return moment_text(value)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, os.PathLike):
        return plain_text(str(value))
    if is_dataclass(value) and not isinstance(value, type):
        return to_json(asdict(value))
    return _container_to_json(value)


def _container_to_json(value: object) -> Any:
    if isinstance(value, Mapping):
        odd = [key for key in value if not isinstance(key, str)]
        if odd:
            raise ValueError(f"the key {odd[0]!r} is not text")
        return {plain_text(str(key)): to_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    raise ValueError(f"{type(value).__name__} cannot be kept in JSON")


def dump(value: object) -> str:
    """Return what `to_json` made as compact text."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True, allow_nan=False)


def dump_or_null(value: object) -> str | None:
    """Return `dump` of a value, and None for None."""
    return None if value is None else dump(value)
