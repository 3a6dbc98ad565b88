"""What every provider must pass. `providers/base.py` is the contract, this is its test.

Use it by subclassing and giving the fixture ``bench``::

    class TestLocal(ProviderSuite):
        @pytest.fixture
        def bench(self, tmp_path): return Bench(...)

``Bench.books`` is the oracle: what the cloud itself (its emulator, its files) says is rented,
never what the provider under test says.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial

import pytest

from gpuctl.fleet.survey import judge
from providers.base import (
    ABSENT,
    Ambiguous,
    AuthFailed,
    Billed,
    Finding,
    InvalidRequest,
    Machine,
    Mark,
    NotFound,
    Offer,
    Order,
    Provider,
    ProviderError,
    RateLimited,
    State,
    Unsupported,
    Want,
)
from tests.waiting import until

OWNER = "c0ffee123456"
NEVER_GIVEN = "gpuctl-absent-c0ffee-00000000"


@dataclass
class Bench:
    """A provider on an account of its own, and how to look behind it.

    Attributes:
        provider: the one under test.
        books: the oracle: provider id -> name of everything rented now.
        want: something that the provider has on offer.
        pass_time: lets so many seconds pass for the provider (a fake clock); None = real time.
        unknown_id: well formed, and never given to anything.
        break_reads: makes every read fail as a cloud does; None where nothing can break.
        add_unmarked: rents something the way another tool would; returns its provider id.
        status_map: the map from the provider's status strings, and how one of them is read.
        ready_seconds: how long a machine may take until it is ready.
    """

    provider: Provider
    books: Callable[[], Mapping[str, str]]
    want: Want = field(default_factory=lambda: Want(disk_gb=1))
    pass_time: Callable[[float], None] | None = None
    unknown_id: str = NEVER_GIVEN
    break_reads: Callable[[], None] | None = None
    add_unmarked: Callable[[], str] | None = None
    status_map: tuple[Mapping[str, State], Callable[[str], State]] | None = None
    ready_seconds: float = 10

    def order(self, offer: Offer | None = None, *, run: str | None = "demo-1a2b3c") -> Order:
        """An order for something on offer, under a name that nothing had before."""
        return Order(
            name=f"gpuctl-suite-{OWNER[:6]}-{secrets.token_hex(4)}",
            offer=offer or next(o for o in self.provider.offers(self.want) if o.available),
            mark=Mark(OWNER, datetime.now(UTC) + timedelta(hours=3), run),
            disk_gb=1,
        )

    def until(self, true: Callable[[], object], seconds: float) -> bool:
        """Wait in the provider's own time."""
        if self.pass_time is None:
            return until(true, seconds)
        step = self.provider.capabilities.poll_seconds
        for _ in range(max(1, int(seconds / step))):
            if true():
                return True
            self.pass_time(step)
        return bool(true())

    def settle(self) -> None:
        """Let the listing catch up. In real time the waiting is done by `until`."""
        if self.pass_time is not None:
            self.pass_time(self.provider.capabilities.settle_seconds)

    def listed(self, machine: Machine) -> Machine | None:
        """That machine as the listing has it."""
        return next((x for x in self.provider.list() if x.provider_id == machine.provider_id), None)

    def is_gone(self, machine: Machine) -> bool:
        """Whether the provider itself says that it is absent, or its state terminal."""
        try:
            return self.provider.get(machine.provider_id).state is State.GONE
        except NotFound:
            return True


class ProviderSuite:
    """The shared tests. Not collected by itself: its name does not start with Test."""

    # ------------------------------------------------------------------ what it says of itself

    def test_it_can_tell_what_it_does_without_asking_anybody(self, bench: Bench) -> None:
        capabilities = bench.provider.capabilities
        assert bench.provider.name
        assert bench.provider.name == bench.provider.name.lower()
        assert bench.provider.configured() is True
        assert capabilities.settle_seconds > 0
        assert capabilities.poll_seconds > 0

    def test_check_returns_findings(self, bench: Bench) -> None:
        findings = bench.provider.check()
        assert findings
        for finding in findings:
            assert isinstance(finding, Finding)
            assert finding.name
            assert finding.detail
        assert all(finding.ok for finding in findings), findings

    # ------------------------------------------------------------------ offers

    def test_offers_are_whole_and_cheapest_first(self, bench: Bench) -> None:
        offers = bench.provider.offers(bench.want)
        assert offers
        assert len({offer.id for offer in offers}) == len(offers)
        for offer in offers:
            assert offer.provider == bench.provider.name
            assert offer.id
            assert isinstance(offer.price_hour, Decimal)
            assert offer.price_hour >= 0
            assert (offer.gpu is None) == (offer.gpu_count == 0)
            assert offer.gpu is None or offer.vram_gb
            assert offer.source == "live"
            assert offer.as_of.tzinfo is not None
            assert offer.region
        prices = [offer.price_hour for offer in offers]
        assert prices == sorted(prices)

    def test_spot_is_sold_only_where_it_says_so(self, bench: Bench) -> None:
        for spot in (False, True):
            wanted = replace(bench.want, spot=spot)
            if spot and not bench.provider.capabilities.spot:
                with pytest.raises(Unsupported, match=r"\w"):  # and says what it does sell
                    bench.provider.offers(wanted)
            else:
                assert all(offer.spot is spot for offer in bench.provider.offers(wanted))

    def test_every_offers_id_can_be_ordered(self, bench: Bench) -> None:
        for offer in bench.provider.offers(bench.want)[:2]:
            machine = bench.provider.create(bench.order(offer))
            try:
                assert bench.until(partial(bench.listed, machine), 60)
                shown = bench.listed(machine)
                assert shown is not None
                assert shown.spot == offer.spot
                assert shown.gpu == offer.gpu
                assert shown.gpu_count == offer.gpu_count
            finally:
                bench.provider.destroy(machine.provider_id)

    def test_an_offer_of_nobodys_is_refused_and_rents_nothing(self, bench: Bench) -> None:
        offer = replace(bench.provider.offers(bench.want)[0], id="no-such-offer")
        with pytest.raises(ProviderError) as caught:
            bench.provider.create(bench.order(offer))
        assert not isinstance(caught.value, Ambiguous)
        assert bench.books() == {}

    # ------------------------------------------------------------------ a machine's life

    def test_created_listed_destroyed_gone(self, bench: Bench) -> None:
        order = bench.order()
        machine = bench.provider.create(order)
        assert machine.name == order.name
        assert machine.provider == bench.provider.name
        assert machine.provider_id
        assert bench.books() == {machine.provider_id: order.name}
        assert bench.until(lambda: bench.listed(machine), 60)
        shown = bench.listed(machine)
        assert shown is not None
        assert shown.name == order.name
        assert shown.mark is not None
        assert isinstance(shown.state, State)
        assert bench.provider.get(machine.provider_id).name == order.name

        assert bench.until(
            lambda: bench.provider.get(machine.provider_id).state is State.READY,
            bench.ready_seconds,
        )
        assert bench.provider.get(machine.provider_id).access is not None

        assert bench.provider.destroy(machine.provider_id)
        assert bench.until(lambda: bench.is_gone(machine), 60)
        bench.settle()
        assert bench.is_gone(machine)
        assert bench.until(
            lambda: (left := bench.listed(machine)) is None or left.state is State.GONE, 60
        )
        assert bench.books() == {}

    def test_the_mark_comes_back_to_the_second(self, bench: Bench) -> None:
        runs = ("demo-1a2b3c", None)
        for run in runs:
            order = bench.order(run=run)
            machine = bench.provider.create(order)
            try:
                assert bench.until(partial(bench.listed, machine), 60)
                shown = bench.listed(machine)
                assert shown is not None
                assert shown.mark is not None
                assert shown.mark.owner == OWNER
                assert shown.mark.run == run
                assert shown.mark.managed_by == "gpuctl"
                assert shown.mark.end.tzinfo is not None
                assert abs((shown.mark.end - order.mark.end).total_seconds()) <= 1
            finally:
                bench.provider.destroy(machine.provider_id)

    def test_destroying_twice_is_accepted_twice(self, bench: Bench) -> None:
        machine = bench.provider.create(bench.order())
        assert bench.provider.destroy(machine.provider_id)
        assert bench.provider.destroy(machine.provider_id)
        assert bench.until(lambda: bench.is_gone(machine), 60)
        assert bench.provider.destroy(machine.provider_id)
        assert bench.books() == {}

    def test_destroying_what_never_was_is_accepted(self, bench: Bench) -> None:
        assert bench.provider.destroy(bench.unknown_id) == ABSENT

    def test_destroying_one_leaves_the_others(self, bench: Bench) -> None:
        one = bench.provider.create(bench.order())
        two = bench.provider.create(bench.order())
        bench.provider.destroy(one.provider_id)
        assert bench.until(lambda: bench.is_gone(one), 60)
        assert bench.books() == {two.provider_id: two.name}
        assert not bench.is_gone(two)
        bench.provider.destroy(two.provider_id)

    def test_unknown_ids_are_not_found(self, bench: Bench) -> None:
        with pytest.raises(NotFound, match=r"\w"):
            bench.provider.get(bench.unknown_id)

    def test_a_price_above_the_cap_rents_nothing(self, bench: Bench) -> None:
        order = replace(bench.order(), max_price_hour=Decimal("-0.01"))
        with pytest.raises(ProviderError) as caught:
            bench.provider.create(order)
        assert caught.value.kind == "PriceChanged"
        assert bench.books() == {}

    # ------------------------------------------------------------------ what is not ours

    def test_an_unmarked_machine_is_listed_without_a_mark(self, bench: Bench) -> None:
        if bench.add_unmarked is None:
            pytest.skip("nothing but this provider makes machines there")
        foreign = bench.add_unmarked()
        ours = bench.provider.create(bench.order())
        bench.settle()
        marks = {machine.provider_id: machine.mark for machine in bench.provider.list()}
        assert marks[foreign] is None
        [there] = [one for one in bench.provider.list() if one.provider_id == foreign]
        ages = datetime.now(UTC) + timedelta(days=9999)
        assert not judge(there, None, OWNER, ages, lambda _: None).destroy
        assert marks[ours.provider_id] is not None
        assert foreign not in {leftover.id for leftover in bench.provider.leftovers()}
        bench.provider.destroy(ours.provider_id)
        assert foreign in bench.books()

    def test_whose_a_machine_is_can_be_judged_by_anybody(self, bench: Bench) -> None:
        """By its name and its mark alone, from a computer that has never heard of it."""
        other = "ffff00001111"
        for owner, managed_by, before, after in (
            (OWNER, "gpuctl", True, True),
            (other, "gpuctl", False, True),
            (OWNER, "terraform", False, False),
            (other, "terraform", False, False),
        ):
            order = bench.order()
            name = f"gpuctl-suite-{owner[:6]}-{secrets.token_hex(4)}"
            mark = replace(order.mark, owner=owner, managed_by=managed_by)
            machine = bench.provider.create(replace(order, name=name, mark=mark))
            try:
                assert bench.until(partial(bench.listed, machine), 60)
                shown = bench.listed(machine)
                assert shown is not None
                assert shown.mark is not None
                assert (shown.mark.owner, shown.mark.managed_by) == (owner, managed_by)
                for moment, destroy in (
                    (mark.end - timedelta(minutes=1), before),
                    (mark.end + timedelta(minutes=1), after),
                ):
                    verdict = judge(shown, None, OWNER, moment, lambda _: None)
                    assert verdict.destroy is destroy, (owner, managed_by, verdict)
            finally:
                bench.provider.destroy(machine.provider_id)
                assert bench.until(partial(bench.is_gone, machine), 60)

    # ------------------------------------------------------------------ when it fails

    def test_a_failed_read_is_neither_empty_nor_absent(self, bench: Bench) -> None:
        if bench.break_reads is None:
            pytest.skip("nothing to break")
        machine = bench.provider.create(bench.order())
        bench.break_reads()
        for read in (
            bench.provider.list,
            bench.provider.leftovers,
            lambda: bench.provider.get(machine.provider_id),
        ):
            with pytest.raises((Ambiguous, AuthFailed, RateLimited)) as caught:
                read()
            assert len(str(caught.value)) > 10

    def test_the_map_of_states_is_total(self, bench: Bench) -> None:
        if bench.status_map is None:
            pytest.skip("its states are not read from strings")
        known, read = bench.status_map
        for status, state in known.items():
            assert read(status) is state
        for never_seen in ("", "ZOMBIFIED", "running!", "\0", "х" * 5000):
            assert read(never_seen) is State.UNKNOWN

    # ------------------------------------------------------------------ money and what is left

    def test_nothing_of_ours_is_left_behind(self, bench: Bench) -> None:
        machine = bench.provider.create(bench.order())
        bench.provider.destroy(machine.provider_id)
        assert bench.until(lambda: bench.is_gone(machine), 60)
        for leftover in bench.provider.leftovers():
            bench.provider.remove(leftover)
            bench.provider.remove(leftover)
        bench.settle()
        assert list(bench.provider.leftovers()) == []

    def test_what_was_billed_is_told_or_not_known(self, bench: Bench) -> None:
        machine = bench.provider.create(bench.order())
        bench.provider.destroy(machine.provider_id)
        for provider_id in (machine.provider_id, bench.unknown_id):
            try:
                billed = bench.provider.billed(provider_id)
            except (NotFound, InvalidRequest):
                continue
            assert billed is None or isinstance(billed, Billed)
            assert billed is None or (
                billed.amount >= 0 and billed.through.tzinfo and billed.source
            )
