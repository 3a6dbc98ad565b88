"""What to rent next: spot, on-demand, and in which order. Pure; hours and USD throughout.

The cost of interruptions
-------------------------
A spot machine is taken away at random, ``hazard`` times an hour on average. Each time, the work
since the last whole checkpoint is lost and a new machine has to be set up, which can itself be
interrupted. With hazard ``h``, set-up ``s`` and ``c`` hours between checkpoints, one such piece
of work takes on average ``exp(h s) (exp(h c) - 1) / h`` rented hours (Daly 2006, without the cost
of writing a checkpoint), and the first set-up ``(exp(h s) - 1) / h``. Without interruptions
that is just ``s`` plus the hours of work. On-demand machines count as never interrupted.

The hazard
----------
It starts at `SPOT_HAZARD_PER_HOUR` and follows what happens: with ``n`` interruptions in ``t``
rented spot hours it is ``(0.5 + n) / (0.5 / prior + t)``, the mean of a gamma distribution whose
prior is worth half an interruption. So a market that keeps taking machines soon loses to
on-demand, and one that leaves them alone wins trust. What happened in one pool counts in full
there and by half everywhere else.

Traffic
-------
Some clouds bill every GB besides the hour. A run is expected to receive and to send a `Traffic` on
every machine that it has: one, and one more for every interruption.

The deadline
------------
In "auto", a job that could no longer afford to lose a spot machine goes on-demand: when the time
left is less than the work left, this set-up, and one more set-up and checkpoint interval.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from providers.base import Offer

SPOT_HAZARD_PER_HOUR = 0.25
"""Endings an hour of one-GPU spot machines in the busier zones of the recordings of 2022 that
belong to "Can't Be Late" (NSDI 2024); they range from 0.07 to 0.9 for other zones and sizes."""

SETUP_MINUTES = 10.0
"""From the create call to the first step of training; containers take less, images more."""

CHECKPOINT_MINUTES = 15.0
"""Between two whole checkpoints, while nobody knows better."""

HOURS_WHEN_UNKNOWN = 4.0
"""What offers are compared over when nobody said how long the job takes."""

WINDOW_FOR_UNKNOWN_WORK = 0.5
"""With unknown work left, on-demand starts when this fraction of the whole time is left."""

IMAGE_GB = 10.0
"""What a container image with PyTorch weighs on the way to a machine."""

_PRIOR_WORTH = 0.5  # interruptions
_OTHER_POOLS = 0.5
_MOST_EXPONENT = 700.0  # exp() of more is no longer a float


@dataclass(frozen=True, slots=True)
class History:
    """What spot did to this run so far, by `pool`."""

    interruptions: Mapping[str, int] = field(default_factory=dict)
    spot_hours: Mapping[str, float] = field(default_factory=dict)  # rented, interrupted or not

    def hazard(self, of_pool: str, prior: float = SPOT_HAZARD_PER_HOUR) -> float:
        """Interruptions an hour to expect in a pool now. 0 when the prior is 0."""
        if prior <= 0:
            return 0.0
        taken = _weighed(self.interruptions, of_pool)
        hours = _weighed(self.spot_hours, of_pool)
        return (_PRIOR_WORTH + taken) / (_PRIOR_WORTH / prior + hours)


@dataclass(frozen=True, slots=True)
class Traffic:
    """What goes over the network with every machine of a run, in GB."""

    in_gb: float = IMAGE_GB + 5  # the image, code and data
    out_gb: float = 2  # checkpoints, outputs


USUAL_TRAFFIC = Traffic()
"""While nobody knows better."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An offer worth trying, and why it stands where it stands."""

    offer: Offer
    hazard_per_hour: float
    expected_hours: float  # rented, to the end of the work; infinite when it would never end
    expected_cost: Decimal  # USD over these hours, traffic included
    in_time: bool  # expected to end before the deadline


def pool(offer: Offer) -> str:
    """Return the name of the market that an offer comes from: what is refused together."""
    return pool_of(offer.provider, offer.region, offer.gpu, offer.gpu_count, spot=offer.spot)


def pool_of(provider: str, region: str, gpu: str | None, gpu_count: int, *, spot: bool) -> str:
    """Return the name of a market, as `pool` does for an offer."""
    market = "spot" if spot else "on-demand"
    return f"{provider}/{region}/{gpu_count}x{gpu or 'cpu'}/{market}"


def offer_key(offer: Offer) -> str:
    """Return an offer's name among those of all providers."""
    return f"{offer.provider}:{offer.id}"


def expected_hours(
    hours: float,
    *,
    setup_minutes: float = SETUP_MINUTES,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    hazard_per_hour: float = 0.0,
) -> float:
    """Return the hours to rent for ``hours`` of work; see the top of this file.

    Raises:
        ValueError: a negative or undefined number.
    """
    for name, value in (
        ("hours", hours),
        ("setup_minutes", setup_minutes),
        ("checkpoint_minutes", checkpoint_minutes),
        ("hazard_per_hour", hazard_per_hour),
    ):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be 0 or more")
    setup = setup_minutes / 60
    piece = min(checkpoint_minutes / 60, hours)
    if hours == 0 or piece * hazard_per_hour < 1e-9:
        # Checkpoints that lose nothing: what is left is to set up again.
        return _stretched(setup, hazard_per_hour) + hours * _exp(hazard_per_hour * setup)
    retried = _exp(hazard_per_hour * setup) * _stretched(piece, hazard_per_hour)
    return _stretched(setup, hazard_per_hour) + hours / piece * retried


def expected_cost(
    offer: Offer,
    hours: float,
    *,
    setup_minutes: float = SETUP_MINUTES,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    hazard_per_hour: float = SPOT_HAZARD_PER_HOUR,
    traffic: Traffic = USUAL_TRAFFIC,
) -> Decimal:
    """Return the expected USD for ``hours`` of work on ``offer``: set-up, storage (it is in the
    price), traffic where it is billed, whole hours where only those are sold and, for spot,
    interruptions. Infinite when the work would never end.

    Raises:
        ValueError: a negative or undefined number.
    """
    hazard = hazard_per_hour if offer.spot else 0.0
    rented = expected_hours(
        hours,
        setup_minutes=setup_minutes,
        checkpoint_minutes=checkpoint_minutes,
        hazard_per_hour=hazard,
    )
    return _cost(offer, rented, hazard, traffic)


def choose(
    offers: Iterable[Offer],
    *,
    spot: bool | None = None,
    hours: float | None = None,
    max_price_hour: Decimal | None = None,
    refused: Collection[str] = (),
    history: History | None = None,
    recoveries_left: int | None = None,
    deadline_hours: float | None = None,
    window_hours: float | None = None,
    setup_minutes: float = SETUP_MINUTES,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
    hazard_per_hour: float = SPOT_HAZARD_PER_HOUR,
) -> tuple[Candidate, ...]:
    """Return the offers to try, best first. Empty: nothing can be rented under these rules.

    Only live, available offers count. The order does not depend on that of ``offers``.

    Args:
        offers: already those that match what is wanted.
        spot: True: spot only. False: on-demand only. None: "auto", what is expected to finish
            cheaper, with on-demand first when the deadline or the last recovery demands it.
        hours: work left; None = unknown.
        max_price_hour: USD for the whole machine; nothing above it is returned.
        refused: names of offers (`offer_key`, or their plain id) and pools (`pool`) that have
            just said no.
        history: interruptions of this run so far.
        recoveries_left: 0 = the next interruption ends the run.
        deadline_hours: from now to the deadline.
        window_hours: from the run's start to the deadline; used when ``hours`` is unknown.
        setup_minutes: of a new machine.
        checkpoint_minutes: between two whole checkpoints.
        hazard_per_hour: of a spot machine, before any history.
    """
    past = history or History()
    said_no = frozenset(refused)
    candidates = [
        _candidate(
            offer,
            hours,
            past.hazard(pool(offer), hazard_per_hour) if offer.spot else 0.0,
            deadline_hours=deadline_hours,
            setup_minutes=setup_minutes,
            checkpoint_minutes=checkpoint_minutes,
        )
        for offer in offers
        if _may_be_rented(offer, spot, max_price_hour, said_no)
    ]
    cautious = spot is None and (
        recoveries_left == 0
        or cannot_be_late(
            hours,
            deadline_hours=deadline_hours,
            window_hours=window_hours,
            setup_minutes=setup_minutes,
            checkpoint_minutes=checkpoint_minutes,
        )
    )
    return tuple(sorted(candidates, key=lambda candidate: _rank(candidate, cautious)))


def cannot_be_late(
    hours: float | None,
    *,
    deadline_hours: float | None,
    window_hours: float | None = None,
    setup_minutes: float = SETUP_MINUTES,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> bool:
    """Whether losing one spot machine from now on would mean to miss the deadline.

    With unknown work left: whether no more than `WINDOW_FOR_UNKNOWN_WORK` of the whole time
    is left. Without a deadline: never.
    """
    if deadline_hours is None:
        return False
    if hours is None:
        return window_hours is not None and deadline_hours <= window_hours * WINDOW_FOR_UNKNOWN_WORK
    return deadline_hours <= hours + (2 * setup_minutes + checkpoint_minutes) / 60


# ------------------------------------------------------------------------------- inside


def _candidate(
    offer: Offer,
    hours: float | None,
    hazard: float,
    *,
    deadline_hours: float | None,
    setup_minutes: float,
    checkpoint_minutes: float,
) -> Candidate:
    rented = expected_hours(
        HOURS_WHEN_UNKNOWN if hours is None else hours,
        setup_minutes=setup_minutes,
        checkpoint_minutes=checkpoint_minutes,
        hazard_per_hour=hazard,
    )
    known = hours is not None and deadline_hours is not None
    return Candidate(
        offer=offer,
        hazard_per_hour=hazard,
        expected_hours=rented,
        expected_cost=_cost(offer, rented, hazard, USUAL_TRAFFIC),
        in_time=not known or deadline_hours is None or rented <= deadline_hours,
    )


def _may_be_rented(
    offer: Offer,
    spot: bool | None,
    max_price_hour: Decimal | None,
    refused: frozenset[str],
) -> bool:
    return (
        offer.source == "live"
        and offer.available
        and spot in (None, offer.spot)
        and (max_price_hour is None or offer.price_hour <= max_price_hour)
        and refused.isdisjoint((offer.id, offer_key(offer), pool(offer)))
    )


def _rank(candidate: Candidate, cautious: bool) -> tuple[bool, bool, Decimal, Decimal, str, str]:
    offer = candidate.offer
    return (
        cautious and offer.spot,
        not candidate.in_time,
        candidate.expected_cost,
        offer.price_hour,
        offer.provider,
        offer.id,
    )


def _cost(offer: Offer, rented_hours: float, hazard: float, traffic: Traffic) -> Decimal:
    moved = offer.gb_in_price * Decimal(traffic.in_gb) + offer.gb_out_price * Decimal(
        traffic.out_gb
    )
    if offer.price_hour == 0 and moved == 0:
        return Decimal(0)
    if math.isinf(rented_hours):
        return Decimal("Infinity")
    machines = 1 + Decimal(hazard) * Decimal(rented_hours)
    billed = rented_hours
    if offer.bill_step_seconds:
        step = offer.bill_step_seconds / 3600
        billed = math.ceil(rented_hours / step - 1e-9) * step
    return offer.price_hour * Decimal(billed) + machines * moved


def _weighed(counts: Mapping[str, float], of_pool: str) -> float:
    return sum(count if name == of_pool else count * _OTHER_POOLS for name, count in counts.items())


def _stretched(hours: float, hazard: float) -> float:
    """Rented hours until ``hours`` in one piece have passed without an interruption."""
    exponent = hazard * hours
    if exponent < 1e-9:
        return hours
    return math.inf if exponent > _MOST_EXPONENT else math.expm1(exponent) / hazard


def _exp(exponent: float) -> float:
    return math.inf if exponent > _MOST_EXPONENT else math.exp(exponent)
