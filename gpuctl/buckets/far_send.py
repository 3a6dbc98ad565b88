"""On the machine: files become objects, several at a time, large ones in parts.

Standard library only, Python >= 3.8. What the bucket has already with the same content (as its
ETag tells) is not sent.
"""

# ruff: noqa: PTH111, PTH116, PTH118

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from typing import Any

from gpuctl.buckets.far_wire import LINES, Answer, Failed, Lane, Missing, Replaced, World
from gpuctl.remote.transfer.far_side import listing
from gpuctl.remote.transfer.reading import open_plain

_MD5 = re.compile(r"[0-9a-f]{32}")


class Job:
    """One file that becomes one object."""

    def __init__(self, entry: list[Any]) -> None:
        self.number, self.path, self.size, self.part, self.there = entry
        self.lock = threading.Lock()
        self.etags: dict[int, str] = {}

    @property
    def parts(self) -> int:
        """How many it is sent in; 0 when in one request."""
        return -(-self.size // self.part) if self.size > self.part else 0


class Send:
    """Everything that is sent from below one root.

    Args:
        start: root.
    """

    def __init__(self, world: World, start: dict[str, Any]) -> None:
        self._world, self._root = world, os.path.expanduser(start["root"])
        try:
            mode = os.stat(self._root).st_mode
            kind = "dir" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
        except (FileNotFoundError, NotADirectoryError):
            kind = "missing"
        world.wire.tell("kind", kind=kind)
        if kind in ("dir", "file"):
            self._list()
        world.wire.tell("listed")

    def hear(self, said: dict[str, Any]) -> None:
        """Do what one message asks for."""
        if said["t"] != "send":
            raise Failed("bug", "an unknown message")
        for entry, url in said["files"]:
            job = Job(entry)
            if url is not None:
                self._world.addresses.put(job.number, 0, url)
            self._world.tasks.put(functools.partial(self._begin, job))

    def _list(self) -> None:
        files: list[list[Any]] = []
        links: list[str] = []
        for entry in listing(self._root):
            if entry[0] == "f":
                files.append([entry[1], entry[2]])
            elif entry[0] == "l":
                links.append(entry[1])
            if len(files) + len(links) >= LINES:
                self._world.wire.tell("files", files=files, links=links)
                files, links = [], []
        self._world.wire.tell("files", files=files, links=links)

    def _begin(self, job: Job, lane: Lane) -> None:
        read = functools.partial(self._chunks, job)
        if job.there is not None and etag_of(read, job.size, job.part) == job.there:
            self._world.wire.tell("same", i=job.number)
            return
        if not job.parts:
            self._put(job, 0, 0, job.size, lane)
            self._world.addresses.forget(job.number, 0)
            self._world.wire.tell("done", i=job.number, etags=[])
            return
        for part in range(2, job.parts + 1):
            self._world.tasks.put(functools.partial(self._put_part, job, part))
        self._put_part(job, 1, lane)

    def _put_part(self, job: Job, part: int, lane: Lane) -> None:
        start = (part - 1) * job.part
        etag = self._put(job, part, start, min(job.part, job.size - start), lane)
        self._world.addresses.forget(job.number, part)
        with job.lock:
            job.etags[part] = etag
            whole = len(job.etags) == job.parts
        if whole:
            etags = [job.etags[number] for number in range(1, job.parts + 1)]
            self._world.wire.tell("done", i=job.number, etags=etags)

    def _put(self, job: Job, part: int, start: int, size: int, lane: Lane) -> str:
        """Send some of a file; returns the ETag that the bucket gave it."""
        counted = [0]
        summed: list[Any] = [None]
        etag = [""]

        def headers() -> dict[str, str]:
            self._world.count(-counted[0])  # what an earlier try had sent
            counted[0] = 0
            summed[0] = _md5()
            return {"Content-Length": str(size)}

        def body(send: Callable[[bytes], None]) -> None:
            for chunk in self._chunks(job, start, size):
                self._world.pace.wait(len(chunk))
                send(chunk)
                counted[0] += len(chunk)
                self._world.count(len(chunk))
                if summed[0] is not None:
                    summed[0].update(chunk)

        def talk(answer: Answer) -> bool:
            answer.response.read()
            etag[0] = answer.etag
            if summed[0] is None or not answer.has_md5 or not _MD5.fullmatch(answer.etag):
                return True
            return bool(summed[0].hexdigest() == answer.etag)

        try:
            lane.ask(job.number, part, "PUT", headers, talk, body)
        except (Missing, Replaced) as error:
            raise Failed("refused", "the bucket or the upload is gone") from error
        return etag[0]

    def _chunks(self, job: Job, start: int, size: int) -> Iterator[bytes]:
        path = os.path.join(self._root, job.path) if job.path else self._root
        try:
            handle = open_plain(path) if job.path else os.open(path, os.O_RDONLY)
        except FileNotFoundError as error:
            raise Failed("moving", job.path) from error
        try:
            end = start + size
            while start < end:
                chunk = os.pread(handle, min(self._world.chunk, end - start), start)
                if not chunk:
                    raise Failed("moving", job.path)
                yield chunk
                start += len(chunk)
        finally:
            os.close(handle)


def etag_of(read: Callable[[int, int], Iterator[bytes]], size: int, part: int) -> str | None:
    """The ETag that a file would get; None on a system that forbids MD5.

    Args:
        read: yields so many bytes from an offset.
        size: of the file.
        part: what is larger is sent in parts of so many bytes.
    """
    step = part if size > part else max(size, 1)
    sums: list[Any] = []
    for start in range(0, max(size, 1), step):
        found = _md5()
        if found is None:
            return None
        for chunk in read(start, min(step, size - start)):
            found.update(chunk)
        sums.append(found)
    if size <= part:
        return str(sums[0].hexdigest())
    over = hashlib.md5(b"".join(one.digest() for one in sums))  # noqa: S324
    return f"{over.hexdigest()}-{len(sums)}"


def _md5() -> Any:
    try:
        return hashlib.md5()  # noqa: S324 - what S3 gives
    except ValueError:  # a system that forbids it
        return None
