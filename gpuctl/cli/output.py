"""What goes to stdout: with ``--json`` exactly one document, and errors as a document too."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from gpuctl.errors import (
    CapReached,
    GpuctlError,
    NoCredentials,
    NothingRentable,
    UsageError,
)
from providers.base import ProviderError

Document = Mapping[str, object]

_PROVIDER_ERRORS: dict[str, type[GpuctlError]] = {
    "AuthFailed": NoCredentials,
    "NoCapacity": NothingRentable,
    "Unsupported": NothingRentable,
    "PriceChanged": CapReached,
    "InvalidRequest": UsageError,
}


class Partial(Exception):
    """A command that failed and still has something to show: both go into one document."""

    def __init__(self, error: GpuctlError, document: Document) -> None:
        super().__init__(error.message)
        self.error = error
        self.document = document


class NobodyListens(Exception):
    """Stdout was closed by whoever read it, as `head` does."""


def write(text: str) -> None:
    """Write a command's result to stdout, at once.

    Raises:
        NobodyListens: stdout is closed. (Not the OSError, which click would answer itself.)
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise NobodyListens from error


def wants_json(argv: Sequence[str]) -> bool:
    """Whether a command line asks for JSON. What follows ``--`` belongs to somebody else."""
    ours = argv[: argv.index("--")] if "--" in argv else argv
    return "--json" in ours


def emit(document: Document) -> None:
    """Print one JSON document on a line of its own, at once."""
    # ASCII only: it survives every terminal and encoding, and holds no escape sequence.
    write(json.dumps(document) + "\n")


def error_shape(error: GpuctlError) -> dict[str, object]:
    """Return an error as JSON shows it."""
    return {
        "kind": error.kind,
        "message": error.message,
        "machine": error.machine,
        "may_bill": error.may_bill,
        "next": error.next,
    }


def from_provider(error: ProviderError) -> GpuctlError:
    """Turn what a provider answered into an error for people, with its exit code."""
    made = _PROVIDER_ERRORS.get(error.kind, GpuctlError)(str(error))
    made.kind = error.kind
    return made


def show_error(error: GpuctlError, *, as_json: bool, document: Document | None = None) -> None:
    """Say on stderr what happened; with JSON also print it beside the partial result."""
    try:
        sys.stderr.write("".join(line + "\n" for line in error_lines(error)))
        sys.stderr.flush()
    except (OSError, ValueError):
        # A terminal that was closed: the exit code and the document still tell.
        pass
    if as_json:
        emit({**(document or {}), "error": error_shape(error)})


def error_lines(error: GpuctlError) -> list[str]:
    """Return what a person reads: what happened, to which machine, what it may cost, what next."""
    from gpuctl.cli.terminal import safe

    lines = [f"gpuctl: {safe(error.message)}"]
    if error.machine and error.machine not in error.message:
        lines.append(f"  machine: {safe(error.machine)}")
    if error.may_bill:
        lines.append("  It may still be billing.")
    if error.next:
        first, *others = error.next.splitlines()
        lines.append(f"  next: {safe(first)}")
        lines += [f"        {safe(other)}" for other in others]
    return lines
