"""Every way out that is not success: what is said, and with which exit code."""

from __future__ import annotations

import os
import platform
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from gpuctl import __version__
from gpuctl.cli.output import NobodyListens, Partial, from_provider, show_error, wants_json
from gpuctl.errors import Exit, GpuctlError, Interrupted, UsageError
from providers.base import ProviderError

_BROKEN_PIPE = 141  # as if SIGPIPE had ended it, which is what shells expect
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL", re.IGNORECASE)
_SHORTEST_SECRET = 6


def report(error: BaseException, argv: Sequence[str]) -> int:
    """Tell a person (and with ``--json`` a program) how a command ended; return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(bool(error.code))
    try:
        return _reported(error, argv)
    except NobodyListens:
        return _leave_stdout(_BROKEN_PIPE)
    except OSError:
        # Stdout takes no more (its disk is full, say); stderr was told what happened.
        return _leave_stdout(Exit.FAILED)


def _reported(error: BaseException, argv: Sequence[str]) -> int:
    as_json = wants_json(argv)
    if isinstance(error, (NobodyListens, BrokenPipeError)):
        return _leave_stdout(_BROKEN_PIPE)
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, click.ClickException):
        error.show()
        if as_json:
            from gpuctl.cli.output import emit, error_shape

            emit({"error": error_shape(UsageError(error.format_message(), next=_usage(error)))})
        return error.exit_code
    document = error.document if isinstance(error, Partial) else {}
    told = _for_people(error.error if isinstance(error, Partial) else error, argv)
    show_error(told, as_json=as_json, document=document)
    return int(told.exit_code)


def _for_people(error: BaseException, argv: Sequence[str]) -> GpuctlError:
    if isinstance(error, GpuctlError):
        return error
    if isinstance(error, ProviderError):
        return from_provider(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return Interrupted("Interrupted")
    where = _write_crash(error, argv)
    if isinstance(error, OSError):
        # Disks fill up and files vanish: nobody's bug, and still worth the details.
        about = f" ({error.filename})" if error.filename else ""
        return GpuctlError(
            f"The system refused: {error.strerror or type(error).__name__}{about}",
            next=f"Details: {where}. `gpuctl list` shows what is still rented.",
        )
    made = GpuctlError(
        f"This is a bug in gpuctl: {type(error).__name__}; the details are in {where}",
        next="`gpuctl list` shows what is still rented; the watchdog ends it with its lease.",
    )
    made.kind = "Bug"
    return made


def _usage(error: click.ClickException) -> str | None:
    context = error.ctx if isinstance(error, click.UsageError) else None
    return f"See `{context.command_path} --help`." if context else None


def _leave_stdout(code: int) -> int:
    """Let the interpreter end without complaining that stdout cannot be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    return int(code)


def _write_crash(error: BaseException, argv: Sequence[str]) -> str:
    """Keep the details in a file; return where, or why not. Never fails."""
    from gpuctl.home import home_path

    command = next((word for word in argv if not word.startswith("-")), "")
    text = "".join(
        [
            f"gpuctl {__version__} {command}\n",
            f"Python {platform.python_version()} on {platform.platform()}\n\n",
            *traceback.format_exception(error),
        ]
    )
    name = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}.txt"
    try:
        folder = home_path(os.environ) / "crashes"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = folder / name
        file.touch(mode=0o600)
        file.write_text(without_secrets(text, os.environ), encoding="utf-8", errors="replace")
    except OSError as trouble:
        return f"no file, because {trouble.strerror or trouble}"
    return str(Path(file))


def without_secrets(text: str, environ: Mapping[str, str]) -> str:
    """Return a text with the value of everything that is named like a secret taken out."""
    for name, value in environ.items():
        if _SECRET_NAME.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, f"<{name}>")
    return text
