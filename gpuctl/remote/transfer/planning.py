"""What a transfer will do: pure decisions, no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from gpuctl.printable import printable
from gpuctl.remote.selection import File, Link, Selection
from gpuctl.remote.transfer.framing import BUNDLE_BYTES, BUNDLE_FILES
from gpuctl.remote.transfer.landing import DRAFT_MARK

LARGE_BYTES = 768 << 10  # from here a file goes in parts of its own, below it in bundles
DELTA_BYTES = 4 << 20  # from here a changed file is compared block by block
PART_BYTES = 2 << 20  # what one stream takes at a time
WINDOW_BYTES = 2 << 20  # OpenSSH's channel window: what one stream moves a round trip at most
GOAL_RATES = (150e6, 400e6)  # bytes a second that the streams together should reach: first, then
MAX_STREAMS = 8
NEAR_SECONDS = 0.003  # below this round trip one stream is bound by the processor, not the window
LOGIN_ROUND_TRIPS = 8  # so many pass before a further link carries anything
ONE_STREAM_BYTES = 8 << 20  # below this a second stream is never worth its login


def window_rate(round_trip: float) -> float | None:
    """Bytes a second that the window lets one stream move; None when near, where it does not."""
    return None if round_trip < NEAR_SECONDS else WINDOW_BYTES / round_trip


def streams_wanted(size: int, round_trip: float, goal: float = GOAL_RATES[0]) -> int:
    """How many streams ``size`` bytes deserve over a link of that round trip (seconds).

    Args:
        size: bytes still to be moved.
        round_trip: in seconds.
        goal: bytes a second that they should reach together.
    """
    one = window_rate(round_trip)
    if one is None or size < ONE_STREAM_BYTES or size / one < LOGIN_ROUND_TRIPS * round_trip:
        return 1
    by_rate = -(-goal // one)
    by_size = max(1, size // ONE_STREAM_BYTES)
    return int(min(by_rate, by_size, MAX_STREAMS))


def parts(size: int, ranges: Iterable[tuple[int, int]] | None = None) -> Iterator[tuple[int, int]]:
    """Cut a file, or (start, end) ranges of it, into (offset, length) of at most `PART_BYTES`."""
    for start, end in [(0, size)] if ranges is None else ranges:
        for offset in range(start, end, PART_BYTES):
            yield offset, min(PART_BYTES, end - offset)


def bundles(files: Iterable[File]) -> Iterator[list[File]]:
    """Group small files into what one frame takes, in order."""
    group: list[File] = []
    size = 0
    for file in files:
        if group and (size + file.size > BUNDLE_BYTES or len(group) >= BUNDLE_FILES):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.size
    if group:
        yield group


@dataclass(frozen=True, slots=True)
class Differing:
    """A file that is not at its target as it should be."""

    file: File
    size_there: int  # -1: no regular file there
    draft: bool = False  # a broken transfer left something of it
    digest: str | None = None  # of what is there, hexadecimal, where content is compared


def base(differing: Differing) -> Literal["draft", "target"] | None:
    """What of a large file is worth comparing block by block before it is sent."""
    if differing.draft:
        return "draft"
    smaller = min(differing.size_there, differing.file.size)
    return "target" if smaller >= DELTA_BYTES else None


def sendable(selection: Selection) -> Selection:
    """A selection without what broken downloads left in the tree."""
    files = [file for file in selection.files if not is_draft(file.path)]
    return Selection(files, selection.dirs, selection.links)


def is_draft(path: str) -> bool:
    """Whether this is a draft of a transfer of ours."""
    return path.rpartition("/")[2].startswith(DRAFT_MARK)


def differing_locally(
    files: Sequence[File], here: dict[str, tuple[int, int]], *, coarse: bool = False
) -> list[File]:
    """Which files are not here with the same size and time of change.

    Args:
        files: as they are on the machine.
        here: (size, mtime_ns) by path.
        coarse: times are whole seconds there (SFTP).
    """
    unit = 1_000_000_000 if coarse else 1
    return [
        file
        for file in files
        if (known := here.get(file.path)) is None
        or known[0] != file.size
        or known[1] // unit != file.mtime_ns // unit
    ]


def kept_links(links: Iterable[Link]) -> tuple[list[Link], tuple[str, ...]]:
    """The links to make, and what to tell of the others (see `leads_out`), printable."""
    kept: list[Link] = []
    left_out: list[str] = []
    for link in links:
        if leads_out(link.path, link.target):
            told = f"{link.path}: a link that could lead out of the folder ({link.target})"
            left_out.append(printable(told).replace("\n", " "))
        else:
            kept.append(link)
    return kept, tuple(left_out)


def leads_out(path: str, target: str) -> bool:
    """Whether a link at ``path`` (relative to the tree) may lead out of its tree.

    As a store's restore judges: an absolute target, one that climbs above the tree, or one with
    a ``..`` after its first name.
    """
    if target.startswith("/"):
        return True
    names = [name for name in target.split("/") if name not in ("", ".")]
    climbs = 0
    while climbs < len(names) and names[climbs] == "..":
        climbs += 1
    return climbs > path.count("/") or ".." in names[climbs:]
