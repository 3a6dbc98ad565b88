"""Moving files and trees by plain SFTP, for machines without python3.

Slower than the far side: some requests a file, whole files only, times in whole seconds. Every
file still appears by rename, and nothing lands outside the target.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gpuctl.errors import RemoteError, UsageError
from gpuctl.printable import printable
from gpuctl.remote.connection import Transferred
from gpuctl.remote.selection import File, Folder, Link, Selection
from gpuctl.remote.transfer import planning
from gpuctl.remote.transfer.framing import Broken
from gpuctl.remote.transfer.landing import DRAFT_MARK, Receiver, draft_key
from gpuctl.remote.transfer.pace import Meter, Pace
from gpuctl.remote.transfer.reading import open_plain
from gpuctl.remote.transfer.session import FarSideFailed, LinkBroken, unbelievable

if TYPE_CHECKING:
    from paramiko import SFTPClient

_CHUNK = 256 << 10
_SECOND = 1_000_000_000
_TOKEN = "sftp"  # noqa: S105 - what stands in a draft's name


class Sftp:
    """Transfers over one SFTP session.

    Args:
        client: the session; its channel has a timeout.
        meter: counts what is moved.
        pace: the bandwidth limit.
        machine: its name, for what goes wrong.
    """

    def __init__(
        self, client: SFTPClient, *, meter: Meter, pace: Pace, machine: str | None = None
    ) -> None:
        self._client, self._meter, self._pace, self._machine = client, meter, pace, machine

    # ------------------------------------------------------------------ there

    def push(
        self, source: Path, selection: Selection, target: str, *, name: str | None
    ) -> Transferred:
        """Send what was selected of ``source``; see `gpuctl.remote.transfer.upload.upload`.

        Raises:
            UsageError: something here cannot be read.
            RemoteError: it cannot be written there, or the link broke.
        """
        selection = planning.sendable(selection)
        with self._failing(target):
            if name and (target.endswith("/") or self._is_folder(target)):
                target = f"{target.rstrip('/')}/{name}"
            root = target.rstrip("/") or "/"
            self._make_folders(root.rpartition("/")[0] if name else root)
            for folder in selection.dirs:
                self._make_folder(f"{root}/{folder.path}")
            differing = [file for file in selection.files if not self._is_same(root, file)]
            size = sum(file.size for file in differing)
            self._meter.expect(size)
            for file in differing:
                self._send(source, root, file)
            for link in selection.links:
                self._make_link(f"{root}/{link.path}", link.target)
            for folder in reversed(selection.dirs):
                self._client.chmod(_raw(f"{root}/{folder.path}"), folder.mode & 0o777)
        return Transferred(len(differing), size, len(selection.files) - len(differing))

    def _send(self, source: Path, root: str, file: File) -> None:
        target = f"{root}/{file.path}" if file.path else root
        draft = f"{target.rpartition('/')[0]}/{DRAFT_MARK}{draft_key(file.path)}-{_TOKEN}"
        place = str(source / file.path) if file.path else str(source)
        try:
            handle = open_plain(place)
        except OSError as error:
            raise UsageError(
                f"{place} cannot be read: {error.strerror}",
                next="Make it readable, then try again: what arrived is not sent twice.",
            ) from error
        try:
            with self._client.open(_raw(draft), "wb") as out:
                out.set_pipelined(True)
                left = file.size
                while left and (data := os.read(handle, min(_CHUNK, left))):
                    self._pace.wait(len(data))
                    out.write(data)
                    self._meter.add(len(data))
                    left -= len(data)
            if self._client.stat(_raw(draft)).st_size != file.size - left:
                raise self._error(f"{target}: it arrived incomplete")
            self._client.chmod(_raw(draft), file.mode & 0o777)
            seconds = file.mtime_ns // _SECOND
            self._client.utime(_raw(draft), (seconds, seconds))
            self._rename(draft, target)
        except BaseException:
            with suppress(OSError, EOFError):  # the first error is the one to tell
                self._client.remove(_raw(draft))
            raise
        finally:
            os.close(handle)

    def _rename(self, draft: str, target: str) -> None:
        try:
            self._client.posix_rename(_raw(draft), _raw(target))
        except OSError as error:
            if error.errno is not None or "unsupported" not in str(error).lower():
                raise
            with suppress(FileNotFoundError):  # a server without the extension: not at once
                self._client.remove(_raw(target))
            self._client.rename(_raw(draft), _raw(target))

    def _is_same(self, root: str, file: File) -> bool:
        target = _raw(f"{root}/{file.path}" if file.path else root)
        try:
            there = self._client.lstat(target)
        except FileNotFoundError:
            return False
        mode, size, mtime = there.st_mode or 0, there.st_size or 0, there.st_mtime or 0
        here = {file.path: (size, int(mtime) * _SECOND)}
        if not stat.S_ISREG(mode) or planning.differing_locally([file], here, coarse=True):
            return False
        if stat.S_IMODE(mode) != file.mode & 0o777:
            self._client.chmod(target, file.mode & 0o777)
        return True

    def _is_folder(self, path: str) -> bool:
        try:
            return stat.S_ISDIR(self._client.stat(_raw(path)).st_mode or 0)
        except FileNotFoundError:
            return False

    def _make_folders(self, path: str) -> None:
        if not path or self._is_folder(path):
            return
        self._make_folders(path.rpartition("/")[0])
        self._client.mkdir(_raw(path))

    def _make_folder(self, path: str) -> None:
        try:
            mode = self._client.lstat(_raw(path)).st_mode or 0
        except FileNotFoundError:
            self._client.mkdir(_raw(path))
            return
        if stat.S_ISLNK(mode):  # else what belongs below it would land where it points
            self._client.remove(_raw(path))
            self._client.mkdir(_raw(path))
        elif mode & 0o700 != 0o700:
            self._client.chmod(_raw(path), stat.S_IMODE(mode) | 0o700)

    def _make_link(self, path: str, target: str) -> None:
        with suppress(FileNotFoundError):
            mode = self._client.lstat(_raw(path)).st_mode or 0
            if stat.S_ISLNK(mode) and self._client.readlink(_raw(path)) == target:
                return
            self._client.remove(_raw(path))
        self._client.symlink(_raw(target), _raw(path))

    # ------------------------------------------------------------------ back

    def pull(self, source: str, target: Path) -> Transferred:
        """Fetch a file or a tree; see `gpuctl.remote.transfer.download.download`.

        Raises:
            UsageError: something here cannot be written.
            RemoteError: it cannot be read there, or the link broke.
        """
        with self._failing(source):
            single = not self._is_folder(source)
            if single and target.is_dir():
                target = target / source.rpartition("/")[2]
            selection = self._listed(source, single)
            receiver = Receiver(str(target), _TOKEN, single)
            try:
                return self._fetch(source, selection, receiver)
            except Broken as error:
                raise unbelievable(str(error), self._machine) from error

    def _fetch(self, source: str, selection: Selection, receiver: Receiver) -> Transferred:
        with _landing(receiver):
            receiver.folders([folder.path for folder in selection.dirs])
        here: dict[str, tuple[int, int]] = {}
        for file in selection.files:
            with _landing(receiver), suppress(FileNotFoundError):
                state = os.lstat(receiver.place(file.path))
                if stat.S_ISREG(state.st_mode):
                    here[file.path] = state.st_size, state.st_mtime_ns
        differing = planning.differing_locally(selection.files, here, coarse=True)
        self._meter.expect(sum(file.size for file in differing))
        for number, file in enumerate(differing):
            self._take(source, file, number, receiver)
        kept, left_out = planning.kept_links(selection.links)
        with _landing(receiver):
            receiver.links([[link.path, link.target] for link in kept])
            receiver.modes([[folder.path, folder.mode] for folder in selection.dirs])
        skipped = len(selection.files) - len(differing)
        return Transferred(receiver.files, receiver.bytes, skipped, left_out)

    def _take(self, source: str, file: File, number: int, receiver: Receiver) -> None:
        place = f"{source.rstrip('/')}/{file.path}" if file.path else source
        at = 0
        with self._client.open(_raw(place), "rb") as there:
            there.prefetch(file.size)
            with _landing(receiver):
                receiver.begin(number, file.path, file.size)
            while at < file.size and (data := there.read(min(_CHUNK, file.size - at))):
                self._pace.wait(len(data))
                with _landing(receiver):
                    receiver.write(number, data, at)
                at += len(data)
                self._meter.add(len(data))
        with _landing(receiver):
            receiver.end(number)
            receiver.finish(file.path, at, file.mode, file.mtime_ns)

    def _listed(self, root: str, single: bool) -> Selection:
        if single:
            state = self._client.stat(_raw(root))
            mode, mtime = state.st_mode or 0, int(state.st_mtime or 0)
            if not stat.S_ISREG(mode):
                raise self._error(f"{printable(root)} is neither a file nor a folder there")
            size = state.st_size or 0
            return Selection([File("", size, mtime * _SECOND, mode & 0o777)], [], [])
        files: list[File] = []
        folders: list[Folder] = []
        links: list[Link] = []
        waiting = [""]
        while waiting:
            parent = waiting.pop()
            folder = f"{root.rstrip('/')}/{parent}".rstrip("/") or "/"
            for entry in self._client.listdir_attr(_raw(folder)):
                path, mode = parent + entry.filename, entry.st_mode or 0
                if stat.S_ISDIR(mode):
                    folders.append(Folder(path, mode & 0o777))
                    waiting.append(path + "/")
                elif stat.S_ISLNK(mode):
                    to = self._client.readlink(_raw(f"{folder}/{entry.filename}"))
                    links.append(Link(path, to or "/"))
                elif stat.S_ISREG(mode) and not planning.is_draft(path):
                    mtime_ns = int(entry.st_mtime or 0) * _SECOND
                    files.append(File(path, entry.st_size or 0, mtime_ns, mode & 0o777))
        return Selection(files, sorted(folders, key=lambda one: one.path), links)

    # ------------------------------------------------------------------ what goes wrong

    @contextmanager
    def _failing(self, where: str) -> Iterator[None]:
        from paramiko.ssh_exception import SSHException

        try:
            yield
        except (EOFError, SSHException, TimeoutError) as error:
            raise LinkBroken(
                f"The transfer broke off: {error or 'the session ended'}", machine=self._machine
            ) from error
        except UnicodeDecodeError as error:
            raise FarSideFailed(
                f"A name in {printable(where)} is not UTF-8, which plain SFTP cannot fetch",
                machine=self._machine,
                next="Install python3 (3.8 or newer) there, or rename it.",
            ) from error
        except OSError as error:
            word = printable(error.strerror or str(error))
            if error.errno in (errno.ECONNRESET, errno.EPIPE):
                message = f"The transfer broke off: {word}"
                raise LinkBroken(message, machine=self._machine) from error
            raise self._error(f"The machine says about {printable(where)}: {word}") from error

    def _error(self, message: str) -> RemoteError:
        return FarSideFailed(message, machine=self._machine, next="Correct it there, and repeat.")


@contextmanager
def _landing(receiver: Receiver) -> Iterator[None]:
    """What fails here is not the machine's fault."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(
            f"{printable(str(error.filename or receiver.root))} cannot be written: "
            f"{error.strerror or error}",
            next="Correct that, then try again: what arrived is not fetched twice.",
        ) from error


def _raw(path: str) -> bytes:
    return os.fsencode(path)
