"""What runs on the machine during a transfer: answers frames until its stdin ends.

Standard library only, Python >= 3.8. It arrives on stdin together with the modules that it
imports (`gpuctl.remote.transfer.session` sends them) and is never written to the machine's disk.
"""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import signal
import stat
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Tuple

from gpuctl.remote.transfer.framing import (
    BEAT,
    PIECE_BYTES,
    PIECE_HEAD,
    PROTOCOL,
    SIGNED,
    Broken,
    Data,
    Frames,
    Packing,
    Tally,
    parse_json,
)
from gpuctl.remote.transfer.landing import DRAFT_MARK, Receiver, draft_key
from gpuctl.remote.transfer.native import find_xxh3, find_zstd
from gpuctl.remote.transfer.reading import (
    file_digest,
    open_plain,
    piece_buffer,
    pieces,
    send_bundle,
    send_piece,
    signatures,
)

IDLE_SECONDS = 900  # hearing nothing for so long, it ends: the other end is gone
STALE_SECONDS = 86400  # what a broken transfer left is removed when it is a day old
LIST_ENTRIES = 5000  # in one frame
SMALL_READ = 64 << 10
READ_BYTES = 128 << 10  # the server cannot write to the pipe while we read from it
F_SETPIPE_SZ = 1031  # the fcntl module names it from Python 3.10 on
PIPE_BYTES = 256 << 10


class FarSide:
    """One stream's far end."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames
        self._root = ""
        self._bare = False  # nothing at all is there yet
        self._receiver = Receiver("", "")
        self._packing = Packing()  # until `_hello`
        self._tally = Tally()
        self._buffer = piece_buffer()
        self._reading: Dict[int, int] = {}
        self._bases: Dict[int, Tuple[int, os.stat_result]] = {}
        self._signing: queue.Queue[Tuple[int, int, int]] = queue.Queue()
        self._signer: Any = None
        self._handlers: Dict[bytes, Callable[[Any], Any]] = {
            b"H": self._hello,
            b"N": lambda _: self._beat(),
            b"M": lambda said: self._receiver.folders(said),
            b"C": self._compare,
            b"O": self._open,
            b"S": self._sign,
            b"Y": self._copy,
            b"F": self._finish,
            b"T": lambda said: self._receiver.touches(said),
            b"K": lambda said: self._receiver.links(said),
            b"D": lambda said: self._receiver.modes(said),
            b"Z": self._end,
            b"L": self._list,
            b"X": self._digests,
            b"G": lambda said: send_bundle(self._frames, self._packing, self._root, said),
            b"P": self._part,
            b"Q": lambda _: self._quick(),
        }

    def serve(self) -> None:
        """Answer until the input ends or something fails; what failed is told in an ``e`` frame."""
        while True:
            try:
                signal.alarm(IDLE_SECONDS)
                frame = self._frames.receive()
                if frame is None:
                    return
                self._answer(*frame)
            except OSError as error:
                self._failed(error)
                return
            except (Broken, ValueError, TypeError, KeyError) as error:
                self._frames.send_json(b"e", {"kind": "Broken", "message": str(error)})
                return

    def _answer(self, kind: bytes, payload: Data) -> None:
        if kind == b"R":
            number, _, length, check = self._receiver.piece(payload)
            self._tally.add(number, length, check)
        elif kind == b"A":
            self._tally.check(payload)
            self._frames.send(b"a", payload)
        elif kind == b"B":
            table = self._receiver.bundle(payload)
            self._frames.send_json(b"b", [len(table), sum(entry[1] for entry in table)])
        elif kind in self._handlers:
            self._handlers[kind](parse_json(payload))
        else:
            raise Broken("an unknown frame %r" % kind)

    def _failed(self, error: OSError) -> None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            self._receiver.discard()  # a half file would keep the disk full
        said = {"kind": "OSError", "errno": error.errno, "message": error.strerror or str(error)}
        said["path"] = str(error.filename or self._receiver.root or self._root)
        self._frames.send_json(b"e", said)

    # ------------------------------------------------------------------ both ways

    def _beat(self) -> None:
        self._frames.send_json(BEAT, None)

    def _quick(self) -> None:
        self._frames.send_json(b"q", find_xxh3() is not None)

    def _hello(self, said: Any) -> None:
        both = said["zstd"] and find_zstd() is not None
        self._packing = Packing(said["rate"], both)
        root, name = os.path.expanduser(said["root"]), said.get("name")
        if name and (root.endswith("/") or os.path.isdir(root)):
            root = os.path.join(root, name)
        root = root.rstrip("/") or "/"
        self._root = root
        self._receiver = Receiver(root, said["token"], bool(name))
        try:
            mode = os.stat(root).st_mode
            kind = "dir" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "other"
        except FileNotFoundError:
            kind = "missing"
            self._bare = not name
        python = sys.version.split()[0]
        self._frames.send_json(
            b"h", {"protocol": PROTOCOL, "python": python, "kind": kind, "zstd": both}
        )

    def _sign(self, said: Any) -> None:
        """Signatures are made beside the other work, one file after another."""
        number, path = said["id"], said["path"]
        if said["what"] == "draft":
            handle = open_plain(self._receiver.draft(path))
        else:
            handle = open_plain(os.path.join(self._root, path) if path else self._root)
        self._bases[number] = handle, os.fstat(handle)
        self._signing.put((number, handle, said["block"]))
        if self._signer is None:
            self._signer = threading.Thread(target=self._signs, daemon=True)
            self._signer.start()

    def _signs(self) -> None:
        while True:
            number, handle, block = self._signing.get()
            try:
                for batch in signatures(handle, block):
                    self._frames.send(b"s", SIGNED.pack(number, 0), batch)
                self._frames.send(b"s", SIGNED.pack(number, 1), b"")
            except BrokenPipeError:
                return
            except OSError as error:
                self._failed(error)
                return

    # ------------------------------------------------------------------ receiving

    def _compare(self, said: Any) -> None:
        """Which are not here as they should be: [index, size here or -1, draft, digest]."""
        if self._bare:
            self._frames.send_json(b"c", {"first": said["first"], "all": True})
            return
        differing: List[List[Any]] = []
        drafts: Dict[str, List[str]] = {}
        for index, (path, size, mtime_ns, mode, large) in enumerate(said["entries"]):
            place = os.path.join(self._root, path) if path else self._root
            try:
                state = os.lstat(place)
            except FileNotFoundError:
                state = None
            here = state.st_size if state and stat.S_ISREG(state.st_mode) else -1
            digest = None
            if state is not None and here == size:
                if said["checksum"]:
                    digest = file_digest(place, self._beat)
                elif state.st_mtime_ns == mtime_ns:
                    if stat.S_IMODE(state.st_mode) != mode:
                        os.chmod(place, mode)
                    continue
            left = self._left(path, drafts)  # also sweeps the folder
            differing.append([index, here, bool(large) and left, digest])
        self._frames.send_json(b"c", {"first": said["first"], "differing": differing})

    def _left(self, path: str, drafts: Dict[str, List[str]]) -> bool:
        """Whether a broken transfer left something of this file. Old leavings go."""
        folder = os.path.dirname(os.path.join(self._root, path) if path else self._root)
        if folder not in drafts:
            drafts[folder] = list(_fresh_drafts(folder))
        start = DRAFT_MARK + draft_key(path) + "-"
        return any(name.startswith(start) for name in drafts[folder])

    def _open(self, said: Any) -> None:
        if said["adopt"]:
            self._receiver.adopt(said["path"])
        self._receiver.begin(said["id"], said["path"], said["size"])

    def _copy(self, said: Any) -> None:
        handle, before = self._bases[said["id"]]
        self._receiver.copy(said["id"], handle, said["ranges"], self._beat)
        after = os.fstat(handle)
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise Broken("%s was changed there by somebody else meanwhile" % said["path"])

    def _finish(self, said: Any) -> None:
        number = said["id"]
        self._receiver.end(number)
        if number in self._bases:
            os.close(self._bases.pop(number)[0])
        self._receiver.finish(said["path"], said["size"], said["mode"], said["mtime_ns"])

    def _end(self, _: Any) -> None:
        self._frames.send_json(b"z", [self._receiver.files, self._receiver.bytes])

    # ------------------------------------------------------------------ sending

    def _list(self, _: Any) -> None:
        """Everything below the root: files, folders and links, some thousands a frame."""
        entries: List[List[Any]] = []
        for entry in listing(self._root):
            entries.append(entry)
            if len(entries) >= LIST_ENTRIES:
                self._frames.send_json(b"l", {"entries": entries, "last": False})
                entries = []
        self._frames.send_json(b"l", {"entries": entries, "last": True})

    def _digests(self, said: Any) -> None:
        found = [
            file_digest(os.path.join(self._root, path) if path else self._root, self._beat)
            for path in said
        ]
        self._frames.send_json(b"x", found)

    def _part(self, said: Any) -> None:
        """Send a part of a file; ``v`` tells the size of one that became shorter."""
        number, path, offset, length = said["id"], said["path"], said["offset"], said["length"]
        if number not in self._reading:
            while len(self._reading) > 8:
                os.close(self._reading.pop(next(iter(self._reading))))
            self._reading[number] = open_plain(
                os.path.join(self._root, path) if path else self._root
            )
        handle, tally = self._reading[number], Tally()
        quick = said["quick"] and find_xxh3() is not None
        for start, frame in pieces(handle, offset, length, said["dense"], self._buffer):
            check = send_piece(self._frames, self._packing, number, start, frame, quick)
            tally.add(number, len(frame) - PIECE_HEAD, check)
        size = os.fstat(handle).st_size
        if size < offset + length:
            self._frames.send_json(b"v", [number, size])
        self._frames.send(b"A", tally.mark(number, offset))


def _fresh_drafts(folder: str) -> List[str]:
    found: List[str] = []
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return found
    for name in names:
        if name.startswith(DRAFT_MARK):
            place = os.path.join(folder, name)
            try:
                if os.lstat(place).st_mtime < time.time() - STALE_SECONDS:
                    os.unlink(place)
                else:
                    found.append(name)
            except FileNotFoundError:
                continue  # another transfer's, finished meanwhile
    return found


def listing(root: str) -> Any:
    """Yield ["f", path, size, mtime_ns, mode], ["d", path, mode] and ["l", path, target]."""
    state = os.stat(root)
    if not stat.S_ISDIR(state.st_mode):
        yield ["f", "", state.st_size, state.st_mtime_ns, stat.S_IMODE(state.st_mode) & 0o777]
        return
    waiting = [""]
    while waiting:
        parent = waiting.pop()
        with os.scandir(os.path.join(root, parent)) as entries:
            for entry in entries:
                path = parent + entry.name
                try:
                    state = entry.stat(follow_symlinks=False)
                    mode = stat.S_IMODE(state.st_mode) & 0o777
                    if stat.S_ISDIR(state.st_mode):
                        waiting.append(path + "/")
                        yield ["d", path, mode]
                    elif stat.S_ISLNK(state.st_mode):
                        yield ["l", path, os.readlink(entry.path)]
                    elif stat.S_ISREG(state.st_mode) and not entry.name.startswith(DRAFT_MARK):
                        yield ["f", path, state.st_size, state.st_mtime_ns, mode]
                except FileNotFoundError:
                    continue  # removed while we looked


class _Stdin:
    """Reads exactly so many bytes; many land in one buffer that the next read uses again."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(PIECE_HEAD + PIECE_BYTES))

    def read(self, size: int) -> Data:
        if size > len(self._buffer):
            self._buffer = memoryview(bytearray(size))
        end = 0
        while end < size:
            more = os.readv(0, [self._buffer[end : min(size, end + READ_BYTES)]])
            if not more:
                break
            end += more
        return self._buffer[:end] if end > SMALL_READ else bytes(self._buffer[:end])


def _write_all(data: Data) -> None:
    view = memoryview(data)
    while len(view):
        view = view[os.write(1, view) :]


def _widen_pipes() -> None:
    """Let more be under way between the SSH server and us, so that neither waits so often."""
    for handle in (0, 1):
        try:
            fcntl.fcntl(handle, F_SETPIPE_SZ, PIPE_BYTES)
        except OSError:
            return  # no pipe, no Linux, or no more of it for us: it works as it is


def main() -> None:
    """Serve this process's stdin and stdout."""
    _widen_pipes()
    try:
        FarSide(Frames(_Stdin().read, _write_all)).serve()
    except BrokenPipeError:
        sys.exit(1)  # nobody is left to be told
