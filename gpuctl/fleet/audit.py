"""Everything that still bills on every account, sorted by whose it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from gpuctl.fleet.access import as_machine
from gpuctl.fleet.context import Fleet
from gpuctl.fleet.orphans import whose_leftover
from gpuctl.fleet.survey import Seen, Trouble, ask_each, is_ours, survey
from gpuctl.fleet.uploads import uploads_left
from gpuctl.ledger import MachineRow
from gpuctl.names import parse_machine_name
from providers.base import Leftover, Machine


@dataclass(frozen=True, slots=True)
class Billing:
    """One thing that costs money."""

    machine: Machine | None
    row: MachineRow | None
    leftover: Leftover | None
    whose: str  # "ours", "other", "terraform" or "unmarked"
    unaccounted: str | None  # why it is, when it is


@dataclass(frozen=True, slots=True)
class Audit:
    """The whole answer. ``clean`` only when nothing is unaccounted and everybody answered."""

    billing: tuple[Billing, ...]
    errors: tuple[Trouble, ...]

    @property
    def unaccounted(self) -> tuple[Billing, ...]:
        """What is ours without a ledger row, or past its lease."""
        return tuple(one for one in self.billing if one.unaccounted)

    @property
    def clean(self) -> bool:
        """Whether everything is accounted for and every provider answered."""
        return not self.unaccounted and not self.errors


def audit(fleet: Fleet) -> Audit:
    """Ask every provider that the ledger has ever used or that has credentials."""
    seen, errors, answered = survey(fleet)
    now = fleet.clock.now()
    billing = [_sorted(one, fleet.home.owner, now) for one in seen]
    there = {one.machine.name for one in seen}
    left, silent = ask_each(fleet, sorted(answered), lambda provider: provider.leftovers())
    for leftovers in left.values():
        billing += _left_behind(leftovers, there, fleet.home.owner)
    errors += silent
    billing += [
        Billing(None, None, one, "ours", "an upload that was never finished")
        for one in uploads_left(fleet)
    ]
    billing += _not_asked(fleet, seen, answered)
    return Audit(tuple(billing), tuple(errors))


def whose(machine: Machine, owner: str) -> str:
    """Say whose a machine is, from its name and mark alone."""
    if machine.mark is None or parse_machine_name(machine.name) is None:
        return "unmarked"
    if machine.mark.managed_by != "gpuctl":
        return machine.mark.managed_by
    return "ours" if is_ours(machine, owner) else "other"


def unaccounted(machine: Machine, row: MachineRow | None, owner: str, now: datetime) -> str | None:
    """Say why a machine is unaccounted for, or None."""
    if is_borrowed(row) or whose(machine, owner) != "ours":
        return None
    if row is None or row.closed:
        return "no ledger row claims it"
    if now >= row.hard_end:
        return "past its hard end"
    if now >= row.lease_until and not row.detached:
        return "past its lease"
    return None


def _sorted(one: Seen, owner: str, now: datetime) -> Billing:
    return Billing(
        one.machine,
        one.row,
        None,
        "terraform" if is_borrowed(one.row) else whose(one.machine, owner),
        unaccounted(one.machine, one.row, owner, now),
    )


def is_borrowed(row: MachineRow | None) -> bool:
    """Whether the ledger says that a machine is Terraform's, whatever its marks say."""
    return row is not None and row.borrowed


def _not_asked(fleet: Fleet, seen: Sequence[Seen], answered: set[str]) -> list[Billing]:
    """Borrowed machines whose cloud gives us no answer: they bill, for all that we know."""
    there = {one.row.name for one in seen if one.row is not None}
    return [
        Billing(as_machine(row), row, None, "terraform", None)
        for row in fleet.ledger.machines(open_only=True, borrowed=True)
        if row.borrowed and row.provider not in answered and row.name not in there
    ]


def _left_behind(left: Sequence[Leftover], machines: set[str], owner: str) -> list[Billing]:
    """Leftovers of machines that are gone; those of living ones go with them."""
    return [
        Billing(None, None, one, who, _why_left(one) if who == "ours" else None)
        for one in left
        if one.name not in machines
        for who in [whose_leftover(one, owner)]
    ]


def _why_left(one: Leftover) -> str:
    if one.mark is None:
        return "it bears a name of ours, but no mark: only you can say whether it may go"
    return "left over from a machine that is gone"
