"""Sending a file or a tree to a machine."""

from __future__ import annotations

import os
import secrets
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gpuctl.errors import RemoteError, UsageError
from gpuctl.remote.channels import Channels
from gpuctl.remote.connection import Transferred
from gpuctl.remote.selection import File, Selection
from gpuctl.remote.transfer import planning
from gpuctl.remote.transfer.crew import Crew, Jobs
from gpuctl.remote.transfer.delta import Found, Matcher, gaps, joined
from gpuctl.remote.transfer.framing import ACK, BEAT, Broken, Packing, Tally, parse_json
from gpuctl.remote.transfer.pace import Meter, Pace
from gpuctl.remote.transfer.planning import Differing
from gpuctl.remote.transfer.reading import (
    block_size,
    file_digest,
    open_plain,
    pieces,
    send_bundle,
    send_piece,
)
from gpuctl.remote.transfer.session import LinkBroken, Session

_COMPARED = 2000  # files in one frame
_AHEAD = 8  # such frames without an answer
_RANGES = 20_000  # copied ranges in one frame
_SIGNED = struct.Struct(">IB")
_VERDICT_SECONDS = 2.0
_SIGNING_AHEAD = 4  # files whose signatures are asked for before they are needed


@dataclass(slots=True)
class _Large:
    """A file that goes in parts."""

    number: int
    file: File
    base: Literal["draft", "target"] | None
    size: int  # what is left of it when it became shorter meanwhile
    planned: bool = False  # every part is known
    size_there: int = -1
    unsure: int = 0  # parts that are not known to have arrived
    finished: bool = False
    signatures: deque[bytes | None] = field(default_factory=deque)  # None ends them


@dataclass(frozen=True, slots=True)
class _Part:
    large: _Large
    offset: int
    length: int


_Job = list[File] | _Part


class Push:
    """One attempt to send; what an earlier one left is used.

    Args:
        channels: the way to the machine.
        source: a folder, or with ``name`` one file.
        selection: what of it.
        target: where to, there.
        name: the file's own name, for a target that is a folder.
        checksum: compare content, not size and time of change.
        streams: at most so many, whatever the link.
        machine: its name, for what goes wrong.
    """

    def __init__(
        self,
        channels: Channels,
        source: Path,
        selection: Selection,
        target: str,
        *,
        meter: Meter,
        pace: Pace,
        name: str | None = None,
        checksum: bool = False,
        streams: int = planning.MAX_STREAMS,
        machine: str | None = None,
    ) -> None:
        self._channels, self._source, self._target = channels, source, target
        self._selection = planning.sendable(selection)
        self._meter, self._pace = meter, pace
        self._name, self._checksum, self._streams = name, checksum, streams
        self._machine = machine
        self._token = secrets.token_hex(6)
        self._crew = Crew()
        self._jobs: Jobs[_Job] = Jobs(self._crew)
        self._large: list[_Large] = []
        self._extras: list[Session] = []
        self._sent = [0, 0]  # files and bytes
        self._arrived = [0, 0]  # files and bytes, as the far sides count them
        self._last_words = 0  # sessions that have said all

    def run(self) -> Transferred:
        """Do it.

        Raises:
            UsageError: something here cannot be read.
            LinkBroken: carry on with another attempt.
            RemoteError: it cannot be done.
        """
        try:
            control = Session(self._channels, machine=self._machine)
            self._crew.join_in(control)
            return self._run(control)
        except OSError as error:
            raise UsageError(
                f"{error.filename or self._source} cannot be read: {error.strerror or error}",
                next="Make it readable, then try again: what arrived is not sent twice.",
            ) from error
        finally:
            self._crew.close()

    def _run(self, control: Session) -> Transferred:
        self._introduce(control)
        differing = self._compared(control)
        size = sum(one.file.size for one in differing)
        self._meter.expect(size)
        self._plan(differing)
        wanted = min(control.streams_for(size), self._streams)
        sender = self._crew.start(self._send, control, control)
        for _ in range(wanted - 1):
            self._crew.start(self._further, control)
        self._compare_blocks(control)
        self._jobs.complete()
        sender.join()
        self._crew.wait_for(lambda: all(large.finished for large in self._large))
        return self._conclude(control, differing)

    # ------------------------------------------------------------------ what differs

    def _introduce(self, control: Session) -> None:
        control.hello(self._target, self._token, self._name)
        folders = [folder.path for folder in self._selection.dirs]
        for at in range(0, len(folders), _COMPARED):
            control.frames.send_json(b"M", folders[at : at + _COMPARED])

    def _compared(self, control: Session) -> list[Differing]:
        """Ask the machine what is not there as it should be."""
        files = self._selection.files
        starts = range(0, len(files), _COMPARED)
        ahead = 0
        differing: list[Differing] = []
        greeted = False
        for position in range(len(starts) + _AHEAD):
            if position < len(starts):
                first = starts[position]
                entries = [
                    [f.path, f.size, f.mtime_ns, f.mode & 0o777, f.size >= planning.LARGE_BYTES]
                    for f in files[first : first + _COMPARED]
                ]
                control.frames.send_json(
                    b"C", {"first": first, "entries": entries, "checksum": self._checksum}
                )
                ahead += 1
            if ahead and (ahead >= _AHEAD or position >= len(starts) - 1):
                if not greeted:
                    control.greeting()
                    greeted = True
                differing.extend(self._differing(control))
                ahead -= 1
        if not greeted:
            control.greeting()
        return differing

    def _differing(self, control: Session) -> Iterator[Differing]:
        said = control.expect(b"c")
        same = []
        try:
            for index, size, draft, digest in said["differing"]:
                file = self._selection.files[said["first"] + index]
                if digest is not None and file_digest(self._place(file)) == digest:
                    same.append([file.path, file.mode & 0o777, file.mtime_ns])
                else:
                    yield Differing(file, size, draft, digest)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise control.nonsense("its comparison") from error
        if same:
            control.frames.send_json(b"T", same)

    def _plan(self, differing: Sequence[Differing]) -> None:
        small = [one.file for one in differing if one.file.size < planning.LARGE_BYTES]
        self._jobs.add(planning.bundles(small))
        for one in differing:
            if one.file.size >= planning.LARGE_BYTES:
                large = _Large(len(self._large), one.file, planning.base(one), one.file.size)
                large.size_there = one.size_there
                self._large.append(large)
                if large.base is None:
                    large.planned = True
                    self._add_parts(large, planning.parts(one.file.size))

    def _add_parts(self, large: _Large, parts: Iterable[tuple[int, int]]) -> None:
        jobs: list[_Job] = [_Part(large, *part) for part in parts]
        with self._crew.changed:
            large.unsure += len(jobs)
            self._jobs.add(jobs)

    def _place(self, file: File) -> str:
        return str(self._source / file.path) if file.path else str(self._source)

    # ------------------------------------------------------------------ changed blocks

    def _compare_blocks(self, control: Session) -> None:
        changed = [large for large in self._large if large.base]
        asked = 0
        for position, large in enumerate(changed):
            while asked < min(len(changed), position + _SIGNING_AHEAD):
                self._ask_signatures(control, changed[asked])
                asked += 1
            found = self._matched(large)
            if large.base == "target":
                control.frames.send_json(b"O", self._opening(large))
                for at in range(0, len(found), _RANGES):
                    ranges = [[f.theirs, f.ours, f.length] for f in found[at : at + _RANGES]]
                    control.frames.send_json(
                        b"Y", {"id": large.number, "path": large.file.path, "ranges": ranges}
                    )
            with self._crew.changed:
                large.planned = True
            self._finish_if_whole(control, large)

    def _ask_signatures(self, control: Session, large: _Large) -> None:
        if large.base == "draft":
            control.frames.send_json(b"O", {**self._opening(large), "adopt": True})
        said = {"id": large.number, "path": large.file.path, "what": large.base}
        control.frames.send_json(b"S", {**said, "block": block_size(large.file.size)})

    def _opening(self, large: _Large) -> dict[str, object]:
        size = large.file.size
        return {"id": large.number, "path": large.file.path, "size": size, "adopt": False}

    def _matched(self, large: _Large) -> list[Found]:
        """Compare with what is there; what it lacks is sent as soon as it is known."""
        handle = open_plain(self._place(large.file))
        try:
            moves = large.base == "target"
            there = large.size_there if moves else large.file.size
            block = block_size(large.file.size)
            matcher = Matcher(handle, large.file.size, there, block, moves)
            found: list[Found] = []
            end = 0
            while (batch := self._signed(large)) is not None:
                fresh = list(matcher.feed(batch))
                missing = list(gaps([(one.ours - end, one.length) for one in fresh], 0))
                self._add_parts(large, planning.parts(0, [(end + a, end + b) for a, b in missing]))
                self._meter.add(sum(one.length for one in fresh))
                end = fresh[-1].ours + fresh[-1].length if fresh else end
                found.extend(fresh)
            self._add_parts(large, planning.parts(0, [(end, large.file.size)]))
        finally:
            os.close(handle)
        return joined(found)

    def _signed(self, large: _Large) -> bytes | None:
        self._crew.wait_for(lambda: bool(large.signatures))
        return large.signatures.popleft()

    # ------------------------------------------------------------------ sending

    def _further(self, control: Session) -> None:
        """One more stream, on a connection of its own; without it the others do the work."""
        try:
            session = Session(self._channels, own_link=True, machine=self._machine)
        except RemoteError:
            return
        self._crew.join_in(session)
        session.hello(self._target, self._token, self._name)
        session.greeting()
        with self._crew.changed:
            if self._jobs.ended:
                session.close()
                return
            self._extras.append(session)
        self._send(session, control)
        session.frames.send_json(b"Z", None)

    def _send(self, session: Session, control: Session) -> None:
        listener = self._crew.start(self._listen, session, control)
        try:
            self._work(session, control)
        except LinkBroken:
            listener.join(_VERDICT_SECONDS)  # it may say why it reads no more
            raise

    def _work(self, session: Session, control: Session) -> None:
        """Send jobs until there are no more."""
        packing, begun = Packing(), set[int]()
        while (job := self._jobs.take()) is not None:
            if isinstance(job, _Part):
                if job.large.number not in begun:
                    begun.add(job.large.number)
                    session.frames.send_json(b"O", self._opening(job.large))
                self._send_part(session, packing, job)
                if session is control:  # what follows on the same stream comes after it
                    self._part_arrived(control, job.large)
            else:
                size = sum(file.size for file in job)
                self._pace.wait(size)
                paths = [file.path for file in job]
                table = send_bundle(session.frames, packing, str(self._source), paths)
                self._count(len(table), sum(entry[1] for entry in table))
                self._meter.add(size)

    def _send_part(self, session: Session, packing: Packing, part: _Part) -> None:
        large, tally, done = part.large, Tally(), 0
        handle = open_plain(self._place(large.file))
        try:
            dense = large.base == "draft"
            for start, data in pieces(handle, part.offset, part.length, dense):
                self._pace.wait(len(data))
                crc = send_piece(session.frames, packing, large.number, start, data)
                tally.add(large.number, len(data), crc)
                self._meter.add(len(data))
                done += len(data)
            size = os.fstat(handle).st_size
        finally:
            os.close(handle)
        if size < part.offset + part.length:
            with self._crew.changed:
                large.size = min(large.size, size)
        session.frames.send(b"A", tally.mark(large.number, part.offset))
        self._meter.add(part.length - done)  # holes

    def _part_arrived(self, control: Session, large: _Large) -> None:
        with self._crew.changed:
            large.unsure -= 1
        self._finish_if_whole(control, large)

    def _finish_if_whole(self, control: Session, large: _Large) -> None:
        with self._crew.changed:
            if not large.planned or large.unsure or large.finished:
                return
            large.finished = True
            self._sent[0] += 1
            self._sent[1] += large.size
        file = large.file
        said = {"id": large.number, "path": file.path, "size": large.size}
        control.frames.send_json(
            b"F", {**said, "mode": file.mode & 0o777, "mtime_ns": file.mtime_ns}
        )
        with self._crew.changed:
            self._crew.changed.notify_all()

    def _count(self, files: int, size: int) -> None:
        with self._crew.changed:
            self._sent[0] += files
            self._sent[1] += size

    # ------------------------------------------------------------------ answers

    def _listen(self, session: Session, control: Session) -> None:
        while True:
            kind, payload = session.receive()
            try:
                if kind == b"s":
                    number, last = _SIGNED.unpack_from(payload)
                    with self._crew.changed:
                        batch = None if last else payload[_SIGNED.size :]
                        self._large[number].signatures.append(batch)
                        self._crew.changed.notify_all()
                elif kind == b"a":
                    if session is not control:
                        self._part_arrived(control, self._large[ACK.unpack(payload)[0]])
                elif kind == b"z":
                    files, size = parse_json(payload)
                    self._said_all(int(files), int(size))
                    return
                elif kind not in (b"b", BEAT):
                    raise Broken(f"an unknown frame {kind!r}")
            except (Broken, IndexError, TypeError, ValueError, struct.error) as error:
                raise session.nonsense(str(error)) from error

    def _said_all(self, files: int, size: int) -> None:
        with self._crew.changed:
            self._arrived[0] += files
            self._arrived[1] += size
            self._last_words += 1
            self._crew.changed.notify_all()

    def _conclude(self, control: Session, differing: Sequence[Differing]) -> Transferred:
        """Links and modes come last; then both ends must have counted the same."""
        with self._crew.changed:
            extras = len(self._extras)
        self._crew.wait_for(lambda: self._last_words == extras)
        links, folders = self._selection.links, self._selection.dirs
        for at in range(0, len(links), _COMPARED):
            batch = links[at : at + _COMPARED]
            control.frames.send_json(b"K", [[link.path, link.target] for link in batch])
        for end in range(len(folders), 0, -_COMPARED):  # innermost first: one may be read-only
            modes = [[one.path, one.mode & 0o777] for one in folders[max(0, end - _COMPARED) : end]]
            control.frames.send_json(b"D", modes)
        control.frames.send_json(b"Z", None)
        self._crew.wait_for(lambda: self._last_words == extras + 1)
        return self._counted(control, differing)

    def _counted(self, control: Session, differing: Sequence[Differing]) -> Transferred:
        files, size = self._arrived
        if self._arrived != self._sent:
            raise control.nonsense(
                f"it counts {files} files and {size} bytes, but {self._sent[0]} and "
                f"{self._sent[1]} were sent"
            )
        return Transferred(files, size, len(self._selection.files) - len(differing))
