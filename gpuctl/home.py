"""GPUCTL_HOME: where everything of one user on one computer is kept, and whose it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuctl.errors import UsageError
from gpuctl.names import new_owner

_OWNER = re.compile(r"^[0-9a-f]{6,32}$")


@dataclass(frozen=True, slots=True)
class Home:
    """The folder and the paths in it. Made with mode 0700: it holds keys."""

    path: Path
    owner: str

    @property
    def ledger(self) -> Path:
        """The ledger's file."""
        return self.path / "ledger.db"

    @property
    def store(self) -> Path:
        """The default store: a folder a run."""
        return self.path / "store"

    @property
    def runs(self) -> Path:
        """What controllers keep beside the ledger: a folder a run, with its log."""
        return self.path / "runs"

    @property
    def watchdog_lock(self) -> Path:
        """Held by the one watchdog of this home for as long as it lives."""
        return self.path / "watchdog.lock"

    @property
    def watchdog_log(self) -> Path:
        """What the watchdog did and why."""
        return self.path / "watchdog.log"


def home_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where the home is, without making it."""
    if given := environ.get("GPUCTL_HOME"):
        return Path(given).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("gpuctl", appauthor=False)


def open_home(environ: Mapping[str, str] = os.environ) -> Home:
    """Return the home, made on first use with an owner id of its own.

    Raises:
        UsageError: the folder cannot be made or written, or GPUCTL_OWNER is malformed.
    """
    path = home_path(environ)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        _keep_out_of_trees(path / ".gitignore")
        owner = environ.get("GPUCTL_OWNER") or _kept_owner(path / "owner")
    except OSError as error:
        raise UsageError(
            f"GPUCTL_HOME {path} cannot be used: {error.strerror or error}",
            next="Set GPUCTL_HOME to a folder that you can write.",
        ) from error
    if not _OWNER.match(owner):
        raise UsageError(
            f"The owner id {owner!r} is not 6 to 32 lower-case hexadecimal digits",
            next="Correct GPUCTL_OWNER, or the file 'owner' in GPUCTL_HOME.",
        )
    return Home(path, owner)


def _keep_out_of_trees(file: Path) -> None:
    """A home inside somebody's project is neither committed nor sent to a machine with it."""
    if not file.exists():
        file.write_text("*\n")


def _kept_owner(file: Path) -> str:
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        pass
    draft = file.with_name(f".owner.{os.getpid()}")
    draft.write_text(new_owner() + "\n")
    try:
        # link() makes the first of several starting processes win, and never shows half a file.
        os.link(draft, file)
    except FileExistsError:
        pass
    finally:
        draft.unlink()
    return file.read_text().strip()
