"""The account of the `local` provider: a folder a machine, and the books.

    <home>/local/machines/<id>/machine.json   what was ordered; written before anything starts
                               host.json      who keeps the machine; written by the host process
                               root/          the machine's own folder
                               venv/          its Python
    <home>/local/history.jsonl                the books: a line when a machine was created or ended

Standard library only and quick to import: the process behind every machine uses it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any

from providers import local_namespaces, processes
from providers.base import Mark, Rehearsal
from providers.processes import ProcessId

ID = re.compile(r"^[a-z0-9][a-z0-9-]{0,62}$")  # also a folder's name, so nothing that climbs
_CENT_FRACTION = Decimal("0.000001")
_SECONDS_AN_HOUR = 3600
_DRAFT = ".new-"


@dataclass(frozen=True, slots=True)
class Record:
    """What was ordered. Its id is the machine's name."""

    name: str
    mark: Mark
    price_hour: Decimal
    spot: bool
    created_at: datetime
    gpu: str | None = None
    gpu_count: int = 0
    gpu_uuids: tuple[str, ...] = ()  # the only ones it may see; () = all of the computer's
    rehearsal: Rehearsal | None = None
    short_tmp: str | None = None  # a link to root/tmp; its own path is too long for sockets


@dataclass(frozen=True, slots=True)
class Host:
    """Who keeps a machine."""

    process: ProcessId
    init: ProcessId | None  # pid 1 inside; None without namespaces
    own_users: bool = False  # in a user namespace
    without: str = ""  # why there are no namespaces


@dataclass(frozen=True, slots=True)
class Ended:
    """A line of the books: a machine that is no more."""

    id: str
    at: datetime
    reason: str  # destroyed, interrupted, self-ended
    cost: Decimal | None  # USD; None when what was ordered could not be read
    record: Record | None


class Account:
    """The machines and the books below one folder. Several processes use it at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.machines = path / "machines"
        self.books = path / "history.jsonl"

    def folder(self, machine_id: str) -> Path:
        """Where that machine is or would be."""
        return self.machines / machine_id

    def add(self, record: Record) -> Path:
        """Make the machine's folder, whole or not at all.

        Raises:
            FileExistsError: there is or was one of that name.
            OSError: the disk is full, or may not be written.
        """
        self.machines.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.ended(record.name):
            raise FileExistsError(record.name)
        draft = self.machines / f"{_DRAFT}{record.name}-{os.getpid()}"
        (draft / "root" / "tmp").mkdir(parents=True, mode=0o700)
        try:
            write_whole(draft / "machine.json", json.dumps(record_to_json(record), indent=1))
            draft.rename(self.folder(record.name))
        except OSError as error:
            remove_tree(draft)
            if self.folder(record.name).exists():
                raise FileExistsError(record.name) from error
            raise
        sync_folder(self.machines)
        self._append({"event": "created", "id": record.name, "machine": record_to_json(record)})
        return self.folder(record.name)

    def has(self, machine_id: str) -> bool:
        """Whether that machine's folder is there."""
        is_id = ID.match(machine_id) is not None
        return is_id and (self.folder(machine_id) / "machine.json").exists()

    def ids(self) -> list[str]:
        """Every machine, also one whose machine.json cannot be read."""
        return sorted(file.parent.name for file in self.machines.glob("[!.]*/machine.json"))

    def record(self, machine_id: str) -> Record | None:
        """What was ordered, or None when that cannot be read any more."""
        try:
            return record_from_json(
                json.loads((self.folder(machine_id) / "machine.json").read_text())
            )
        except (OSError, ValueError, KeyError, TypeError, ArithmeticError):
            return None

    def host(self, machine_id: str) -> Host | None:
        """Who keeps it, or None when nobody has signed yet."""
        try:
            return host_from_json(json.loads((self.folder(machine_id) / "host.json").read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def ended(self, machine_id: str) -> Ended | None:
        """The line of the books that closes a machine, or None."""
        try:
            lines = self.books.read_bytes().split(b"\n")
        except FileNotFoundError:
            return None
        quoted = json.dumps(machine_id).encode()
        for raw in lines:
            if quoted in raw:  # quicker than reading every line as JSON
                # A line that a crash tore closes nothing.
                with suppress(KeyError, ValueError, TypeError, ArithmeticError):
                    line = json.loads(raw)
                    if line["event"] == "ended" and line["id"] == machine_id:
                        return _ended_from_json(line)
        return None

    def end(
        self,
        machine_id: str,
        reason: str,
        *,
        spare: frozenset[int] = frozenset(),
        record: Record | None = None,
    ) -> None:
        """End everything the machine ever started, write the books, remove the folder.

        Can be called again after any crash in between, and by several at once.

        Args:
            machine_id: which machine.
            reason: for the books; counts if nobody wrote one before.
            spare: pids that are not killed (the caller's own).
            record: what was ordered, for when its file is gone.

        Raises:
            StillAlive: processes did not end.
            OSError: the folder cannot be removed.
        """
        folder = self.folder(machine_id)
        host = self.host(machine_id)
        for process in (host.process, host.init) if host else ():
            if process and process.pid not in spare:
                processes.end_process(process)
        processes.end_carriers(marker(folder), spare=spare)
        record = self.record(machine_id) or record
        try:
            self._close(machine_id, reason, record)
        except OSError:  # a full disk: what the job wrote makes room for the line
            remove_tree(folder / "root")
            self._close(machine_id, reason, record)
        if record and record.short_tmp:
            _remove_link(Path(record.short_tmp), folder / "root" / "tmp")
        remove_tree(folder)

    def unfinished(self) -> Iterator[Path]:
        """Folders that are no machine (any more): drafts, and half removed ones."""
        with suppress(FileNotFoundError):
            for folder in self.machines.iterdir():
                if not self.has(folder.name) or self.ended(folder.name):
                    yield folder

    def _close(self, machine_id: str, reason: str, record: Record | None) -> None:
        now = datetime.now(UTC)
        line: dict[str, Any] = {"event": "ended", "id": machine_id, "reason": reason}
        if record:
            line["cost_usd"] = str(cost(record, now))
            line["machine"] = record_to_json(record)
        with self._books() as books:
            if not self.ended(machine_id):
                _write_line(books, line)

    def _append(self, line: dict[str, Any]) -> None:
        with self._books() as books:
            _write_line(books, line)

    @contextmanager
    def _books(self) -> Iterator[IO[bytes]]:
        with self.books.open("a+b", buffering=0) as books:
            fcntl.flock(books, fcntl.LOCK_EX)
            yield books


def marker(folder: Path) -> dict[str, str]:
    """What the environment of every process of that machine holds."""
    return {"GPUCTL_MACHINE": folder.name, "GPUCTL_MACHINE_FOLDER": str(folder)}


def cost(record: Record, until: datetime) -> Decimal:
    """Return hours × price in USD, from the creation on."""
    seconds = max(0.0, (until - record.created_at).total_seconds())
    return (Decimal(seconds) / _SECONDS_AN_HOUR * record.price_hour).quantize(_CENT_FRACTION)


def remove_tree(folder: Path) -> None:
    """Remove a folder whatever modes the job left; never anything outside of it.

    machine.json goes last, so that what a crash leaves is still listed. Removed already is fine.

    Raises:
        OSError: something is left.
    """
    if not folder.exists():
        return
    local_namespaces.unmount_below(folder)
    _make_removable(folder)
    for entry in sorted(folder.iterdir(), key=lambda path: path.name == "machine.json"):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, onerror=_unless_gone)
        else:
            entry.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        folder.rmdir()


def write_whole(file: Path, text: str) -> None:
    """Write a file durably, whole or not at all."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with draft.open("w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def record_to_json(record: Record) -> dict[str, Any]:
    """Return a record as it is written."""
    mark, rehearsal = record.mark, record.rehearsal
    return {
        "name": record.name,
        "mark": {
            "owner": mark.owner,
            "end": mark.end.timestamp(),
            "run": mark.run,
            "managed_by": mark.managed_by,
        },
        "price_hour": str(record.price_hour),
        "spot": record.spot,
        "created_at": record.created_at.isoformat(),
        "gpu": record.gpu,
        "gpu_count": record.gpu_count,
        "gpu_uuids": list(record.gpu_uuids),
        "rehearsal": rehearsal
        and {
            "after_seconds": rehearsal.after_seconds,
            "notice_seconds": rehearsal.notice_seconds,
            "armed_by": rehearsal.armed_by,
        },
        "short_tmp": record.short_tmp,
    }


def record_from_json(value: Mapping[str, Any]) -> Record:
    """Read a record. Raises KeyError, ValueError, TypeError, ArithmeticError otherwise."""
    mark = value["mark"]
    return Record(
        name=str(value["name"]),
        mark=Mark(
            owner=str(mark["owner"]),
            end=datetime.fromtimestamp(mark["end"], UTC),
            run=mark["run"],
            managed_by=str(mark["managed_by"]),
        ),
        price_hour=Decimal(value["price_hour"]),
        spot=bool(value["spot"]),
        created_at=datetime.fromisoformat(value["created_at"]),
        gpu=value["gpu"],
        gpu_count=int(value["gpu_count"]),
        gpu_uuids=tuple(value["gpu_uuids"]),
        rehearsal=Rehearsal(**value["rehearsal"]) if value["rehearsal"] else None,
        short_tmp=value["short_tmp"],
    )


def host_to_json(host: Host) -> dict[str, Any]:
    """Return a host as it is written."""
    return {
        "process": [host.process.pid, host.process.started],
        "init": host.init and [host.init.pid, host.init.started],
        "own_users": host.own_users,
        "without": host.without,
    }


def host_from_json(value: Mapping[str, Any]) -> Host:
    """Read a host. Raises KeyError, ValueError or TypeError for anything else."""
    return Host(
        process=ProcessId(*value["process"]),
        init=ProcessId(*value["init"]) if value["init"] else None,
        own_users=bool(value["own_users"]),
        without=str(value["without"]),
    )


def _ended_from_json(line: Mapping[str, Any]) -> Ended:
    return Ended(
        id=str(line["id"]),
        at=datetime.fromisoformat(line["at"]),
        reason=str(line["reason"]),
        cost=Decimal(line["cost_usd"]) if "cost_usd" in line else None,
        record=record_from_json(line["machine"]) if "machine" in line else None,
    )


def _write_line(books: IO[bytes], line: Mapping[str, Any]) -> None:
    books.seek(0, os.SEEK_END)
    torn = b""
    if books.tell():
        books.seek(-1, os.SEEK_END)
        torn = b"" if books.read(1) == b"\n" else b"\n"  # a crash cut the last line short
    stamped = {"at": datetime.now(UTC).isoformat(), **line}
    books.write(torn + json.dumps(stamped).encode() + b"\n")
    os.fsync(books.fileno())


def _make_removable(folder: Path) -> None:
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        with suppress(FileNotFoundError):
            if current.lstat().st_mode & stat.S_IRWXU != stat.S_IRWXU:
                current.chmod(0o700)
            with os.scandir(current) as entries:
                waiting.extend(Path(x.path) for x in entries if x.is_dir(follow_symlinks=False))


def _unless_gone(_function: object, _path: str, failure: tuple[Any, BaseException, Any]) -> None:
    if not isinstance(failure[1], FileNotFoundError):  # another destroy was quicker
        raise failure[1]


def _remove_link(link: Path, target: Path) -> None:
    with suppress(OSError):  # somebody else's by now, or gone
        if link.readlink() == target:
            link.unlink()
