"""Writing what arrives: below one root and nowhere else, every file by rename.

Standard library only, Python >= 3.8: it runs on both ends of a transfer (docs/transfer.md).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import struct
import zlib
from typing import Any, Callable, Dict, List, Set, Tuple

from gpuctl.remote.transfer.framing import (
    BUNDLE,
    MAX_FRAME,
    PIECE,
    XXH3,
    Broken,
    Data,
    check_of,
    parse_json,
    unpack,
)
from gpuctl.remote.transfer.reading import BEAT_EVERY, open_plain

_NO_NAMES = ("", ".", "..")
DRAFT_MARK = ".gpuctl-part-"


def draft_key(path: str) -> str:
    """What the drafts of one file have in their names."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:16]


class Receiver:
    """Writes below a root and nowhere else; every file appears by rename.

    Args:
        root: a folder, or with ``single`` the one file to write (whose path is then "").
        token: of this session; a draft that another session took over is not written to.
    """

    def __init__(self, root: str, token: str, single: bool = False) -> None:
        self.root, self.token, self.single = root, token, single
        self.files = self.bytes = 0
        self._folders: Dict[str, str] = {}  # those that are there: path -> place, with a "/"
        self._open: Dict[int, Tuple[str, int, Tuple[int, int]]] = {}
        self._count = 0
        self._nonce = os.urandom(4).hex()  # one session may have several receivers

    def place(self, path: str) -> str:
        """Where a path is; the folders to it are made. Raises Broken when it leads out."""
        if self.single and path == "":
            os.makedirs(os.path.dirname(self.root) or ".", exist_ok=True)
            return self.root
        parent, _, name = path.rpartition("/")
        if parent not in self._folders or name in _NO_NAMES or "\0" in name:
            parts = path.split("/")
            if "\0" in path or any(part in _NO_NAMES for part in parts):
                raise Broken("the path %r leads out of the target" % path)
            for depth in range(len(parts)):
                self._make("/".join(parts[:depth]))
        return self._folders[parent] + name

    def _make(self, path: str) -> None:
        """Make a folder whose parent is there."""
        if path in self._folders:
            return
        if path == "":
            os.makedirs(self.root, exist_ok=True)
            self._folders[""] = os.path.join(self.root, "")
            return
        parent, _, name = path.rpartition("/")
        place = self._folders[parent] + name
        if os.path.islink(place):  # else what belongs below it would land where it points
            os.unlink(place)
        try:
            os.mkdir(place)
        except FileExistsError:
            mode = os.lstat(place).st_mode
            if not stat.S_ISDIR(mode):
                raise
            if mode & 0o700 != 0o700:
                os.chmod(place, stat.S_IMODE(mode) & 0o777 | 0o700)
        self._folders[path] = place + "/"

    def folders(self, paths: List[str]) -> None:
        """Make folders."""
        for path in paths:
            self.place(path)
            self._make(path)

    def bundle(self, payload: Data, wanted: Set[str] | None = None) -> List[List[Any]]:
        """Write the small files of a frame; returns its table.

        Args:
            payload: of the frame.
            wanted: the only paths to accept; None for all.

        Raises:
            Broken: it is damaged, or holds what nobody asked for.
            OSError: it cannot be written.
        """
        rest = BUNDLE.size + 4
        if len(payload) < rest:
            raise Broken("a bundle that is too short")
        head, codec = BUNDLE.unpack_from(payload)
        length = struct.unpack_from(">I", payload, BUNDLE.size)[0]
        if length > MAX_FRAME or head > length:
            raise Broken("a bundle that is too long")
        plain = memoryview(unpack(codec, memoryview(payload)[rest:], length))
        table = parse_json(bytes(plain[:head]))
        at = head
        for entry in table if isinstance(table, list) else [table]:
            path, size, mode, mtime_ns, crc = _described(entry)
            data = plain[at : at + size]
            at += size
            if len(data) != size or zlib.crc32(data) != crc:
                raise Broken("%r arrived damaged" % path)
            if wanted is not None and path not in wanted:
                raise Broken("%r came, which nobody asked for" % path)
            self.small(path, data, mode, mtime_ns)
        return table  # type: ignore[no-any-return]

    def small(self, path: str, data: Data, mode: int, mtime_ns: int) -> None:
        """Write one small file."""
        target = self.place(path)
        self._count += 1
        name = "%s%s-%s-%d" % (DRAFT_MARK, self.token, self._nonce, self._count)
        draft = target[: target.rfind("/") + 1] + name
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            try:
                _write_at(handle, data, 0)
                os.fchmod(handle, mode & 0o777)
                os.utime(handle, ns=(mtime_ns, mtime_ns))
            finally:
                os.close(handle)
            os.rename(draft, target)
        except BaseException:
            os.unlink(draft)
            raise
        self._finished(len(data))

    def draft(self, path: str, token: str = "") -> str:
        """Where the draft of a large file is."""
        target = self.place(path)
        name = DRAFT_MARK + draft_key(path) + "-" + (token or self.token)
        return os.path.join(os.path.dirname(target), name)

    def adopt(self, path: str) -> int:
        """Take over what another session left of this file; its size, or 0 when nothing."""
        mine = self.draft(path)
        start = DRAFT_MARK + draft_key(path) + "-"
        folder, found = os.path.dirname(mine), False
        for name in sorted(os.listdir(folder)):
            old = os.path.join(folder, name)
            if not name.startswith(start) or old == mine:
                continue
            if not found and stat.S_ISREG(os.lstat(old).st_mode):
                os.rename(old, mine)
                found = True
            else:
                os.unlink(old)
        return os.path.getsize(mine) if found else 0

    def begin(self, number: int, path: str, size: int) -> int:
        """Open the draft of a large file, whose pieces then come by number."""
        if number in self._open:
            return self._open[number][1]
        while len(self._open) > 8:
            self.end(next(iter(self._open)))
        draft = self.draft(path)
        handle = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        state = os.fstat(handle)
        self._open[number] = draft, handle, (state.st_dev, state.st_ino)
        if state.st_size != size:
            os.ftruncate(handle, size)
        return handle

    def write(self, number: int, data: Data, offset: int) -> None:
        """Write a piece into a draft that is still ours."""
        if number not in self._open:
            raise Broken("a piece of a file that was not begun")
        draft, handle, identity = self._open[number]
        try:
            state = os.lstat(draft)
        except FileNotFoundError:
            state = None
        if state is None or (state.st_dev, state.st_ino) != identity:
            raise Broken("another transfer took over %s" % draft)
        _write_at(handle, data, offset)

    def piece(self, payload: Data) -> Tuple[int, int, int, int]:
        """Write a piece; returns what `ACK` holds."""
        if len(payload) < PIECE.size:
            raise Broken("a piece that is too short")
        number, offset, length, check, codec = PIECE.unpack_from(payload)
        plain = unpack(codec & ~XXH3, memoryview(payload)[PIECE.size :], length)
        if check_of(plain, bool(codec & XXH3)) != check:
            raise Broken("a piece arrived damaged")
        self.write(number, plain, offset)
        return number, offset, length, check

    def copy(
        self,
        number: int,
        source: int,
        ranges: List[List[int]],
        beat: Callable[[], None] | None = None,
    ) -> None:
        """Copy parts of an older version ([from, to, length]) into a draft."""
        handle = self._open[number][1]
        silent = 0
        for start, to, length in ranges:
            while length:
                done = _copy_range(source, handle, min(length, 8 << 20), start, to)
                if not done:
                    raise Broken("the older version changed while it was copied")
                start, to, length = start + done, to + done, length - done
                silent += done
                if beat and silent > BEAT_EVERY << 20:
                    beat()
                    silent = 0

    def discard(self) -> None:
        """Close and remove every open draft."""
        for number in list(self._open):
            draft = self._open[number][0]
            self.end(number)
            try:
                os.unlink(draft)
            except FileNotFoundError:
                continue  # another session took it over

    def close(self) -> None:
        """Close every open draft."""
        for number in list(self._open):
            self.end(number)

    def end(self, number: int) -> None:
        """Close a draft."""
        if number in self._open:
            os.close(self._open.pop(number)[1])

    def finish(self, path: str, size: int, mode: int, mtime_ns: int) -> None:
        """Give a whole draft its name."""
        draft, target = self.draft(path), self.place(path)
        handle = os.open(draft, os.O_RDWR | os.O_NOFOLLOW)
        try:
            os.ftruncate(handle, size)
            os.fchmod(handle, mode & 0o777)
            os.utime(handle, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(handle)
        os.rename(draft, target)
        self._finished(size)

    def _finished(self, size: int) -> None:
        self.files += 1
        self.bytes += size

    def touches(self, entries: List[List[Any]]) -> None:
        """Set mode and time of files whose content is right: [path, mode, mtime_ns]."""
        for path, mode, mtime_ns in entries:
            self._touch(path, mode, mtime_ns)

    def links(self, entries: List[List[str]]) -> None:
        """Make symbolic links: [path, target]."""
        for path, target in entries:
            self._link(path, target)

    def _touch(self, path: str, mode: int, mtime_ns: int) -> None:
        handle = open_plain(self.place(path))
        try:
            os.fchmod(handle, mode & 0o777)
            os.utime(handle, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(handle)

    def _link(self, path: str, target: str) -> None:
        place = self.place(path)
        if os.path.islink(place) and os.readlink(place) == target:
            return
        self._count += 1
        name = "%s%s-%s-%d" % (DRAFT_MARK, self.token, self._nonce, self._count)
        draft = os.path.join(os.path.dirname(place), name)
        os.symlink(target, draft)
        try:
            os.rename(draft, place)
        except OSError:
            os.unlink(draft)
            raise

    def modes(self, folders: List[List[Any]]) -> None:
        """Set the folders' modes, the innermost first: one may be read-only."""
        for path, mode in reversed(folders):
            place = self.place(path)
            if not os.path.islink(place):
                os.chmod(place, mode & 0o777)
                self._folders.pop(path, None)


def _described(entry: Any) -> Tuple[str, int, int, int, int]:
    if type(entry) is list and len(entry) == 5:
        path, size, mode, mtime_ns, crc = entry
        numbers = type(size) is type(mode) is type(mtime_ns) is type(crc) is int
        if numbers and type(path) is str and size >= 0:
            return path, size, mode, mtime_ns, crc
    raise Broken("a bundle whose table is none")


def _write_at(handle: int, data: Data, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _copy_range(source: int, target: int, length: int, start: int, to: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, length, start, to)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                raise
    data = os.pread(source, length, start)
    _write_at(target, data, to)
    return len(data)
