"""Is it there? What counts as a machine being seen, and as proof that it is gone.

An error or an empty list proves nothing (promise 3): only successful answers count, two of
them, at least one settling period of the provider's listing apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from gpuctl.fleet.receipt import Confirmation
from providers.base import (
    Ambiguous,
    AuthFailed,
    Clock,
    Machine,
    NotFound,
    Provider,
    ProviderError,
    RateLimited,
    State,
)


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at a machine through every call that could show it; all of them answered."""

    at: datetime
    machine: Machine | None  # alive (whatever its state), or None
    answers: tuple[tuple[str, str], ...]  # (call, answer)
    last: Machine | None = None  # what the provider says of a machine that has ended

    def confirmation(self) -> Confirmation:
        """Return it as a receipt quotes it."""
        return Confirmation(
            call=" + ".join(call for call, _ in self.answers),
            at=self.at,
            answer="; ".join(answer for _, answer in self.answers),
        )


def look(provider: Provider, name: str, provider_id: str | None, clock: Clock) -> Sighting:
    """Look at one machine by id and in the listing.

    Both are asked because clouds have been seen to answer 404 for a machine that still runs,
    and to list machines late.

    Raises:
        ProviderError: a call failed, so this look proves nothing.
    """
    answers: list[tuple[str, str]] = []
    alive: Machine | None = None
    last: Machine | None = None
    if provider_id is not None:
        try:
            machine = provider.get(provider_id)
        except NotFound:
            answers.append(("get", "absent"))
        else:
            answers.append(("get", machine.status))
            last = machine
            alive = machine if machine.state is not State.GONE else None
    listed = [
        m
        for m in provider.list()
        if (m.name == name or m.provider_id == provider_id) and m.state is not State.GONE
    ]
    answers.append(("list", listed[0].status if listed else "absent"))
    return Sighting(clock.now(), alive or (listed[0] if listed else None), tuple(answers), last)


@dataclass(frozen=True, slots=True)
class Proof:
    """How a search ended."""

    machine: Machine | None  # found alive
    confirmed_by: tuple[Confirmation, ...]  # two, when absence is proven; else fewer
    error: ProviderError | None  # why nothing could be proven before the deadline
    last: Machine | None = None

    @property
    def absent(self) -> bool:
        """Whether the machine is proven to be gone."""
        return self.machine is None and len(self.confirmed_by) >= 2


def prove_absent(
    provider: Provider,
    name: str,
    provider_id: str | None,
    clock: Clock,
    *,
    deadline: float,
    again: Callable[[], None] = lambda: None,
    until_seen: bool = False,
) -> Proof:
    """Look until the machine is proven absent, or the deadline passes.

    Args:
        deadline: on ``clock.monotonic()``.
        again: called whenever the machine is still there (to ask once more for its end).
        until_seen: stop as soon as the machine is seen alive.
    """
    settle = provider.capabilities.settle_seconds
    confirmed: list[Confirmation] = []
    first_absent = 0.0
    error: ProviderError | None = None
    pause = provider.capabilities.poll_seconds
    seen: Machine | None = None
    last: Machine | None = None
    while True:
        try:
            sighting = look(provider, name, provider_id, clock)
        except ProviderError as failed:
            # A failed call neither proves nor disproves; what was seen before stands.
            error = failed
            pause = _pause_after(failed, pause)
            if isinstance(failed, AuthFailed):
                return Proof(seen, tuple(confirmed), failed, last)
        else:
            error, pause = None, provider.capabilities.poll_seconds
            seen, last = sighting.machine, sighting.last or last
            if seen is not None:
                confirmed.clear()
                if until_seen:
                    return Proof(seen, (), None, last)
                again()
            elif not confirmed:
                confirmed, first_absent = [sighting.confirmation()], clock.monotonic()
                pause = settle
            elif clock.monotonic() - first_absent >= settle:
                return Proof(None, (confirmed[0], sighting.confirmation()), None, last)
        left = deadline - clock.monotonic()
        if left <= 0:
            return Proof(seen, tuple(confirmed), error, last)
        clock.sleep(min(max(pause, 0.02), left))


def _pause_after(error: ProviderError, before: float) -> float:
    if isinstance(error, RateLimited):
        return max(error.retry_after, before)
    if isinstance(error, Ambiguous):
        return min(max(before, 0.5) * 2, 60)
    return max(before, 1)
