"""From a bucket to a machine: straight, or passed on by this computer."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpuctl.buckets.naming import Item, is_md5, items_below
from gpuctl.buckets.talking import LANES, NoRoute, Talk
from gpuctl.buckets.trip import BREAKS, Trip, passing_through
from gpuctl.errors import UsageError
from gpuctl.remote.connection import Transferred
from gpuctl.remote.transfer.session import LinkBroken, NoPython
from gpuctl.store.bucket import Address, Bucket, Changed, Gone
from gpuctl.store.parallel import in_order

PART_BYTES = 32 << 20  # larger objects come in parts, several at a time
BATCH_BYTES = 1 << 30  # of what is passed on lies here at once, unless one object is larger
_PLAN = 2000  # files of one line
_WINDOW = 64  # objects whose addresses are on the machine at once
_MOST_CHANGES = 5  # of one object, while it is fetched
_RULES = {".git", ".gitignore", ".gpuctlignore"}  # what would change the meaning of a tree


def found_at(bucket: Bucket, address: Address) -> tuple[list[Item], bool]:
    """Return what an address names: the files, and whether it is one object.

    Raises:
        UsageError: there is nothing.
        StoreError: a key there can be no file's name; or the bucket cannot be asked.
    """
    items = items_below(address, bucket.listing(address.folder))
    if items:
        return items, False
    if address.key and not address.key.endswith("/"):
        entry = bucket.look(address.key)
        if entry is not None:
            return [Item("", entry)], True
    raise UsageError(
        f"There is nothing at {address}",
        next="Correct the address; a prefix ends at a '/' of the keys.",
    )


def bring(trip: Trip, address: Address, target: str) -> Transferred:
    """Bring an object, or everything below a prefix, to a machine.

    A prefix lands like a folder's contents, an object like a file (see `Connection.put`). What is
    there already, with the same size and the bucket's time of change, is not brought again.

    Raises:
        UsageError: there is nothing at that address.
        StoreError, NoCredentials: the bucket cannot be read.
        RemoteError: the machine cannot be reached, or not be written to.
    """
    bucket = trip.bucket(address.bucket)
    items, is_file = found_at(bucket, address)
    return _Bringing(trip, bucket, address, target, items, is_file).all()


class _Bringing:
    def __init__(
        self,
        trip: Trip,
        bucket: Bucket,
        address: Address,
        target: str,
        items: Sequence[Item],
        is_file: bool,
    ) -> None:
        self._trip, self._bucket, self._address = trip, bucket, address
        self._target, self._items, self._is_file = target, list(items), is_file
        self._name = address.key.rpartition("/")[2] if is_file else None
        self._waiting = dict(enumerate(items))  # what is not known to be there
        self._wanted: set[int] = set()  # what was not there when we first looked
        self._looked = False
        self._done = self._total = 0  # bytes
        self._gone: set[int] = set()
        self._left_out: list[str] = []
        self._changes: dict[int, int] = {}

    def all(self) -> Transferred:
        why = self._trip.why_not_straight(self._bucket)
        try:
            self._on_the_machine(straight=why is None)
        except NoRoute as error:
            why = error.message
        except NoPython as error:
            why = error.message
            self._want(set(self._waiting))
        if self._waiting:
            self._trip.say(f"{self._address} is passed on by this computer, because {why}")
            self._pass_on()
        brought = [self._items[number].entry.size for number in self._wanted - self._gone]
        skipped = len(self._items) - len(self._wanted)
        return Transferred(len(brought), sum(brought), skipped, tuple(self._left_out))

    def _want(self, wanted: set[int]) -> None:
        """Take note of what was not there when we first looked."""
        if not self._looked:
            self._wanted, self._looked = set(wanted), True
            self._total = sum(self._items[number].entry.size for number in wanted)

    # ------------------------------------------------------------------ straight

    def _on_the_machine(self, *, straight: bool) -> None:
        breaks = 0
        while self._waiting:
            before = len(self._waiting), self._done
            try:
                with Talk(
                    self._trip.connection, machine=self._trip.machine, where=str(self._address)
                ) as talk:
                    self._compare(talk)
                    if not straight:
                        return
                    self._fetch(talk)
            except LinkBroken:
                breaks = breaks + 1 if before == (len(self._waiting), self._done) else 0
                if breaks >= BREAKS:
                    raise

    def _compare(self, talk: Talk) -> None:
        talk.say(
            "start",
            way="in",
            root=self._trip.inside(self._target),
            name=self._name,
            checksum=self._trip.checksum,
            rate=self._trip.rate,
            ca=_pem(self._bucket),
            lanes=LANES,
            part=PART_BYTES,
        )
        wanted: set[int] = set()
        waiting = list(self._waiting)
        for start in range(0, len(waiting), _PLAN):
            numbers = waiting[start : start + _PLAN]
            talk.say("plan", files=[self._described(number) for number in numbers])
            while (said := talk.heard())["t"] != "want":
                self._trip.report(self._done, self._total)
            wanted |= _numbers(talk, said.get("files"), numbers)
        for number in set(self._waiting) - wanted:
            del self._waiting[number]
        self._want(wanted)
        talk.say("room", bytes=sum(item.entry.size for item in self._waiting.values()))

    def _described(self, number: int) -> list[Any]:
        item = self._items[number]
        entry = item.entry
        mtime = int(entry.modified.timestamp())
        return [number, item.path, entry.size, mtime, entry.etag, is_md5(entry.etag)]

    def _fetch(self, talk: Talk) -> None:
        queue = list(self._waiting)[::-1]
        under_way: set[int] = set()
        settled = self._total - sum(item.entry.size for item in self._waiting.values())
        if queue:
            self._trip.say(f"{self._address} goes straight to the machine")
        while queue or under_way:
            if queue and len(under_way) <= _WINDOW // 2:
                given = [queue.pop() for _ in range(min(len(queue), _WINDOW - len(under_way)))]
                under_way |= set(given)
                self._give(talk, given)
            said = talk.heard()
            number = said.get("i")
            if said["t"] == "bytes" and isinstance(said.get("n"), int):
                self._done = max(self._done, settled + said["n"])
                self._trip.report(self._done, self._total)
            elif said["t"] in ("done", "gone", "changed", "url"):
                if not isinstance(number, int) or number not in under_way:
                    raise talk.nonsense("it speaks of a file that it was not given")
                if said["t"] == "url":
                    key = self._items[number].entry.key
                    talk.say("url", i=number, part=0, url=self._bucket.read_url(key))
                elif said["t"] == "changed" and self._look_again(number):
                    self._give(talk, [number])
                else:
                    under_way.remove(number)
                    del self._waiting[number]
                    if said["t"] != "done":
                        self._leave_out(number)

    def _give(self, talk: Talk, numbers: Sequence[int]) -> None:
        entries = [self._items[number].entry for number in numbers]
        files = [
            [self._described(number), self._bucket.read_url(entry.key), sha256]
            for number, entry, sha256 in zip(
                numbers, entries, in_order(entries, self._bucket.sha256), strict=True
            )
        ]
        talk.say("get", files=files)

    def _look_again(self, number: int) -> bool:
        """Take an object as it is now, which is not as it was listed; False when it is gone."""
        item = self._items[number]
        self._changes[number] = self._changes.get(number, 0) + 1
        entry = self._bucket.look(item.entry.key)
        if entry is None:
            return False
        if self._changes[number] > _MOST_CHANGES:
            raise Changed(
                f"s3://{self._bucket.name}/{item.entry.key} is replaced again and again",
                next="Try again when nothing writes there.",
            )
        self._items[number] = self._waiting[number] = Item(item.path, entry)
        return True

    def _leave_out(self, number: int) -> None:
        item = self._items[number]
        if self._is_file:
            raise Gone(f"{self._address} vanished while it was read")
        self._gone.add(number)
        self._left_out.append(f"{item.path}: it vanished while the others were read")

    # ------------------------------------------------------------------ passed on

    def _pass_on(self) -> None:
        self._done = self._total - sum(item.entry.size for item in self._waiting.values())
        for numbers in _batches(self._waiting.items()):
            with passing_through(self._trip.scratch) as folder:
                for _ in in_order(numbers, functools.partial(self._take, folder)):
                    self._trip.report(self._done, self._total)
                self._put(folder, numbers)
            for number in numbers:
                del self._waiting[number]

    def _take(self, folder: Path, number: int) -> None:
        """Fetch an object to here."""
        while True:
            item = self._items[number]
            place = folder / (item.path or str(self._name))
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._bucket.fetch(
                    item.entry, place, lambda _: self._trip.report(self._done, self._total)
                )
            except Gone:
                self._leave_out(number)
                return
            except Changed:
                place.unlink(missing_ok=True)
                if not self._look_again(number):
                    self._leave_out(number)
                    return
                continue
            place.chmod(0o644)
            mtime = int(item.entry.modified.timestamp())
            os.utime(place, (mtime, mtime))
            return

    def _put(self, folder: Path, numbers: Sequence[int]) -> None:
        if self._is_file:
            self._send(folder / str(self._name), self._target)
        elif not any(_RULES & set(self._items[number].path.split("/")) for number in numbers):
            self._send(folder, self._target)
        else:  # a tree would be sent as its ignore files say
            for number in sorted(set(numbers) - self._gone):
                path = self._items[number].path
                self._send(folder / path, f"{self._target.rstrip('/')}/{path}")

    def _send(self, source: Path, target: str) -> None:
        trip, before = self._trip, self._done
        moved = trip.connection.put(
            source,
            target,
            progress=lambda so_far, _: trip.report(before + so_far, self._total),
            checksum=trip.checksum,
            rate=trip.rate,
        )
        self._done = before + moved.bytes


def _batches(waiting: Iterable[tuple[int, Item]]) -> list[list[int]]:
    batches: list[list[int]] = [[]]
    room = BATCH_BYTES
    for number, item in waiting:
        if batches[-1] and item.entry.size > room:
            batches.append([])
            room = BATCH_BYTES
        batches[-1].append(number)
        room -= item.entry.size
    return batches


def _numbers(talk: Talk, said: object, asked: Iterable[int]) -> set[int]:
    known = set(asked)
    if not isinstance(said, list) or not all(type(one) is int and one in known for one in said):
        raise talk.nonsense("it wants files that it was not told of")
    return set(said)


def _pem(bucket: Bucket) -> str | None:
    """Certificates that the user trusts beside the usual; they are no secret."""
    return Path(bucket.ca_bundle).read_text() if bucket.ca_bundle else None
