"""Whether RunPod can be used: the key, its rights, the money, the clock. Rents nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from decimal import Decimal
from email.utils import parsedate_to_datetime

from providers.base import Ambiguous, Clock, Finding, ProviderError, RateLimited
from providers.runpod_client import RunpodClient, detail_of, read_refusal
from providers.runpod_offers import money

_FUNDS = "query { myself { clientBalance currentSpendPerHr spendLimit } }"
_NO_POD = "gpuctl-doctor-asks-for-no-pod"
_SKEW_SECONDS = 120
_LITTLE = Decimal(1)  # USD


@dataclass(frozen=True, slots=True)
class Funds:
    """The account's money; None where it is not told."""

    balance: Decimal | None  # USD
    spending: Decimal | None  # USD an hour, now
    limit: Decimal | None  # USD an hour

    def trouble(self) -> str | None:
        """Return why nothing can be rented whatever the stock; None when money is no reason."""
        if self.balance is not None and self.balance < _LITTLE:
            return f"the account has only ${self.balance:.2f} left; RunPod wants an hour's worth."
        if self.spending is not None and self.limit and self.spending > self.limit * Decimal("0.9"):
            return (
                f"the account spends ${self.spending:.2f}/h and may spend ${self.limit:.2f}/h: "
                "its spend limit is the likelier reason."
            )
        return None


def ask_funds(api: RunpodClient) -> Funds | None:
    """Return the account's money; None where RunPod does not tell (only GraphQL does, up to 2027).

    Raises:
        AuthFailed: the key is not valid.
    """
    try:
        answer = api.read("/graphql", method="POST", body={"query": _FUNDS})
    except (Ambiguous, RateLimited):
        return None  # REST v2 has no other way to ask, and nothing depends on it
    data = answer.body.get("data") if isinstance(answer.body, Mapping) else None
    myself = data.get("myself") if isinstance(data, Mapping) else None
    if not isinstance(myself, Mapping):
        return None
    return Funds(
        balance=_number(myself.get("clientBalance")),
        spending=_number(myself.get("currentSpendPerHr")),
        limit=_number(myself.get("spendLimit")),
    )


def findings(api: RunpodClient, clock: Clock, funds: Funds | None) -> Sequence[Finding]:
    """Return the lines of a health check.

    Raises:
        AuthFailed: the key is not valid, or may not even read.
    """
    answer = api.read("/v2/pods")
    if answer.status != 200:
        raise read_refusal("GET /v2/pods", answer)
    return [
        Finding("key", True, "valid, and may read pods"),
        _rights(api),
        _balance(funds),
        _clock(answer.headers, clock),
    ]


def _rights(api: RunpodClient) -> Finding:
    """Delete a pod that nobody has: who may do that is told that it is absent."""
    try:
        answer = api.change("DELETE", f"/v2/pods/{_NO_POD}")
    except ProviderError as error:
        return Finding("rights", False, f"could not be asked: {error}")
    if answer.status == 403:
        advice = "it may not create or delete pods; RunPod's settings give a key those rights"
        return Finding("rights", False, f"{detail_of(answer)}: {advice}")
    return Finding("rights", True, "may create and delete pods")


def _balance(funds: Funds | None) -> Finding:
    if funds is None or funds.balance is None:
        return Finding("balance", True, "not told by RunPod's API; its console shows it")
    said = f"${funds.balance:.2f}"
    if funds.spending is not None and funds.limit is not None:
        said += f", spending ${funds.spending:.2f}/h of at most ${funds.limit:.2f}/h"
    trouble = funds.trouble()
    return Finding("balance", trouble is None, f"{said}; {trouble}" if trouble else said)


def _clock(headers: Mapping[str, str], clock: Clock) -> Finding:
    try:
        theirs = parsedate_to_datetime(headers.get("date", ""))
    except ValueError:
        return Finding("clock", True, "RunPod does not tell its time")
    off = abs((clock.now() - theirs.replace(tzinfo=theirs.tzinfo or UTC)).total_seconds())
    return Finding("clock", off < _SKEW_SECONDS, f"{off:.0f} s from RunPod's")


def _number(value: object) -> Decimal | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
        return Decimal(str(value))
    return money(value)
