"""Manifests: what a checkpoint or an output consists of, and the proof that it is all there.

The format is that of docs/store-format.md. A manifest that is parsed here may come from a
machine of a stranger, so nothing in it is believed before it was checked.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NoReturn

from gpuctl.errors import StoreError

FORMAT = 1
MAX_BLOB_BYTES = 64 * 1024 * 1024
MAX_MANIFEST_BYTES = 32 * 1024 * 1024
MAX_ATTEMPT = 9999
MAX_SEQ = 999_999

Kind = Literal["checkpoint", "output"]

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")
_KEY = re.compile(r"manifests/a(\d{4})-(\d{6})\.json")
_MAX_MTIME = 1 << 40  # seconds; far beyond what any file system can hold
_MAX_SIZE = 1 << 63
_MAX_STEP = 10**255  # a name has at most 255 characters
_MAX_PATH = 4096


class CorruptManifest(StoreError):
    """The bytes are not a manifest, or one that must not be believed."""


class NewerFormat(StoreError):
    """A newer gpuctl wrote this; this one cannot judge it, so it must not touch it either."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Immutable bytes, named by their SHA-256; 1 byte to 64 MiB."""

    sha256: str
    size: int

    @property
    def key(self) -> str:
        """Where the blob lies, relative to the run."""
        return f"blobs/{self.sha256[:2]}/{self.sha256}"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of an entry; an empty one has no blobs."""

    path: str  # relative to the entry; "" when the entry is this file
    mode: int  # permission bits
    mtime: float  # seconds since the epoch
    size: int  # bytes
    sha256: str  # of the whole file
    blobs: tuple[Blob, ...]


@dataclass(frozen=True, slots=True)
class DirRecord:
    """One folder of an entry; "" is the entry itself."""

    path: str
    mode: int


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """One symbolic link in an entry; its target is kept as it was."""

    path: str
    target: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One checkpoint or output, whole."""

    run: str
    attempt: int
    seq: int
    kind: Kind
    name: str
    version: int
    step: int | None
    at: datetime  # UTC
    bytes: int  # sum of the files' sizes
    files: tuple[FileRecord, ...]
    dirs: tuple[DirRecord, ...]
    links: tuple[LinkRecord, ...]

    @property
    def order(self) -> tuple[int, int]:
        """What manifests are sorted by: a higher one is newer."""
        return self.attempt, self.seq

    @property
    def key(self) -> str:
        """Where the manifest lies, relative to the run."""
        return manifest_key(self.attempt, self.seq)

    @property
    def is_file(self) -> bool:
        """Whether the entry is a plain file rather than a folder."""
        return not self.dirs

    def blobs(self) -> Iterator[Blob]:
        """Every blob in the order of the files; the same one may come twice."""
        for file in self.files:
            yield from file.blobs

    def to_json(self) -> builtins.bytes:
        """Return canonical JSON, with the hash of everything else under ``sha256``."""
        document = self._document()
        document["sha256"] = _hash_of(document)
        return _canonical(document)

    def _document(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "run": self.run,
            "attempt": self.attempt,
            "seq": self.seq,
            "kind": self.kind,
            "name": self.name,
            "version": self.version,
            "step": self.step,
            "at": format_moment(self.at),
            "bytes": self.bytes,
            "files": [
                {
                    "path": file.path,
                    "mode": file.mode,
                    "mtime": file.mtime,
                    "size": file.size,
                    "sha256": file.sha256,
                    "blobs": [{"sha256": blob.sha256, "size": blob.size} for blob in file.blobs],
                }
                for file in self.files
            ],
            "dirs": [{"path": folder.path, "mode": folder.mode} for folder in self.dirs],
            "links": [{"path": link.path, "target": link.target} for link in self.links],
        }


def manifest_key(attempt: int, seq: int) -> str:
    """Return the key of a manifest, relative to the run."""
    return f"manifests/a{attempt:04d}-{seq:06d}.json"


def order_in_key(key: str) -> tuple[int, int] | None:
    """Return (attempt, seq) of a manifest's key, or None when it is no such key."""
    found = _KEY.fullmatch(key)
    return (int(found[1]), int(found[2])) if found else None


def format_moment(moment: datetime) -> str:
    """Write a timezone-aware moment as RFC 3339 in UTC with microseconds."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def step_in_name(name: str) -> int | None:
    """Return the last number in an entry's name, or None."""
    numbers = re.findall(r"[0-9]+", name)
    return int(numbers[-1]) if numbers else None


def parse_manifest(content: bytes) -> Manifest:
    """Read a manifest, believing nothing.

    Raises:
        CorruptManifest: not JSON, a key missing, unknown or of the wrong type, a path that
            leaves the entry, sizes that do not add up, or a hash that does not match.
        NewerFormat: ``format`` is higher than this gpuctl knows.
    """
    if len(content) > MAX_MANIFEST_BYTES:
        _refuse(f"it is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        document = json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptManifest(f"The manifest is not JSON: {type(error).__name__}") from error
    top = _Fields(document, "the manifest")
    _check_format(top)
    claimed = top.sha256("sha256")
    try:
        actual = _hash_of({key: value for key, value in document.items() if key != "sha256"})
    except (UnicodeEncodeError, RecursionError) as error:
        raise CorruptManifest(f"The manifest is not UTF-8: {type(error).__name__}") from error
    if claimed != actual:
        _refuse("its own hash does not match")
    kind = top.choice("kind", ("checkpoint", "output"))
    manifest = Manifest(
        run=top.text("run"),
        attempt=top.number("attempt", 1, MAX_ATTEMPT),
        seq=top.number("seq", 1, MAX_SEQ),
        kind="checkpoint" if kind == "checkpoint" else "output",
        name=top.text("name"),
        version=top.number("version", 1, _MAX_SIZE),
        step=None if top.raw("step") is None else top.number("step", 0, _MAX_STEP),
        at=_moment(top.text("at")),
        bytes=top.number("bytes", 0, _MAX_SIZE),
        files=tuple(_file(fields) for fields in top.records("files")),
        dirs=tuple(_dir(fields) for fields in top.records("dirs")),
        links=tuple(_link(fields) for fields in top.records("links")),
    )
    top.nothing_else()
    check_name(manifest.kind, manifest.name)
    _check_shape(manifest)
    return manifest


def check_name(kind: Kind, name: str) -> None:
    """Check that a name is one that an entry of this kind can have.

    Raises:
        CorruptManifest: it is empty, absolute, climbs, or (checkpoint) is not one component.
    """
    parts = name.split("/")
    if not name or "\0" in name or len(name) > _MAX_PATH or name.startswith("/") or ".." in parts:
        _refuse(f"the name {name[:80]!r} is empty, absolute or climbs")
    if kind == "checkpoint" and (len(parts) > 1 or name == "."):
        _refuse(f"the name {name[:80]!r} is not the name of an entry of a folder")


def _refuse(why: str) -> NoReturn:
    raise CorruptManifest(f"The manifest cannot be believed: {why}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _hash_of(document: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(document)).hexdigest()


def _check_format(top: _Fields) -> None:
    number = top.number("format", 1, _MAX_SIZE)
    if number > FORMAT:
        raise NewerFormat(
            f"The store holds a manifest of format {number}; this gpuctl knows {FORMAT}",
            next="Install a newer gpuctl on this computer.",
        )


class _Fields:
    """One JSON object, taken apart with every type checked."""

    def __init__(self, value: object, what: str) -> None:
        if not isinstance(value, dict):
            _refuse(f"{what} is not an object")
        self._value: dict[str, Any] = value
        self._what = what
        self._seen: set[str] = set()

    def raw(self, key: str) -> object:
        if key not in self._value:
            _refuse(f"{self._what} lacks {key!r}")
        self._seen.add(key)
        return self._value[key]

    def text(self, key: str) -> str:
        value = self.raw(key)
        if not isinstance(value, str):
            _refuse(f"{key!r} in {self._what} is not text")
        return value

    def number(self, key: str, low: int, high: int) -> int:
        value = self.raw(key)
        if type(value) is not int or not low <= value <= high:
            _refuse(f"{key!r} in {self._what} is not a whole number from {low}")
        return value

    def seconds(self, key: str) -> float:
        value = self.raw(key)
        # An int stays one: as a float it would be written, and hashed, differently.
        if type(value) not in (int, float) or not isinstance(value, int | float):
            _refuse(f"{key!r} in {self._what} is not a number")
        if abs(value) > _MAX_MTIME:
            _refuse(f"{key!r} in {self._what} is not a moment")
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        value = self.text(key)
        if value not in allowed:
            _refuse(f"{key!r} in {self._what} is none of {', '.join(allowed)}")
        return value

    def sha256(self, key: str) -> str:
        value = self.text(key)
        if not _SHA256.fullmatch(value):
            _refuse(f"{key!r} in {self._what} is not a SHA-256")
        return value

    def path(self, key: str, *, root: bool) -> str:
        value = self.text(key)
        if value == "" and root:
            return value
        if len(value) > _MAX_PATH or "\0" in value:
            _refuse(f"a path in {self._what} is too long or has a zero byte")
        if any(part in ("", ".", "..") for part in value.split("/")):
            _refuse(f"the path {value[:80]!r} is absolute, climbs or is not in plain form")
        return value

    def records(self, key: str) -> list[_Fields]:
        value = self.raw(key)
        if not isinstance(value, list):
            _refuse(f"{key!r} in {self._what} is not a list")
        return [_Fields(item, f"an item of {key!r}") for item in value]

    def nothing_else(self) -> None:
        if unknown := sorted(set(self._value) - self._seen):
            _refuse(f"{self._what} has the unknown key {unknown[0][:40]!r}")


def _moment(text: str) -> datetime:
    if not _AT.fullmatch(text):
        _refuse("'at' is not a moment in UTC")
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise CorruptManifest("The manifest cannot be believed: 'at' is no moment") from error


def _file(fields: _Fields) -> FileRecord:
    record = FileRecord(
        path=fields.path("path", root=True),
        mode=fields.number("mode", 0, 0o7777),
        mtime=fields.seconds("mtime"),
        size=fields.number("size", 0, _MAX_SIZE),
        sha256=fields.sha256("sha256"),
        blobs=tuple(_blob(item) for item in fields.records("blobs")),
    )
    fields.nothing_else()
    if sum(blob.size for blob in record.blobs) != record.size:
        _refuse(f"the blobs of {record.path[:80]!r} do not add up to its size")
    only = _EMPTY_SHA256 if not record.blobs else record.blobs[0].sha256
    if len(record.blobs) < 2 and record.sha256 != only:
        _refuse(f"the hash of {record.path[:80]!r} is not that of its only blob")
    return record


def _blob(fields: _Fields) -> Blob:
    blob = Blob(fields.sha256("sha256"), fields.number("size", 1, MAX_BLOB_BYTES))
    fields.nothing_else()
    return blob


def _dir(fields: _Fields) -> DirRecord:
    record = DirRecord(fields.path("path", root=True), fields.number("mode", 0, 0o7777))
    fields.nothing_else()
    return record


def _link(fields: _Fields) -> LinkRecord:
    record = LinkRecord(fields.path("path", root=False), fields.text("target"))
    fields.nothing_else()
    if not record.target or "\0" in record.target or len(record.target) > _MAX_PATH:
        _refuse(f"the link {record.path[:80]!r} leads nowhere")
    return record


def _check_shape(manifest: Manifest) -> None:
    if manifest.bytes != sum(file.size for file in manifest.files):
        _refuse("the files do not add up to 'bytes'")
    folders = {folder.path for folder in manifest.dirs}
    paths = [file.path for file in manifest.files]
    paths += [folder.path for folder in manifest.dirs]
    paths += [link.path for link in manifest.links]
    if len(set(paths)) != len(paths):
        _refuse("a path is there twice")
    if not manifest.dirs:
        if paths != [""]:
            _refuse("it is neither one file nor a folder")
    elif "" not in folders:
        _refuse("the folder itself is not in 'dirs'")
    for path in paths:
        if path and path.rpartition("/")[0] not in folders:
            _refuse(f"the folder of {path[:80]!r} is not in 'dirs'")
    sizes: dict[str, int] = {}
    for blob in manifest.blobs():
        if sizes.setdefault(blob.sha256, blob.size) != blob.size:
            _refuse("a blob has two sizes")
