"""Paths and addresses of train.yaml: where each may point, and where it starts.

Readers take what YAML gave and raise ValueError with one sentence. With a `Place` (where
train.yaml lies) local paths come out absolute; without one they are taken as they are, which is
how a stored spec is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationInfo

from gpuctl.quantities import shown

_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](?:/[^\x00-\x1f\x7f?#]*)?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
_SHELL = re.compile(r"[\x00-\x1f\x7f$`\"'\\;|&<>*?!(){}\[\]#]")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a train.yaml lies, and what ``~`` means to who wrote it."""

    folder: Path  # absolute
    home: str | None = None


def is_s3(text: str) -> bool:
    """Whether a source, target or store is in S3 and not on this computer."""
    return text.startswith("s3://")


def text_of(value: object) -> str:
    """Return text that is not empty and holds no NUL."""
    if not isinstance(value, str):
        hint = "; put it in quotes" if isinstance(value, int | float) else ""
        raise ValueError(f"expected text, got {shown(value)}{hint}")
    if not value.strip():
        raise ValueError("expected text, got nothing")
    if "\x00" in value:
        raise ValueError("a NUL character is not allowed")
    return value


def _within(value: object, root: str) -> str:
    """Read a path that stays inside ``root`` and holds nothing that a shell would change."""
    text = text_of(value)
    if found := _SHELL.search(text):
        raise ValueError(f"the character {found[0]!r} is not allowed in this path: {shown(text)}")
    if text != text.strip():
        raise ValueError(f"spaces around a path are not allowed: {shown(text)}")
    if text.startswith(("/", "~")):
        raise ValueError(f"expected a path relative to {root}, got {shown(text)}")
    if ".." in text.split("/"):
        raise ValueError(f"the path must stay inside {root}: {shown(text)}")
    if any(part.startswith("-") for part in text.split("/")):
        raise ValueError(f"a name that starts with '-' looks like an option: {shown(text)}")
    if re.match(r"[a-z0-9]+://|[A-Za-z]:", text):
        raise ValueError(f"expected a path relative to {root}, got {shown(text)}")
    return text


def in_workdir(value: object) -> str:
    """Return a path relative to the workdir, and inside it."""
    return _within(value, "the workdir")


def below_workdir(value: object) -> str:
    """Return a path inside the workdir that is not the workdir itself."""
    text = in_workdir(value)
    if not text.replace(".", "").strip("/"):
        raise ValueError(f"expected a folder of its own below the workdir, got {shown(text)}")
    return text


def _s3(value: str) -> str:
    found = _S3.fullmatch(value)
    if not found or ".." in value.split("/"):
        raise ValueError(f"expected s3://bucket or s3://bucket/prefix, got {shown(value)}")
    return value


def _checked_url(text: str) -> bool:
    """Whether it is an S3 address. Raises ValueError for any other or a malformed one."""
    if is_s3(text.lower()):
        _s3(text)
        return True
    if _URL.match(text):
        raise ValueError(f"expected a local path or s3://bucket/prefix, got {shown(text)}")
    return False


def local_or_s3(value: object, info: ValidationInfo) -> str:
    """Return an S3 address, or a path on this computer that may be anywhere."""
    text = text_of(value)
    if _checked_url(text) or not isinstance(info.context, Place):
        return text
    return _local_path(text, info.context)


def local_folder(value: object, info: ValidationInfo) -> str:
    """Return a path on this computer that may be anywhere."""
    text = text_of(value)
    if _URL.match(text):
        raise ValueError(f"expected a folder on this computer, got {shown(text)}")
    return _local_path(text, info.context) if isinstance(info.context, Place) else text


def _local_path(text: str, place: Place) -> str:
    if any(character < " " or character == "\x7f" for character in text):
        raise ValueError(f"control characters are not allowed in a path: {shown(text)}")
    if text == "~" or text.startswith("~/"):
        if not place.home:
            raise ValueError("'~' is used and HOME is not set")
        text = place.home + text[1:]
    elif text.startswith("~"):
        raise ValueError(f"only '~/' is understood, not the home of others: {shown(text)}")
    return str(place.folder / text)


def target(value: object, info: ValidationInfo) -> str:
    """Return an S3 address, or a path on this computer inside train.yaml's folder."""
    text = text_of(value)
    if _checked_url(text) or not isinstance(info.context, Place):
        return text
    return str(info.context.folder / _within(text, "train.yaml's folder"))
