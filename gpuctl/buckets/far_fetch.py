"""On the machine: objects become files, several at a time, each by rename.

Standard library only, Python >= 3.8. Objects larger than a part are fetched in parts; a
note beside the draft says which parts are there, so that a later attempt carries on.
"""

# ruff: noqa: PTH103, PTH104, PTH108, PTH110, PTH111, PTH112, PTH114, PTH118, PTH119, PTH120
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import base64
import functools
import hashlib
import os
import stat
import threading
from typing import Any

from gpuctl.buckets.far_wire import Answer, Failed, Lane, Missing, Replaced, World
from gpuctl.remote.transfer.landing import DRAFT_MARK, Receiver, draft_key

_MODE = 0o644  # a bucket knows no permissions
_NOTE = "-parts"


class Job:
    """One object that becomes one file."""

    def __init__(self, entry: list[Any]) -> None:
        self.number, self.path, self.size, self.mtime, self.etag, self.md5 = entry
        self.sha256: str | None = None
        self.lock = threading.Lock()
        self.waiting: set[int] = set()  # parts that are not here yet
        self.over = ""  # "gone" or "changed": the other parts need not come
        self.has_md5 = True
        self.again = False
        self.handle = self.note = -1
        self.draft = ""


class Fetch:
    """Everything that is fetched below one root.

    Args:
        start: root, name (of the one file; None for a folder's contents), checksum, part.
    """

    def __init__(self, world: World, start: dict[str, Any]) -> None:
        root, name = os.path.expanduser(start["root"]), start["name"]
        if name and (root.endswith("/") or os.path.isdir(root)):
            root = os.path.join(root, name)
        self._root = root.rstrip("/") or "/"
        self._world, self._checksum, self._part = world, start["checksum"], start["part"]
        self._receiver = Receiver(self._root, "s3", bool(name))
        self._placing = threading.Lock()

    def hear(self, said: dict[str, Any]) -> None:
        """Do what one message asks for."""
        kind = said["t"]
        if kind == "plan":
            self._world.wire.tell("want", files=self._wanted(said["files"]))
        elif kind == "room":
            self._check_room(said["bytes"])
        elif kind == "get":
            for entry, url, sha256 in said["files"]:
                job = Job(entry)
                job.sha256 = sha256
                self._world.addresses.put(job.number, 0, url)
                self._world.tasks.put(functools.partial(self._begin, job))
        else:
            raise Failed("bug", "an unknown message")

    def _wanted(self, entries: list[list[Any]]) -> list[int]:
        return [entry[0] for entry in entries if not self._is_there(Job(entry))]

    def _is_there(self, job: Job) -> bool:
        place = os.path.join(self._root, job.path) if job.path else self._root
        try:
            state = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not stat.S_ISREG(state.st_mode) or state.st_size != job.size:
            return False
        if not self._checksum:
            return bool(int(state.st_mtime) == job.mtime)
        if self._sums(job, place) is not True:
            return False
        os.utime(place, (job.mtime, job.mtime))
        return True

    def _check_room(self, size: int) -> None:
        """Better now than in the middle. What drafts hold already is not counted twice."""
        os.makedirs(os.path.dirname(self._root), exist_ok=True)
        where = self._root if os.path.isdir(self._root) else os.path.dirname(self._root)
        state = os.statvfs(where)
        free = state.f_bavail * state.f_frsize
        for folder, _, names in os.walk(where) if size > free else ():
            for name in names:
                if name.startswith(DRAFT_MARK):
                    size -= os.lstat(os.path.join(folder, name)).st_blocks * 512
        if size > free:
            raise Failed("full", f"{size} {free}")

    # ------------------------------------------------------------------ one object

    def _begin(self, job: Job, lane: Lane) -> None:
        with self._placing:  # makes folders
            target = self._receiver.place(job.path)
            token = hashlib.sha256(f"{job.etag} {job.size}".encode()).hexdigest()[:16]
            job.draft = self._receiver.draft(job.path, token)
        if os.path.isdir(target) and not os.path.islink(target):
            raise IsADirectoryError(21, "a folder is where a file should go", target)
        count = -(-job.size // self._part)
        job.waiting = set(range(count))
        if count > 1:
            self._carry_on(job, count)
        if not job.waiting:
            self._finish(job)
            return
        first, *others = sorted(job.waiting)
        for part in others:
            self._world.tasks.put(functools.partial(self._fetch, job, part))
        self._fetch(job, first, lane)

    def _carry_on(self, job: Job, count: int) -> None:
        """Take over what an earlier attempt has fetched of this very object."""
        start = DRAFT_MARK + draft_key(job.path) + "-"
        folder, mine = os.path.split(job.draft)
        for name in os.listdir(folder):
            if name.startswith(start) and name not in (mine, mine + _NOTE):
                os.unlink(os.path.join(folder, name))
        job.note = os.open(job.draft + _NOTE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        there = os.pread(job.note, count, 0)
        if not os.path.exists(job.draft) or os.lstat(job.draft).st_size != job.size:
            there = b""
            os.ftruncate(job.note, 0)
        job.waiting = {part for part in range(count) if there[part : part + 1] != b"\1"}
        self._world.count(job.size - sum(self._length(job, part) for part in job.waiting))

    def _open(self, job: Job) -> int:
        """The draft; made when there is something to write."""
        with job.lock:
            if job.handle < 0:
                job.handle = os.open(job.draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
                os.ftruncate(job.handle, job.size)
            return job.handle

    def _length(self, job: Job, part: int) -> int:
        return int(min(self._part, job.size - part * self._part))

    def _fetch(self, job: Job, part: int, lane: Lane) -> None:
        at = part * self._part
        end = at + self._length(job, part)
        done = [at]

        def headers() -> dict[str, str]:
            asked = {"Range": f"bytes={done[0]}-{end - 1}"}
            if job.etag:
                asked["If-Match"] = f'"{job.etag}"'
            return asked

        def talk(answer: Answer) -> bool:
            job.has_md5 = job.has_md5 and answer.has_md5
            if answer.status == 200 and done[0]:
                raise Failed("refused", "it does not give parts of an object")
            while done[0] < end and not job.over:
                chunk = answer.response.read(min(self._world.chunk, end - done[0]))
                if not chunk:
                    return False
                self._world.pace.wait(len(chunk))
                self._write(job, chunk, done[0])
                done[0] += len(chunk)
                lane.count(len(chunk))
            if answer.response.read(1) or not answer.response.isclosed():
                lane.close()
            return True

        try:
            if not job.over:
                lane.ask(job.number, 0, "GET", headers, talk)
        except (Missing, Replaced) as lost:
            job.over = "gone" if isinstance(lost, Missing) else "changed"
        self._arrived(job, part)

    def _write(self, job: Job, chunk: bytes, offset: int) -> None:
        view = memoryview(chunk)
        try:
            handle = self._open(job)
            while view:
                written = os.pwrite(handle, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            self._discard(job)  # a half file would keep the disk full
            raise Failed("full" if error.errno == 28 else "disk", _about(error, job)) from error

    def _arrived(self, job: Job, part: int) -> None:
        with job.lock:
            job.waiting.discard(part)
            if not job.over and job.note >= 0:
                os.pwrite(job.note, b"\1", part)
            if job.waiting:
                return
        if job.over:
            self._discard(job)
            self._world.wire.tell(job.over, i=job.number)
        else:
            self._finish(job)

    def _finish(self, job: Job) -> None:
        handle = self._open(job)
        if self._sums(job, job.draft) is False:
            self._discard(job)
            if job.again:
                raise Failed("corrupt", job.path or os.path.basename(self._root))
            job.again = True  # once: it may have been hit on its way
            self._world.count(-job.size)
            self._world.tasks.put(functools.partial(self._begin, job))
            return
        os.fchmod(handle, _MODE)
        os.utime(handle, (job.mtime, job.mtime))
        os.rename(job.draft, self._receiver.place(job.path))
        self._discard(job)
        self._world.addresses.forget(job.number, 0)
        self._world.wire.tell("done", i=job.number)

    def _sums(self, job: Job, place: str) -> bool | None:
        """Whether a file's content is right; None when nothing is known of the object's."""
        if job.sha256:
            expected, found = job.sha256, hashlib.sha256()
        elif job.md5 and job.has_md5:
            try:
                expected, found = job.etag, hashlib.md5()  # noqa: S324 - what S3 gives
            except ValueError:  # a system that forbids it
                return None
        else:
            return None
        with open(place, "rb") as file:
            for chunk in iter(lambda: file.read(1 << 20), b""):
                found.update(chunk)
        if job.sha256:
            return base64.b64encode(found.digest()).decode() == expected
        return found.hexdigest() == expected

    def _discard(self, job: Job) -> None:
        """Close what is open, and remove what is left of drafts and notes."""
        for handle in (job.handle, job.note):
            if handle >= 0:
                os.close(handle)
        job.handle = job.note = -1
        for path in (job.draft, job.draft + _NOTE):
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue


def _about(error: OSError, job: Job) -> str:
    return f"{job.path or 'the file'}: {error.strerror}"
