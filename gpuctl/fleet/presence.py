"""Is it there? What counts as a machine being seen, and as proof that it is gone.

An error or an empty list proves nothing (promise 3): only successful answers count, two of
them, at least one settling period of the provider's listing apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

LEAST_PAUSE_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Wanted:
    """A machine that is looked for."""

    name: str
    provider_id: str | None  # None when its create was never answered


@dataclass(frozen=True, slots=True)
class Sighting:
    """One look at a machine through every call that was made for it; all of them answered."""

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
    [seen] = look_at_all(provider, [Wanted(name, provider_id)], clock, by_id=True)
    if isinstance(seen, ProviderError):
        raise seen
    return seen


def look_at_all(
    provider: Provider, wanted: Sequence[Wanted], clock: Clock, *, by_id: bool
) -> list[Sighting | ProviderError]:
    """Look at several machines of one account with one listing.

    Args:
        by_id: ask for each one by its id, too; with many that would take a cloud's whole quota.

    Returns:
        For each what was seen, or why this look proves nothing about it.

    Raises:
        ProviderError: the listing failed, so this look proves nothing at all.
    """
    told = [_by_id(provider, one.provider_id) if by_id else _Told() for one in wanted]
    if told and all(isinstance(one, ProviderError) for one in told):
        return [one for one in told if isinstance(one, ProviderError)]
    listed = [machine for machine in provider.list() if machine.state is not State.GONE]
    by_name = {machine.name: machine for machine in listed}
    by_number = {machine.provider_id: machine for machine in listed}
    at = clock.now()
    seen: list[Sighting | ProviderError] = []
    for one, said in zip(wanted, told, strict=True):
        if isinstance(said, ProviderError):
            seen.append(said)
            continue
        found = by_name.get(one.name) or by_number.get(one.provider_id or "")
        answers = (*said.answers, ("list", found.status if found else "absent"))
        seen.append(Sighting(at, said.alive or found, answers, said.last))
    return seen


@dataclass(frozen=True, slots=True)
class _Told:
    """What was said about one machine by its id."""

    answers: tuple[tuple[str, str], ...] = ()
    last: Machine | None = None

    @property
    def alive(self) -> Machine | None:
        return self.last if self.last and self.last.state is not State.GONE else None


def _by_id(provider: Provider, provider_id: str | None) -> _Told | ProviderError:
    if provider_id is None:
        return _Told()
    try:
        machine = provider.get(provider_id)
    except NotFound:
        return _Told((("get", "absent"),))
    except ProviderError as error:
        return error
    return _Told((("get", machine.status),), machine)


class Absence:
    """How far the proof that one machine is gone has come. Pure.

    Args:
        settle_seconds: of the provider's listing.
        not_before: on the clock's ``monotonic()``; a look that began earlier and saw nothing
            proves nothing, for until then the machine may only not be shown yet.
    """

    def __init__(self, settle_seconds: float, not_before: float = 0.0) -> None:
        self._settle = settle_seconds
        self._not_before = not_before
        self._since = 0.0
        self.confirmed_by: tuple[Confirmation, ...] = ()

    @property
    def proven(self) -> bool:
        """Whether the machine is proven to be gone."""
        return len(self.confirmed_by) >= 2

    @property
    def due(self) -> float | None:
        """When the next look can be the second; None when there was no first."""
        return self._since + self._settle if self.confirmed_by else None

    def take(self, sighting: Sighting, began: float, ended: float) -> None:
        """Take note of a look.

        Args:
            began, ended: when it did, on the clock's ``monotonic()``.
        """
        if sighting.machine is not None:
            self.confirmed_by, self._not_before = (), 0.0
        elif began < self._not_before:
            return
        elif not self.confirmed_by:
            self.confirmed_by, self._since = (sighting.confirmation(),), ended
        elif not self.proven and began - self._since >= self._settle:
            self.confirmed_by = (*self.confirmed_by, sighting.confirmation())


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
    not_before: float = 0.0,
    again: Callable[[], None] = lambda: None,
    until_seen: bool = False,
) -> Proof:
    """Look until the machine is proven absent, or the deadline passes.

    Args:
        deadline: on ``clock.monotonic()``.
        not_before: see `Absence`.
        again: called whenever the machine is still there (to ask once more for its end).
        until_seen: stop as soon as the machine is seen alive.
    """
    capabilities = provider.capabilities
    absence = Absence(capabilities.settle_seconds, not_before)
    error: ProviderError | None = None
    pause = capabilities.poll_seconds
    seen: Machine | None = None
    last: Machine | None = None
    while True:
        began = clock.monotonic()
        try:
            sighting = look(provider, name, provider_id, clock)
        except ProviderError as failed:
            # A failed call neither proves nor disproves; what was seen before stands.
            error = failed
            pause = pause_after(failed, pause)
            if isinstance(failed, AuthFailed):
                return Proof(seen, absence.confirmed_by, failed, last)
        else:
            error, pause = None, capabilities.poll_seconds
            seen, last = sighting.machine, sighting.last or last
            absence.take(sighting, began, clock.monotonic())
            if absence.proven:
                return Proof(None, absence.confirmed_by, None, last)
            if seen is not None:
                if until_seen:
                    return Proof(seen, (), None, last)
                again()
            elif absence.due is not None:
                pause = absence.due - clock.monotonic()
        left = deadline - clock.monotonic()
        if left <= 0:
            return Proof(seen, absence.confirmed_by, error, last)
        clock.sleep(min(max(pause, LEAST_PAUSE_SECONDS), left))


def pause_after(error: ProviderError, before: float) -> float:
    """Return how many seconds to wait after a failed look; ``before``: how many it were before."""
    if isinstance(error, RateLimited):
        return max(error.retry_after, before)
    if isinstance(error, Ambiguous):
        return min(max(before, 0.5) * 2, 60)
    return max(before, 1)
