"""Which machine or run a person means by part of its name. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpuctl.errors import UsageError

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something that may be meant."""

    name: str  # what it is called in full
    short: str  # what a person called it
    open: bool  # still of interest: not gone, not ended


def pick(part: str, candidates: Sequence[Candidate], *, what: str, listing: str) -> str:
    """Return the full name of what is meant.

    An exact name comes first; then, among those that are still open and after that among the
    others, the short name and then any unique part of the full name.

    Args:
        what: "machine" or "run".
        listing: the command that shows them all.

    Raises:
        UsageError: it means none, or several.
    """
    if not part:
        raise UsageError(f"The name of a {what} is empty", next=f"{listing} shows them.")
    if any(one.name == part for one in candidates):
        return part
    for group in ([c for c in candidates if c.open], [c for c in candidates if not c.open]):
        for found in ([c for c in group if c.short == part], [c for c in group if part in c.name]):
            if len(found) == 1:
                return found[0].name
            if found:
                raise _several(part, found, what)
    raise _none(part, candidates, what, listing)


def _several(part: str, found: Sequence[Candidate], what: str) -> UsageError:
    shown = ", ".join(one.name for one in found[-_SHOWN:])
    more = f" and {len(found) - _SHOWN} older" if len(found) > _SHOWN else ""
    return UsageError(
        f"{part!r} fits {len(found)} {what}s: {shown}{more}",
        next="Give more of the name, or all of it.",
    )


def _none(part: str, candidates: Sequence[Candidate], what: str, listing: str) -> UsageError:
    from difflib import get_close_matches

    words = {one.name: one.name for one in candidates} | {one.short: one.name for one in candidates}
    near = get_close_matches(part, words, n=1, cutoff=0.6)
    guess = f"Did you mean {words[near[0]]}? " if near else ""
    return UsageError(f"No {what} is called {part!r}", next=f"{guess}{listing} shows them all.")
