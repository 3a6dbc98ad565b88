"""500 machines on one account of each cloud: within its limits, and no slower than they ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuctl.fleet.audit import Audit
from gpuctl.fleet.reap import Reaped
from tests.fleet.many import NAMES, Done, Many, many_at, refused

MANY = 500
FEW = 40
# Our pauses are a little longer than the documented ones, and looks on the way cost something.
SLACK, SLACK_SECONDS, SLACK_CALLS = 1.1, 15.0, 60


@pytest.mark.parametrize("name", [name for name in NAMES if name != "aws"])  # moto is slow
def test_a_few(name: str, tmp_path: Path) -> None:
    with many_at(name, tmp_path) as many:
        all_commands(many, FEW)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_many(name: str, tmp_path: Path) -> None:
    with many_at(name, tmp_path) as many:
        all_commands(many, MANY)


def all_commands(many: Many, count: int) -> None:
    many.rent(count)
    assert len(many.fleet.ledger.machines(open_only=True)) == count

    looked = many.take("list")
    assert looked.said == []
    within(many, "list", looked, count)
    many.clock.pass_time(3600)

    audited = many.take("audit")
    said: Audit = audited.said
    assert (len(said.unaccounted), said.errors) == (count, ())
    within(many, "audit", audited, count)
    many.clock.pass_time(3600)

    reaped = many.take("reap")
    result: Reaped = reaped.said
    assert result.errors == ()
    assert len({receipt.name for receipt in result.receipts}) == count
    settle = many.provider.capabilities.settle_seconds
    for receipt in result.receipts:
        first, second = receipt.confirmed_by
        assert (second.at - first.at).total_seconds() >= settle
    assert many.left() == {}
    assert many.fleet.ledger.machines(open_only=True) == []
    within(many, "reap", reaped, count)


def within(many: Many, command: str, done: Done, count: int) -> None:
    """Check that no limit was touched, and that nothing was waited for or asked in vain."""
    assert refused(done.log) == []
    assert many.too_often(done.log) == []
    least = many.least(command, count)
    assert done.seconds <= least.seconds * SLACK + SLACK_SECONDS, (command, least)
    assert done.calls <= least.calls * SLACK + SLACK_CALLS, (command, least)
