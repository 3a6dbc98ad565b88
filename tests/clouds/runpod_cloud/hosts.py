"""The real machine behind a pod: it boots, runs the image's start program, and is killed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from providers.gpus import identify
from tests.clouds.rented import Card, Rented
from tests.clouds.runpod_cloud.catalog import GpuRow

_ASKED = "run/sshd-asked"  # made by the shims when something there starts an sshd
_LOOK_SECONDS = 0.05
_OFFICIAL = "runpod/"
GRACE_SECONDS = 5  # between SIGTERM and SIGKILL of a spot pod

_PROGRAMS = {
    "python": '#!/bin/sh\nexec python3 "$@"\n',  # every PyTorch image has it
    # An image's own package manager and services would be those of this computer.
    "apt-get": "#!/bin/sh\nexit 0\n",
    "apk": "#!/bin/sh\nexit 0\n",
    "service": '#!/bin/sh\n[ "$1 $2" = "ssh start" ] && touch /run/sshd-asked\n',
    "ssh-keygen": "#!/bin/sh\nexit 0\n",
    "sshd": "#!/bin/sh\ntouch /run/sshd-asked\n",
}


class Host:
    """One start of one pod's container.

    Args:
        folder: empty, its own.
        image: RunPod's own start sshd by themselves, unless ``args`` take the place of that.
        env: of everything in the container, but not of an SSH login.
        card: its GPUs.
        port: where its sshd is published.
        refused_seconds: from the moment its port is known to the moment when it answers.
    """

    def __init__(
        self,
        folder: Path,
        *,
        image: str,
        args: str,
        env: Mapping[str, str],
        card: Card | None,
        port: int,
        refused_seconds: float,
    ) -> None:
        self._official = image.startswith(_OFFICIAL) and not args
        self._args = args
        self._refused_seconds = refused_seconds
        key = env.get("PUBLIC_KEY", "") if self._official else ""
        self.rented = Rented(
            folder,
            env=env,
            card=card,
            keys=key.splitlines(),
            programs=_PROGRAMS,
            login_env={},
            address=("127.0.0.1", port),
        )
        self.port: int | None = None  # once it is published
        self._ended = threading.Event()
        self._lock = threading.Lock()
        threading.Thread(target=self._live, name=folder.name, daemon=True).start()

    def end(self) -> None:
        """Kill everything there and remove its disk."""
        self._ended.set()
        with self._lock:
            self.port = None
            self.rented.remove()

    def kill(self) -> None:
        """Kill everything there, as when its host is lost; what the cloud tells stays."""
        self._ended.set()
        with self._lock:
            self.rented.kill()

    def interrupt(self) -> None:
        """Ask everything there to end, and kill it a few seconds later."""

        def work() -> None:
            ended = self._step(lambda: self.rented.start(["kill", "-TERM", "-1"]))
            if ended and not self._ended.wait(GRACE_SECONDS):
                self.kill()

        threading.Thread(target=work, name="interrupt", daemon=True).start()

    def _live(self) -> None:
        if not self._step(self.rented.boot):
            return
        if not self._official:
            if self._args:
                self._step(lambda: self.rented.start(self._args))
            asked = self.rented.folder / _ASKED
            while not asked.exists():
                if self._ended.wait(_LOOK_SECONDS):
                    return
        self.port = self.rented.port
        if not self._ended.wait(self._refused_seconds):
            self._step(self.rented.start_sshd)

    def _step(self, work: Callable[[], object]) -> bool:
        with self._lock:
            if self._ended.is_set():
                return False
            work()
            return True


def card_of(row: GpuRow, count: int) -> Card | None:
    """The cards of a pod, as nvidia-smi tells them."""
    if count == 0:
        return None
    known = identify(row.id, row.memory)
    capability = known.compute_capability if known else None
    return Card(
        row.id, int(row.memory * 1024 * 0.98), count, compute_capability=capability or "8.6"
    )
