"""Fetching a file or a tree from a machine that is not trusted."""

from __future__ import annotations

import os
import secrets
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpuctl.errors import RemoteError, UsageError
from gpuctl.printable import printable
from gpuctl.remote.channels import Channels
from gpuctl.remote.connection import Transferred
from gpuctl.remote.selection import File, Folder, Link
from gpuctl.remote.transfer import planning
from gpuctl.remote.transfer.crew import Crew, Jobs
from gpuctl.remote.transfer.delta import Found, Matcher, gaps, joined
from gpuctl.remote.transfer.framing import PIECE, SIGNED, Broken, Data, Tally, parse_json
from gpuctl.remote.transfer.landing import Receiver
from gpuctl.remote.transfer.native import find_xxh3
from gpuctl.remote.transfer.pace import Meter, Pace
from gpuctl.remote.transfer.parts import Job, Large, Part, parts_of, size_of
from gpuctl.remote.transfer.reading import block_size, file_digest, open_plain
from gpuctl.remote.transfer.session import LinkBroken, Session, unbelievable

_AHEAD_BYTES = 12 << 20  # plain, asked for at a time by a stream: a far link's content, packed
_MOST_ENTRIES = 2_000_000  # of a listing
_COMPARED = 500  # digests asked for at a time


class Pull:
    """One attempt to fetch; what an earlier one left is used.

    Args:
        channels: the way to the machine.
        source: a file or a folder there.
        target: a folder, or where one file goes (into it, when it is a folder).
        checksum: compare content, not size and time of change.
        streams: at most so many, whatever the link.
        machine: its name, for what goes wrong.
    """

    def __init__(
        self,
        channels: Channels,
        source: str,
        target: Path,
        *,
        meter: Meter,
        pace: Pace,
        checksum: bool = False,
        streams: int = planning.MAX_STREAMS,
        machine: str | None = None,
    ) -> None:
        self._source, self._target = source, target
        self._meter, self._pace = meter, pace
        self._checksum, self._streams = checksum, streams
        self._token = secrets.token_hex(6)
        self._crew = Crew(channels, machine)
        self._jobs = Jobs(self._crew)
        self._single = False
        self._busy = 0  # streams that may hold jobs
        self._receivers: list[Receiver] = []

    def run(self) -> Transferred:
        """Do it.

        Raises:
            UsageError: something here cannot be written.
            LinkBroken: carry on with another attempt.
            RemoteError: it cannot be done.
        """
        try:
            return self._run(self._crew.control())
        except OSError as error:
            raise UsageError(
                f"{printable(str(error.filename or self._target))} cannot be written: "
                f"{error.strerror or error}",
                next="Correct that, then try again: what arrived is not fetched twice.",
            ) from error
        except Broken as error:
            raise unbelievable(str(error), self._crew.machine) from error
        finally:
            self._crew.close()

    def _run(self, control: Session) -> Transferred:
        control.hello(self._source, self._token)
        control.frames.send_json(b"L", None)
        kind = control.greeting()
        if kind not in ("file", "dir"):
            word = "does not exist" if kind == "missing" else "is neither a file nor a folder"
            raise RemoteError(
                f"{printable(self._source)} {word} there",
                machine=self._crew.machine,
                next="Correct the path.",
            )
        files, folders, links = self._listed(control)
        self._single = kind == "file"
        if self._single:
            name = self._source.rstrip("/").rpartition("/")[2]
            if self._target.is_dir():
                self._target = self._target / name
        receiver = self._receiver()
        receiver.folders([folder.path for folder in folders])
        differing = self._differing(control, receiver, files)
        self._meter.expect(sum(file.size for file in differing))
        self._plan(control, receiver, differing)
        self._fetch(control, receiver)
        kept, left_out = planning.kept_links(links)
        receiver.links([[link.path, link.target] for link in kept])
        receiver.modes([[folder.path, folder.mode] for folder in folders])
        files_here = sum(one.files for one in self._receivers)
        size = sum(one.bytes for one in self._receivers)
        return Transferred(files_here, size, len(files) - len(differing), left_out)

    def _receiver(self) -> Receiver:
        receiver = Receiver(str(self._target), self._token, self._single)
        with self._crew.changed:
            self._receivers.append(receiver)
        return receiver

    # ------------------------------------------------------------------ what differs

    def _listed(self, control: Session) -> tuple[list[File], list[Folder], list[Link]]:
        files: dict[str, File] = {}
        folders: dict[str, Folder] = {}
        links: dict[str, Link] = {}
        last = False
        while not last:
            said = control.expect(b"l")
            try:
                for entry in said["entries"]:
                    what = _entry(entry)
                    if isinstance(what, File):
                        files[what.path] = what
                    elif isinstance(what, Folder):
                        folders[what.path] = what
                    else:
                        links[what.path] = what
                last = bool(said["last"])
            except (KeyError, TypeError, ValueError) as error:
                raise control.nonsense(f"its listing ({error})") from error
            if len(files) + len(folders) + len(links) > _MOST_ENTRIES:
                raise control.nonsense(f"it lists more than {_MOST_ENTRIES} entries")
        return (
            sorted(files.values(), key=lambda file: file.path),
            sorted(folders.values(), key=lambda folder: folder.path),
            sorted(links.values(), key=lambda link: link.path),
        )

    def _differing(self, control: Session, receiver: Receiver, files: list[File]) -> list[File]:
        here: dict[str, tuple[int, int]] = {}
        for file in files:
            try:
                state = os.lstat(receiver.place(file.path))
            except FileNotFoundError:
                continue
            if stat.S_ISREG(state.st_mode):
                here[file.path] = state.st_size, state.st_mtime_ns
        if not self._checksum:
            differing = planning.differing_locally(files, here)
        else:
            unlike = self._unlike(control, receiver, files, here)
            differing = [file for file in files if file.path in unlike]
        taken = {file.path for file in differing}
        same = [file for file in files if file.path not in taken]
        receiver.touches([[file.path, file.mode, file.mtime_ns] for file in same])
        return differing

    def _unlike(
        self,
        control: Session,
        receiver: Receiver,
        files: list[File],
        here: dict[str, tuple[int, int]],
    ) -> set[str]:
        alike = [file for file in files if here.get(file.path, (-1, 0))[0] == file.size]
        unlike = {file.path for file in files} - {file.path for file in alike}
        for at in range(0, len(alike), _COMPARED):
            batch = alike[at : at + _COMPARED]
            control.frames.send_json(b"X", [file.path for file in batch])
            digests = control.expect(b"x")
            if not isinstance(digests, list) or len(digests) != len(batch):
                raise control.nonsense("its digests")
            for file, digest in zip(batch, digests, strict=True):
                if file_digest(receiver.place(file.path)) != digest:
                    unlike.add(file.path)
        return unlike

    def _plan(self, control: Session, receiver: Receiver, differing: list[File]) -> None:
        small = [file for file in differing if file.size < planning.LARGE_BYTES]
        self._jobs.add(planning.bundles(small))
        for number, file in enumerate(
            file for file in differing if file.size >= planning.LARGE_BYTES
        ):
            large = Large(number, file, file.size)
            self._add_parts(receiver, large, self._missing(control, receiver, large))
        self._jobs.complete()

    def _add_parts(
        self, receiver: Receiver, large: Large, parts: Iterable[tuple[int, int]]
    ) -> None:
        jobs = parts_of(large, parts)
        large.planned = True
        self._jobs.add(jobs)
        if not jobs:
            self._finish(receiver, large)

    def _missing(
        self, control: Session, receiver: Receiver, large: Large
    ) -> Iterator[tuple[int, int]]:
        """The parts of a large file that what is here does not have."""
        file = large.file
        place = receiver.place(file.path)
        draft = receiver.adopt(file.path)
        try:
            handle = open_plain(receiver.draft(file.path) if draft else place)
        except OSError:
            return planning.parts(file.size)  # there is nothing to compare with
        try:
            size = os.fstat(handle).st_size
            if not draft and min(size, file.size) < planning.DELTA_BYTES:
                return planning.parts(file.size)
            large.base = "draft" if draft else "target"
            found = self._matched(control, large, handle, size, moves=not draft)
            receiver.begin(large.number, file.path, file.size)
            if not draft:
                ranges = [[one.ours, one.theirs, one.length] for one in found]
                receiver.copy(large.number, handle, ranges)
        finally:
            os.close(handle)
        self._meter.add(sum(one.length for one in found))
        missing = gaps([(one.theirs, one.length) for one in found], file.size)
        return planning.parts(file.size, missing)

    def _matched(
        self, control: Session, large: Large, handle: int, size: int, *, moves: bool
    ) -> list[Found]:
        file, block = large.file, block_size(large.file.size)
        said = {"id": large.number, "path": file.path, "what": "target", "block": block}
        control.frames.send_json(b"S", said)
        matcher = Matcher(handle, size, file.size, block, moves)
        found: list[Found] = []
        while True:
            kind, payload = control.receive()
            if kind != b"s" or len(payload) < SIGNED.size:
                raise control.nonsense(f"{kind!r} came where signatures should")
            number, last = SIGNED.unpack_from(payload)
            if number != large.number:
                raise control.nonsense("signatures of another file")
            found.extend(matcher.feed(bytes(payload[SIGNED.size :])))
            if last:
                return joined(found)

    # ------------------------------------------------------------------ fetching

    def _fetch(self, control: Session, receiver: Receiver) -> None:
        self._busy = 1
        self._crew.start(self._share, control, receiver)
        self._crew.start(self._crew.widen, self._further, lambda: self._meter.left, self._streams)
        self._crew.wait_for(lambda: not self._busy)

    def _further(self) -> None:
        """One more stream."""
        session = self._crew.further(self._source, self._token)
        if session is None:
            return
        with self._crew.changed:
            self._busy += 1
        self._share(session, self._receiver(), greeted=False)

    def _share(self, session: Session, receiver: Receiver, *, greeted: bool = True) -> None:
        self._work(session, receiver, greeted)
        with self._crew.changed:
            self._busy -= 1
            self._crew.changed.notify_all()

    def _work(self, session: Session, receiver: Receiver, greeted: bool) -> None:
        """Ask for some jobs ahead, and take what comes, in order."""
        asked: deque[Job] = deque()
        ahead = 0
        try:
            while True:
                while ahead < _AHEAD_BYTES and (job := self._jobs.take(wait=False)):
                    self._ask(session, job)
                    asked.append(job)
                    ahead += size_of(job)
                if not greeted:
                    session.greeting()
                    greeted = True
                if not asked:
                    return
                job = asked.popleft()
                ahead -= size_of(job)
                if isinstance(job, Part):
                    self._take_part(session, receiver, job)
                else:
                    self._take_bundle(session, receiver, job)
        finally:
            receiver.close()

    def _ask(self, session: Session, job: Job) -> None:
        try:
            self._request(session, job)
        except LinkBroken:
            return  # what comes next tells why: the machine's own word, or a broken link

    def _request(self, session: Session, job: Job) -> None:
        if not isinstance(job, Part):
            session.frames.send_json(b"G", [file.path for file in job])
            return
        large = job.large
        said = {"id": large.number, "path": large.file.path, "dense": large.dense}
        said |= {"offset": job.offset, "length": job.length, "quick": find_xxh3() is not None}
        session.frames.send_json(b"P", said)

    def _take_bundle(self, session: Session, receiver: Receiver, job: list[File]) -> None:
        kind, payload = session.receive()
        if kind != b"B":
            raise Broken(f"{kind!r} came where small files should")
        self._pace.wait(len(payload))
        receiver.bundle(payload, {file.path for file in job})
        self._meter.add(sum(file.size for file in job))

    def _take_part(self, session: Session, receiver: Receiver, part: Part) -> None:
        large, tally, done = part.large, Tally(), 0
        receiver.begin(large.number, large.file.path, large.file.size)
        while True:
            kind, payload = session.receive()
            if kind == b"R":
                self._pace.wait(len(payload))
                _within(payload, part)
                number, _, length, check = receiver.piece(payload)
                tally.add(number, length, check)
                self._meter.add(length)
                done += length
            elif kind == b"v":
                number, size = parse_json(payload)
                if number != large.number or not isinstance(size, int) or size < 0:
                    raise Broken("a file's new size")
                with self._crew.changed:
                    large.shrunk(size)
            elif kind == b"A":
                tally.check(payload)
                break
            else:
                raise Broken(f"{kind!r} came where a part of a file should")
        self._meter.add(part.length - done)  # holes
        with self._crew.changed:
            large.unsure -= 1
            whole = large.whole()
        if whole:
            self._finish(receiver, large)

    def _finish(self, receiver: Receiver, large: Large) -> None:
        file = large.file
        receiver.end(large.number)
        receiver.finish(file.path, large.size, file.mode, file.mtime_ns)


def _within(payload: Data, part: Part) -> None:
    if len(payload) < PIECE.size:
        raise Broken("a piece that is too short")
    number, offset, length, _, _ = PIECE.unpack_from(payload)
    inside = part.offset <= offset and offset + length <= part.offset + part.length
    if number != part.large.number or not inside:
        raise Broken("a piece that nobody asked for")


def _entry(entry: Any) -> File | Folder | Link:
    """One line of a listing. Raises ValueError, TypeError."""
    match entry:
        case ["f", str(path), int(size), int(mtime_ns), int(mode)] if size >= 0:
            return File(path, size, mtime_ns, mode & 0o777)
        case ["d", str(path), int(mode)]:
            return Folder(path, mode & 0o777)
        case ["l", str(path), str(target)] if target and "\0" not in target:
            return Link(path, target)
        case _:
            raise ValueError("an entry that is none")
