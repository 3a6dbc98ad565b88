"""The `.env` of the working folder: settings for those who do not export them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from gpuctl.errors import UsageError

_LARGEST_BYTES = 1_000_000


def load_dotenv_file(folder: Path | None = None) -> None:
    """Put what ``.env`` says into the environment. What is there already wins.

    A folder of that name (people call virtual environments so) is left alone.

    Raises:
        UsageError: the file cannot be read, or a line of it means nothing.
    """
    # The path stays relative: a working folder that was removed must not stop `gpuctl terminate`.
    file = (folder or Path()) / ".env"
    try:
        if not file.is_file():
            return
        text = _text_of(file)
    except OSError as error:
        raise UsageError(
            f"{file}: cannot be read: {error.strerror or error}",
            next="Make it readable, or run gpuctl from another folder.",
        ) from error
    for name, value in _settings(file, text):
        os.environ.setdefault(name, value)


def _text_of(file: Path) -> str:
    if file.stat().st_size > _LARGEST_BYTES:
        raise UsageError(f"{file}: is larger than 1 MB, so it is no settings file")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{file}: is not text in UTF-8 (byte {error.start})",
            next="Write it as lines of NAME=value.",
        ) from error
    if "\0" in text:
        raise UsageError(f"{file}: is not text: it holds a NUL byte")
    return text


def _settings(file: Path, text: str) -> Iterator[tuple[str, str]]:
    import io

    from dotenv import dotenv_values
    from dotenv.parser import parse_stream

    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            # The line itself is not quoted: it may hold a key.
            raise UsageError(
                f"{file}:{binding.original.line}: expected NAME=value",
                next="Correct the line, or put a # before it.",
            )
    for name, value in dotenv_values(stream=io.StringIO(text)).items():
        if value is not None:
            yield name, value
