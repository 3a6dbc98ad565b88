"""Finding the blocks of one version of a file in another, also after insertions and deletions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from gpuctl.remote.transfer.reading import ANCHOR, DIGEST

SIGNATURE = DIGEST + ANCHOR
_SEARCH_BYTES = 4 << 20  # how far from its old place a moved block is looked for, at least
_PATIENCE = 4  # blocks that differ in a row before a move is looked for; then 8, 16, ...


@dataclass(frozen=True, slots=True)
class Found:
    """A block that both versions have."""

    theirs: int  # offset in the version that was signed
    ours: int  # offset in the version at hand
    length: int


@dataclass(slots=True)
class Matcher:
    """Compares a file at hand with another version's block signatures, as they come.

    Args:
        handle: the file at hand; read with pread.
        size: how much of it counts.
        theirs_size: the other version's size.
        block: bytes a block.
        moves: look for blocks that moved; False compares in place only.

    Matches come in order and overlap in neither version.
    """

    handle: int
    size: int
    theirs_size: int
    block: int
    moves: bool = True
    _next: int = field(default=0, init=False)  # index of the next block
    _shift: int = field(default=0, init=False)
    _floor: int = field(default=0, init=False)  # what is before it at hand is matched already
    _missed: list[tuple[int, bytes]] = field(default_factory=list, init=False)
    _patience: int = field(default=_PATIENCE, init=False)

    def feed(self, signatures: bytes) -> Iterator[Found]:
        """Take the next signatures; yield what was found."""
        for at in range(0, len(signatures), SIGNATURE):
            signature = signatures[at : at + SIGNATURE]
            index, self._next = self._next, self._next + 1
            if self._is_at(index, signature, index * self.block + self._shift):
                self._missed.clear()
                self._patience = _PATIENCE
                yield self._matched(index)
                continue
            self._missed.append((index, signature))
            if self.moves and len(self._missed) >= self._patience:
                yield from self._look_around()

    def _matched(self, index: int) -> Found:
        found = Found(index * self.block, index * self.block + self._shift, self._length(index))
        self._floor = found.ours + found.length
        return found

    def _look_around(self) -> Iterator[Found]:
        """Look for the newest block elsewhere; then the ones before it moved as far."""
        index, signature = self._missed[-1]
        place = self._search(index, signature)
        if place is None:
            self._patience *= 2
            return
        self._shift = place - index * self.block
        self._patience = _PATIENCE
        missed, self._missed = self._missed, []
        for index, signature in missed:
            if self._is_at(index, signature, index * self.block + self._shift):
                yield self._matched(index)

    def _search(self, index: int, signature: bytes) -> int | None:
        anchor = signature[DIGEST:]
        if len(set(anchor)) < 4 or self._length(index) < self.block:
            return None  # zeros and the like are everywhere
        reach = max(_SEARCH_BYTES, 2 * len(self._missed) * self.block)
        expected = index * self.block + self._shift
        low = max(self._floor, expected - reach)
        window = os.pread(self.handle, max(0, expected + reach - low), low)
        at = window.find(anchor)
        for _ in range(64):  # an anchor that is everywhere is none
            if at < 0:
                return None
            if self._is_at(index, signature, low + at):
                return low + at
            at = window.find(anchor, at + 1)
        return None

    def _is_at(self, index: int, signature: bytes, place: int) -> bool:
        length = self._length(index)
        if length <= 0 or place < self._floor or place + length > self.size:
            return False
        data = os.pread(self.handle, length, place)
        return hashlib.sha256(data).digest()[:DIGEST] == signature[:DIGEST]

    def _length(self, index: int) -> int:
        return min(self.block, self.theirs_size - index * self.block)


def gaps(found: Iterable[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """The (start, end) ranges below ``size`` that (offset, length) ranges, in order, leave out."""
    end = 0
    for offset, length in found:
        if offset > end:
            yield end, offset
        end = offset + length
    if end < size:
        yield end, size


def joined(found: Iterable[Found]) -> list[Found]:
    """Neighbouring blocks as one."""
    result: list[Found] = []
    for one in found:
        last = result[-1] if result else None
        if last and last.theirs + last.length == one.theirs and last.ours + last.length == one.ours:
            result[-1] = Found(last.theirs, last.ours, last.length + one.length)
        else:
            result.append(one)
    return result
