"""What is wrong with a train.yaml, and how it is said: always in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gpuctl.errors import SpecError

KeyPath = tuple[str | int, ...]
"""A key of the file, from the outside in: ``("data", 0, "from")``."""

_LONGEST_KEY = 60


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: a line of the file, or a ``--set``."""

    line: int | None = None  # counted from 1
    override: str | None = None  # the argument of --set, as it is shown
    override_key: KeyPath = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``key`` is empty when it is about the whole file."""

    key: KeyPath
    message: str
    origin: Origin = Origin()


def dotted(key: KeyPath) -> str:
    """Return a key as people write it: ``data.0.from``."""
    text = ".".join(str(part) for part in key)
    return text if len(text) <= _LONGEST_KEY else text[: _LONGEST_KEY - 1] + "…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known word, or nothing."""
    import difflib  # slow to import, and needed for mistakes only

    by_lower = {candidate.lower(): candidate for candidate in known}
    near = difflib.get_close_matches(word[:_LONGEST_KEY].lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


def origin_of(key: KeyPath, origins: Mapping[KeyPath, Origin]) -> Origin:
    """Return where a key was written, or the nearest key around it."""
    for length in range(len(key), 0, -1):
        if key[:length] in origins:
            return origins[key[:length]]
    return Origin()


def spec_error(file: str, problems: Sequence[Problem]) -> SpecError:
    """Return one error for all problems: the first by line in full, the others counted."""
    first = min(problems, key=_order)
    rest = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return SpecError(one_line(_sentence(file, first)) + rest)


def one_line(text: str) -> str:
    """Return text with everything that could break a line or a terminal spelled out."""
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]",
        lambda found: found[0].encode("unicode_escape").decode("ascii"),
        text,
    )


def _order(problem: Problem) -> tuple[bool, int, bool]:
    """The file's lines first, then what ``--set`` said, then what is nowhere."""
    origin = problem.origin
    nowhere = origin.line is None
    return (nowhere, origin.line or 0, origin.override is None)


def _sentence(file: str, problem: Problem) -> str:
    origin, key = problem.origin, problem.key
    if origin.override is not None:
        where = f"--set {origin.override}"
        key = () if key == origin.override_key else key
    else:
        where = f"{file}:{origin.line}" if origin.line is not None else file
    return ": ".join(part for part in (where, dotted(key), problem.message) if part)
