"""What every move between a machine and a bucket has in common."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gpuctl.errors import RemoteError, StoreError
from gpuctl.remote.connection import Connection, Progress
from gpuctl.remote.local import LocalConnection
from gpuctl.store.bucket import Bucket

_PREFIX = "passing-on-"
_ABANDONED_SECONDS = 2 * 86400
BREAKS = 5  # of the link, in a row, that moved nothing


class NothingThere(RemoteError):
    """The machine has no such file or folder."""

    kind = "NothingThere"


@dataclass(frozen=True, slots=True)
class Trip:
    """One move.

    Args:
        connection: to the machine.
        environ: the AWS SDK's own settings; they stay here.
        scratch: a folder here that may hold for a moment what is passed on.
        say: told once which way is taken, and what else a person should know.
        progress: called with (bytes done, bytes in all) while it goes on.
        checksum: compare content, not size and time of change.
        rate: bytes a second at most.
        machine: its name, for errors.
    """

    connection: Connection
    environ: Mapping[str, str]
    scratch: Path
    say: Callable[[str], None] = lambda _: None
    progress: Progress | None = None
    checksum: bool = False
    rate: float | None = None
    machine: str | None = None

    def bucket(self, name: str) -> Bucket:
        """Return a bucket, asked with the caller's credentials."""
        return Bucket(name, self.environ)

    def why_not_straight(self, bucket: Bucket) -> str | None:
        """Say why the machine cannot reach the bucket; None when it may."""
        if bucket.is_on_this_computer and not isinstance(self.connection, LocalConnection):
            return "it is on this computer"
        return None

    def inside(self, path: str) -> str:
        """Return a path of the machine as an absolute one, its ``/`` at the end kept.

        Raises:
            RemoteError: it is outside of a machine that is a folder.
        """
        if isinstance(self.connection, LocalConnection):
            return self.connection.inside(path)
        return path if path.startswith("/") else f"{self.connection.home}/{path}"

    def report(self, done: int, total: int) -> None:
        """Say how far it is; raises when nobody wants it any more."""
        if self.progress is not None:
            self.progress(min(done, total), total)


@contextlib.contextmanager
def passing_through(scratch: Path) -> Iterator[Path]:
    """Make a folder here for what is passed on; it is removed again.

    Raises:
        StoreError: this computer cannot hold it.
    """
    try:
        scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in scratch.glob(f"{_PREFIX}*"):  # by one that was killed
            if left.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(left)
        with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=scratch) as folder:
            yield Path(folder)
    except OSError as error:
        about = f" ({error.filename})" if error.filename else ""
        raise StoreError(
            f"This computer cannot hold what it passes on: {error.strerror or error}{about}",
            next=f"Make room in {scratch}.",
        ) from error
