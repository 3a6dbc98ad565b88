"""Sending a file or a tree to a machine."""

from __future__ import annotations

import os
import secrets
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from gpuctl.errors import UsageError
from gpuctl.remote.channels import Channels
from gpuctl.remote.connection import Transferred
from gpuctl.remote.selection import File, Selection
from gpuctl.remote.transfer import planning
from gpuctl.remote.transfer.crew import Crew, Jobs
from gpuctl.remote.transfer.delta import Found, Matcher, gaps, joined
from gpuctl.remote.transfer.framing import (
    ACK,
    BEAT,
    PIECE_HEAD,
    SIGNED,
    Broken,
    Data,
    Packing,
    Tally,
    parse_json,
)
from gpuctl.remote.transfer.native import find_xxh3
from gpuctl.remote.transfer.pace import Meter, Pace
from gpuctl.remote.transfer.parts import Large, Part, parts_of
from gpuctl.remote.transfer.planning import Differing
from gpuctl.remote.transfer.reading import (
    block_size,
    file_digest,
    open_plain,
    piece_buffer,
    pieces,
    send_bundle,
    send_piece,
)
from gpuctl.remote.transfer.session import LinkBroken, Session

_COMPARED = 2000  # files in one frame
_SIGNING_AHEAD = 4  # files whose signatures are asked for before they are needed


class Push:
    """One attempt to send; what an earlier one left is used.

    Args:
        channels: the way to the machine.
        source: a folder, or with ``name`` one file.
        selecting: tells what of it; asked while the far side starts.
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
        selecting: Callable[[], Selection],
        target: str,
        *,
        meter: Meter,
        pace: Pace,
        name: str | None = None,
        checksum: bool = False,
        streams: int = planning.MAX_STREAMS,
        machine: str | None = None,
    ) -> None:
        self._source, self._selecting, self._target = source, selecting, target
        self._selection = Selection([], [], [])
        self._meter, self._pace = meter, pace
        self._name, self._checksum, self._streams = name, checksum, streams
        self._token = secrets.token_hex(6)
        self._crew = Crew(channels, machine)
        self._jobs = Jobs(self._crew)
        self._unanswered = 0  # questions what differs
        self._bare = False  # nothing was there
        self._quick = False  # whether both ends know the quick check
        self._differing: list[Differing] = []
        self._same: list[File] = []  # their content is, their mode and time maybe not
        self._large: list[Large] = []
        self._signatures: dict[int, deque[bytes | None]] = {}  # None ends a file's
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
            control = self._crew.control()
            control.hello(self._target, self._token, self._name)
            self._selection = planning.sendable(self._selecting())
            listener = self._crew.start(self._listen, control, control)
            with self._crew.heard(listener):
                return self._run(control, listener)
        except LinkBroken:
            self._crew.check()  # there may be a better word for it
            raise
        except OSError as error:
            raise UsageError(
                f"{error.filename or self._source} cannot be read: {error.strerror or error}",
                next="Make it readable, then try again: what arrived is not sent twice.",
            ) from error
        finally:
            self._crew.close()

    def _run(self, control: Session, listener: threading.Thread) -> Transferred:
        sender = self._crew.start(self._send, control, control, listener)
        if any(file.size >= planning.LARGE_BYTES for file in self._selection.files):
            control.frames.send_json(b"Q", None)
        self._ask_what_differs(control)
        self._crew.wait_for(lambda: self._bare or not self._unanswered)
        files = self._selection.files if self._bare else [one.file for one in self._differing]
        self._meter.expect(sum(file.size for file in files))
        further = partial(self._further, control)
        self._crew.start(self._crew.widen, further, lambda: self._meter.left, self._streams)
        self._crew.wait_for(lambda: not self._unanswered)
        self._compare_blocks(control)
        self._jobs.complete()
        sender.join()
        self._crew.wait_for(lambda: all(large.finished for large in self._large))
        return self._conclude(control)

    # ------------------------------------------------------------------ what differs

    def _ask_what_differs(self, control: Session) -> None:
        folders, files = [one.path for one in self._selection.dirs], self._selection.files
        for at in range(0, len(folders), _COMPARED):
            control.frames.send_json(b"M", folders[at : at + _COMPARED])
        starts = range(0, len(files), _COMPARED)
        self._unanswered = len(starts)
        for first in starts:
            entries = [
                [f.path, f.size, f.mtime_ns, f.mode & 0o777, f.size >= planning.LARGE_BYTES]
                for f in files[first : first + _COMPARED]
            ]
            said = {"first": first, "entries": entries, "checksum": self._checksum}
            control.frames.send_json(b"C", said)

    def _compared(self, payload: Data) -> None:
        """An answer came; what differs can be sent at once."""
        said = parse_json(payload)
        first, files = said["first"], self._selection.files
        if said.get("all"):
            found = [Differing(file, -1) for file in files[first : first + _COMPARED]]
        else:
            found = []
            for index, size, draft, digest in said["differing"]:
                file = files[first + index]
                if digest is not None and file_digest(self._place(file)) == digest:
                    self._same.append(file)
                else:
                    found.append(Differing(file, size, draft, digest))
        self._plan(found)
        with self._crew.changed:
            self._differing += found
            self._bare = self._bare or bool(said.get("all"))
            self._unanswered -= 1
            self._crew.changed.notify_all()

    def _plan(self, differing: Sequence[Differing]) -> None:
        small = [one.file for one in differing if one.file.size < planning.LARGE_BYTES]
        self._jobs.add(planning.bundles(small))
        for one in differing:
            if one.file.size >= planning.LARGE_BYTES:
                base = planning.base(one)
                large = Large(len(self._large), one.file, one.file.size, base, one.size_there)
                self._large.append(large)
                self._signatures[large.number] = deque()
                if base is None:
                    large.planned = True
                    self._add_parts(large, planning.parts(one.file.size))

    def _add_parts(self, large: Large, ranges: Iterable[tuple[int, int]]) -> None:
        with self._crew.changed:
            self._jobs.add(parts_of(large, ranges))

    def _place(self, file: File) -> str:
        return str(self._source / file.path) if file.path else str(self._source)

    # ------------------------------------------------------------------ changed blocks

    def _compare_blocks(self, control: Session) -> None:
        for at in range(0, len(self._same), _COMPARED):
            same = [[f.path, f.mode & 0o777, f.mtime_ns] for f in self._same[at : at + _COMPARED]]
            control.frames.send_json(b"T", same)
        changed = [large for large in self._large if large.base]
        asked = 0
        for position, large in enumerate(changed):
            while asked < min(len(changed), position + _SIGNING_AHEAD):
                self._ask_signatures(control, changed[asked])
                asked += 1
            self._match(control, large)
            with self._crew.changed:
                large.planned = True
            self._finish_if_whole(control, large)

    def _ask_signatures(self, control: Session, large: Large) -> None:
        if large.base == "draft":
            control.frames.send_json(b"O", {**self._opening(large), "adopt": True})
        said = {"id": large.number, "path": large.file.path, "what": large.base}
        control.frames.send_json(b"S", {**said, "block": block_size(large.file.size)})

    def _opening(self, large: Large) -> dict[str, object]:
        file = large.file
        return {"id": large.number, "path": file.path, "size": file.size, "adopt": False}

    def _match(self, control: Session, large: Large) -> None:
        """Compare with what is there; what it lacks is sent, what it has copied, at once."""
        if large.base == "target":
            control.frames.send_json(b"O", self._opening(large))
        handle = open_plain(self._place(large.file))
        try:
            moves = large.base == "target"
            there = large.size_there if moves else large.file.size
            size, block = large.file.size, block_size(large.file.size)
            matcher = Matcher(handle, size, there, block, moves)
            end = 0
            while (batch := self._signed(large)) is not None:
                fresh = list(matcher.feed(batch))
                missing = list(gaps([(one.ours - end, one.length) for one in fresh], 0))
                self._add_parts(large, planning.parts(0, [(end + a, end + b) for a, b in missing]))
                self._meter.add(sum(one.length for one in fresh))
                end = fresh[-1].ours + fresh[-1].length if fresh else end
                if moves and fresh:
                    self._have_copied(control, large, fresh)
            self._add_parts(large, planning.parts(0, [(end, size)]))
        finally:
            os.close(handle)

    def _have_copied(self, control: Session, large: Large, found: list[Found]) -> None:
        ranges = [[one.theirs, one.ours, one.length] for one in joined(found)]
        said = {"id": large.number, "path": large.file.path, "ranges": ranges}
        control.frames.send_json(b"Y", said)

    def _signed(self, large: Large) -> bytes | None:
        self._crew.wait_for(lambda: bool(self._signatures[large.number]))
        return self._signatures[large.number].popleft()

    # ------------------------------------------------------------------ sending

    def _further(self, control: Session) -> None:
        """One more stream."""
        session = self._crew.further(self._target, self._token, self._name)
        if session is None:
            return
        with self._crew.changed:
            if self._jobs.ended:
                session.close()
                return
            self._extras.append(session)
        self._send(session, control, self._crew.start(self._listen, session, control))
        session.frames.send_json(b"Z", None)

    def _send(self, session: Session, control: Session, listener: threading.Thread) -> None:
        """Send jobs until there are no more."""
        with self._crew.heard(listener):
            self._work(session, control)

    def _work(self, session: Session, control: Session) -> None:
        packing, buffer, begun = None, piece_buffer(), set[int]()
        while (job := self._jobs.take()) is not None:
            packing = packing or Packing(session.expected_rate, control.zstd)
            if isinstance(job, Part):
                if job.large.number not in begun:
                    begun.add(job.large.number)
                    session.frames.send_json(b"O", self._opening(job.large))
                self._send_part(session, packing, buffer, job)
                if session is control:  # what follows on the same stream comes after it
                    self._part_arrived(control, job.large)
            else:
                size = sum(file.size for file in job)
                self._pace.wait(size)
                paths = [file.path for file in job]
                table = send_bundle(session.frames, packing, str(self._source), paths)
                self._count(len(table), sum(entry[1] for entry in table))
                self._meter.add(size)

    def _send_part(
        self, session: Session, packing: Packing, buffer: memoryview, part: Part
    ) -> None:
        large, tally, done = part.large, Tally(), 0
        handle = open_plain(self._place(large.file))
        try:
            found = pieces(handle, part.offset, part.length, large.dense, buffer)
            for start, frame in found:
                length = len(frame) - PIECE_HEAD
                self._pace.wait(length)
                at = large.number, start
                check = send_piece(session.frames, packing, *at, frame, self._quick)
                tally.add(large.number, length, check)
                self._meter.add(length)
                done += length
            size = os.fstat(handle).st_size
        finally:
            os.close(handle)
        if size < part.offset + part.length:
            with self._crew.changed:
                large.shrunk(size)
        session.frames.send(b"A", tally.mark(large.number, part.offset))
        self._meter.add(part.length - done)  # holes

    def _part_arrived(self, control: Session, large: Large) -> None:
        with self._crew.changed:
            large.unsure -= 1
        self._finish_if_whole(control, large)

    def _finish_if_whole(self, control: Session, large: Large) -> None:
        with self._crew.changed:
            if not large.whole():
                return
            self._sent[0] += 1
            self._sent[1] += large.size
        file = large.file
        said = {"mode": file.mode & 0o777, "mtime_ns": file.mtime_ns, "size": large.size}
        control.frames.send_json(b"F", {**said, "id": large.number, "path": file.path})
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
                    number, last = SIGNED.unpack_from(payload)
                    batch = None if last else bytes(payload[SIGNED.size :])
                    with self._crew.changed:
                        self._signatures[number].append(batch)
                        self._crew.changed.notify_all()
                elif kind == b"a":
                    if session is not control:
                        self._part_arrived(control, self._large[ACK.unpack(payload)[0]])
                elif kind == b"c":
                    self._compared(payload)
                elif kind == b"q":
                    self._quick = parse_json(payload) is True and find_xxh3() is not None
                elif kind == b"h":
                    session.greeted(parse_json(payload))
                elif kind == b"z":
                    files, size = parse_json(payload)
                    self._said_all(int(files), int(size))
                    return
                elif kind not in (b"b", BEAT):
                    raise Broken(f"an unknown frame {kind!r}")
            except (Broken, KeyError, IndexError, TypeError, ValueError, struct.error) as error:
                raise session.nonsense(str(error)) from error

    def _said_all(self, files: int, size: int) -> None:
        with self._crew.changed:
            self._arrived[0] += files
            self._arrived[1] += size
            self._last_words += 1
            self._crew.changed.notify_all()

    def _conclude(self, control: Session) -> Transferred:
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
        files, size = self._arrived
        if self._arrived != self._sent:
            raise control.nonsense(
                f"it counts {files} files and {size} bytes, but {self._sent[0]} and "
                f"{self._sent[1]} were sent"
            )
        return Transferred(files, size, len(self._selection.files) - len(self._differing))
