"""What the account says of itself: its charges, its credit, its clock."""

from __future__ import annotations

import email.utils
import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from providers.base import Ambiguous, AuthFailed, Billed, Finding, ProviderError
from providers.vastai_client import VastClient, refusal, succeeded
from providers.vastai_listing import first_page
from providers.vastai_machines import money, number

_CHARGES = "/api/v0/charges/"
_NO_INSTANCE = "/api/v0/instances/0/"
_LOOK_BACK = timedelta(days=31)
_MOST_PAGES = 20
_SLACK_SECONDS = 120.0


def charges(client: VastClient, now: datetime) -> Mapping[str, Billed]:
    """Sum what the account was charged for each instance; one that was not is missing.

    Raises:
        ProviderError: as `VastClient.read`; Ambiguous also when there are more than can be read.
    """
    days = {"gte": int((now - _LOOK_BACK).timestamp()), "lte": int(now.timestamp())}
    filters = {"day": days, "type": {"in": ["instance"]}}
    query = {"select_filters": json.dumps(filters), "latest_first": "true", "limit": "500"}
    amounts: defaultdict[str, Decimal] = defaultdict(Decimal)
    ends: defaultdict[str, float] = defaultdict(float)
    token: str | None = None
    for _ in range(_MOST_PAGES):
        asked = query if token is None else {**query, "after_token": token}
        page = client.read("charges", _CHARGES, "results", query=asked)
        for row in page["results"] or ():
            if isinstance(row, dict) and isinstance(source := row.get("source"), str):
                id = source.removeprefix("instance-")
                amounts[id] += money(row.get("amount")) or Decimal(0)
                ends[id] = max(ends[id], number(row.get("end")) or 0.0)
        token = page.get("next_token")
        if not token:
            return {
                id: Billed(amount, _moment(ends[id]) or now, "Vast.ai charges")
                for id, amount in amounts.items()
            }
    raise Ambiguous(f"Vast.ai's charges of a month have more than {_MOST_PAGES} pages.")


def _moment(seconds: float) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds > 0 else None


def findings(client: VastClient, now: datetime) -> list[Finding]:
    """Check the key, what it may read, the credit and the clocks. Rents nothing.

    Raises:
        ProviderError: nobody answered, or the key is refused.
    """
    page = first_page(client)
    total = page.get("total_instances")
    found = [
        Finding("key", True, "accepted"),
        _rights(client, total),
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


def _rights(client: VastClient, total: object) -> Finding:
    """Label an instance that nobody has: who may change instances is told that it is absent."""
    has = f"the account has {total} now"
    try:
        client.write("PUT", "label", _NO_INSTANCE, {"label": ""})
    except AuthFailed as error:
        needed = "it may list instances, and not rent or end them: give it `instance_write`"
        return Finding("rights", False, f"{needed}; {has} ({error})")
    except ProviderError as error:
        return Finding("rights", False, f"could not be asked: {error}")
    return Finding("rights", True, f"may list, rent and end instances; {has}")


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
