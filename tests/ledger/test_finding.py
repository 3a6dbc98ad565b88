"""Which machine a person means by part of its name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.errors import UsageError
from gpuctl.ledger.finding import Candidate, pick


def machine(middle: str, nonce: str, *, open_: bool = True) -> Candidate:
    return Candidate(f"gpuctl-{middle}-a1b2c3-{nonce}", middle, open_)


ALL = [
    machine("demo", "00000001", open_=False),
    machine("demo", "00000002"),
    machine("demo-long", "00000003"),
    machine("other", "00000004", open_=False),
    machine("twin", "00000005"),
    machine("twin", "00000006"),
]


def found(part: str) -> str:
    return pick(part, ALL, what="machine", listing="`gpuctl list --all`")[-1]


@pytest.mark.parametrize(
    ("part", "meant"),
    [
        ("gpuctl-demo-a1b2c3-00000001", "1"),  # the exact name wins over an open machine
        ("demo", "2"),  # the middle wins over a longer one that holds it, open over closed
        ("long", "3"),
        ("other", "4"),  # closed, and the only one
        ("00000006", "6"),
        ("twin-a1b2c3-00000005", "5"),
    ],
)
def test_what_is_meant(part: str, meant: str) -> None:
    assert found(part) == meant


def test_several_are_listed() -> None:
    with pytest.raises(UsageError) as caught:
        found("twin")
    assert caught.value.message == (
        "'twin' fits 2 machines: gpuctl-twin-a1b2c3-00000005, gpuctl-twin-a1b2c3-00000006"
    )
    assert caught.value.next


def test_many_are_not_all_listed() -> None:
    many = [machine("twin", f"{n:08x}") for n in range(20)]
    with pytest.raises(UsageError, match=r"fits 20 machines: .*00000013 and 12 older"):
        pick("twin", many, what="machine", listing="`gpuctl list`")


def test_none_says_what_is_near() -> None:
    with pytest.raises(UsageError, match="No machine is called 'othr'") as caught:
        found("othr")
    assert "Did you mean gpuctl-other-a1b2c3-00000004?" in str(caught.value.next)
    with pytest.raises(UsageError) as caught:
        found("zzzzzz")
    assert caught.value.next == "`gpuctl list --all` shows them all."


def test_nothing_is_not_everything() -> None:
    with pytest.raises(UsageError, match="is empty"):
        found("")


_CANDIDATES = st.lists(
    st.builds(Candidate, st.text("ab-", min_size=1, max_size=6), st.text("ab", max_size=3),
              st.booleans()),
    max_size=8, unique_by=lambda one: one.name,
)  # fmt: skip


@given(_CANDIDATES, st.text("ab-", max_size=4))
def test_what_is_picked_was_named_and_is_the_only_one_of_its_rank(
    candidates: list[Candidate], part: str
) -> None:
    fits = [one for one in candidates if part and (one.short == part or part in one.name)]
    try:
        name = pick(part, candidates, what="run", listing="`gpuctl runs`")
    except UsageError:
        # Refused only when nothing fits or more than one does.
        assert len(fits) != 1
        return
    (chosen,) = [one for one in fits if one.name == name]
    better = [
        one
        for one in fits
        if one is not chosen and one.open and not chosen.open and chosen.name != part
    ]
    assert better == []
