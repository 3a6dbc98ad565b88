"""What a run tells whoever watches it. `cli` renders it; nothing here prints."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """Takes what happens, as it happens."""

    def step(self, text: str) -> None:
        """A step of the run: one line for a person."""

    def warn(self, text: str) -> None:
        """Something a person should know."""

    def output(self, stream: str, text: str) -> None:
        """Text that the job wrote; already made safe for a terminal."""

    def progress(self, what: str, done: int, total: int) -> None:
        """How far a transfer is, in bytes; ``total`` is 0 while unknown."""


class Quiet:
    """A reporter that says nothing."""

    def step(self, text: str) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""

    def output(self, stream: str, text: str) -> None:
        """Say nothing."""

    def progress(self, what: str, done: int, total: int) -> None:
        """Say nothing."""
