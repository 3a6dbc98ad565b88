"""Running a script on an emulated machine, as somebody who is logged in there does."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.clouds.rented import Rented

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it said on both streams."""

    code: int
    text: str

    def lines(self, word: str) -> list[str]:
        """What comes after ``word: `` in the lines that have it."""
        mark = f": {word}: "
        return [line.partition(mark)[2] for line in self.text.splitlines() if mark in line]


def on(rented: Rented, *argv: str | Path, seconds: float = 120) -> Said:
    """Run a command on a machine to its end."""
    command = " ".join(shlex.quote(str(word)) for word in argv)
    said = rented.folder / "root" / ".said"
    # `cd`: what starts there has the working folder of this computer's own /root.
    process = rented.start(f"cd /root && {command} >.said 2>&1")
    code = process.wait(seconds)
    return Said(code, said.read_text(errors="replace"))
