"""What the account says of itself: its charges, its credit, its clock."""

from __future__ import annotations

import email.utils
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from providers.base import AuthFailed, Billed, Finding, ProviderError
from providers.vastai_client import VastClient, refusal, succeeded
from providers.vastai_listing import first_page
from providers.vastai_machines import money, number

_CHARGES = "/api/v0/charges/"
_LOOK_BACK = timedelta(days=31)
_MOST_PAGES = 20
_SLACK_SECONDS = 120.0


def billed(client: VastClient, provider_id: str, now: datetime) -> Billed | None:
    """Sum what the charges have of one instance; None when they do not have it.

    Raises:
        ProviderError: as `VastClient.read`.
    """
    days = {"gte": int((now - _LOOK_BACK).timestamp()), "lte": int(now.timestamp())}
    filters = {"day": days, "type": {"in": ["instance"]}}
    query = {"select_filters": json.dumps(filters), "latest_first": "true", "limit": "500"}
    amounts: list[Decimal] = []
    ends: list[float] = []
    token: str | None = None
    for _ in range(_MOST_PAGES):
        asked = query if token is None else {**query, "after_token": token}
        page = client.read("charges", _CHARGES, "results", query=asked)
        for row in page["results"] or ():
            if isinstance(row, dict) and row.get("source") == f"instance-{provider_id}":
                amounts.append(money(row.get("amount")) or Decimal(0))
                ends.append(number(row.get("end")) or 0.0)
        token = page.get("next_token")
        if not token:
            break
    if not amounts:
        return None
    through = datetime.fromtimestamp(max(ends), UTC) if max(ends) > 0 else now
    return Billed(sum(amounts, Decimal(0)), through, "Vast.ai charges")


def findings(client: VastClient, now: datetime) -> list[Finding]:
    """Check the key, what it may read, the credit and the clocks. Rents nothing.

    Raises:
        ProviderError: nobody answered, or the key is refused.
    """
    page = first_page(client)
    total = page.get("total_instances")
    found = [
        Finding("key", True, "accepted"),
        Finding("rights", True, f"may list instances; the account has {total} now"),
    ]
    try:
        answer = client.read_any("user", "/api/v0/users/current/")
        if not succeeded(answer):
            raise refusal("to tell who this is", answer)
    except AuthFailed as error:
        return [*found, Finding("balance", True, f"this key may not read it ({error})")]
    except ProviderError as error:
        return [*found, Finding("balance", False, str(error))]
    return [*found, _credit(answer.body), _clock(answer.headers, now)]


def _credit(user: Mapping[str, Any]) -> Finding:
    """`credit` is what can be spent; `balance` was 0 in accounts with money."""
    credit = number(user.get("credit"))
    if credit is None:
        credit = number(user.get("balance"))
    if credit is None:
        return Finding("balance", True, "not told")
    if credit <= 0:
        detail = f"${credit:.2f}: nothing can be rented, and what runs is stopped"
        return Finding("balance", False, f"{detail}; add credit at cloud.vast.ai/billing")
    return Finding("balance", True, f"${credit:.2f} of credit")


def _clock(headers: Mapping[str, str], now: datetime) -> Finding:
    try:
        there = email.utils.parsedate_to_datetime(headers.get("date", ""))
    except (ValueError, TypeError):
        return Finding("clock", True, "Vast.ai does not tell the time")
    there = there.replace(tzinfo=there.tzinfo or UTC)
    off = (now - there).total_seconds()
    told = f"{abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} Vast.ai's"
    return Finding("clock", abs(off) <= _SLACK_SECONDS, f"this computer's clock is {told}")
