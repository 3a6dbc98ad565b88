"""Uploads in parts that were begun, and neither completed nor given up: their parts bill for good.

Each is noted in a file of GPUCTL_HOME before it is begun, and the file is locked for as long as the
upload goes on. So a note that nobody holds is that of a process which was killed, and what it
tells of is given up by whoever comes next.
"""

from __future__ import annotations

import fcntl
import json
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from gpuctl.errors import GpuctlError


@dataclass(frozen=True, slots=True)
class Unfinished:
    """One upload that somebody began."""

    bucket: str
    key: str
    upload: str | None  # its id; None when the bucket's answer was never written down
    begun: datetime

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


GiveUp = Callable[[Unfinished], None]
"""Ends an upload; one that is gone already is fine. Raises GpuctlError."""


def notes_folder(environ: Mapping[str, str]) -> Path | None:
    """Return where the notes of the home in these settings are; None where they name none."""
    home = environ.get("GPUCTL_HOME")
    return Path(home) / "uploads" if home else None


class Note:
    """The note of one upload, held by this process.

    A computer whose disk is full can still upload: it does so without a note.
    """

    def __init__(self, folder: Path | None, bucket: str, key: str) -> None:
        self._facts = {"bucket": bucket, "key": key, "begun": datetime.now(UTC).isoformat()}
        self._file: IO[bytes] | None = None
        self._path: Path | None = None
        if folder is None:
            return
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._path = folder / f"{secrets.token_hex(8)}.json"
            self._file = self._path.open("xb")
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._write()

    def named(self, upload: str) -> None:
        """Add the id that the bucket gave."""
        self._facts["upload"] = upload
        with suppress(OSError):
            self._write()

    def remove(self) -> None:
        """The upload is completed, or given up."""
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink()
        self.leave()

    def leave(self) -> None:
        """Nobody knows what became of it: let the next one look."""
        if self._file is not None:
            self._file.close()

    def _write(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps(self._facts).encode())
            self._file.flush()


def unfinished(environ: Mapping[str, str]) -> list[Unfinished]:
    """Return what processes of this home began that are dead now."""
    return [one for _, one in _abandoned(environ)]


def give_up_all(environ: Mapping[str, str], give_up: GiveUp) -> dict[str, GpuctlError]:
    """Give up what dead processes began; return what could not be, by its address, and why."""
    failed: dict[str, GpuctlError] = {}
    for path, one in _abandoned(environ):
        try:
            give_up(one)
        except GpuctlError as error:
            failed[str(one)] = error
        else:
            with suppress(OSError):
                path.unlink()
    return failed


def _abandoned(environ: Mapping[str, str]) -> list[tuple[Path, Unfinished]]:
    found: list[tuple[Path, Unfinished]] = []
    folder = notes_folder(environ)
    for path in sorted(folder.glob("*.json")) if folder is not None else ():
        with suppress(OSError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                continue  # it goes on
            one = _read(file.read())
            if one is not None:
                found.append((path, one))
            else:
                path.unlink()  # killed before its note was whole, so before it was begun
    return found


def _read(content: bytes) -> Unfinished | None:
    try:
        facts = json.loads(content)
        begun = datetime.fromisoformat(facts["begun"])
        return Unfinished(str(facts["bucket"]), str(facts["key"]), facts.get("upload"), begun)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
