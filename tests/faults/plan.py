"""Which cases there are: points recorded by a run that nobody disturbs, times what can follow."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tests.faults.play import ENDINGS, PATIENT_LEASE, Case, begin, provisioned
from tests.faults.sites import TIMERS, site

MOST_OF_A_KIND = 3  # polls and retries repeat; how often depends on the moment
_ARMED = ("ssh:run renew#1", "ledger:run_state preparing#1")  # the first that follow the arming
_CREATE = re.compile(r"api:(PUT api/v0/asks/\*|RunInstances|POST v1/servers|POST v2/pods)#1$")
_STRUCK_IN_TEN = 3
_CLOCKS = (-3600, 3600)
_LOSSES = 3


@dataclass(frozen=True)
class Recording:
    """The points of one command at one provider, in their order."""

    provider: str
    command: str
    points: tuple[str, ...]
    strikes: tuple[str, ...]  # that its cloud has

    def armed_at(self, point: str) -> bool:
        """Whether the machine's lease timer is armed when this point comes."""
        if self.command == "terminate":
            return True
        armed = next((p for p in self.points if p in _ARMED), None)
        return armed is not None and self.points.index(point) > self.points.index(armed)

    def endings(self, point: str, strike: str = "") -> tuple[str, ...]:
        """Who alone may be left at a point, and then owes the end of everything."""
        timers = TIMERS[self.provider]
        own = timers.boot or (timers.lease and self.armed_at(point))
        # What never starts has no timer that runs.
        own = own and not (strike == "never ready" and self.provider in ("vastai", "runpod"))
        return tuple(ending for ending in ENDINGS if ending != "machine" or own)


def record(provider: str, command: str, folder: Path) -> Recording:
    """Play a command without harm and note its points."""
    notes = folder / "points"
    with site(provider, folder) as where:
        name = provisioned(where, PATIENT_LEASE) if command == "terminate" else ""
        case = Case(provider, command, "", "", "")
        process = begin(where, case, name, lease=PATIENT_LEASE, record=notes)
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        if command == "provision":
            assert where.rehearsal.gpuctl("terminate", "--all", "--yes")[0] == 0
        strikes = tuple(where.strikes)
    points = tuple(p for p in notes.read_text().splitlines() if _turn(p) <= MOST_OF_A_KIND)
    return Recording(provider, command, points, strikes)


def _turn(point: str) -> int:
    return int(point.rpartition("#")[2])


def sample(recordings: Sequence[Recording], seed: int) -> list[Case]:
    """Return every point once, with sides, endings and strikes paired by the seed.

    Besides: every strike in the middle of some point and alone, a stop for longer than the lease,
    a full disk, a wrong clock, and the loss of every local process at once.
    """
    cases: list[Case] = []
    for one in recordings:
        dice = random.Random(f"{seed} {one.provider} {one.command}")
        for point in one.points:
            strike = ""
            if one.strikes and dice.randrange(10) < _STRUCK_IN_TEN:
                strike = dice.choice(one.strikes)
            cases.append(_case(one, point, dice, strike=strike))
        cases += [_case(one, dice.choice(one.points), dice, strike=s) for s in one.strikes]
        cases += [_alone(one, s, dice) for s in one.strikes if not _endless(s)]
        cases += _of_the_system(one, dice) + _under_way(one)
    return list(dict.fromkeys(cases))


def product_of(recordings: Sequence[Recording], seed: int) -> list[Case]:
    """Return everything: each point with each side and ending, and with each strike."""
    cases: list[Case] = []
    for one in recordings:
        dice = random.Random(f"{seed} {one.provider} {one.command}")
        for point, side in product(one.points, ("before", "after")):
            cases += [
                Case(one.provider, one.command, point, side, ending, strike)
                for strike in ("", *one.strikes)
                for ending in one.endings(point, strike)
            ]
            cases += [_case(one, point, dice, action=action) for action in ("stop", "full", "loss")]
            cases += [_case(one, point, dice, clock=clock) for clock in _CLOCKS]
    return sorted(dict.fromkeys([*cases, *sample(recordings, seed)]))


def _case(
    one: Recording,
    point: str,
    dice: random.Random,
    *,
    strike: str = "",
    action: str = "kill",
    clock: int = 0,
) -> Case:
    side, ending = dice.choice(("before", "after")), dice.choice(one.endings(point, strike))
    if action == "loss":
        ending = "reap" if ending == "watchdog" else ending
    elif action != "kill" or clock:
        ending = "watchdog" if ending == "machine" else ending
    return Case(one.provider, one.command, point, side, ending, strike, action, clock)


def _alone(one: Recording, strike: str, dice: random.Random) -> Case:
    ending = dice.choice(("watchdog", "reap"))
    return Case(one.provider, one.command, "", "", ending, strike)


def _endless(strike: str) -> bool:
    """Whether a command would wait for a quarter of an hour."""
    return strike in ("never ready", "host vanished")


def _of_the_system(one: Recording, dice: random.Random) -> list[Case]:
    found = [_case(one, dice.choice(one.points), dice, action="stop")]
    found += [_case(one, dice.choice(one.points), dice, clock=clock) for clock in _CLOCKS]
    if one.provider in ("local", "vastai"):
        found += [_case(one, dice.choice(one.points), dice, action="full")]
    found += [_case(one, dice.choice(one.points), dice, action="loss") for _ in range(_LOSSES)]
    return found


def _under_way(one: Recording) -> list[Case]:
    """The create is on its way when its caller dies, and takes effect afterwards."""
    return [
        Case(one.provider, one.command, point, "during", ending, "create slow")
        for point in one.points
        if _CREATE.match(point)
        for ending in ("watchdog", "reap")
    ]


def share(cases: Sequence[Case], shard: int, of: int) -> list[Case]:
    """Return one of so many shares, counted from 1; together they are all."""
    return list(cases[shard - 1 :: of])
