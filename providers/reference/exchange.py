"""Euros in dollars, for the clouds that charge in euros."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal, InvalidOperation

from providers.base import InvalidRequest

VARIABLE = "GPUCTL_EUR_USD"


@dataclass(frozen=True, slots=True)
class Rate:
    """USD for one EUR. ``day`` is None for a rate that the user set."""

    usd: Decimal
    day: date | None


BUILT_IN = Rate(Decimal("1.1739"), date(2026, 1, 21))
"""The European Central Bank's reference rate of that day, as the press gave it on the next."""


def eur_usd(environ: Mapping[str, str]) -> Rate:
    """Return the rate to convert with: GPUCTL_EUR_USD, else a dated constant.

    Raises:
        InvalidRequest: the variable is not a positive number.
    """
    text = environ.get(VARIABLE, "").strip()
    if not text:
        return BUILT_IN
    try:
        rate = Decimal(text)
    except InvalidOperation:
        rate = Decimal(0)
    if not rate.is_finite() or rate <= 0:
        raise InvalidRequest(f"{VARIABLE} is {text!r}; it must be the USD for one EUR, like 1.17")
    return Rate(rate, None)
