"""Errors for people and for programs, and what a terminal is spared."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuctl.cli.output import error_lines, error_shape, from_provider, wants_json
from gpuctl.cli.terminal import Terminal, safe
from gpuctl.errors import GpuctlError, MayStillBill
from providers.base import (
    Ambiguous,
    AuthFailed,
    InsufficientFunds,
    InvalidRequest,
    NoCapacity,
    PriceChanged,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    Unsupported,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AuthFailed("x"), 4),
        (NoCapacity("x"), 3),
        (Unsupported("x"), 3),
        (PriceChanged("x"), 5),
        (InvalidRequest("x"), 2),
        (QuotaExceeded("x"), 1),
        (InsufficientFunds("x"), 1),
        (RateLimited("x", 3), 1),
        (Ambiguous("x"), 1),
    ],
)
def test_every_answer_of_a_provider_has_its_exit_code(error: ProviderError, code: int) -> None:
    made = from_provider(error)
    assert (made.exit_code, made.kind, made.message) == (code, error.kind, "x")


def test_an_error_says_what_happened_to_which_machine_what_it_may_cost_and_what_next() -> None:
    error = MayStillBill("No answer", machine="gpuctl-a", next="Run it again.")
    assert error_lines(error) == [
        "gpuctl: No answer",
        "  machine: gpuctl-a",
        "  It may still be billing.",
        "  next: Run it again.",
    ]
    assert error_shape(error) == {
        "kind": "MayBill",
        "message": "No answer",
        "machine": "gpuctl-a",
        "may_bill": True,
        "next": "Run it again.",
    }


def test_a_machine_that_the_message_names_is_not_named_twice() -> None:
    assert len(error_lines(GpuctlError("gpuctl-a broke", machine="gpuctl-a"))) == 1


@given(st.lists(st.sampled_from(["exec", "--json", "--", "x"])))
def test_what_follows_the_dashes_asks_for_nothing(argv: list[str]) -> None:
    before = argv[: argv.index("--")] if "--" in argv else argv
    assert wants_json(argv) == ("--json" in before)


@given(st.text())
def test_safe_text_is_one_line_without_controls(text: str) -> None:
    shown = safe(text)
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in shown)


def test_a_step_after_half_a_line_of_output_starts_on_its_own_line() -> None:
    stream = io.StringIO()
    with Terminal(stream) as terminal:
        terminal.output("out", "loss 0.1")
        terminal.step("done")
        terminal.warn("hot\x1b[31m")
    assert stream.getvalue() == "loss 0.1\ndone\nwarning: hot\n"


def test_a_terminal_that_went_away_stops_nothing() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream)
    stream.close()
    terminal.step("nobody reads this")
    terminal.output("out", "nor this")


def test_short_transfers_pass_in_silence_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with Terminal(stream) as terminal:
        terminal.progress("data", 1, 10)
        terminal.progress("data", 10, 10)
    assert stream.getvalue() == ""


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_and_then_plain_lines_again() -> None:
    screen = _Screen()
    with Terminal(screen) as terminal:
        terminal.progress("data\x1b]0;owned\x07", 1_000_000, 4_000_000)
        terminal.step("next")
    assert "data" in screen.getvalue()
    assert "owned" not in screen.getvalue()
    assert screen.getvalue().endswith("next\n")
