"""Large files on their way: what is known of each, and the parts that the streams take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from gpuctl.remote.selection import File


@dataclass(slots=True)
class Large:
    """A file that goes in parts. Changed only while holding its crew's `changed`."""

    number: int
    file: File
    size: int  # what is left of it when it became shorter meanwhile
    base: Literal["draft", "target"] | None = None  # what is compared with block by block
    size_there: int = -1
    planned: bool = False  # every part is known
    unsure: int = 0  # parts that are not known to have arrived
    finished: bool = False

    @property
    def dense(self) -> bool:
        """Whether holes are written too: its draft may have something there already."""
        return self.base == "draft"

    def shrunk(self, size: int) -> None:
        """It is shorter than it was."""
        self.size = min(self.size, size)

    def whole(self) -> bool:
        """Whether all of it arrived; tells so only once."""
        if not self.planned or self.unsure or self.finished:
            return False
        self.finished = True
        return True


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of work for one stream: a range of a large file."""

    large: Large
    offset: int
    length: int


Job = list[File] | Part
"""What a stream takes at a time: some small files, or a part of a large one."""


def size_of(job: Job) -> int:
    """Plain bytes of a job; an empty file costs something too."""
    return job.length if isinstance(job, Part) else sum(file.size + 1024 for file in job)


def parts_of(large: Large, ranges: Iterable[tuple[int, int]]) -> list[Job]:
    """(offset, length) ranges of a file as jobs, which it counts."""
    jobs: list[Job] = [Part(large, *one) for one in ranges]
    large.unsure += len(jobs)
    return jobs
