"""From a machine to a bucket: straight, or passed on by this computer."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpuctl.buckets.from_here import (
    FileKey,
    ObjectFile,
    confirm,
    no_links,
    planned,
    send_from_here,
)
from gpuctl.buckets.naming import LARGEST_OBJECT, key_of_file
from gpuctl.buckets.talking import LANES, NoRoute, Talk
from gpuctl.buckets.trip import BREAKS, NothingThere, Trip, passing_through
from gpuctl.errors import GpuctlError, RemoteError
from gpuctl.remote.connection import Transferred
from gpuctl.remote.transfer.session import LinkBroken, NoPython
from gpuctl.store.bucket import Address

AT_ONCE_BYTES = 1 << 30  # of what is passed on lies here at once, unless one file is larger
_WINDOW = 64  # files whose addresses are on the machine at once


def send(
    trip: Trip, source: str, address: Address, *, file_key: FileKey = key_of_file
) -> Transferred:
    """Send a file or a folder of a machine to a bucket.

    A folder's contents land below the address, a file where ``file_key`` says. What is there
    already with the same content, as far as its ETag tells, is not sent. Links are left out.

    Raises:
        NothingThere: there is no such file or folder.
        StoreError, NoCredentials: the bucket does not take it, or cannot hold a name.
        RemoteError: the machine cannot be reached, or not be read.
    """
    return _Sending(trip, source, address, file_key).all()


class _Sending:
    def __init__(self, trip: Trip, source: str, address: Address, file_key: FileKey) -> None:
        self._trip, self._source, self._address = trip, source, address
        self._file_key = file_key
        self._bucket = trip.bucket(address.bucket)
        self._files: list[ObjectFile] = []
        self._waiting: set[int] = set()
        self._same: set[int] = set()
        self._left_out: tuple[str, ...] = ()
        self._is_file = False
        self._planned = False
        self._done = 0  # bytes

    @property
    def _name(self) -> str:
        return self._source.rstrip("/").rpartition("/")[2]

    @property
    def _total(self) -> int:
        return sum(file.size for file in self._files)

    def all(self) -> Transferred:
        why = self._trip.why_not_straight(self._bucket)
        try:
            self._on_the_machine(straight=why is None)
        except (NoRoute, NoPython) as error:
            why = error.message
        if self._waiting or not self._planned:
            self._trip.say(f"{self._address} is reached through this computer, because {why}")
            return self._pass_on()
        confirm(self._bucket, self._address, self._files)
        moved = [file.size for n, file in enumerate(self._files) if n not in self._same]
        return Transferred(len(moved), sum(moved), len(self._same), self._left_out)

    # ------------------------------------------------------------------ straight

    def _on_the_machine(self, *, straight: bool) -> None:
        breaks = 0
        while self._waiting or not self._planned:
            before = len(self._waiting), self._done
            try:
                with Talk(
                    self._trip.connection, machine=self._trip.machine, where=str(self._address)
                ) as talk:
                    self._look(talk)
                    if not straight:
                        return
                    with self._no_upload_left():
                        self._send(talk)
            except LinkBroken:
                breaks = breaks + 1 if before == (len(self._waiting), self._done) else 0
                if breaks >= BREAKS:
                    raise

    def _look(self, talk: Talk) -> None:
        """Have the machine list what there is, and plan it the first time."""
        pem = Path(self._bucket.ca_bundle).read_text() if self._bucket.ca_bundle else None
        root = self._trip.inside(self._source)
        talk.say("start", way="out", root=root, rate=self._trip.rate, ca=pem, lanes=LANES)
        listed: list[tuple[str, int]] = []
        links: list[str] = []
        kind = None
        while (said := talk.heard())["t"] != "listed":
            self._trip.report(self._done, self._total)
            if said["t"] == "kind":
                kind = said.get("kind")
            elif said["t"] == "files":
                listed += _believed(talk, said.get("files"))
                links += [one for one in said.get("links", ()) if isinstance(one, str)]
        if self._planned:
            return
        if kind not in ("dir", "file"):
            missing = "is not there" if kind == "missing" else "is neither a file nor a folder"
            raise NothingThere(f"{self._source} {missing}", machine=self._trip.machine)
        self._is_file = kind == "file"
        self._left_out = no_links(links)
        self._files = planned(
            self._bucket, self._address, listed, self._name, self._file_key, self._is_file
        )
        self._waiting = set(range(len(self._files)))
        self._planned = True

    def _send(self, talk: Talk) -> None:
        queue = sorted(self._waiting, reverse=True)
        under_way: set[int] = set()
        settled = self._total - sum(self._files[number].size for number in self._waiting)
        if queue:
            self._trip.say(f"{self._address} is written straight from the machine")
        while queue or under_way:
            if queue and len(under_way) <= _WINDOW // 2:
                given = [queue.pop() for _ in range(min(len(queue), _WINDOW - len(under_way)))]
                under_way |= set(given)
                talk.say("send", files=[self._given(number) for number in given])
            said = talk.heard()
            number = said.get("i")
            if said["t"] == "bytes" and isinstance(said.get("n"), int):
                self._done = max(self._done, settled + said["n"])
                self._trip.report(self._done, self._total)
            elif said["t"] in ("done", "same", "url"):
                if type(number) is not int or number not in under_way:
                    raise talk.nonsense("it speaks of a file that it was not given")
                if said["t"] == "url":
                    self._tell_url(talk, number, said.get("part"))
                    continue
                if said["t"] == "same":
                    self._same.add(number)
                else:
                    self._complete(talk, self._files[number], said.get("etags"))
                under_way.remove(number)
                self._waiting.remove(number)

    def _given(self, number: int) -> list[Any]:
        file = self._files[number]
        url = None if file.parts else self._bucket.write_url(file.key)
        return [[number, file.path, file.size, file.part, file.there], url]

    def _tell_url(self, talk: Talk, number: int, part: object) -> None:
        file = self._files[number]
        if type(part) is not int or not (1 <= part <= file.parts or part == file.parts == 0):
            raise talk.nonsense("it asks for a part that there is not")
        if part == 0:
            url = self._bucket.write_url(file.key)
        else:
            if file.upload is None:
                file.upload = self._bucket.begin_upload(file.key)
            url = self._bucket.part_url(file.key, file.upload, part)
        talk.say("url", i=number, part=part, url=url)

    def _complete(self, talk: Talk, file: ObjectFile, etags: object) -> None:
        if not file.parts:
            return
        good = isinstance(etags, list) and all(isinstance(etag, str) for etag in etags)
        if not good or not isinstance(etags, list) or len(etags) != file.parts or not file.upload:
            raise talk.nonsense("it has sent other parts than it was given")
        self._bucket.complete_upload(file.key, file.upload, etags)
        file.upload = None

    @contextlib.contextmanager
    def _no_upload_left(self) -> Iterator[None]:
        """Give up what was begun and not completed: its parts would bill for good."""
        try:
            yield
        finally:
            for file in self._files:
                if file.upload is not None:
                    upload, file.upload = file.upload, None
                    try:
                        self._bucket.give_up_upload(file.key, upload)
                    except GpuctlError as error:
                        self._trip.say(
                            f"an unfinished upload of s3://{self._bucket.name}/{file.key} may be "
                            f"left and bill until it is aborted: {error.message}"
                        )

    # ------------------------------------------------------------------ passed on

    def _pass_on(self) -> Transferred:
        """Fetch it to here and send it from here; all at once when that is not too much."""
        if not self._planned or self._total <= AT_ONCE_BYTES or self._is_file:
            return self._through_here(self._source, self._address, self._left_out, self._file_key)
        parts = [
            self._through_here(
                f"{self._source.rstrip('/')}/{file.path}",
                Address(self._address.bucket, file.key),
                (),
                key_of_file,
            )
            for file in self._files
        ]
        return Transferred(
            sum(part.files for part in parts),
            sum(part.bytes for part in parts),
            sum(part.skipped for part in parts),
            self._left_out,
        )

    def _through_here(
        self, source: str, address: Address, left_out: Sequence[str], file_key: FileKey
    ) -> Transferred:
        trip = self._trip
        with passing_through(trip.scratch) as folder:
            place = folder / "it"
            try:
                got = trip.connection.get(
                    source, place, progress=trip.progress, checksum=False, rate=trip.rate
                )
            except RemoteError as error:
                raise self._or_nothing_there(error) from error
            sent = send_from_here(
                place,
                address,
                environ=trip.environ,
                name=self._name,
                file_key=file_key,
                progress=trip.progress,
            )
        named = dict.fromkeys(itertools.chain(left_out, got.left_out, sent.left_out))
        return Transferred(sent.files, sent.bytes, sent.skipped, tuple(named))

    def _or_nothing_there(self, error: RemoteError) -> RemoteError:
        """Without our program there, its absence shows only when it is fetched."""
        if self._planned:
            return error
        path = self._trip.inside(self._source)
        looked = self._trip.connection.run(["test", "-e", path], timeout=60.0)
        if looked.exit_code == 1:
            return NothingThere(f"{self._source} is not there", machine=self._trip.machine)
        return error


def _believed(talk: Talk, said: object) -> list[tuple[str, int]]:
    """The files that a machine tells of. What their names may be is for the keys to say."""
    files: list[tuple[str, int]] = []
    for one in said if isinstance(said, list) else [None]:
        match one:
            case [str(path), int(size)] if 0 <= size <= LARGEST_OBJECT:
                files.append((path, size))
            case _:
                raise talk.nonsense("a file without a name or size")
    return files
